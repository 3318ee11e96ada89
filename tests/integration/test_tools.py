"""Small network tools: ping, dig, nc, socat, ip."""
import re
import socket
import struct
import threading
import unittest

from harness import INSIDE, PEER, SluiceTest, wait_for


class PingTest(SluiceTest):
    def check(self, output, count):
        self.assertRegex(output, rf"{count} packets transmitted, {count} received, 0% packet loss")

    def test_peer_pings_sandbox(self):
        ready = self.python_inside("print('ready'); import time; time.sleep(600)")
        ready.wait_log("ready")
        self.check(self.peer("ping", "-c", "5", "-i", "0.2", "-W", "10", INSIDE).expect_success(), 5)
        self.check(self.peer("ping", "-c", "3", "-i", "0.2", "-W", "10", "-s", "9000", INSIDE).expect_success(), 3)

    def test_sandbox_pings_peer(self):
        self.check(self.inside("ping", "-c", "5", "-i", "0.2", "-W", "10", PEER).expect_success(), 5)

    def test_sandbox_pings_peer_in_fragments(self):
        self.check(self.inside("ping", "-c", "3", "-i", "0.2", "-W", "10", "-s", "9000", PEER).expect_success(), 3)

    def test_sandbox_pings_itself(self):
        self.check(self.inside("ping", "-c", "3", "-i", "0.2", "-W", "10", "127.0.0.1").expect_success(), 3)
        self.check(self.inside("ping", "-c", "3", "-i", "0.2", "-W", "10", INSIDE).expect_success(), 3)

    def test_absent_neighbour_is_unreachable(self):
        p = self.inside("ping", "-c", "1", "-W", "15", "10.77.0.99")
        self.assertNotEqual(p.wait(), 0)
        self.assertIn("Destination Host Unreachable", p.output())


class DnsServer:
    """Answers every A question with 192.0.2.7, over UDP and TCP, on the peer's address."""
    ANSWER = bytes([192, 0, 2, 7])

    def __init__(self, namespace):
        self.udp = namespace.socket(kind=socket.SOCK_DGRAM)
        self.udp.bind((PEER, 53))
        self.tcp = namespace.listen((PEER, 53))
        self.tcp.settimeout(None)
        for target in (self.serve_udp, self.serve_tcp):
            threading.Thread(target=target, daemon=True).start()

    def reply(self, query):
        end = query.index(b"\0", 12) + 5
        return query[:2] + b"\x85\x80" + struct.pack("!HHHH", 1, 1, 0, 0) + query[12:end] + b"\xc0\x0c" + struct.pack(
            "!HHIH", 1, 1, 60, 4) + self.ANSWER

    def serve_udp(self):
        try:
            while True:
                query, source = self.udp.recvfrom(4096)
                if len(query) < 17:
                    return
                self.udp.sendto(self.reply(query), source)
        except OSError:
            return

    def serve_tcp(self):
        try:
            while True:
                connection, _ = self.tcp.accept()
                with connection, connection.makefile("rwb") as f:
                    answer = self.reply(f.read(struct.unpack("!H", f.read(2))[0]))
                    f.write(struct.pack("!H", len(answer)) + answer)
        except (OSError, struct.error):
            return

    def close(self):
        for s in (self.udp, self.tcp):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()


class DigTest(SluiceTest):
    def setUp(self):
        super().setUp()
        server = DnsServer(self.net.peer)
        self.addCleanup(server.close)

    def test_udp(self):
        self.assertIn("192.0.2.7", self.inside("dig", "+short", "+tries=3", "+timeout=10", f"@{PEER}", "example.test", "A").expect_success())

    def test_tcp(self):
        self.assertIn("192.0.2.7", self.inside("dig", "+short", "+tcp", "+timeout=10", f"@{PEER}", "example.test", "A").expect_success())


class PipeTest(SluiceTest):
    """nc and socat move a file in both directions, byte-exact."""
    SIZE = 4 << 20

    def check_to_sandbox(self, server, port, out):
        path = self.file("in", self.SIZE)
        with open(path, "rb") as f, self.connect_once(server, port) as s:
            s.sendfile(f)
            s.shutdown(socket.SHUT_WR)
            while s.recv(65536):
                pass
        self.assertEqual(server.wait(), 0, server.describe())
        self.same(path, out)

    def same(self, a, b):
        with open(a, "rb") as f, open(b, "rb") as g:
            self.assertTrue(f.read() == g.read(), f"{a} and {b} differ")

    def connect_once(self, server, port):
        """The program takes one connection only, so the first that is accepted is the test's own."""
        def connected():
            if server.process.poll() is not None:
                raise AssertionError(f"ended: {server.describe()}")
            try:
                return self.net.peer.connect((INSIDE, port), timeout=5)
            except OSError:
                return None
        s = wait_for(connected, f"port {port} does not answer")
        s.settimeout(60)
        return s

    def test_busybox_nc_listens(self):
        out = f"{self.directory}/out"
        server = self.inside("sh", "-c", f"exec busybox nc -l -p 7001 >{out} </dev/null")
        self.check_to_sandbox(server, 7001, out)

    def test_busybox_nc_connects(self):
        path = self.file("in", self.SIZE)
        with self.net.peer.listen((PEER, 7002)) as listener:
            client = self.inside("sh", "-c", f"exec busybox nc {PEER} 7002 <{path}")
            connection, _ = listener.accept()
            with connection, open(f"{self.directory}/out", "wb") as f:
                connection.settimeout(60)
                got = 0
                while got < self.SIZE and (part := connection.recv(65536)):
                    f.write(part)
                    got += len(part)
            client.wait()
        self.same(path, f"{self.directory}/out")

    def test_socat_listens(self):
        out = f"{self.directory}/out"
        server = self.inside("socat", "-d", "-d", "-u", "TCP-LISTEN:7003,reuseaddr", f"CREATE:{out}")
        self.check_to_sandbox(server, 7003, out)

    def test_socat_connects(self):
        path = self.file("in", self.SIZE)
        out = f"{self.directory}/out"
        server = self.peer("socat", "-u", "TCP-LISTEN:7004,reuseaddr", f"CREATE:{out}")
        self.wait_listening_on_peer(7004)
        self.inside("socat", "-u", f"OPEN:{path}", f"TCP:{PEER}:7004").expect_success()
        server.expect_success()
        self.same(path, out)

    def test_socat_udp_echo(self):
        server = self.inside("socat", "-d", "-d", "UDP-RECVFROM:7005,fork", "EXEC:cat")
        server.wait_log("(?i)receiving|listening|starting|forking|waiting")
        with self.net.peer.socket(kind=socket.SOCK_DGRAM) as s:
            s.settimeout(1)

            def echoed():
                s.sendto(b"hello", (INSIDE, 7005))
                try:
                    return s.recv(100) == b"hello"
                except OSError:
                    return False
            wait_for(echoed, "no echo")


class IpTest(SluiceTest):
    def ip(self, *arguments):
        return self.inside("ip", *arguments).expect_success()

    def test_addresses(self):
        out = self.ip("addr")
        self.assertIn(f"inet {INSIDE}/24", out)
        self.assertIn("inet 127.0.0.1/8", out)
        self.assertRegex(out, r"eth0(@\S+)?: <[^>]*UP")

    def test_routes(self):
        out = self.ip("route")
        self.assertIn(f"default via {PEER} dev eth0", out)
        self.assertRegex(out, rf"10\.77\.0\.0/24 dev eth0 .*src {INSIDE}")

    def test_route_get(self):
        self.assertRegex(self.ip("route", "get", "192.0.2.1"), rf"192\.0\.2\.1 via {PEER} dev eth0 src {INSIDE}")
        self.assertRegex(self.ip("route", "get", PEER), rf"{PEER} dev eth0 src {INSIDE}")

    def test_links(self):
        out = self.ip("link")
        kernel = self.net.inside.run("ip", "-o", "link", "show", "eth0").stdout
        self.assertIn(re.search(r"link/ether (\S+)", kernel).group(1), out)
        self.assertRegex(out, r"lo: <LOOPBACK,UP")

    def test_neighbour_after_traffic(self):
        peer_mac = re.search(r"link/ether (\S+)", self.net.peer.run("ip", "-o", "link", "show", "eth0").stdout).group(1)
        out = self.inside("sh", "-c", f"ping -q -c 1 -W 15 {PEER} && ip neigh").expect_success()
        self.assertRegex(out, rf"{PEER} dev eth0 lladdr {peer_mac}")

    def test_added_address_takes_effect(self):
        script = ("set -e; ip addr add 10.77.0.55/24 dev eth0; ip addr show dev eth0; echo added; "
                  "exec socat TCP-LISTEN:8055,bind=10.77.0.55,fork EXEC:cat")
        server = self.inside("sh", "-c", script, cwd=self.directory)
        server.wait_log("added")
        self.assertIn("inet 10.77.0.55/24", server.output())
        self.wait_peer_sees(8055, server, "10.77.0.55")
        self.assertIn("10.77.0.55/24", self.net.inside.run("ip", "addr").stdout, "the namespace is the truth")

    def test_added_route_takes_effect(self):
        self.net.peer.run("ip", "addr", "add", "198.51.100.1/32", "dev", "lo")
        script = f"set -e; ip route del default; ip route add 198.51.100.0/24 via {PEER}; ip route; ping -q -c 2 -i 0.2 -W 15 198.51.100.1"
        out = self.inside("sh", "-c", script).expect_success()
        self.assertIn(f"198.51.100.0/24 via {PEER} dev eth0", out)
        self.assertNotIn("default", out)

    def test_change_outside_is_followed(self):
        script = "echo ready; until ip addr show dev eth0 | grep -q 10.77.0.66; do sleep 0.1; done; echo followed; exec sleep 600"
        program = self.inside("sh", "-c", script)
        program.wait_log("ready")
        self.net.inside.run("ip", "addr", "add", "10.77.0.66/24", "dev", "eth0")
        program.wait_log("followed")
        self.peer("ping", "-c", "1", "-W", "15", "10.77.0.66").expect_success()


if __name__ == "__main__":
    unittest.main()
