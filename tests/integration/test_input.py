"""Wrong command lines: exit status and one line on standard error that names flag, value and what is allowed."""
import subprocess
import unittest

from harness import REFERENCE, SLUICE, SluiceTest


@unittest.skipIf(REFERENCE, "about sluice itself")
class CommandLineTest(SluiceTest):
    def refused(self, status, words, *argv):
        p = subprocess.run([SLUICE, *argv], capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
        self.assertEqual(p.returncode, status, p.stderr + p.stdout)
        lines = p.stderr.strip().splitlines()
        self.assertEqual(len(lines), 1, f"one line, not {lines}")
        for w in words:
            self.assertIn(w, lines[0])

    def do(self, *flags, netns=None, extra=()):
        return [*flags, "do", f"--netns={netns or self.net.inside.name}", *extra, "--", "true"]

    def test_wrong_values(self):
        for flag, value, allowed in (
                ("network", "bridge", ("sandbox", "host", "none")),
                ("gso", "maybe", ("true", "false")),
                ("link", "carrier-pigeon", ("auto", "xdp", "packet")),
                ("poll", "sometimes", ("adaptive", "busy", "interrupt")),
                ("netfilter", "bypass", ("refuse", "ignore")),
                ("num-network-channels", "-3", ()),
                ("poll-spin", "soon", ()),
                ("sysctl", "net.ipv4.no_such_key=1", ())):
            with self.subTest(flag=flag):
                self.refused(1, (f"--{flag}", value.split("=")[0], *allowed), *self.do(f"--{flag}={value}"))

    def test_unknown_flag_and_command(self):
        self.refused(2, ("--no-such-flag",), *self.do("--no-such-flag=1"))
        self.refused(2, ("frobnicate",), "frobnicate")

    def test_no_program(self):
        self.refused(2, (), "do", f"--netns={self.net.inside.name}")

    def test_missing_namespace(self):
        self.refused(1, ("no-such-namespace",), *self.do(netns="no-such-namespace"))
        self.refused(1, ("/nonexistent/path",), *self.do(netns="/nonexistent/path"))
        self.refused(1, ("/etc/passwd",), *self.do(netns="/etc/passwd"))

    def test_missing_device(self):
        self.refused(1, ("eth7",), *self.do(extra=("--device=eth7",)))

    def test_links_that_are_not_for_containers(self):
        for link in ("tap", "dpdk"):
            self.refused(1, (f"--link={link}", "auto, xdp, packet"), f"--link={link}", "create", "--bundle", self.directory, "c1")

    def test_no_privileges(self):
        argv = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", SLUICE, *self.do()]
        p = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(p.returncode, 1, p.stderr)
        self.assertRegex(p.stderr, r"(?i)root|privilege|CAP_")

    def test_version_and_help(self):
        p = subprocess.run([SLUICE, "--version"], capture_output=True, text=True, timeout=60, check=True)
        self.assertRegex(p.stdout, r"\Asluice version \S+\ncommit: \S+\nspec: 1\.0\.2\n\Z")
        p = subprocess.run([SLUICE, "--help"], capture_output=True, text=True, timeout=60, check=True)
        for flag in ("--network", "--gso", "--link"):
            self.assertIn(flag, p.stdout)


if __name__ == "__main__":
    unittest.main()
