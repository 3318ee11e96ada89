"""Faults from outside: sluice's processes killed under load, a device that goes, two sluices, packet filters of others."""
import hashlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import threading
import time
import unittest

import processes
from harness import INSIDE, PEER, SLUICE, SluiceTest, sandbox_only, sh, wait_for

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


def receive_exactly(s, size):
    got = bytearray()
    while len(got) < size:
        data = s.recv(size - len(got))
        if not data:
            break
        got += data
    return bytes(got)


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

    def echo_server(self, link):
        server = self.inside("socat", "TCP-LISTEN:7000,fork,reuseaddr", "EXEC:cat", flags=(f"--link={link}",))
        self.wait_peer_sees(7000, server)
        return server

    def stats(self):
        return json.loads(sh(SLUICE, "stats", "--json", self.net.inside.name).stdout)

    def fault(self, name):
        return self.stats()["ports"][0]["faults"][name]

    def wait_fault(self, name, least):
        wait_for(lambda: self.fault(name) >= least, f"{name} is not counted")

    def down_and_up(self, link):
        server = self.echo_server(link)
        self.assertEqual(self.fault("device_down"), 0)
        for turn in (1, 2):
            self.net.inside.run("ip", "link", "set", "eth0", "down")
            self.net.inside.run("ip", "link", "set", "eth0", "up")
            self.wait_peer_sees(7000, server)
            self.wait_fault("device_down", turn)
        self.assertEqual(self.fault("device_down"), 2)

    @sandbox_only
    def test_device_that_goes_down_and_comes_back(self):
        self.down_and_up("packet")

    @sandbox_only
    def test_device_that_goes_down_and_comes_back_under_xdp(self):
        self.down_and_up("xdp")

    def follow_mtu(self, link):
        self.echo_server(link)
        for ns in (self.net.inside, self.net.peer):
            ns.run("ip", "link", "set", "eth0", "mtu", "1280")

        def mss():
            with self.net.peer.connect((INSIDE, 7000)) as s:
                return s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1240
        wait_for(mss, "the segment size does not follow the MTU")
        self.wait_fault("mtu_changed", 1)
        self.assertEqual(self.fault("mtu_changed"), 1)

    @sandbox_only
    def test_mtu_change_is_followed(self):
        self.follow_mtu("packet")

    @sandbox_only
    def test_mtu_change_is_followed_under_xdp(self):
        self.follow_mtu("xdp")

    def change_queues(self, link):
        server = self.echo_server(link)
        with self.net.peer.connect((INSIDE, 7000)) as s:
            for turn, count in enumerate(("2", "1", "2")):
                sent = os.urandom(1 << 20)
                feeder = threading.Thread(target=s.sendall, args=(sent,))
                feeder.start()
                for ns in (self.net.inside, self.net.peer):
                    ns.run("ethtool", "-L", "eth0", "rx", count, "tx", count)
                self.assertEqual(receive_exactly(s, len(sent)), sent)
                feeder.join()
                # Connections of many hashes: they come by every queue.
                for _ in range(20):
                    self.wait_peer_sees(7000, server)
                if link == "xdp":
                    self.wait_fault("queues_changed", turn + 1)

    @sandbox_only
    def test_queues_that_are_added_and_taken(self):
        self.change_queues("packet")

    @sandbox_only
    def test_queues_that_are_added_and_taken_under_xdp(self):
        self.change_queues("xdp")

    @sandbox_only
    def test_xdp_program_that_somebody_takes_off_comes_back(self):
        server = self.echo_server("xdp")
        program = re.search(r"prog/xdp id (\d+)", self.net.inside.run("ip", "-d", "link", "show", "eth0").stdout).group(1)
        self.assertNotEqual(self.net.inside.run("ip", "link", "set", "dev", "eth0", "xdpgeneric", "off", check=False).returncode, 0)
        links = json.loads(self.net.inside.run("/usr/sbin/bpftool", "-j", "link", "show").stdout)
        link = next(entry["id"] for entry in links if entry.get("prog_id") == int(program))
        with self.net.peer.connect((INSIDE, 7000)) as s:
            self.net.inside.run("/usr/sbin/bpftool", "link", "detach", "id", str(link))
            s.sendall(b"again")
            self.assertEqual(receive_exactly(s, 5), b"again")
        server.wait_log("took sluice's XDP program off; it is attached again")
        self.wait_fault("xdp_program_restored", 1)
        metrics = self.stats()
        self.assertEqual(set(metrics["ports"][0]["faults"]),
                         {"rx_ring_full", "rx_no_buffer", "rx_no_memory", "tx_no_buffer", "rx_beside_ring",
                          "device_down", "mtu_changed", "queues_changed", "xdp_program_restored"})

    @sandbox_only
    def test_another_xdp_program_in_the_place_of_ours_silences_nothing(self):
        """Somebody takes ours off and puts one there that lets all pass: frames come by the packet socket, and by AF_XDP again when it goes."""
        server = self.echo_server("xdp")
        program = re.search(r"prog/xdp id (\d+)", self.net.inside.run("ip", "-d", "link", "show", "eth0").stdout).group(1)
        links = json.loads(self.net.inside.run("/usr/sbin/bpftool", "-j", "link", "show").stdout)
        link = next(entry["id"] for entry in links if entry.get("prog_id") == int(program))
        other = os.path.join(self.directory, "pass.o")
        source = '__attribute__((section("xdp"), used)) int pass(void *c) { return 2; }'
        sh("clang-19", "-O2", "-target", "bpf", "-x", "c", "-c", "-o", other, "-", input=source)
        with self.net.peer.connect((INSIDE, 7000)) as s:
            # The broker may be quicker and put ours back in between, as the same link: until the other's is in.
            self.net.inside.run("sh", "-c", "for i in $(seq 100); do /usr/sbin/bpftool link detach id $0; "
                                            "ip link set dev eth0 xdpgeneric obj $1 sec xdp && exit 0; done; exit 1", str(link), other)
            for turn in range(3):
                sent = os.urandom(200000)
                feeder = threading.Thread(target=s.sendall, args=(sent,))
                feeder.start()
                self.assertEqual(receive_exactly(s, len(sent)), sent)
                feeder.join()
            self.assertGreater(self.fault("rx_beside_ring"), 0)
            server.wait_log("sluice's XDP program is off")
            self.net.inside.run("ip", "link", "set", "dev", "eth0", "xdpgeneric", "off")
            self.wait_fault("xdp_program_restored", 1)
            s.sendall(b"again")
            self.assertEqual(receive_exactly(s, 5), b"again")


class WorkerTest(SluiceTest):
    """The thread that runs the stack."""
    ECHO = ("socat", "TCP-LISTEN:7000,fork,reuseaddr", "EXEC:cat")

    def worker(self):
        return json.loads(sh(SLUICE, "stats", "--json", self.net.inside.name).stdout)["worker"]

    @sandbox_only
    def test_the_way_of_polling_shows_in_stats(self):
        for flags, mode in (((), "adaptive"), (("--poll=adaptive", "--poll-spin=70us"), "adaptive"), (("--poll=interrupt",), "interrupt"), (("--poll=busy",), "busy")):
            server = self.inside(*self.ECHO, flags=flags)
            self.wait_peer_sees(7000, server)
            worker = self.worker()
            self.assertEqual(worker["poll"], mode)
            self.assertEqual(worker["spin_limit_ns"] > 0, mode == "adaptive")
            if "--poll-spin=70us" in flags:
                self.assertEqual(worker["spin_limit_ns"], 70000)
            if mode == "busy":
                self.assertEqual(worker["sleeps"], 0)
            if mode == "interrupt":
                self.assertEqual(worker["spin_ns"], 0)
            self.assertIn("preempted_spins", worker)
            server.stop()

    @sandbox_only
    def test_the_threads_of_several_workers_show_in_stats(self):
        for flags, least in ((("--poll=busy",), 3), ((), 1)):
            server = self.inside(*self.ECHO, flags=("--num-network-channels=3", *flags))
            self.wait_peer_sees(7000, server)
            stats = json.loads(sh(SLUICE, "stats", "--json", self.net.inside.name).stdout)
            threads = [w["threads"] for w in stats["workers"]]
            self.assertEqual((len(threads), threads[0]), (3, 1))
            self.assertEqual(stats["worker"]["threads"], sum(threads))
            self.assertGreaterEqual(sum(threads), least)
            # As many on their own as went there and did not come back.
            self.assertEqual([w["handovers"] % 2 for w in stats["workers"]], [0, 0, 0] if flags else [0, *threads[1:]])
            server.stop()

    @sandbox_only
    def test_idle_it_uses_no_processor_time(self):
        for flags in (("--link=packet",), ("--link=xdp",), ("--num-network-channels=3",)):
            server = self.inside(*self.ECHO, flags=flags)
            self.wait_peer_sees(7000, server)

            def second():
                pids = [server.pid, *processes.children(server.pid)]
                before = processes.cpu_seconds(pids)
                time.sleep(1)
                return processes.cpu_seconds(pids) - before
            wait_for(lambda: second() <= 0.01, "never a second with less than one tick")
            server.stop()

    @sandbox_only
    def test_many_connections_at_once_wait_for_no_descriptor_table(self):
        """Making a shared table grow waits for a grace period of the kernel: the worker would stand still meanwhile."""
        server = self.inside(*self.ECHO)
        self.wait_peer_sees(7000, server)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        for name, least in (("sentry", 8192), ("broker", 1024)):
            with open(f"/proc/{processes.role(server.pid, name)}/status", encoding="utf-8") as f:
                size = next(int(line.split()[1]) for line in f if line.startswith("FDSize:"))
            self.assertGreaterEqual(size, min(least, limit), name)
        server.stop()

    @sandbox_only
    def test_its_core_is_taken_away_under_load(self):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            self.skipTest("needs two cores")
        server = self.inside(*self.ECHO)
        self.wait_peer_sees(7000, server)
        sentry = wait_for(lambda: processes.role(server.pid, "sentry"), "no sentry")
        with self.net.peer.connect((INSIDE, 7000)) as s:
            for turn in range(20):
                for task in os.listdir(f"/proc/{sentry}/task"):
                    os.sched_setaffinity(int(task), {cores[turn % 2]})
                sent = os.urandom(65536)
                feeder = threading.Thread(target=s.sendall, args=(sent,))
                feeder.start()
                self.assertEqual(receive_exactly(s, len(sent)), sent)
                feeder.join()
        server.stop()
        # One that never spins, as a spin that gives way counts, too; here it is thrown off its core while it has work.
        server = self.inside(*self.ECHO, flags=("--poll=interrupt",))
        self.wait_peer_sees(7000, server)
        sentry = wait_for(lambda: processes.role(server.pid, "sentry"), "no sentry")
        hog = subprocess.Popen(["/usr/bin/python3", "-c", f"import os\nos.sched_setaffinity(0,{{{cores[0]}}})\nwhile True: pass"])
        self.addCleanup(lambda: (hog.kill(), hog.wait()))
        for task in os.listdir(f"/proc/{sentry}/task"):
            os.sched_setaffinity(int(task), {cores[0]})
        before = self.worker()["core_taken"]

        def taken():
            with self.net.peer.connect((INSIDE, 7000)) as s:
                sent = os.urandom(4 << 20)
                feeder = threading.Thread(target=s.sendall, args=(sent,))
                feeder.start()
                self.assertEqual(receive_exactly(s, len(sent)), sent)
                feeder.join()
            return self.worker()["core_taken"] > before
        wait_for(taken, "core_taken is not counted")
        self.assertEqual(self.worker()["spin_ns"], 0)

    @sandbox_only
    def test_a_peer_that_is_stuck_holds_up_nobody_else(self):
        """One connection's peer reads nothing: the writer waits, memory stays bounded, others go on; all of it arrives in the end."""
        total = 64 << 20
        source = ("import socket,hashlib\n"
                  "l=socket.create_server(('0.0.0.0',7100)); print('listening',flush=True)\n"
                  "c,_=l.accept(); n=0; h=hashlib.sha256()\n"
                  f"while n<{total}:\n"
                  " b=n.to_bytes(8,'big')*8192; c.sendall(b); h.update(b); n+=len(b)\n"
                  "print('sent',h.hexdigest(),flush=True); c.close()\n")
        writer = self.python_inside(source)
        writer.wait_log("listening")
        stuck = self.net.peer.connect((INSIDE, 7100))
        self.addCleanup(stuck.close)
        sentry = wait_for(lambda: processes.role(writer.pid, "sentry"), "no sentry")

        self.peer("ping", "-c", "3", "-i", "0.2", "-W", "15", INSIDE).expect_success()
        self.assertLess(processes.pss_kib([sentry]) / 1024, 64)
        self.assertNotIn("sent", writer.output())
        wait_for(lambda: json.loads(sh(SLUICE, "stats", "--json", self.net.inside.name).stdout)["counters"]["TcpWinProbe"] > 0, "no probe of the closed window is counted")
        got = hashlib.sha256()
        while True:
            data = stuck.recv(1 << 20)
            if not data:
                break
            got.update(data)
        self.assertIn(got.hexdigest(), writer.expect_success())


class SecondTest(SluiceTest):
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
