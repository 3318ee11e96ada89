#!/usr/bin/env python3
"""Runs all checks of the project, stage by stage; scripts/test is the command for people.

Every stage counts what passed, failed and was skipped. The last line is 'N passed, N failed, N skipped'; the exit status is 1 where
anything failed. At the end nothing of the run may be left: processes, namespaces, devices, mounts, BPF programs.
"""
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STAGES = ["layers", "build", "unit", "integration", "asan", "fuzz", "tsan", "engines"]
BY_NAME_ONLY = {"engines"}  # some minutes with real container engines: --all or --stage=engines
# Folders whose code runs on more than one thread or shares memory between processes.
TSAN_TARGETS = ["sluice_base_test", "sluice_dataplane_test", "sluice_sentry_test", "sluice_control_test"]
TSAN_SANDBOX = "loopback_sandbox"  # the differential tests run in it
RUN_ID = f"slt{os.getpid()}"


class Tally:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.failures = []

    def add(self, ok, name, detail=""):
        if ok:
            self.passed += 1
        else:
            self.failed += 1
            self.failures.append(name)
            print(f"FAILED {name}\n{detail}", flush=True)


def run(argv, timeout, **kw):
    """Runs a command in a process group of its own; returns (status, output). At the time limit the whole group ends."""
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                          start_new_session=True, **kw) as p:
        try:
            out, _ = p.communicate(timeout=timeout)
            return p.returncode, out
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            out, _ = p.communicate()
            return -1, f"{out}\n(ended after {timeout} s)"
        except BaseException:
            os.killpg(p.pid, signal.SIGTERM)
            raise


def tail(text, lines=60):
    return "\n".join(text.splitlines()[-lines:])


def build(preset, targets, tally):
    status, out = run(["cmake", "--preset", preset], 300)
    if status == 0:
        argv = ["cmake", "--build", f"build/{preset}"]
        status, out = run(argv + (["--target"] + targets if targets else []), 1500)
    tally.add(status == 0, f"build {preset}", tail(out))
    return status == 0


def known_targets(preset):
    _, out = run(["ninja", "-C", f"build/{preset}", "-t", "targets", "all"], 60)
    return {line.split(":")[0] for line in out.splitlines()}


def ctest(preset, regex, tally, env=None):
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        argv = ["ctest", "--test-dir", f"build/{preset}", "-j2", "--output-on-failure", "--no-tests=error", "--output-junit", report.name]
        if regex:
            argv += ["-R", regex]
        status, out = run(argv, 900, env={**os.environ, **(env or {})})
        try:
            cases = xml.etree.ElementTree.parse(report.name).getroot().findall("testcase")
        except xml.etree.ElementTree.ParseError:
            cases = []
    failed = 0
    for case in cases:
        if case.get("status") == "run":
            tally.passed += 1
        elif case.get("status") in ("notrun", "disabled"):
            tally.skipped += 1
        else:
            failed += 1
            tally.add(False, f"{preset} {case.get('name')}", tail(case.findtext("system-out") or ""))
    if status != 0 and failed == 0:
        tally.add(False, f"{preset} ctest", tail(out))


SANITIZER_ENV = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}


def stage_layers(_, tally):
    python = "/usr/bin/python3"
    for argv in ([python, "scripts/check_layers.py", "--self-test"], [python, "scripts/check_layers.py"], ["scripts/format", "--check", "--all"]):
        status, out = run(argv, 120)
        tally.add(status == 0, " ".join(argv), tail(out))
    scripts = ["scripts/setup", "scripts/test", "scripts/format", "scripts/tidy", "scripts/demo", "scripts/bench", "scripts/package", ".ci/run"]
    for s in filter(lambda s: os.path.exists(os.path.join(ROOT, s)), scripts):
        status, out = run(["bash", "-n", s], 10)
        tally.add(status == 0, f"bash -n {s}", out)


def stage_build(_, tally):
    build("release", None, tally)


def stage_unit(_, tally):
    ctest("release", None, tally)


def stage_asan(_, tally):
    if build("asan", None, tally):
        ctest("asan", None, tally, SANITIZER_ENV)


def stage_tsan(_, tally):
    status, out = run(["cmake", "--preset", "tsan"], 300)
    if status != 0:
        tally.add(False, "configure tsan", tail(out))
        return
    with_tests = known_targets("tsan")
    targets = [t for t in TSAN_TARGETS if t in with_tests]
    if not targets or not build("tsan", targets + [TSAN_SANDBOX], tally):
        return
    ctest("tsan", "_as_native", tally, SANITIZER_ENV)
    for t in targets:
        binary = subprocess.run(["find", f"build/tsan", "-type", "f", "-name", t], cwd=ROOT, text=True, capture_output=True, check=True)
        status, out = run([os.path.join(ROOT, binary.stdout.split()[0]), "--gtest_brief=1"], 900, env={**os.environ, **SANITIZER_ENV})
        m = re.search(r"\[  PASSED  \] (\d+) test", out)
        tally.passed += int(m.group(1)) if m else 0
        if status != 0:
            tally.add(False, f"tsan {t}", tail(out))


def stage_fuzz(options, tally):
    """Each libFuzzer target for 20 seconds (10 minutes with --all), two side by side, from the inputs of tests/corpora/TARGET on; a
    finding's input is kept under build/asan/."""
    try:
        with open(os.path.join(ROOT, "build/asan/fuzzers.txt"), encoding="utf-8") as f:
            targets = f.read().split()
    except FileNotFoundError:
        tally.add(False, "fuzz", "build/asan/fuzzers.txt is missing: the asan preset was not built")
        return
    seconds = 600 if options.all else 20
    waiting, running = list(targets), []
    while waiting or running:
        while waiting and len(running) < 2:
            binary = waiting.pop(0)
            name = os.path.basename(binary)
            work = os.path.join(ROOT, "build/asan/fuzz", name)
            os.makedirs(work, exist_ok=True)
            out = open(os.path.join(work, "log"), "w+", encoding="utf-8", errors="replace")
            argv = [binary, f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=3000", f"-artifact_prefix={work}/", work]
            seeds = os.path.join(ROOT, "tests/corpora", name)
            if os.path.isdir(seeds):
                argv.append(seeds)
            running.append((name, out, time.monotonic(), subprocess.Popen(argv, stdout=out, stderr=out, cwd=work,
                                                                        env={**os.environ, **SANITIZER_ENV})))
        for entry in list(running):
            name, out, start, process = entry
            if process.poll() is None and time.monotonic() - start < seconds + 120:
                continue
            if process.poll() is None:
                process.kill()
                process.wait()
            running.remove(entry)
            out.seek(0)
            text = out.read()
            out.close()
            tally.add(process.returncode == 0, f"fuzz {name}", tail(text))
        time.sleep(0.2)


class SanitizerBuilds(threading.Thread):
    """Builds the sanitizer presets at the lowest priority while the integration tests, which mostly wait, run."""

    def __init__(self):
        super().__init__()
        self.process = None
        self.stopped = False

    def run(self):
        for preset, targets in (("asan", []), ("tsan", [*TSAN_TARGETS, TSAN_SANDBOX])):
            for argv in (["cmake", "--preset", preset], ["cmake", "--build", f"build/{preset}", *(["--target", *targets] if targets else [])]):
                if self.stopped:
                    return
                # Failures show when the stage itself builds.
                self.process = subprocess.Popen(["nice", "-n", "19", *argv], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                                start_new_session=True)
                if self.process.wait() != 0:
                    break

    def stop(self):
        self.stopped = True
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        self.join()


# Everything with the defaults; every program with offload off; a core over AF_XDP; what a sandbox shows with two workers, by packet
# and tap, and a core of that over AF_XDP.
PROGRAM_TESTS = r"test_(web|bulk|databases|tools)\."
INTEGRATION_RUNS = [
    ("", ""),
    ("--gso=false", PROGRAM_TESTS),
    ("--link=xdp", r"nginx|Iperf3|RedisTest|PingTest|DigTest|socat"),
    ("--num-network-channels=2", r"nginx|Iperf3|RedisTest|PostgresTest|test_(behaviour|tap|tools|capture|query)\."),
    ("--num-network-channels=2 --link=xdp", r"nginx|Iperf3|RedisTest|DigTest"),
]


def end_run(process):
    """Its own cleaning runs, for a minute at most."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def integration_run(options, flags, pattern, tally):
    env = {**os.environ, "SLUICE_TEST_RUN": RUN_ID}
    if options.all:
        env["SLUICE_TEST_ALL"] = "1"
    label = f" {flags}" if flags else ""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as result:
        argv = ["/usr/bin/python3", "-u", "tests/integration/run.py", f"--result={result.name}", f"--filter={pattern}"]
        if flags:
            argv.append(f"--flags={flags}")
            print(f"-- the programs with {flags}", flush=True)
        with subprocess.Popen(argv, cwd=ROOT, env=env, start_new_session=True) as p:
            try:
                status = p.wait(7200 if options.all else 1200)
            except subprocess.TimeoutExpired:
                end_run(p)
                tally.add(False, f"integration{label}", "ended at its time limit")
                return
            except BaseException:
                end_run(p)
                raise
        text = result.read()
    if not text:
        tally.add(False, f"integration{label}", f"ended with status {status} before a result")
        return
    got = json.loads(text)
    if got["passed"] + got["failed"] + got["skipped"] == 0:
        tally.add(False, f"integration{label}", f"no test's name matches {pattern!r}; tests/integration/run.py --list prints them")
    tally.passed += got["passed"]
    tally.failed += got["failed"]
    tally.skipped += got["skipped"]
    tally.failures += [f"{name}{label}" for name in got["failures"]]


def stage_integration(options, tally):
    if not os.path.exists(os.path.join(ROOT, "build/release/sluice")):
        tally.add(False, "integration", "build/release/sluice was not built")
        return
    for flags, pattern in [("", options.filter)] if options.filter else INTEGRATION_RUNS:
        integration_run(options, flags, pattern, tally)


def stage_engines(_, tally):
    with tempfile.NamedTemporaryFile(suffix=".json") as result:
        status, out = run(["/usr/bin/python3", "tests/integration/run.py", "--folder=tests/engines", f"--result={result.name}"], 2400,
                          env=dict(os.environ, SLUICE_TEST_RUN=RUN_ID))
        print(out, end="", flush=True)
        text = open(result.name, encoding="utf-8").read()
    if not text:
        tally.add(False, "engines", f"the tests ended with status {status}")
        return
    got = json.loads(text)
    tally.passed += got["passed"]
    tally.failed += got["failed"]
    tally.skipped += got["skipped"]
    tally.failures += got["failures"]


def leftovers():
    """What this run left on the machine: processes that carry its mark, namespaces and devices by its name, mounts."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        try:
            with open(f"/proc/{pid}/environ", "rb") as f:
                if f"SLUICE_TEST_RUN={RUN_ID}".encode() in f.read().split(b"\0"):
                    with open(f"/proc/{pid}/cmdline", "rb") as c:
                        found.append(f"process {pid}: {c.read().replace(bytes(1), b' ').decode(errors='replace')}")
        except OSError:
            pass
    for argv in (["ip", "netns", "list"], ["ip", "-o", "link"]):
        out = subprocess.run(argv, text=True, capture_output=True, check=False).stdout
        found += [line for line in out.splitlines() if RUN_ID in line]
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        found += [line.strip() for line in f if RUN_ID in line]
    return found


def check_leftovers(tally):
    # Namespaces and sockets are torn down behind the last close.
    deadline = time.monotonic() + 60
    while leftovers() and time.monotonic() < deadline:
        time.sleep(0.5)
    found = leftovers()
    tally.add(not found, "nothing is left behind", "\n".join(found))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--filter", default="")
    parser.add_argument("--stage", default="")
    parser.add_argument("--setup-seconds", type=int, default=0)
    options = parser.parse_args()
    try:
        re.compile(options.filter)
    except re.error as e:
        sys.exit(f"--filter={options.filter}: no regular expression: {e}")
    wanted = options.stage.split(",") if options.stage else (["build", "integration"] if options.filter else [s for s in STAGES if options.all or s not in BY_NAME_ONLY])
    for s in wanted:
        if s not in STAGES:
            sys.exit(f"--stage={s}: there is no such stage; stages are {', '.join(STAGES)}")
    if not os.path.isdir(os.path.join(ROOT, "tests/integration")):
        wanted = [s for s in wanted if s != "integration"]
    tally = Tally()
    times = [("setup", options.setup_seconds)]
    builds = None
    try:
        for s in STAGES:
            if s not in wanted:
                continue
            print(f"== {s}", flush=True)
            start = time.monotonic()
            if s == "integration" and "asan" in wanted and not os.environ.get("SLUICE_SERIAL"):
                builds = SanitizerBuilds()
                builds.start()
            elif s in ("asan", "fuzz", "tsan") and builds is not None:
                builds.join()
            before = (tally.passed, tally.failed, tally.skipped)
            globals()[f"stage_{s}"](options, tally)
            times.append((s, round(time.monotonic() - start)))
            p, f, k = (a - b for a, b in zip((tally.passed, tally.failed, tally.skipped), before))
            print(f"== {s}: {p} passed, {f} failed, {k} skipped in {times[-1][1]} s", flush=True)
            if s == "build" and f:
                break
    except KeyboardInterrupt:
        tally.add(False, "interrupted")
    if builds is not None:
        builds.stop()
    check_leftovers(tally)
    print("time: " + ", ".join(f"{name} {seconds} s" for name, seconds in times) + f"; {sum(t for _, t in times)} s in all")
    for name in tally.failures:
        print(f"failed: {name}")
    print(f"{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped")
    sys.exit(1 if tally.failed else 0)


if __name__ == "__main__":
    main()
