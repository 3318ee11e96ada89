"""Byte-exact under loss, reordering, duplication and delay, both ways at once, against the kernel as peer."""
import json
import os
import unittest

import harness
from harness import ALL, INSIDE, PEER, ROOT, SluiceTest, sh

SIZE = (1 << 30) if ALL else (64 << 20)
LIMIT = 7200 if ALL else 600
EXACT = os.path.join(ROOT, "tests/programs/exact.py")
IMPAIR = os.path.join(ROOT, "build/release/tests/impair")


class ImpairedTest(SluiceTest):
    """inside eth0 <-> left (forwarder) right <-> eth0 peer: the veth of the base class is replaced by two."""

    def setUp(self):
        super().setUp()
        net = self.net
        net.inside.run("ip", "link", "del", "eth0")
        self.middle = harness.Namespace("m" + net.inside.name[len(harness.RUN_ID):])
        self.addCleanup(self.middle.remove)
        self.middle.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
        for ns, address, end in ((net.inside, INSIDE, "left"), (net.peer, PEER, "right")):
            sh("ip", "link", "add", "eth0", "netns", ns.name, "type", "veth", "peer", "name", end, "netns", self.middle.name)
            ns.run("ip", "addr", "add", f"{address}/24", "dev", "eth0")
            ns.run("ip", "link", "set", "eth0", "up")
            self.middle.run("ip", "link", "set", end, "up")
        net.inside.run("ip", "route", "add", "default", "via", PEER)

    def impair(self, loss, seed):
        p = self._start(self.middle.argv(IMPAIR, "--left=left", "--right=right", f"--loss={loss}", "--duplicate=1", "--reorder=1",
                                        "--delay-us=200", f"--seed={seed}"))
        p.wait_log("forwarding")
        return p

    def check(self, server, client, forwarder):
        self.assertIn("all right", client.expect_success(LIMIT))
        self.assertIn("all right", server.expect_success(LIMIT))
        forwarder.stop()
        for line in forwarder.output().splitlines()[1:]:
            counted = json.loads(line)
            for what in ("lost", "duplicated", "reordered"):
                self.assertGreater(counted[what], 50, f"the forwarder did next to nothing: {line}")

    def server_inside(self, loss):
        forwarder = self.impair(loss, seed=1)
        server = self.inside("/usr/bin/python3", EXACT, "serve", "7000", str(SIZE))
        server.wait_log("listening")
        client = self.peer("/usr/bin/python3", EXACT, "connect", INSIDE, "7000", str(SIZE))
        self.check(server, client, forwarder)

    def client_inside(self, loss):
        forwarder = self.impair(loss, seed=2)
        server = self.peer("/usr/bin/python3", EXACT, "serve", "7000", str(SIZE))
        server.wait_log("listening")
        client = self.inside("/usr/bin/python3", EXACT, "connect", PEER, "7000", str(SIZE))
        self.check(server, client, forwarder)

    def test_one_percent_server(self):
        self.server_inside(1)

    def test_five_percent_server(self):
        self.server_inside(5)

    def test_one_percent_client(self):
        self.client_inside(1)

    def test_five_percent_client(self):
        self.client_inside(5)


class MarkedTest(ImpairedTest):
    """A way that marks segments and loses none (RFC 3168); who asks for it is the client."""
    test_one_percent_server = test_five_percent_server = test_one_percent_client = test_five_percent_client = None
    sysctl = "net.ipv4.tcp_ecn=1"
    impairment = ("--mark=1", "--delay-us=200")
    says = "all right; ECN True, seen True, delivered marked True"
    counted, least = "marked", 50

    def exchange(self, server_side, client_side, address):
        for ns in (self.net.inside, self.net.peer):
            ns.run("sysctl", "-qw", self.sysctl)
        forwarder = self._start(self.middle.argv(IMPAIR, "--left=left", "--right=right", *self.impairment))
        forwarder.wait_log("forwarding")
        server = server_side("/usr/bin/python3", EXACT, "serve", "7000", str(SIZE))
        server.wait_log("listening")
        client = client_side("/usr/bin/python3", EXACT, "connect", address, "7000", str(SIZE))
        for side in (client, server):
            self.assertIn(self.says, side.expect_success(LIMIT))
        forwarder.stop()
        for line in forwarder.output().splitlines()[1:]:
            self.assertGreater(json.loads(line)[self.counted], self.least, line)

    def test_server(self):
        self.exchange(self.inside, self.peer, INSIDE)

    def test_client(self):
        self.exchange(self.peer, self.inside, PEER)


class BlackHoleTest(MarkedTest):
    """A way that swallows what is larger than 1300 bytes, and tells nobody (RFC 4821)."""
    sysctl = "net.ipv4.tcp_mtu_probing=1"
    impairment = ("--largest=1314",)
    says = "all right"
    counted, least = "too_large", 2


class ImpairedWithoutGsoTest(ImpairedTest):
    flags = ("--gso=false",)
    test_one_percent_server = test_five_percent_server = test_one_percent_client = None

    @harness.sandbox_only
    def test_five_percent_client(self):
        self.client_inside(5)


if __name__ == "__main__":
    unittest.main()
