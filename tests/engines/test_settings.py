"""Flags from /etc/sluice/NAME.flags and from annotations, as the runtime itself takes them."""
import contextlib
import json
import os
import socket
import subprocess
import time
import unittest

from bundle import BundleTest
from docker_host import RUN, SLUICE

# A /etc whose changes stay in the test, and a /run of its own.
INNER = """
set -eu
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$1/up,workdir=$1/work" /etc
mount -t tmpfs tmpfs /run
shift
exec "$@"
"""
RAW_SOCKET = ("ping", "-c1", "127.0.0.1")  # busybox takes a raw socket


class SettingsTest(BundleTest):
    def setUp(self):
        super().setUp()
        for folder in ("up/sluice", "work"):
            os.makedirs(f"{self.directory}/{folder}")
        self.log = f"{self.directory}/log"

    def write(self, name, text, mode=0o644):
        path = f"{self.directory}/up/sluice/{name}"
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        os.chmod(path, mode)

    def link(self, name):
        os.symlink(SLUICE, f"{self.directory}/up/sluice/{name}")
        return f"/etc/sluice/{name}"

    def run_in(self, *args, runtime=SLUICE, flags=(), annotations=None):
        self.configure(*args, annotations=annotations or {})
        argv = [runtime, *flags, "--root", f"{self.directory}/run", "--log", self.log, "--log-format", "json", "run", RUN]
        return subprocess.run(["unshare", "--mount", "--propagation", "private", "bash", "-c", INNER, "inner", self.directory, *argv], cwd=self.bundle,
                              text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False)

    def assert_refused(self, done, text):
        self.assertEqual(done.returncode, 1)
        self.assertIn(text, done.stderr)
        with open(self.log, encoding="utf-8") as f:
            last = json.loads(f.read().splitlines()[-1])
        self.assertEqual(last["level"], "error")
        self.assertIn(text, last["msg"])  # where engines look

    def is_intercepted(self, **kw):
        done = self.run_in("grep", "Seccomp_filters", "/proc/self/status", **kw)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.split()[1] != "0"

    def test_file_of_the_name(self):
        self.assertNotEqual(self.run_in(*RAW_SOCKET).returncode, 0)
        self.write("sluice.flags", "# for all engines\n--net-raw\n")
        self.assertEqual(self.run_in(*RAW_SOCKET).returncode, 0)
        self.assertNotEqual(self.run_in(*RAW_SOCKET, flags=["--net-raw=false"]).returncode, 0)
        other = self.link("other")
        self.assert_refused(self.run_in(*RAW_SOCKET, runtime=other), "/etc/sluice/other.flags: does not exist")
        self.write("other.flags", "--network=host\n")
        self.assertFalse(self.is_intercepted(runtime=other))
        self.assertTrue(self.is_intercepted(runtime=other, flags=["--network=none"]))

    def test_counters_name_the_container(self):
        path = f"{self.directory}/metrics"
        self.configure("sleep", "1000", annotations={})
        argv = [SLUICE, f"--metrics=unix:{path}", "--root", f"{self.directory}/run", "run", RUN]
        kill = ["runc", "--root", f"{self.directory}/run", "kill", RUN, "KILL"]

        def scrape():
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(20)
                s.connect(path)
                s.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                return s.makefile().read()
        with subprocess.Popen(["unshare", "--mount", "--propagation", "private", "bash", "-c", INNER, "inner", self.directory, *argv], cwd=self.bundle,
                              stdin=subprocess.DEVNULL) as p:
            text, end = "", time.monotonic() + 60
            while f'container="{RUN}"' not in text:
                self.assertIsNone(p.poll())
                self.assertLess(time.monotonic(), end, text)
                with contextlib.suppress(OSError):
                    text = scrape()
                time.sleep(0.05)
            self.assertRegex(text, rf'sluice_up{{sandbox="{RUN[:12]}",container="{RUN}"}} 1')
            subprocess.run(kill, check=True)
            p.wait(60)
        end = time.monotonic() + 20  # the process that serves it ends after its last sandbox
        while os.path.exists(path) and time.monotonic() < end:
            time.sleep(0.02)
        self.assertFalse(os.path.exists(path))

    def test_wrong_files(self):
        self.write("sluice.flags", "--gso=false\n--frobnicate=1\n")
        self.assert_refused(self.run_in("true"), "/etc/sluice/sluice.flags:2: --frobnicate: unknown flag")
        self.write("sluice.flags", "--gso=false\n", 0o666)
        self.assert_refused(self.run_in("true"), "/etc/sluice/sluice.flags: others than root can change it")

    def test_annotations(self):
        self.assertFalse(self.is_intercepted(flags=["--network=host"]))
        self.assertTrue(self.is_intercepted(flags=["--network=host"], annotations={"dev.sluice.flag.network": "none"}))
        self.assertNotEqual(self.run_in(*RAW_SOCKET, flags=["--net-raw"], annotations={"dev.sluice.flag.net-raw": "false"}).returncode, 0)
        raw = {"dev.sluice.flag.net-raw": "true"}
        self.assert_refused(self.run_in(*RAW_SOCKET, annotations=raw), "annotation dev.sluice.flag.net-raw: --net-raw=true loosens")
        self.write("sluice.flags", "--allow-flag-override\n")
        self.assertEqual(self.run_in(*RAW_SOCKET, annotations=raw).returncode, 0)
        self.assertFalse(self.is_intercepted(annotations={"dev.sluice.flag.network": "host"}))
        self.assert_refused(self.run_in("true", annotations={"dev.sluice.flag.pcap-log": "/etc/passwd"}), "is the administrator's")
        self.assert_refused(self.run_in("true", annotations={"dev.sluice.flag.nonsense": "1"}), "unknown setting")


if __name__ == "__main__":
    unittest.main()
