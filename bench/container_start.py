#!/usr/bin/env python3
"""What our stack adds to the start of a container, and what it keeps: `docker run --rm busybox true` with runc, with sluice and, where it is given, with runsc by turns, on a dockerd of its own.

  bench/container_start.py [--runs=20] [--phases] [--runsc=PATH]

Prints the medians, quartiles and the difference, and the memory (PSS) of all processes of the sandbox of an idle container; --phases runs as many again with a script around the runtime that notes when each OCI
command begins and ends, and prints the medians of each (the script costs both the same few milliseconds).
Needs root, a release build and Docker (scripts/setup --engines). Nothing is pinned; run it on a quiet machine.
"""
import argparse
import collections
import json
import os
import shutil
import statistics
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("SLUICE_TEST_RUN", f"slt{os.getpid()}")
sys.path.insert(0, os.path.join(ROOT, "tests/engines"))
from docker_host import SLUICE, DockerHost, busybox  # noqa: E402

# Notes "COMMAND BEGIN END", in microseconds.
TIMED = """#!/bin/bash
begin=${{EPOCHREALTIME/./}}
"{program}" "$@"
status=$?
for word; do case $word in create|start|kill|delete|state) command=$word; break;; esac; done
echo "${{command:-other}} $begin ${{EPOCHREALTIME/./}}" >>"{notes}"
exit $status
"""


class Bed(DockerHost):
    def __init__(self, flags_of_runtimes, runsc):
        self.runsc = runsc
        super().__init__(flags_of_runtimes)

    def _start(self, remapped):
        with open(self.config, encoding="utf-8") as f:
            config = json.load(f)
        if self.runsc:
            config["runtimes"]["runsc"] = {"path": os.path.abspath(self.runsc), "runtimeArgs": [f"--root={self.directory}/runsc"]}
        for name, program in (("runc", shutil.which("runc")), ("sluice", SLUICE)):
            path = f"{self.directory}/{name}-timed"
            with open(path, "w", encoding="utf-8") as f:
                f.write(TIMED.format(program=program, notes=self.notes(name)))
            os.chmod(path, 0o755)
            config["runtimes"][f"{name}-timed"] = {"path": path}
        with open(self.config, "w", encoding="utf-8") as f:
            json.dump(config, f)
        super()._start(remapped)

    def notes(self, name):
        return f"{self.directory}/{name}.notes"

    def run_once(self, runtime):
        begin = time.monotonic()
        self.docker("run", "--rm", f"--runtime={runtime}", "busybox", "true")
        return (time.monotonic() - begin) * 1000

    def idle_memory(self, runtime):
        """MiB of each of the runtime's processes for the only container, which sleeps."""
        self.docker("run", "-d", "--name", "idle", f"--runtime={runtime}", "busybox", "sleep", "1000")
        time.sleep(3)  # what the start used is given back
        sizes = {}
        for line in self.host("ps", "-eo", "pid,comm,args").stdout.splitlines():
            pid, *names = line.split(maxsplit=3)[:3]
            name = next((n for n in names if n.startswith(f"{runtime}-")), None)  # sluice's processes have names, those of runsc a first argument
            if name:
                rollup = self.host("cat", f"/proc/{pid}/smaps_rollup").stdout
                sizes[name] = next(int(one.split()[1]) for one in rollup.splitlines() if one.startswith("Pss:")) / 1024
        self.docker("rm", "-f", "idle")
        return sizes

    def measure(self, runtimes, runs):
        times = collections.defaultdict(list)
        for runtime in runtimes * 2:
            self.run_once(runtime)  # warm
        for _ in range(runs):
            for runtime in runtimes:
                times[runtime].append(self.run_once(runtime))
        return times


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--phases", action="store_true")
    parser.add_argument("--runsc", help="path of runsc, to be measured beside")
    options = parser.parse_args()
    if options.runsc and not os.access(options.runsc, os.X_OK):
        sys.exit(f"container_start: --runsc={options.runsc} is no program that can be run")
    others = ["sluice", "runsc"] if options.runsc else ["sluice"]
    bed = Bed({"sluice": []}, options.runsc)
    try:
        bed.import_image("busybox", busybox())
        times = bed.measure(["runc", *others], options.runs)
        for runtime, values in times.items():
            low, middle, high = statistics.quantiles(values, n=4)
            print(f"{runtime:7} median {middle:6.1f} ms, quartiles {low:.1f} to {high:.1f}, {len(values)} runs")
        for runtime in others:
            print(f"{runtime} adds {statistics.median(times[runtime]) - statistics.median(times['runc']):.1f} ms")
            sizes = bed.idle_memory(runtime)
            print(f"{runtime} idle: {sum(sizes.values()):.1f} MiB (PSS): " + ", ".join(f"{name} {size:.1f}" for name, size in sizes.items()))
        if not options.phases:
            return
        bed.measure(["runc-timed", "sluice-timed"], options.runs)
        for name in ("runc", "sluice"):
            phases = collections.defaultdict(list)
            with open(bed.notes(name), encoding="utf-8") as f:
                for line in f:
                    command, begin, end = line.split()
                    phases[command].append((int(end) - int(begin)) / 1000)
            print(f"{name:7} " + ", ".join(f"{command} {statistics.median(values):.1f} ms x {len(values) / (options.runs + 2):.0f}" for command, values in phases.items()))
    finally:
        bed.close()


if __name__ == "__main__":
    main()
