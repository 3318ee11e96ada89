"""`sluice bench`: the packet tool over each port, on the veth of the test."""
import json
import signal
import subprocess
import unittest

from harness import SLUICE, SluiceTest, sandbox_only


@sandbox_only
class BenchTest(SluiceTest):
    def bench(self, ns, link, *argv):
        return self._start(ns.argv(SLUICE, f"--link={link}", "bench", *argv))

    def result(self, program):
        """What --json printed."""
        return json.loads(program.expect_success().splitlines()[-1])

    def exchange(self, link, size):
        """Frames that the peer sends come back, of their size (the kernel's own frames are among them)."""
        echo = self.bench(self.net.inside, link, "echo", "--device=eth0")
        echo.wait_log("seconds")
        receiver = self.bench(self.net.peer, "packet", "rx", "--device=eth0", "--json", "--seconds=2")
        sent = self.result(self.bench(self.net.peer, "packet", "tx", "--device=eth0", "--seconds=1", f"--size={size}", "--json"))
        got = self.result(receiver)
        echo.process.send_signal(signal.SIGTERM)
        echo.expect_success()
        self.assertGreater(sent["tx_frames"], 0)
        self.assertGreater(got["rx_frames"], 0)
        self.assertAlmostEqual(got["rx_bytes"] / got["rx_frames"], size, delta=size / 5)

    def test_echo_over_packet_port(self):
        self.exchange("packet", 64)

    def test_echo_of_super_segments(self):
        self.exchange("packet", 30000)

    def test_echo_over_xdp_port(self):
        self.exchange("xdp", 64)

    def test_workers_share_the_flows(self):
        for link in ("packet", "xdp"):
            if link == "xdp":
                for ns in (self.net.inside, self.net.peer):
                    ns.run("ethtool", "-L", "eth0", "rx", "2", "tx", "2")
            echo = self.bench(self.net.inside, link, "echo", "--device=eth0", "--workers=2")
            echo.wait_log("seconds")
            receiver = self.bench(self.net.peer, "packet", "rx", "--device=eth0", "--workers=2", "--json", "--seconds=2")
            sent = self.result(self.bench(self.net.peer, "packet", "tx", "--device=eth0", "--seconds=1", "--flows=64", "--workers=2", "--json"))
            got = self.result(receiver)
            echo.process.send_signal(signal.SIGTERM)
            echo.expect_success()
            self.assertEqual((sent["workers"], got["workers"]), (2, 2))
            self.assertGreater(sent["tx_frames"], 0)
            self.assertGreater(got["rx_frames"], 0)

    def test_forwards_between_two_devices(self):
        ns = self.net.inside
        ns.run("ip", "link", "add", "a0", "type", "veth", "peer", "name", "b0")
        for device in ("a0", "b0"):
            ns.run("ip", "link", "set", device, "up")
        forward = self.bench(ns, "packet", "l2fwd", "--device=eth0", "--device=a0")
        forward.wait_log("seconds")
        receiver = self.bench(ns, "packet", "rx", "--device=b0", "--json", "--seconds=2")
        self.result(self.bench(self.net.peer, "packet", "tx", "--device=eth0", "--seconds=1", "--json"))
        self.assertGreater(self.result(receiver)["rx_frames"], 0)

    def test_device_that_goes_ends_it(self):
        p = self.bench(self.net.inside, "packet", "rx", "--device=eth0")
        p.wait_log("seconds")
        self.net.inside.run("ip", "link", "del", "eth0")
        self.assertEqual(p.wait(), 1, p.describe())
        self.assertIn("a device is gone", p.output())

    def test_errors_name_what_is_wrong(self):
        for argv, text in ((["bench"], "no mode is given"), (["bench", "rx"], "no device is named"), (["bench", "rx", "--device=nope"], "--device=nope: no such device"),
                           (["bench", "tx", "--device=lo", "--size=9"], "--size=9"), (["bench", "tx", "--device=lo", "--workers=33"], "--workers=33"),
                           (["--link=dpdk", "bench", "rx", "--device=net_null0", "--workers=2"], "one worker only"), (["bench", "l2fwd", "--device=lo"], "needs two devices")):
            p = subprocess.run([SLUICE, *argv], capture_output=True, text=True, timeout=60, check=False)
            self.assertIn(text, p.stderr)
            self.assertIn(p.returncode, (1, 2))


if __name__ == "__main__":
    unittest.main()
