"""examples/http_echo: the stack as a library, a server in the worker's own thread, with the kernel as client."""
import os
import socket
import unittest

from harness import PATIENCE, ROOT, SLUICE, SluiceTest, sandbox_only, wait_for

EXAMPLE = os.path.join(os.path.dirname(SLUICE), "http_echo")
ADDRESS = "10.77.0.9"  # not one of the kernel's


@sandbox_only
class LibraryTest(SluiceTest):
    def serve(self, *flags):
        server = self._start(self.net.inside.argv(EXAMPLE, "--device=eth0", f"--address={ADDRESS}/24", *flags))
        server.wait_log("serving on")
        return server

    def fetch(self, path, *curl):
        return self.peer("curl", "-sS", "--fail", *curl, f"http://{ADDRESS}/{path}").expect_success(120)

    def check_http(self):
        self.assertEqual(self.fetch(""), "served by sluice\n")
        for size in (0, 1, 1024, 65536, 65537, 5_000_000):
            self.assertEqual(self.fetch(str(size), "-o", "/dev/null", "-w", "%{size_download}"), str(size))
        body = self.fetch("100000")
        self.assertEqual(body, ("".join(chr(97 + i % 26) for i in range(65536)) * 2)[:100000])
        self.assertIn("Content-Length: 77", self.fetch("77", "-I"))
        self.assertEqual(self.peer("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://{ADDRESS}/nothing").expect_success(), "404")

    def check_echo(self):
        data = os.urandom(3_000_000)
        s = self.net.peer.connect((ADDRESS, 7))
        self.addCleanup(s.close)
        got = bytearray()
        at = 0
        s.setblocking(False)
        def step():
            nonlocal at
            try:
                at += s.send(data[at:at + 65536]) if at < len(data) else 0
            except BlockingIOError:
                pass
            try:
                got.extend(s.recv(1 << 20))
            except BlockingIOError:
                pass
            return len(got) == len(data)
        wait_for(step, "the echo is not whole", step=0)
        self.assertEqual(bytes(got), data)
        u = self.net.peer.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(u.close)
        u.settimeout(PATIENCE)
        u.connect((ADDRESS, 7))
        for size in (1, 1000, 1473, 9000):
            u.send(data[:size])
            self.assertEqual(u.recv(65536), data[:size])

    def test_http_and_echo_over_packet_port(self):
        self.serve()
        self.check_http()
        self.check_echo()

    def test_http_and_echo_over_xdp_port(self):
        self.serve("--link=xdp", "--poll=interrupt")
        self.check_http()
        self.check_echo()

    def test_http_and_echo_over_tap(self):
        server = self._start(self.net.peer.argv(EXAMPLE, "--link=tap", "--device=tap0", f"--address={ADDRESS}/24"))
        server.wait_log("serving on")
        self.net.peer.run("ip", "addr", "flush", "dev", "eth0")
        self.net.peer.run("ip", "addr", "add", "10.77.0.2/24", "dev", "tap0")
        self.net.peer.run("ip", "link", "set", "tap0", "up")
        self.check_http()
        self.check_echo()

    @unittest.skipUnless(os.path.exists(os.path.join(os.path.dirname(SLUICE), "libsluice_dpdk.so")), "built without DPDK")
    def test_http_and_echo_over_dpdk(self):
        server = self._start(self.net.inside.argv(EXAMPLE, "--link=dpdk", "--device=net_af_xdp0,iface=eth0", f"--address={ADDRESS}/24"))
        server.wait_log("serving on")
        self.check_http()
        self.check_echo()

    def test_workers_over_packet_port(self):
        self.serve("--workers=3")
        self.check_http()
        self.check_echo()
        self.check_many()
        self.net.inside.run("ip", "link", "set", "eth0", "down")
        self.net.inside.run("ip", "link", "set", "eth0", "up")
        self.check_http()
        self.peer("ping", "-c3", "-i0.2", "-W5", ADDRESS).expect_success()

    def test_workers_share_the_only_queue_of_the_xdp_port(self):
        self.serve("--link=xdp", "--workers=3")
        self.check_http()
        self.check_echo()
        self.check_many()

    def test_workers_over_xdp_port_with_a_queue_each(self):
        for ns in (self.net.inside, self.net.peer):
            ns.run("ethtool", "-L", "eth0", "rx", "2", "tx", "2")
        refused = self._start(self.net.inside.argv(EXAMPLE, "--device=eth0", f"--address={ADDRESS}/24", "--link=xdp", "--workers=3"))
        self.assertEqual(refused.wait(), 1)
        self.assertIn("the device uses 2", refused.output())
        self.serve("--link=xdp", "--workers=2")
        self.check_http()
        self.check_echo()
        self.check_many()
        # The kernel keeps the queues that sockets are bound to.
        self.assertNotEqual(self._start(self.net.inside.argv("ethtool", "-L", "eth0", "rx", "1")).wait(), 0)
        self.check_http()

    def test_workers_over_tap(self):
        server = self._start(self.net.peer.argv(EXAMPLE, "--link=tap", "--device=tap0", f"--address={ADDRESS}/24", "--workers=2"))
        server.wait_log("serving on")
        self.net.peer.run("ip", "addr", "flush", "dev", "eth0")
        self.net.peer.run("ip", "addr", "add", "10.77.0.2/24", "dev", "tap0")
        self.net.peer.run("ip", "link", "set", "tap0", "up")
        self.check_http()
        self.check_echo()
        self.check_many()

    def test_wrong_numbers_of_workers_are_refused(self):
        for value in ("0", "33", "x", ""):
            p = self._start(self.net.inside.argv(EXAMPLE, "--device=eth0", f"--address={ADDRESS}/24", f"--workers={value}"))
            self.assertEqual(p.wait(), 1)
            self.assertIn(f"--workers={value}: no number from 1 to 32", p.output())

    def test_many_connections(self):
        self.serve()
        self.check_many()

    def check_many(self):
        out = self.peer("wrk", "-t2", "-c200", "-d1s", f"http://{ADDRESS}/1024").expect_success()
        self.assertNotIn("Non-2xx", out)
        self.assertNotIn("Socket errors", out)
        out = self.peer("wrk", "-t2", "-c20", "-d1s", "-H", "Connection: close", f"http://{ADDRESS}/1024").expect_success()
        self.assertNotIn("Non-2xx", out)

    def test_bad_requests_are_refused(self):
        self.serve()
        for request, status in ((b"rubbish\r\n\r\n", b"400"), (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"501"), (b"GET /" + b"a" * 20000, b"431")):
            s = self.net.peer.connect((ADDRESS, 80))
            s.sendall(request)
            self.assertIn(status, s.recv(65536).split(b"\r\n")[0])
            s.close()


if __name__ == "__main__":
    unittest.main()
