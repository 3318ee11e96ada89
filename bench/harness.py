#!/usr/bin/env python3
"""Real workloads, side by side: the same unmodified server behind a veth on the plain kernel and under sluice, clients on a kernel peer.

  scripts/bench [--rounds=5] [--seconds=3] [--work=REGEX] [--modes=kernel,packet,packet-nogso,xdp,xdp-nogso,host] [--output=DIRECTORY]
  scripts/bench --no-setup --join RESULT.json...   (one table and plot of runs that were made in pieces)

Every round runs all modes of a workload one after the other (interleaved), so that a slow phase of the machine hits all alike; the table
gives medians and the ratio to the kernel of the same run. The kernel uses cubic on both sides. Nothing is pinned.
Results: a table on standard output; JSON, Markdown (with the spread) and SVG in bench/results/.
"""
import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("SLUICE_TEST_RUN", f"slt{os.getpid()}")
sys.path.insert(0, os.path.join(ROOT, "tests/integration"))
import harness  # noqa: E402
import processes  # noqa: E402
from harness import INSIDE, PEER, SLUICE  # noqa: E402

RR = os.path.join(ROOT, "build/release/bench/rr")
MODES = {  # name: sluice's flags; None = the plain kernel
    "kernel": None,
    "packet": ("--link=packet",),
    "packet-nogso": ("--link=packet", "--gso=false"),
    "xdp": ("--link=xdp",),
    "xdp-nogso": ("--link=xdp", "--gso=false"),
    "host": ("--network=host",),
}


class Bed(harness.SluiceTest):
    """One pair of namespaces, as the integration tests have it."""
    def runTest(self):
        pass

    def start_inside(self, flags, *argv, **kw):
        if flags is None:
            return self._start(self.net.inside.argv(*argv), **kw)
        return self.inside(*argv, flags=flags, **kw)


def nginx_argv(directory):
    with open(f"{directory}/nginx.conf", "w", encoding="utf-8") as f:
        f.write(f"worker_processes 2; pid {directory}/pid; error_log {directory}/error.log; daemon off;\n"
                "events { worker_connections 1024; }\n"
                f"http {{ access_log off; keepalive_requests 1000000000; sendfile on; tcp_nopush on;\n"
                f"  server {{ listen 80; root {directory}; }} }}\n")
    for name, size in (("1k", 1024), ("16k", 16384), ("1m", 1 << 20)):
        with open(f"{directory}/{name}", "wb") as f:
            f.write(b"x" * size)
    return [harness.debian_binary("nginx"), "-c", f"{directory}/nginx.conf", "-e", f"{directory}/error.log"]


REDIS = ("redis-server", "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "")


def iperf3(arguments):
    def work(bed, flags, seconds):
        server = bed.start_inside(flags, "iperf3", "-s", "-1", "--forceflush")
        server.wait_log("Server listening")
        out = bed.peer("iperf3", "-c", INSIDE, "-J", "-t", str(seconds), "-O", "1", *arguments).expect_success()
        result = json.loads(out[out.index("{"):])
        return result["end"]["sum_received"]["bits_per_second"] / 1e9
    return work


def requests_per_ms(out):
    return float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1)) / 1e3


def p99_us(out):
    value, unit = re.search(r"^\s*99%\s+([\d.]+)(us|ms|s)$", out, re.MULTILINE).groups()
    return float(value) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


def nginx(path, arguments=(), result=requests_per_ms):
    def work(bed, flags, seconds):
        server = bed.start_inside(flags, *nginx_argv(bed.directory))
        bed.wait_peer_sees(80, server)
        return result(bed.peer("wrk", "-t2", "-c64", "--latency", f"-d{seconds}s", *arguments, f"http://{INSIDE}/{path}").expect_success())
    return work


def redis(arguments, scale):
    def work(bed, flags, seconds):
        server = bed.start_inside(flags, *REDIS, cwd=bed.directory)
        bed.wait_peer_sees(6379, server)
        count = str(scale * seconds)
        out = bed.peer("redis-benchmark", "-h", INSIDE, "-t", "get", "-n", count, "--csv", *arguments).expect_success(120)
        return float(re.search(r'"GET","([\d.]+)"', out).group(1)) / 1e3
    return work


def request_response(kind, field="per_second", scale=1e3):
    def work(bed, flags, seconds):
        server = bed.start_inside(flags, RR, "serve", "7000")
        server.wait_log("listening")
        bed.wait_peer_sees(7000, server)
        out = bed.peer(RR, kind, INSIDE, "7000", str(seconds)).expect_success()
        return json.loads(out.splitlines()[-1])[field] / scale
    return work


def start_up(bed, flags, _):
    """Milliseconds that one `do true` takes (the kernel row: nsenter and true)."""
    argv = bed.net.inside.argv("true") if flags is None else bed.sandbox_argv("true", flags=flags)
    start = time.monotonic()
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    return (time.monotonic() - start) * 1e3


def idle_cpu(bed, flags, seconds):
    """Percent of one core that sluice's processes and an idle server use."""
    server = bed.start_inside(flags, RR, "serve", "7000")
    server.wait_log("listening")
    bed.wait_peer_sees(7000, server)
    time.sleep(1)  # the connection of the check above ends
    pids = [server.pid, *processes.children(server.pid)]
    before = processes.cpu_seconds(pids)
    time.sleep(seconds)
    return (processes.cpu_seconds(pids) - before) / seconds * 100


def memory(bed, flags, _):
    """PSS in MiB of all processes that are sluice's own (not the server's)."""
    server = bed.start_inside(flags, RR, "serve", "7000")
    server.wait_log("listening")
    if flags is None:
        return 0.0
    own = [p for p in [server.pid, *processes.children(server.pid)] if "sluice" in os.path.basename(os.readlink(f"/proc/{p}/exe"))]
    return processes.pss_kib(own) / 1024


def many_starts(bed, flags, _):
    """Milliseconds for each of 20 `do true` that are started at once, in namespaces of their own (the kernel row: unshare and true)."""
    count = 20
    argv = ["unshare", "--net", "true"] if flags is None else [SLUICE, *flags, "do", "--", "true"]
    start = time.monotonic()
    running = [subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(count)]
    for p in running:
        _, errors = p.communicate(timeout=120)
        if p.returncode != 0:
            raise AssertionError(f"{' '.join(argv)}: status {p.returncode}: {errors}")
    return (time.monotonic() - start) * 1e3 / count


def available_kib():
    with open("/proc/meminfo", encoding="utf-8") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("MemAvailable:"))


def idle_connection(bed, flags, _):
    """KiB of the machine's memory that an idle TCP connection takes, both ends (the client's is the kernel's)."""
    count = 8000
    server = bed.start_inside(flags, RR, "serve", "7000")
    server.wait_log("listening")
    bed.wait_peer_sees(7000, server)
    before = available_kib()
    client = bed.peer(RR, "hold", INSIDE, "7000", str(count), stdin=subprocess.PIPE)
    client.wait_log("holding")
    taken = available_kib() - before
    client.process.stdin.close()
    client.expect_success()
    return -taken / count


WORKS = [  # name, unit, function, more is better
    ("iperf3 in, 1 stream", "Gbps", iperf3([]), True),
    ("iperf3 out, 1 stream", "Gbps", iperf3(["-R"]), True),
    ("iperf3 in, 16 streams", "Gbps", iperf3(["-P", "16"]), True),
    ("iperf3 out, 16 streams", "Gbps", iperf3(["-R", "-P", "16"]), True),
    ("nginx 1 KiB keep-alive, wrk -c64", "k/s", nginx("1k"), True),
    ("nginx 1 KiB keep-alive p99", "us", nginx("1k", result=p99_us), False),
    ("nginx 16 KiB keep-alive, wrk -c64", "k/s", nginx("16k"), True),
    ("nginx 1 MiB keep-alive, wrk -c64", "k/s", nginx("1m"), True),
    ("nginx 1 KiB, connection each", "k/s", nginx("1k", ("-H", "Connection: close")), True),
    ("redis GET -c50", "k/s", redis(["-c", "50"], 20000), True),
    ("redis GET -c50 -P16", "k/s", redis(["-c", "50", "-P", "16"], 200000), True),
    ("TCP 1 B request/response", "k/s", request_response("tcp"), True),
    ("TCP 1 B request/response p99", "us", request_response("tcp", "p99_us", 1), False),
    ("TCP connection per request", "k/s", request_response("crr"), True),
    ("TCP connection per request p99", "us", request_response("crr", "p99_us", 1), False),
    ("UDP 1 B request/response", "k/s", request_response("udp"), True),
    ("UDP 1 B request/response p99", "us", request_response("udp", "p99_us", 1), False),
    ("start-up: do true", "ms", start_up, False),
    ("start-up: 20 x do true at once", "ms each", many_starts, False),
    ("memory of an idle connection", "KiB", idle_connection, False),
    ("idle CPU", "% of a core", idle_cpu, False),
    ("memory of our processes", "MiB PSS", memory, False),
]


def measure(work, flags, seconds):
    bed = Bed("runTest")
    bed.setUp()
    try:
        return work(bed, flags, seconds), None
    except (AssertionError, OSError, ValueError, KeyError, AttributeError, subprocess.SubprocessError) as e:
        return None, (str(e).strip().splitlines() or [repr(e)])[0][:300]
    finally:
        bed.doCleanups()


def version(*argv):
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False).stdout.strip().splitlines()[0]
    except (OSError, IndexError):
        return "unknown"


def environment(options):
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        cpu = re.search(r"model name\s*:\s*(.*)", f.read())
    return {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "kernel": platform.release(), "cpu": cpu.group(1) if cpu else platform.machine(), "cores": os.cpu_count(),
        "congestion_control": "cubic, both sides", "mtu": 1500, "placement": "not pinned", "device": "veth",
        "rounds": options.rounds, "seconds": options.seconds,
        "commit": version("git", "-C", ROOT, "rev-parse", "--short", "HEAD"),
        "nginx": subprocess.run(["/usr/sbin/nginx", "-v"], capture_output=True, text=True, check=False).stderr.strip(),
        "iperf3": version("iperf3", "--version"), "redis": version("redis-server", "--version"), "wrk": "Debian's package",
    }


def table(results, modes):
    width = max(len(name) for name, *_ in WORKS)
    lines = [" | ".join(["work".ljust(width), "unit".ljust(11), *(m.rjust(16) for m in modes)])]
    lines.append("-" * len(lines[0]))
    for r in results:
        cells = []
        for m in modes:
            value, ratio = r["median"].get(m), r["ratio"].get(m)
            if m not in r["median"]:
                cells.append("")  # joined results: this workload ran without this mode
            elif value is None:
                cells.append("failed")
            else:
                cells.append(f"{value:.2f}" + (f" ({ratio:.2f}x)" if ratio is not None and m != "kernel" else ""))
        lines.append(" | ".join([r["work"].ljust(width), r["unit"].ljust(11), *(c.rjust(16) for c in cells)]))
    return "\n".join(lines)


def markdown(results, modes):
    rows = [["work", "unit", *modes], ["---"] * (2 + len(modes))]
    for r in results:
        cells = []
        for m in modes:
            value, ratio, samples = r["median"].get(m), r["ratio"].get(m), r["samples"].get(m)
            if value is None:
                cells.append("failed" if m in r["median"] else "")
                continue
            spread = f" [{min(samples):.2f} to {max(samples):.2f}]"
            cells.append(f"{value:.2f}{spread}" + (f" {ratio:.2f}x" if ratio is not None and m != "kernel" else ""))
        rows.append([r["work"], r["unit"], *cells])
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def svg(results, modes, title):
    """Bars of the ratio to the kernel, one group for each workload where more is better."""
    colours = ["#8b8b8b", "#1f6feb", "#79b8ff", "#2da44e", "#85e0a3", "#bf8700"]
    rows = [r for r in results if r["more_is_better"]]
    bar, gap, left, scale = 12, 14, 260, 300
    shown = [m for m in modes if m != "kernel"]
    height = 50 + len(rows) * (bar * len(shown) + gap) + 30
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + scale * 2 + 60}" height="{height}" font-family="sans-serif" font-size="11">',
           f'<text x="10" y="18" font-size="13">{title}</text>']
    for i, m in enumerate(shown):
        out.append(f'<rect x="{left + i * 110}" y="26" width="10" height="10" fill="{colours[1 + i % 5]}"/>'
                   f'<text x="{left + 14 + i * 110}" y="35">{m}</text>')
    y = 50
    for r in rows:
        out.append(f'<text x="{left - 8}" y="{y + bar * len(shown) / 2 + 4}" text-anchor="end">{r["work"]}</text>')
        for i, m in enumerate(shown):
            ratio = r["ratio"].get(m)
            if ratio is not None:
                out.append(f'<rect x="{left}" y="{y}" width="{min(ratio, 2) * scale:.0f}" height="{bar - 1}" fill="{colours[1 + i % 5]}"/>'
                           f'<text x="{left + min(ratio, 2) * scale + 4:.0f}" y="{y + 10}">{ratio:.2f}x</text>')
            y += bar
        y += gap
    out.append(f'<line x1="{left + scale}" y1="44" x2="{left + scale}" y2="{y}" stroke="#444" stroke-dasharray="3"/>'
               f'<text x="{left + scale}" y="{y + 14}" text-anchor="middle">the plain kernel</text></svg>')
    return "\n".join(out)


def run(work, modes, options):
    """One workload in all modes, interleaved: its entry of the results."""
    name, unit, function, more = work
    samples = {m: [] for m in modes}
    problems = {}
    for _ in range(options.rounds):
        for m in modes:
            value, problem = measure(function, MODES[m], options.seconds)
            if problem:
                problems[m] = problem
            else:
                samples[m].append(value)
    median = {m: statistics.median(s) if s else None for m, s in samples.items()}
    base = median.get("kernel")
    ratio = {m: (v / base if v is not None and base else None) for m, v in median.items()}
    print("; ".join(f"{m} {v:.2f}" if v is not None else f"{m} failed ({problems.get(m)})" for m, v in median.items()) + f"  {name}, {unit}",
          flush=True)
    return {"work": name, "unit": unit, "more_is_better": more, "median": median, "ratio": ratio, "samples": samples, "problems": problems}


def save(env, results, directory):
    modes = [m for m in MODES if any(m in r["median"] for r in results)]
    print("\n" + table(results, modes))
    os.makedirs(directory, exist_ok=True)
    stem = os.path.join(directory, env["time"].replace(":", "").split("+")[0])
    with open(f"{stem}.json", "w", encoding="utf-8") as f:
        json.dump({"environment": env, "results": results}, f, indent=1)
    with open(f"{stem}.md", "w", encoding="utf-8") as f:
        f.write(markdown(results, modes))
    with open(f"{stem}.svg", "w", encoding="utf-8") as f:
        f.write(svg(results, modes, f"sluice against the plain kernel {env['kernel']}, {env['cores']} cores, {env['commit']}"))
    print(f"\nsaved {stem}.json, .md and .svg")


def join(paths, directory):
    """Results that were measured in pieces as one; each workload's ratios stay those of its own run."""
    pieces = []
    for path in paths:
        with open(path, encoding="utf-8") as f:
            pieces.append(json.load(f))
    order = [name for name, *_ in WORKS]
    results = sorted((r for p in pieces for r in p["results"]), key=lambda r: order.index(r["work"]))
    save(pieces[-1]["environment"], results, directory)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--work", default="")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--output", default=os.path.join(ROOT, "bench/results"))
    parser.add_argument("--join", nargs="+", metavar="JSON")
    options = parser.parse_args()
    if options.join:
        return join(options.join, options.output)
    modes = options.modes.split(",")
    for m in modes:
        if m not in MODES:
            sys.exit(f"--modes={m}: there is no such mode; modes are {', '.join(MODES)}")
    if os.geteuid() != 0:
        sys.exit("bench: network namespaces need root")
    if not os.path.exists(RR) or (modes != ["kernel"] and not os.path.exists(SLUICE)):
        sys.exit("bench: build the release preset first (scripts/bench does)")
    env = environment(options)
    for key, value in env.items():
        print(f"{key}={value}")
    results = [run(w, modes, options) for w in WORKS if re.search(options.work, w[0])]
    save(env, results, options.output)
    return 1 if any(r["problems"] for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
