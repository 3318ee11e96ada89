"""Socket options that the kernel answers in the caller's own system call (a BPF program on the sentry's control group), and the
notified calls that take their place where that is not possible."""
import json
import os
import re
import signal
import subprocess
import unittest

import processes
from harness import PEER, PROGRAMS, SLUICE, SluiceTest, sandbox_only, sh, wait_for

ROUNDS = 100
MKDIRAT = "258"  # the number of the call without which there is no control group


def group_of(pid):
    """A process's control group of version 2."""
    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as f:
        return next(line.strip()[3:] for line in f if line.startswith("0::"))


def group_exists(path):
    """True or False; None where the hierarchy is mounted nowhere."""
    with open("/proc/self/mounts", encoding="utf-8") as f:
        mounts = [line.split()[1] for line in f if line.split()[2] == "cgroup2"]
    return os.path.isdir(mounts[0] + path) if mounts else None


class OptionsTest(SluiceTest):
    """As on the kernel, whoever answers. `native`: the kernel."""
    native = True
    prefix = ()

    def options_inside(self, *args, program=f"{PROGRAMS}/options", **kw):
        argv = self.sandbox_argv(program, *args)
        p = self._start([*self.prefix, argv[0], "--debug", *argv[1:]], **kw)
        p.sandbox = True
        return p

    @sandbox_only
    def test_values_lengths_and_kinds_of_sockets(self):
        wanted = self.net.inside.run(f"{PROGRAMS}/options", "table").stdout.splitlines()
        got = [line for line in self.options_inside("table").expect_success().splitlines() if not line.startswith("sluice")]
        self.assertEqual(wanted[-1], "done")
        self.assertGreater(len(wanted), 1000)
        self.assertEqual([(g, w) for g, w in zip(got, wanted) if g != w], [], "differ from the kernel's")
        self.assertEqual(len(got), len(wanted))

    @sandbox_only
    def test_order_with_the_data(self):
        peer = self.peer(f"{PROGRAMS}/options", "acknowledge", "7500", str(ROUNDS))
        peer.wait_log("listening")
        out = self.options_inside("cork", PEER, "7500", str(ROUNDS)).expect_success()
        peer.expect_success()
        segments = int(re.search(r"corked: (\d+) segments", out).group(1))
        # One each, where the cork's own time (200 ms) does not run out: on a machine that stood still it may, now and then.
        self.assertGreaterEqual(segments, ROUNDS)
        self.assertLess(segments, ROUNDS * 3 // 2)
        self.assertIn("done", out)

    @sandbox_only
    def test_no_call_is_lost_in_a_storm(self):
        self.assertIn("\n0 wrong", "\n" + self.options_inside("storm", str(ROUNDS)).expect_success())

    @sandbox_only
    def test_who_answers_is_told(self):
        program = ("import socket,sys\n"
                   "s=socket.create_connection(('10.77.0.2',7501))\n"
                   "for i in range(1000): s.setsockopt(6,3,i&1)\n"
                   "s.getsockopt(6,3)\n"
                   "print('set',flush=True)\n"
                   "sys.stdin.read()\n")
        listener = self.net.peer.listen((PEER, 7501))
        self.addCleanup(listener.close)
        p = self.options_inside("-c", program, program="/usr/bin/python3", stdin=subprocess.PIPE)
        p.wait_log("^set|\nset")
        calls = json.loads(sh(SLUICE, "stats", "--json", str(p.pid)).stdout)["calls"]
        self.assertEqual(calls["native_options"], self.native)
        if self.native:
            self.assertLess(calls["calls"], 500)
            self.assertGreater(calls["options_native"], 0)
        else:
            self.assertGreater(calls["calls"], 1000)
            self.assertEqual(calls["options_native"], 0)
            self.assertIn("socket options are notified calls: cannot make a control group", p.output())
        p.process.stdin.close()
        p.expect_success()


class NotifiedOptionsTest(OptionsTest):
    """The same without the control group."""
    native = False
    prefix = (f"{PROGRAMS}/deny", MKDIRAT)


class OwnMountTest(OptionsTest):
    """The same where no control groups are mounted."""
    prefix = ("unshare", "--mount", "sh", "-c", "umount -l -R /sys/fs/cgroup && exec \"$@\"", "sh")


class OptionGroupTest(SluiceTest):
    """The sentry's control group goes with the sandbox, whoever dies."""

    def start(self):
        p = self.python_inside("import time\nprint('up',flush=True)\ntime.sleep(600)\n")
        p.wait_log("up")
        group = group_of(wait_for(lambda: processes.role(p.pid, "sentry"), "no process named sentry"))
        record = f"/run/sluice/cgroup-{p.pid}"
        self.assertEqual(os.path.basename(group), f"sluice-{p.pid}")
        self.assertIn(group_exists(group), (True, None))
        with open(record, encoding="utf-8") as f:
            self.assertEqual("/" + f.read(), group)
        # Nobody else is in it: neither the program nor who watches over it.
        for pid, name in processes.children(p.pid).items():
            if "sentry" not in name:
                self.assertNotEqual(group_of(pid), group, name)
        return p, group, record

    def expect_gone(self, group, record):
        self.assertFalse(os.path.exists(record))
        self.assertIn(group_exists(group), (False, None))

    @sandbox_only
    def test_ordinary_end(self):
        p, group, record = self.start()
        p.process.terminate()
        p.wait()
        self.expect_gone(group, record)

    @sandbox_only
    def test_guard_killed(self):
        p, group, record = self.start()
        os.kill(p.pid, signal.SIGKILL)
        wait_for(lambda: not os.path.exists(record), "the broker does not remove the control group")
        self.expect_gone(group, record)

    @sandbox_only
    def test_guard_and_broker_killed(self):
        p, group, record = self.start()
        family = processes.children(p.pid)
        broker = processes.role(p.pid, "broker")
        os.kill(p.pid, signal.SIGSTOP)  # it must not see the broker's death
        os.kill(broker, signal.SIGKILL)
        os.kill(p.pid, signal.SIGKILL)
        p.wait()
        wait_for(lambda: not any(processes.alive(x) for x in family), f"processes are left: {family}")
        self.assertTrue(os.path.exists(record))

        # Those who have ended may be counted for a moment longer: then the group is left to the start after the next.
        def next_start_removes():
            self.inside("true").expect_success()
            return not os.path.exists(record)
        wait_for(next_start_removes, "no start removes the control group")
        self.expect_gone(group, record)


if __name__ == "__main__":
    unittest.main()
