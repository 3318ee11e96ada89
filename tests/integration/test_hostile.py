"""Programs that misbehave: paths out of the sandbox, wild pointers, signals at every moment of blocking calls."""
import os
import re
import signal
import unittest

import processes
from harness import INSIDE, PEER, PROGRAMS, SluiceTest, sandbox_only, wait_for


class HostileTest(SluiceTest):
    REFUSED = ("io_uring", "bpf", "network mounts", "userfaultfd", "own listener")

    @sandbox_only
    def test_no_path_leads_to_a_host_socket(self):
        p = self.inside(f"{PROGRAMS}/hostile")
        p.wait(120)
        out = p.output()
        self.assertNotIn("ESCAPE", out)
        self.assertIn("0 escapes", out)
        for path in self.REFUSED:
            self.assertIn(f"refused {path}", out)

    @sandbox_only
    def test_no_path_in_mode_none(self):
        p = self.inside(f"{PROGRAMS}/hostile", flags=("--network=none",))
        p.wait(120)
        self.assertIn("0 escapes", p.output())

    @sandbox_only
    def test_no_path_after_the_sentrys_death(self):
        p = self.inside(f"{PROGRAMS}/hostile", "--loop")
        p.wait_log("looping")
        os.kill(wait_for(lambda: processes.role(p.pid, "sentry"), "no process named sentry"), signal.SIGKILL)
        self.assertNotEqual(p.wait(), 0)
        self.assertNotIn("ESCAPE", p.output())


class WildPointerTest(SluiceTest):
    """The same errno for every wild argument as on the kernel."""

    @sandbox_only
    def test_as_on_the_kernel(self):
        wanted = self.peer(f"{PROGRAMS}/wild", "7300").expect_success().splitlines()
        got = self.inside(f"{PROGRAMS}/wild", "7300").expect_success().splitlines()
        self.assertEqual(wanted[-1], "done")
        self.assertEqual([g for g in got if g not in wanted], [], "differ from the kernel's")
        self.assertEqual(got, wanted)

    def test_reference_is_stable(self):
        first = self.peer(f"{PROGRAMS}/wild", "7300").expect_success()
        second = self.peer(f"{PROGRAMS}/wild", "7310").expect_success()
        self.assertEqual(first, second)
        self.assertIn("EFAULT", first)


class SignalTest(SluiceTest):
    """No byte twice, no connection lost, whichever call a signal interrupts."""
    CONNECTIONS, BYTES = "60", "200000"

    def check(self, program):
        out = program.expect_success(120)
        m = re.search(r"all right; (\d+) signals", out)
        self.assertIsNotNone(m, out)
        self.assertGreater(int(m.group(1)), 20, "the storm did not blow")

    def test_server(self):
        server = self.inside(f"{PROGRAMS}/signals", "serve", "7400", self.CONNECTIONS, self.BYTES)
        server.wait_log("listening")
        client = self.peer(f"{PROGRAMS}/signals", "connect", INSIDE, "7400", self.CONNECTIONS, self.BYTES)
        self.check(client)
        self.check(server)

    def test_client(self):
        server = self.peer(f"{PROGRAMS}/signals", "serve", "7400", self.CONNECTIONS, self.BYTES)
        server.wait_log("listening")
        client = self.inside(f"{PROGRAMS}/signals", "connect", PEER, "7400", self.CONNECTIONS, self.BYTES)
        self.check(client)
        self.check(server)


if __name__ == "__main__":
    unittest.main()
