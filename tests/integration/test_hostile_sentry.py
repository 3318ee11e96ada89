"""A sentry that was taken over, against broker and guard: sluice with tests/sandbox/hostile_sentry.cc in place of its own."""
import os
import re
import unittest

import processes
from harness import INSIDE, ROOT, SluiceTest, sandbox_only, wait_for

HOSTILE = os.path.join(ROOT, "build/release/tests/hostile_sentry")
SOCKET = "import socket; print('has', socket.socket(), flush=True)"


@sandbox_only
class HostileSentryTest(SluiceTest):
    def start(self, deed, *argv):
        sandbox = self._start([HOSTILE, "do", f"--netns={self.net.inside.name}", "--", *argv], env={"SLUICE_HOSTILE": deed})
        sandbox.sandbox = True
        return sandbox

    def ends(self, deed, why, *argv):
        sandbox = self.start(deed, *(argv or ("sleep", "600")))
        self.assertNotEqual(sandbox.wait(), 0, sandbox.describe())
        self.assertRegex(sandbox.output(), f"the sandbox was ended: .*{why}")
        self.assertNotIn("has", sandbox.output())
        return sandbox

    def test_noise(self):
        self.ends("noise", "broke the protocol of calls")

    def test_descriptors_where_none_belong(self):
        self.ends("descriptors", "descriptors where none belong")

    def test_result_that_does_not_fit(self):
        self.ends("misfit", "does not fit the call", "/usr/bin/python3", "-c", SOCKET)

    def test_change_for_a_call_that_cannot_ask_for_one(self):
        self.ends("foreign-change", "change of the namespace", "/usr/bin/python3", "-c", SOCKET)
        self.assertIn("UP", self.net.inside.run("ip", "link", "show", "lo").stdout)

    def test_control_records_out_of_order(self):
        self.ends("ready-twice", "it is ready, unasked")

    def test_where_it_listens_before_it_was_heard(self):
        self.ends("listening-twice", "where it listens, before the last was heard")

    def test_control_records_of_others(self):
        self.ends("odd-record", "type that it does not send")

    def test_text_of_its_own_is_kept_on_one_line(self):
        out = self.ends("fatal-text", "over").output()
        self.assertNotIn("\x1b", out)
        self.assertLess(len(out), 2000)
        self.assertEqual(len([line for line in out.splitlines() if line]), 1, out)

    def test_files_of_others(self):
        sandbox = self.start("foreign-files", "/usr/bin/python3", "-c", SOCKET)
        sandbox.wait_log("fetched 0 descriptors")

    def test_flood_that_is_never_read(self):
        sandbox = self.start("flood", "sh", "-c", "echo runs; exec sleep 600")
        sandbox.wait_log("runs")
        broker = wait_for(lambda: processes.role(sandbox.pid, "broker"), "no process named broker")
        # It comes to rest, full: neither its memory nor its work grows.
        seen = []

        def rests():
            seen.append(processes.cpu_seconds([broker]))
            return len(seen) > 4 and seen[-1] == seen[-4]
        wait_for(rests, "the broker works on and on", step=0.2)
        with open(f"/proc/{broker}/status", encoding="utf-8") as f:
            self.assertLess(int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1)), 64 << 10)
        # And the sandbox can be ended.
        sandbox.stop()

    def test_kernel_stays_silent(self):
        sandbox = self.start("wake-kernel", "sleep", "600")
        sandbox.wait_log("said that every device is gone")
        silent = self.peer("ping", "-c", "1", "-W", "1", INSIDE)
        self.assertNotEqual(silent.wait(), 0, "the kernel answers")
        sandbox.stop()
        self.peer("ping", "-c", "1", "-W", "15", INSIDE).expect_success()

    def test_loopback_is_no_device_of_the_sandbox(self):
        self.start("loopback", "sleep", "600").wait_log("the loopback was refused")


if __name__ == "__main__":
    unittest.main()
