#!/usr/bin/env python3
"""Runs the integration tests: tests/integration/run.py [--reference] [--filter=REGEX] [--list] [--flags='--gso=false'] [--result=FILE]

Needs root and a release build (build/release/sluice), except with --reference, which runs the same test bodies against the kernel.
"""
import argparse
import json
import os
import re
import signal
import sys
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))


class Result(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.passed = 0
        self.names = []
        self.buffer = False

    def startTest(self, test):
        super().startTest(test)
        self.start = time.monotonic()

    def line(self, word, test, detail=""):
        seconds = time.monotonic() - getattr(self, "start", time.monotonic())
        print(f"{word:7} {short(test)} ({seconds:.1f} s){': ' if detail else ''}{detail}", flush=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed += 1
        self.line("ok", test)

    def bad(self, test, err):
        self.names.append(short(test))
        self.line("FAILED", test, "\n" + self._exc_info_to_string(err, test))

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.bad(test, err)

    def addError(self, test, err):
        super().addError(test, err)
        self.bad(test, err)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.bad(subtest, err)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.line("skipped", test, reason)


def short(test):
    return re.sub(r"^(\w+) \(([\w.]+?)(?:\.\1)?\)", r"\2.\1", str(test)).replace("__main__.", "")


def flatten(suite):
    for t in suite:
        if isinstance(t, unittest.TestSuite):
            yield from flatten(t)
        else:
            yield t


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--filter", default="")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--flags", default="")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--folder", default=HERE, help="of the tests; default: these")
    parser.add_argument("--result")
    options = parser.parse_args()
    if options.reference:
        os.environ["SLUICE_REFERENCE"] = "1"
    if options.flags:
        os.environ["SLUICE_FLAGS"] = options.flags
    if options.all:
        os.environ["SLUICE_TEST_ALL"] = "1"
    os.environ.setdefault("SLUICE_TEST_RUN", f"slt{os.getpid()}")
    if os.geteuid() != 0:
        sys.exit("tests/integration/run.py: network namespaces need root")
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    folder = os.path.abspath(options.folder)
    sys.path.insert(0, folder)
    tests = list(flatten(unittest.defaultTestLoader.discover(folder, "test_*.py")))
    tests = [t for t in tests if re.search(options.filter, short(t))]
    if options.list:
        print("\n".join(short(t) for t in tests))
        return
    result = Result()
    unittest.TestSuite(tests).run(result)
    failed = len(result.failures) + len(result.errors)
    print(f"{os.path.basename(folder)}: {result.passed} passed, {failed} failed, {len(result.skipped)} skipped", flush=True)
    if options.result:
        with open(options.result, "w", encoding="utf-8") as f:
            json.dump({"passed": result.passed, "failed": failed, "skipped": len(result.skipped), "failures": result.names}, f)
    sys.exit(1 if failed or not tests else 0)


if __name__ == "__main__":
    main()
