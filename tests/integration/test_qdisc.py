"""--qdisc, SO_MAX_PACING_RATE and BBR, with the kernel as peer. Rates are strict above and wide below: the machine may be busy."""
import json
import time
import unittest

from harness import PATIENCE, PEER, REFERENCE, SLUICE, SluiceTest, sh, wait_for

SECONDS = 3


class Iperf3Client(SluiceTest):
    def client(self, *arguments, flags=(), ended=True):
        self.peer("iperf3", "-s", "-1")
        self.wait_listening_on_peer(5201)
        program = self.inside("iperf3", "-c", PEER, "-J", *arguments, flags=[*self.flags, *flags])
        return self.result(program) if ended else program

    @staticmethod
    def result(program):
        output = program.expect_success()
        result = json.loads(output[output.index("{"):])
        assert "error" not in result, result.get("error")
        return result

    @staticmethod
    def rate(result):
        """Bits of payload per second that arrived."""
        return result["end"]["sum_received"]["bits_per_second"]


@unittest.skipIf(REFERENCE, "about sluice itself")
class QdiscTest(Iperf3Client):
    def wait_qdisc(self, kind, condition, what):
        """The qdisc of the sandbox's device, once it is of this kind and fulfils the condition. One that ends in the namespace may answer before."""
        def seen():
            r = sh(SLUICE, "stats", "--json", f"--netns={self.net.inside.name}", check=False)
            found = [p["qdisc"] for p in json.loads(r.stdout)["ports"]] if r.returncode == 0 else []
            return next((q for q in found if q and q["kind"] == kind and condition(q)), None)
        return wait_for(seen, what)

    def test_tbf_bounds_the_rate(self):
        for burst in ("64k", "16384"):  # the second is shorter than a super-segment
            with self.subTest(burst=burst):
                flags = ("--qdisc=tbf", "--qdisc-tbf-rate=100mbit", f"--qdisc-tbf-burst={burst}")
                program = self.client("-t", str(SECONDS), flags=flags, ended=False)
                seen = self.wait_qdisc("tbf", lambda q: q["overlimits"] > 100 and q["sent_bytes"] > 1 << 20, "the token bucket held nothing back")
                rate = self.rate(self.result(program))
                self.assertLess(seen["backlog_bytes"], 100e6 / 8 / 20 + (64 << 10) + (64 << 10) + 1)
                self.assertLess(rate, 100e6)
                self.assertGreater(rate, 30e6)

    def test_tbf_lets_pass_what_stays_below(self):
        flags = ("--qdisc=tbf", "--qdisc-tbf-rate=400mbit", "--qdisc-tbf-burst=128k")
        result = self.client("-u", "-b", "20M", "-l", "1200", "-t", str(SECONDS), flags=flags)
        self.assertGreater(result["end"]["sum"]["packets"], 1000)
        self.assertLess(result["end"]["sum"]["lost_percent"], 5)

    def test_tbf_bounds_many_streams_together(self):
        flags = ("--qdisc=tbf", "--qdisc-tbf-rate=12500000", "--qdisc-tbf-burst=65536")
        rate = self.rate(self.client("-t", str(SECONDS), "-P", "8", flags=flags))
        self.assertLess(rate, 100e6)
        self.assertGreater(rate, 30e6)

    def test_fq_paces_and_counts(self):
        program = self.client("-t", str(SECONDS), "--fq-rate", "80M", "-P", "2", flags=("--qdisc=fq",), ended=False)
        seen = self.wait_qdisc("fq", lambda q: q["overlimits"] > 100, "no frame waited for its departure")
        result = self.result(program)
        self.assertEqual(seen["dropped"], 0)
        for stream in result["end"]["streams"]:
            self.assertLess(stream["receiver"]["bits_per_second"], 80e6 * 1.05)
            self.assertGreater(stream["receiver"]["bits_per_second"], 20e6)

    def test_none_and_fifo_serve(self):
        for kind in ("none", "fifo"):
            with self.subTest(kind=kind):
                program = self.client("-t", "2", flags=(f"--qdisc={kind}",), ended=False)
                self.wait_qdisc(kind, lambda q: q["sent_bytes"] > 1 << 20, "nothing was sent")
                self.assertGreater(self.rate(self.result(program)), 10e6)

    def test_flags_that_miss_one_another_are_refused(self):
        for flags, why in ((["--qdisc=tbf"], "needs --qdisc-tbf-rate"),
                           (["--qdisc=tbf", "--qdisc-tbf-rate=1mbit"], "needs --qdisc-tbf-burst"),
                           (["--qdisc-tbf-rate=1mbit"], "needs --qdisc=tbf"),
                           (["--qdisc=tbf", "--qdisc-tbf-rate=1mbit", "--qdisc-tbf-burst=100"], "not a valid value"),
                           (["--qdisc=tbf", "--qdisc-tbf-rate=fast", "--qdisc-tbf-burst=64k"], "not a valid value")):
            with self.subTest(flags=flags):
                r = sh(SLUICE, *flags, "do", f"--netns={self.net.inside.name}", "--", "true", check=False)
                self.assertNotEqual(r.returncode, 0)
                self.assertEqual(r.stderr.count("\n"), 1, r.stderr)
                self.assertIn(why, r.stderr)


@unittest.skipIf(REFERENCE, "about sluice itself")
class PacingTest(Iperf3Client):
    def test_a_stream_keeps_to_its_pacing_rate(self):
        rate = self.rate(self.client("-t", str(SECONDS), "--fq-rate", "80M"))
        self.assertLess(rate, 80e6 * 1.05)
        self.assertGreater(rate, 20e6)

    def test_bbr_by_iperf3(self):
        for flags in ((), ("--qdisc=fq",), ("--gso=false",)):
            with self.subTest(flags=flags):
                result = self.client("-t", str(SECONDS), "-C", "bbr", flags=flags)
                self.assertEqual(result["end"]["sender_tcp_congestion"], "bbr")
                self.assertGreater(self.rate(result), 50e6)

    def test_bbr_by_sysctl(self):
        result = self.client("-t", "2", flags=("--sysctl=net.ipv4.tcp_congestion_control=bbr",))
        self.assertEqual(result["end"]["sender_tcp_congestion"], "bbr")

    # Two programs on one bottleneck: BBR fills a bucket of ten milliseconds.
    def test_bbr_fills_a_token_bucket(self):
        flags = ("--qdisc=tbf", "--qdisc-tbf-rate=100mbit", "--qdisc-tbf-burst=64k")
        rate = self.rate(self.client("-t", str(SECONDS), "-C", "bbr", flags=flags))
        self.assertLess(rate, 100e6)
        self.assertGreater(rate, 50e6)

    def test_what_a_program_sees_of_bbr(self):
        sink = self.net.peer.listen((PEER, 7000))
        self.addCleanup(sink.close)
        program = self.python_inside("""
import socket, struct, subprocess, sys
s = socket.socket()
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b'bbr')
s.connect(('%s', 7000))
s.sendall(bytes(4 << 20))
print(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(bytes(1)).decode())
low, high, rtt, pacing, window = struct.unpack('5I', s.getsockopt(socket.IPPROTO_TCP, 26, 64))
print(low + (high << 32) > 0, 0 < rtt < 10 ** 7, 100 < pacing < 800, 200 < window < 800)
info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 240)
pacing, most = struct.unpack('2Q', info[104:120])
rate, = struct.unpack('Q', info[160:168])
print(0 < pacing < 2 ** 63, most == 2 ** 64 - 1, rate > 0)
print('bbr:(bw:' in subprocess.run(['ss', '-tinH', 'dport', '=', ':7000'], capture_output=True, text=True).stdout)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b'cubic')
print(s.getsockopt(socket.IPPROTO_TCP, 26, 64))
s.setsockopt(socket.SOL_SOCKET, 47, struct.pack('Q', 10 ** 6))
print(struct.unpack('Q', s.getsockopt(socket.SOL_SOCKET, 47, 8))[0], struct.unpack('Q', s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 240)[112:120])[0])
s.close()
""" % PEER)
        connection, _ = sink.accept()
        connection.settimeout(PATIENCE)
        end = time.monotonic() + PATIENCE
        while connection.recv(1 << 20) and time.monotonic() < end:
            pass
        connection.close()
        self.assertEqual(program.expect_success().splitlines(),
                         ["bbr", "True True True True", "True True True", "True", "b''", "1000000 1000000"])
