#!/usr/bin/env python3
"""Ports without a stack, beside DPDK's testpmd: bench/l2.py [--seconds=N] [--rounds=N] [--json=FILE] [--join FILE...]

One core sends 64-byte frames into a veth from within the kernel (frame_source), the other runs what is measured: `sluice bench` or testpmd
with net_af_xdp; in turn, several rounds, medians. l2fwd is counted by the kernel of a third namespace, rx by who receives. The share of the
sent frames that was counted says what the bound is: below 100 % who is measured, at 100 % the generator. Frames by CPU second are those of
whoever is measured, which polls without end. Needs root, a release build with the target frame_source and, for the comparison, dpdk-testpmd
(Debian: dpdk-dev). Two cores.
"""
import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SLUICE = os.environ.get("SLUICE_BIN", os.path.join(ROOT, "build/release/sluice"))
SOURCE = os.environ.get("FRAME_SOURCE_BIN", os.path.join(ROOT, "build/release/bench/frame_source"))
TESTPMD = "/usr/bin/dpdk-testpmd"
NAMES = {role: f"l2{role}{os.getpid()}" for role in ("gen", "dut", "sink")}


def sh(*argv, check=True):
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=check).stdout


def inside(role, *argv, cpu=None):
    pin = ["taskset", "-c", str(cpu)] if cpu is not None else []
    return ["ip", "netns", "exec", NAMES[role], *pin, *argv]


@contextlib.contextmanager
def network():
    """gen:g0 == dut:v0, dut:v1 == sink:s0, without IPv6 chatter."""
    try:
        for name in NAMES.values():
            sh("ip", "netns", "add", name)
            for scope in ("all", "default"):
                sh("ip", "netns", "exec", name, "sysctl", "-qw", f"net.ipv6.conf.{scope}.disable_ipv6=1")
        for a, an, b, bn in (("g0", "gen", "v0", "dut"), ("v1", "dut", "s0", "sink")):
            sh("ip", "link", "add", a, "netns", NAMES[an], "type", "veth", "peer", "name", b, "netns", NAMES[bn])
            sh("ip", "-n", NAMES[an], "link", "set", a, "up")
            sh("ip", "-n", NAMES[bn], "link", "set", b, "up")
        yield
    finally:
        for name in NAMES.values():
            sh("ip", "netns", "del", name, check=False)


def sink_frames():
    return json.loads(sh("ip", "-n", NAMES["sink"], "-s", "-j", "link", "show", "s0"))[0]["stats64"]["rx"]["packets"]


def generate(seconds):
    """Frames sent in all and the seconds it took."""
    result = json.loads(sh(*inside("gen", SOURCE, "g0", str(seconds), cpu=0)))
    return result["tx_frames"], result["seconds"]


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start_sluice(mode, xdp_mode, devices):
    argv = inside("dut", SLUICE, "--link=xdp", "--poll=busy", "bench", mode, *[f"--device={d}" for d in devices], f"--xdp-mode={xdp_mode}", "--json", cpu=1)
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    wait(lambda: "xdp" in sh("ip", "-n", NAMES["dut"], "link", "show", devices[-1]), process)

    def stop():
        process.send_signal(signal.SIGTERM)
        return json.loads(process.communicate(timeout=30)[0])["rx_frames"]
    return process.pid, stop


def start_testpmd(mode, _, devices):
    vdevs = [f"--vdev=net_af_xdp{i},iface={d}" for i, d in enumerate(devices)]
    argv = inside("dut", TESTPMD, "--lcores", "0@0,1@1", "--no-huge", "-m", "256", "--no-pci", "--no-shconf", "--no-telemetry", "--iova-mode=va",
                  f"--file-prefix=l2-{os.getpid()}", *vdevs, "--", "--nb-cores=1", f"--forward-mode={'rxonly' if mode == 'rx' else 'io'}",
                  "--total-num-mbufs=16384", "--no-mlockall")
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait(lambda: "xdp" in sh("ip", "-n", NAMES["dut"], "link", "show", devices[-1]), process)
    time.sleep(1)  # it says nothing when it forwards

    def stop():
        out = process.communicate("\n", timeout=30)[0]
        subprocess.run(["rm", "-rf", f"/var/run/dpdk/l2-{os.getpid()}"], check=False)
        m = re.search(r"Forward statistics for port 0 .*?RX-packets: (\d+)", out, re.S)
        if m is None:
            raise SystemExit("testpmd: " + out)
        return int(m.group(1))
    return process.pid, stop


def wait(condition, process):
    for _ in range(200):
        if process.poll() is not None:
            raise SystemExit(f"ended with {process.returncode}: {' '.join(process.args)}\n{process.communicate()[0]}")
        if condition():
            return
        time.sleep(0.05)
    process.kill()
    raise SystemExit(f"no start: {' '.join(process.args)}")


def measure(start, mode, xdp_mode, seconds):
    """Million frames per second and per CPU second, and the share of what was sent."""
    with network():
        if xdp_mode == "generic":
            sh(*inside("dut", "ethtool", "-K", "v0", "gro", "on"))  # else the veth takes no frames from XDP
        pid, stop = start(mode, xdp_mode, ["v0", "v1"] if mode == "l2fwd" else ["v0"])
        try:
            before, cpu = sink_frames(), cpu_seconds(pid)
            sent, took = generate(seconds)
            forwarded, cpu = sink_frames() - before, cpu_seconds(pid) - cpu
        finally:
            received = stop()
        frames = forwarded if mode == "l2fwd" else received
        return frames / took / 1e6, frames / cpu / 1e6, frames / sent


def show(results, seconds):
    rounds = len(next(iter(results["l2fwd"].values())))
    print(f"kernel {os.uname().release}, 64-byte frames, {rounds} rounds of {seconds} s, median (least-most) of million frames per second")
    for mode, rows in results.items():
        base = statistics.median(v[0] for v in rows["testpmd net_af_xdp"]) if "testpmd net_af_xdp" in rows else None
        for name, values in rows.items():
            rates, by_cpu, shares = zip(*values)
            median = statistics.median(rates)
            ratio = f"  {median / base:.2f}x of testpmd" if base else ""
            print(f"{mode:6} {name:20} {median:6.3f} ({min(rates):.3f}-{max(rates):.3f}), {statistics.median(by_cpu):6.3f} by CPU second, "
                  f"{statistics.median(shares):4.0%} of what was sent{ratio}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--join", nargs="+", metavar="FILE", help="measures nothing: one table of runs that were saved by --json")
    args = parser.parse_args()
    subjects = {"sluice xdp native": (start_sluice, "native"), "sluice xdp generic": (start_sluice, "generic")}
    if os.path.exists(TESTPMD):
        subjects["testpmd net_af_xdp"] = (start_testpmd, "")
    elif not args.join:
        print("testpmd is not installed (dpdk-dev): only sluice is measured")
    results, seconds = {}, args.seconds
    for i, path in enumerate(args.join or ()):
        with open(path, encoding="utf-8") as f:
            saved = json.load(f)
        if i > 0 and saved["seconds"] != seconds:
            sys.exit(f"{path}: rounds of {saved['seconds']} s, those before of {seconds} s")
        seconds = saved["seconds"]
        for mode, rows in saved["results"].items():
            for name, values in rows.items():
                results.setdefault(mode, {}).setdefault(name, []).extend(values)
    for mode in ("l2fwd", "rx") if not args.join else ():
        for _ in range(args.rounds):
            for name, (start, xdp_mode) in subjects.items():
                results.setdefault(mode, {}).setdefault(name, []).append(measure(start, mode, xdp_mode, seconds))
    show(results, seconds)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"seconds": seconds, "results": results}, f)
    return 0


if __name__ == "__main__":
    sys.exit(main())
