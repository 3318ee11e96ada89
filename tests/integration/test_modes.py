"""--network=none and --network=host; how `sluice do` behaves as a command."""
import contextlib
import os
import re
import signal
import socket
import subprocess
import unittest

import processes
from harness import INSIDE, PEER, SLUICE, SluiceTest, sandbox_only, sh, wait_for

LOOPBACK = ("import socket,threading\n"
            "s=socket.create_server(('127.0.0.1',7000))\n"
            "def serve():\n"
            " c,_=s.accept()\n"
            " while d:=c.recv(65536): c.sendall(d)\n"
            " c.close()\n"
            "threading.Thread(target=serve).start()\n"
            "c=socket.create_connection(('127.0.0.1',7000))\n"
            "c.sendall(b'x'*100000); c.shutdown(1)\n"
            "n=0\n"
            "while d:=c.recv(65536): n+=len(d)\n"
            "print('echoed',n)\n")


class NoneTest(SluiceTest):
    flags = ("--network=none",)

    @sandbox_only
    def test_loopback_works(self):
        self.assertIn("echoed 100000", self.python_inside(LOOPBACK).expect_success())

    @sandbox_only
    def test_nothing_leaves(self):
        # The peer's kernel counts what arrives. The kernel inside may emit its own (IPv6 start-up) until the sandbox silences it.
        received = lambda: int(re.search(r"RX:.*\n\s*\d+\s+(\d+)", self.net.peer.run("ip", "-s", "link", "show", "eth0").stdout).group(1))
        source = ("import socket,subprocess\n"
                  "print('ready',flush=True); input()\n"
                  "try: socket.create_connection(('10.77.0.2',80),timeout=10)\n"
                  "except OSError as e: print('errno',e.errno,flush=True)\n"
                  "subprocess.run(['ping','-c','1','-W','1','10.77.0.2'])\n"
                  "print('done',flush=True); input()\n")
        program = self.python_inside(source, stdin=subprocess.PIPE)
        program.wait_log("ready")
        before = received()
        program.process.stdin.write(b"\n")
        program.process.stdin.flush()
        program.wait_log("done")
        # Before the sandbox ends: then the kernel may speak again.
        self.assertEqual(received(), before)
        program.process.stdin.write(b"\n")
        program.process.stdin.close()
        self.assertIn("errno 101", program.expect_success(), "ENETUNREACH")

    @sandbox_only
    def test_only_the_loopback_is_shown(self):
        out = self.inside("ip", "-o", "addr").expect_success()
        self.assertIn("127.0.0.1/8", out)
        self.assertNotIn(INSIDE, out)


class LeftBehindTest(SluiceTest):
    """What a program wrote before it ended arrives, as from the kernel's sockets of a dead process."""

    def left_behind(self, peer_shuts_down_first):
        listener = self.net.peer.listen((PEER, 7000))
        self.addCleanup(listener.close)
        program = self.python_inside("import socket\n"
                                     f"s=socket.create_connection(('{PEER}',7000))\n"
                                     f"{'s.recv(1)' if peer_shuts_down_first else ''}\n"
                                     "s.settimeout(1)\n"
                                     "n=0\n"
                                     "try:\n"
                                     " while True: n+=s.send(b'x'*65536)\n"
                                     "except TimeoutError: print('wrote',n,'bytes',flush=True)\n")
        peer, _ = listener.accept()
        self.addCleanup(peer.close)
        peer.settimeout(60)
        if peer_shuts_down_first:
            peer.shutdown(socket.SHUT_WR)
        wrote = int(program.wait_log(r"wrote (\d+) bytes").group(1))
        if program.sandbox:
            # It is gone, and the peer has not read a byte: its buffer, our send buffer and the program's are full.
            program.wait_log("still deliver")
        received = 0
        while part := peer.recv(1 << 20):
            received += len(part)
        self.assertEqual(received, wrote)
        peer.close()
        program.expect_success()

    def test_all_arrives(self):
        self.left_behind(peer_shuts_down_first=False)

    def test_all_arrives_after_the_peers_fin(self):
        self.left_behind(peer_shuts_down_first=True)


class HostTest(SluiceTest):
    flags = ("--network=host",)

    @sandbox_only
    def test_no_filter_and_kernel_sockets(self):
        out = self.inside("sh", "-c", "grep Seccomp: /proc/self/status; readlink /proc/self/ns/net").expect_success()
        self.assertRegex(out, r"Seccomp:\s+0")
        self.assertIn(f"[{os.stat(self.net.inside.path).st_ino}]", out)

    @sandbox_only
    def test_serves_by_the_kernel(self):
        server = self.inside("socat", "TCP-LISTEN:7000,fork", "EXEC:cat")
        self.wait_peer_sees(7000, server)
        self.assertIn(":7000", self.net.inside.run("ss", "-Htln").stdout)

    @sandbox_only
    def test_loopback_is_the_kernels(self):
        self.assertIn("echoed 100000", self.python_inside(LOOPBACK).expect_success())


class DoTest(SluiceTest):
    @sandbox_only
    def test_exit_status_is_the_programs(self):
        self.assertEqual(self.inside("sh", "-c", "exit 7").wait(), 7)
        self.inside("true").expect_success()
        self.assertEqual(self.inside("sh", "-c", "kill -TERM $$").wait(), 128 + signal.SIGTERM)

    @sandbox_only
    def test_program_that_is_not_there(self):
        p = self.inside("/nonexistent/program")
        self.assertEqual(p.wait(), 127, p.describe())
        self.assertIn("/nonexistent/program", p.output())

    @sandbox_only
    def test_signals_reach_the_program(self):
        p = self.inside("sh", "-c", "trap 'echo got term; exit 3' TERM; echo ready; while :; do sleep 0.1; done")
        p.wait_log("ready")
        p.process.send_signal(signal.SIGTERM)
        self.assertEqual(p.wait(), 3, p.describe())
        self.assertIn("got term", p.output())

    @sandbox_only
    def test_namespace_is_left_as_found(self):
        # Counters and ages differ; configuration must not.
        state = lambda: "\n".join(self.net.inside.run(*c.split()).stdout for c in (
            "ip addr", "ip route show table all", "ip rule", "ip -d link", "tc filter show dev eth0 ingress", "sysctl net.ipv4.ip_forward"))
        before = state()
        self.inside("ping", "-c", "1", PEER).expect_success()
        self.assertEqual(state(), before)
        self.peer("ping", "-c", "1", "-W", "15", INSIDE).expect_success()

    @sandbox_only
    def test_starts_again_at_once(self):
        # What the end of one leaves to the kernel's background work is no hindrance to the next.
        for _ in range(5):
            self.inside("true").expect_success()
        self.peer("ping", "-c", "1", "-W", "15", INSIDE).expect_success()

    @sandbox_only
    def test_without_netns_makes_its_own(self):
        before = sh("ip", "-o", "link").stdout.count("\n")
        p = subprocess.run([SLUICE, "do", "--", "ip", "addr"], capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(p.returncode, 0, p.stderr)
        self.assertRegex(p.stdout, r"inet \d+\.\d+\.\d+\.\d+/30")
        wait_for(lambda: sh("ip", "-o", "link").stdout.count("\n") <= before, "the veth is still there")

    @sandbox_only
    def test_inherited_socket_is_refused(self):
        with socket.socket() as s:
            p = self.inside("true", pass_fds=(s.fileno(),))
            self.assertEqual(p.wait(), 1, p.describe())
            self.assertRegex(p.output(), r"(?i)descriptor|socket")


class DroppedGsoTest(SluiceTest):
    flags = ("--gso=false",)

    @sandbox_only
    def test_bulk_both_ways(self):
        server = self.inside("iperf3", "-s", "--forceflush")
        server.wait_log("Server listening on 5201")
        for direction in ([], ["-R"]):
            wait_for(lambda d=direction: self.peer("iperf3", "-c", INSIDE, "-t", "1", *d).wait() == 0, "iperf3 fails", timeout=30)


class XdpTest(SluiceTest):
    flags = ("--link=xdp",)

    @sandbox_only
    def test_bulk_both_ways(self):
        server = self.inside("iperf3", "-s", "--forceflush")
        server.wait_log("Server listening on 5201")
        for direction in ([], ["-R"]):
            wait_for(lambda d=direction: self.peer("iperf3", "-c", INSIDE, "-t", "1", *d).wait() == 0, "iperf3 fails", timeout=30)

    @sandbox_only
    def test_program_is_detached_at_the_end(self):
        self.inside("ping", "-c", "1", PEER).expect_success()
        self.assertNotIn("xdp", self.net.inside.run("ip", "link", "show", "eth0").stdout)

    @sandbox_only
    def test_as_many_workers_as_there_can_be(self):
        server = self.inside("socat", "TCP-LISTEN:7000,fork,reuseaddr", "EXEC:cat", flags=("--link=xdp", "--num-network-channels=16"))
        self.wait_peer_sees(7000, server)
        for _ in range(32):  # of many hashes: to many workers
            with self.net.peer.connect((INSIDE, 7000)) as s:
                s.sendall(b"by whichever")
                s.shutdown(socket.SHUT_WR)
                got = b""
                while data := s.recv(100):
                    got += data
                self.assertEqual(got, b"by whichever")


ACCEPTING = ("import socket\n"
             "s=socket.create_server(('0.0.0.0',7000),backlog=64)\n"
             "print('listening',flush=True)\n"
             "accepted=[s.accept()[0] for _ in range(32)]\n"
             "print('accepted',len({c.recv(9) for c in accepted}),flush=True)\n"
             "input()\n")


class AcceptTest(SluiceTest):
    @sandbox_only
    def test_connections_of_every_worker_come_by_the_native_queue(self):
        """An end that was accepted there has the listener's name."""
        server = self.python_inside(ACCEPTING, flags=("--num-network-channels=3",), stdin=subprocess.PIPE)
        server.wait_log("listening")
        with contextlib.ExitStack() as stack:
            for i in range(32):
                stack.enter_context(self.net.peer.connect((INSIDE, 7000))).sendall(b"%d" % i)
            server.wait_log("accepted 32")
            with open(f"/proc/{processes.role(server.pid, 'sentry')}/net/unix", "rb") as f:
                connected = re.findall(rb"^[0-9a-f]+: \w+ \w+ \w+ 0001 03 +\d+ @", f.read(), re.MULTILINE)
            self.assertEqual(len(connected), 32)
            server.process.stdin.write(b"\n")
            server.process.stdin.close()
        server.expect_success()


if __name__ == "__main__":
    unittest.main()
