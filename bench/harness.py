#!/usr/bin/env python3
"""Real workloads, side by side: the same unmodified server on the plain kernel, under sluice over each of its ports, and in containers.

  scripts/bench [--rounds=5] [--seconds=3] [--work=REGEX] [--modes=LIST] [--runsc=PATH] [--output=DIRECTORY] [--publish]
  scripts/bench --no-setup --join RESULT.json... [--publish]   (one table and plot of runs that were made in pieces)

Modes are those of bench/modes.py. Every round runs all modes of a workload one after the other (interleaved), so that a slow phase of the
machine hits all alike; the table gives medians and the ratio to the kernel of the same run. The kernel uses cubic on both sides. Nothing is
pinned. Results: a table on standard output; JSON, Markdown (with the spread) and SVG in bench/results/; --publish puts them into README.md
and docs/ as well.
"""
import argparse
import dataclasses
import datetime
import json
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("SLUICE_TEST_RUN", f"slt{os.getpid()}")
sys.path.insert(0, os.path.join(ROOT, "tests/integration"))  # its harness, not this file
import report  # noqa: E402
from harness import SLUICE  # noqa: E402
from modes import MODES, RR, Bed, NotMeasured  # noqa: E402
from workloads import WORKS  # noqa: E402

NAMES = [name for work in WORKS for name, *_ in work.figures]


def measure(work, mode, seconds):
    """The figures, or None and why there are none."""
    bed = Bed(mode)
    try:
        bed.setUp()
        return work.run(bed, seconds), None
    except NotMeasured as e:
        return None, report.NOT_MEASURED + str(e)
    except (AssertionError, OSError, ValueError, KeyError, AttributeError, subprocess.SubprocessError) as e:
        return None, " ".join(str(e).split())[:300] or repr(e)
    finally:
        bed.doCleanups()


def run(work, modes, options):
    """One workload in all modes, interleaved: an entry of the results for each of its figures."""
    samples = {m: [] for m in modes}
    problems = {}
    for _ in range(options.rounds):
        for m in modes:
            values, problem = measure(work, modes[m], options.seconds)
            if problem:
                problems[m] = problem
            else:
                samples[m].append(values)
    return [entry(figure, {m: [v[i] for v in s] for m, s in samples.items()}, problems) for i, figure in enumerate(work.figures)]


def entry(figure, samples, problems):
    name, unit, more = figure
    median = {m: statistics.median(s) if s else None for m, s in samples.items()}
    base = median.get("kernel")
    ratio = {m: (v / base if v is not None and base else None) for m, v in median.items()}
    print("; ".join(f"{m} {v:.2f}" if v is not None else f"{m} failed ({problems.get(m)})" for m, v in median.items()) + f"  {name}, {unit}",
          flush=True)
    return {"work": name, "unit": unit, "more_is_better": more, "median": median, "ratio": ratio, "samples": samples, "problems": problems}


def version(*argv, pattern=r"\S.*"):
    """What a program says of itself, by whatever stream."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
        return re.search(pattern, done.stdout + done.stderr).group(0).strip()
    except (OSError, AttributeError):
        return "not installed"


def runsc_version(path):
    """What runsc says of itself; one made by `go install` knows no version, but carries its module's."""
    said = version(path, "--version")
    return said if "VERSION_MISSING" not in said else version("go", "version", "-m", path, pattern=r"gvisor\.dev/gvisor\s+v\S+").replace("\t", " ")


def device_facts():
    """Congestion control and MTU as a bed has them."""
    bed = Bed(MODES["kernel"])
    try:
        bed.setUp()
        control = {bed.net.inside.run("sysctl", "-n", "net.ipv4.tcp_congestion_control").stdout.strip(),
                   bed.net.peer.run("sysctl", "-n", "net.ipv4.tcp_congestion_control").stdout.strip()}
        return {"congestion_control": ", ".join(sorted(control)) + " on both sides", "mtu": json.loads(bed.net.inside.run("ip", "-j", "link", "show", "eth0").stdout)[0]["mtu"]}
    finally:
        bed.doCleanups()


def environment(options, runsc):
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        cpu = re.search(r"model name\s*:\s*(.*)", f.read())
    return {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["scripts/bench", *(a for a in sys.argv[1:] if not a.startswith(("--publish", "--output")))]),
        "kernel": platform.release(), "cpu": cpu.group(1) if cpu else platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0],
        **device_facts(), "placement": "nothing pinned", "device": "veth (tap: a TAP device)",
        "rounds": options.rounds, "seconds": options.seconds,
        "commit": version("git", "-C", ROOT, "rev-parse", "--short", "HEAD"),
        "nginx": version("/usr/sbin/nginx", "-v"), "iperf3": version("iperf3", "--version"), "redis": version("redis-server", "--version"),
        "wrk": version("wrk", "-v", pattern=r"wrk \S+"), "memcached": version("memcached", "-V"), "memaslap": version("memcaslap", "-V", pattern=r"memaslap \S+"),
        "runc": version("runc", "--version"), "runsc": runsc_version(runsc) if runsc else f"not installed ({options.runsc})",
    }


def join(paths):
    """Results that were measured in pieces as one; each workload's ratios stay those of its own run."""
    pieces = []
    for path in paths:
        with open(path, encoding="utf-8") as f:
            pieces.append(json.load(f))
    results = sorted((r for p in pieces for r in p["results"]), key=lambda r: NAMES.index(r["work"]) if r["work"] in NAMES else len(NAMES))
    env = {**pieces[-1]["environment"], "command": "; ".join(p["environment"].get("command", "") for p in pieces)}
    return env, results


def choose_modes(options, runsc):
    chosen = {}
    for name in options.modes.split(","):
        if name not in MODES:
            sys.exit(f"--modes={name}: there is no such mode; modes are {', '.join(MODES)}")
        if name != "runsc" or runsc:
            chosen[name] = MODES[name] if name != "runsc" else dataclasses.replace(MODES[name], binary=runsc)
    return chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--work", default="")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--runsc", default="runsc", help="path of runsc; where there is none, a row of the table says so")
    parser.add_argument("--output", default=os.path.join(ROOT, "bench/results"))
    parser.add_argument("--join", nargs="+", metavar="JSON")
    parser.add_argument("--publish", action="store_true", help="the tables and the plot of README.md and docs/ become these results")
    options = parser.parse_args()
    if options.join:
        env, results = join(options.join)
    else:
        if os.geteuid() != 0:
            sys.exit("bench: network namespaces need root")
        if not os.path.exists(RR) or not os.path.exists(SLUICE):
            sys.exit("bench: build the release preset first (scripts/bench does)")
        runsc = shutil.which(options.runsc)
        chosen = choose_modes(options, runsc)
        env = environment(options, runsc)
        for key, value in env.items():
            print(f"{key}={value}")
        results = [r for w in WORKS if any(re.search(options.work, name) for name, *_ in w.figures) for r in run(w, chosen, options)]
    shown = [m for m in MODES if any(m in r["median"] for r in results)]
    report.save(env, results, shown, options.output)
    if options.publish:
        report.publish(env, results, shown)
    return 1 if any(report.failed(r, m) for r in results for m in r["problems"]) else 0


if __name__ == "__main__":
    sys.exit(main())
