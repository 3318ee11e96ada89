"""Faults from outside: sluice's processes killed under load, a device that goes, two sluices, packet filters of others."""
import os
import signal
import socket
import threading
import unittest

import processes
from harness import INSIDE, PEER, SluiceTest, sandbox_only, wait_for

READER = ("import socket,sys\n"
          "s=socket.create_connection(('10.77.0.2',7100))\n"
          "print('reading',flush=True)\n"
          "n=0\n"
          "while True:\n"
          " try: d=s.recv(65536)\n"
          " except OSError as e: print('error',e.errno,flush=True); break\n"
          " if not d: print('END OF STREAM after',n,flush=True); break\n"
          " n+=len(d)\n")
WRITER = ("import socket\n"
          "l=socket.create_server(('0.0.0.0',7101))\n"
          "print('listening',flush=True)\n"
          "c,_=l.accept()\n"
          "while True: c.sendall(b'x'*65536)\n")


class DeathTest(SluiceTest):
    """Whoever of guard, broker and sentry dies: the sandbox ends, no stream looks complete, nothing is left, the kernel is awake again."""

    def feed(self, connection):
        def body():
            try:
                while True:
                    connection.sendall(b"y" * 65536)
            except OSError:
                pass
        threading.Thread(target=body, daemon=True).start()

    def kill_under_load(self, who):
        listener = self.net.peer.listen((PEER, 7100))
        self.addCleanup(listener.close)
        program = self.inside("/usr/bin/python3", "-u", "-c", f"import threading\nthreading.Thread(target=lambda: exec({WRITER!r})).start()\n{READER}")
        program.wait_log("listening")
        fed, _ = listener.accept()
        self.addCleanup(fed.close)
        self.feed(fed)
        program.wait_log("reading")
        out = self.net.peer.connect((INSIDE, 7101))
        self.addCleanup(out.close)
        self.assertTrue(out.recv(65536))
        family = processes.children(program.pid)
        victim = program.pid if who == "guard" else wait_for(lambda: processes.role(program.pid, who), f"no process named {who}")
        os.kill(victim, signal.SIGKILL)
        self.assertNotEqual(program.wait(), 0, program.describe())
        wait_for(lambda: not any(processes.alive(p) for p in family), f"processes are left: {family}")
        self.assertNotIn("END OF STREAM", program.output())
        # What the peer gets: bytes that were on their way, then silence or a reset, but no clean end.
        out.settimeout(2)
        try:
            while out.recv(1 << 20):
                pass
            self.fail("the peer saw a clean end of a stream that was cut")
        except (TimeoutError, ConnectionResetError):
            pass
        if who != "guard":
            self.assertRegex(program.output(), rf"(?i){who}", "one line must say who died")
        # The namespace is its kernel's again.
        self.peer("ping", "-c", "1", "-W", "15", INSIDE).expect_success()
        again = self.inside("ping", "-c", "1", "-W", "15", PEER)
        again.expect_success()

    @sandbox_only
    def test_sentry(self):
        self.kill_under_load("sentry")

    @sandbox_only
    def test_broker(self):
        self.kill_under_load("broker")

    @sandbox_only
    def test_guard(self):
        self.kill_under_load("guard")


class DeviceTest(SluiceTest):
    @sandbox_only
    def test_device_that_vanishes(self):
        source = ("import socket,time\n"
                  "print('ready',flush=True)\n"
                  "while True:\n"
                  " s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n"
                  " try: s.connect(('10.77.0.2',9))\n"
                  " except OSError as e: print('errno',e.errno,flush=True); break\n"
                  " s.close(); time.sleep(0.05)\n"
                  "a=socket.create_server(('127.0.0.1',7000)); b=socket.create_connection(('127.0.0.1',7000)); c,_=a.accept()\n"
                  "b.sendall(b'loop'); print(c.recv(4),flush=True)\n")
        program = self.python_inside(source)
        program.wait_log("ready")
        self.net.peer.run("ip", "link", "del", "eth0")
        out = program.expect_success()
        self.assertIn("errno 101", out)
        self.assertIn("b'loop'", out)

    @sandbox_only
    def test_device_that_goes_down_and_comes_back(self):
        server = self.inside("socat", "TCP-LISTEN:7000,fork,reuseaddr", "EXEC:cat")
        self.wait_peer_sees(7000, server)
        self.net.inside.run("ip", "link", "set", "eth0", "down")
        self.net.inside.run("ip", "link", "set", "eth0", "up")
        self.wait_peer_sees(7000, server)

    @sandbox_only
    def test_mtu_change_is_followed(self):
        server = self.inside("socat", "TCP-LISTEN:7000,fork,reuseaddr", "EXEC:cat")
        self.wait_peer_sees(7000, server)
        for ns in (self.net.inside, self.net.peer):
            ns.run("ip", "link", "set", "eth0", "mtu", "1280")

        def mss():
            with self.net.peer.connect((INSIDE, 7000)) as s:
                return s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1240
        wait_for(mss, "the segment size does not follow the MTU")

    @sandbox_only
    def test_second_sluice_is_refused(self):
        first = self.inside("sh", "-c", "echo ready; exec sleep 600")
        first.wait_log("ready")
        second = self.inside("true")
        self.assertEqual(second.wait(), 1, second.describe())
        self.assertIn(self.net.inside.name, second.output())
        first.stop()
        self.inside("true").expect_success()


class PacketFilterTest(SluiceTest):
    @sandbox_only
    def test_filters_of_others_are_not_bypassed_in_silence(self):
        self.net.inside.run("nft", "add table ip guarded; add chain ip guarded in { type filter hook input priority 0; policy drop; }")
        refused = self.inside("true")
        self.assertEqual(refused.wait(), 1, refused.describe())
        self.assertRegex(refused.output(), r"guarded")
        self.assertRegex(refused.output(), r"--netfilter=ignore")
        self.inside("ping", "-c", "1", "-W", "15", PEER, flags=("--netfilter=ignore",)).expect_success()


if __name__ == "__main__":
    unittest.main()
