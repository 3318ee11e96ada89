"""`sluice bench`: the packet tool over each port, on the veth of the test."""
import json
import os
import shutil
import signal
import subprocess
import tempfile
import unittest
from xml.etree import ElementTree

from harness import ROOT, RUN_ID, SLUICE, SluiceTest, sandbox_only


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
        for link, queues in (("packet", 1), ("xdp", 1), ("xdp", 2)):
            if queues == 2:
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


@sandbox_only
class HarnessTest(unittest.TestCase):
    """bench/harness.py, by one short round."""

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix=f"{RUN_ID}-bench-")
        self.addCleanup(shutil.rmtree, self.directory)

    def measure(self, modes, runsc):
        done = subprocess.run(["/usr/bin/python3", f"{ROOT}/bench/harness.py", "--rounds=1", "--seconds=1", "--work=TCP 1 B", f"--modes={modes}", f"--runsc={runsc}",
                               f"--output={self.directory}"], capture_output=True, text=True, timeout=240, check=False)
        files = sorted(os.listdir(self.directory))
        self.assertEqual([f.rpartition(".")[2] for f in files], ["json", "md", "svg"], done.stdout + done.stderr)
        text = {}
        for f in files:
            with open(f"{self.directory}/{f}", encoding="utf-8") as opened:
                text[f.rpartition(".")[2]] = opened.read()
        return done, json.loads(text["json"]), text["md"], text["svg"]

    def test_measures_and_states_where(self):
        done, result, table, plot = self.measure("kernel,packet,tap,runsc", "/nonexistent/runsc")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for key in ("kernel", "congestion_control", "mtu", "placement", "command", "iperf3", "wrk"):
            self.assertIn(key, result["environment"])
        self.assertIn("cubic", result["environment"]["congestion_control"])
        self.assertEqual(result["environment"]["mtu"], 1500)
        rate = next(r for r in result["results"] if r["work"] == "TCP 1 B request/response")
        self.assertEqual(set(rate["median"]), {"kernel", "packet", "tap"})
        self.assertTrue(all(v > 0 for v in rate["median"].values()), rate)
        self.assertRegex(table, r"under runsc \|  \| not installed \(/nonexistent/runsc\)")
        ElementTree.fromstring(plot)

    @unittest.skipUnless(shutil.which("runc"), "runc is not installed")
    def test_runsc_runs_a_bundle_in_the_namespace(self):
        """In runsc's place stands runc, which reads the same bundle and knows none of its flags."""
        fake = f"{self.directory}-runsc"
        self.addCleanup(lambda: os.unlink(fake))
        with open(fake, "w", encoding="utf-8") as f:
            f.write(f"#!/bin/bash\necho \"$@\" >>{fake}.log\n[ \"$1\" = --version ] && exec echo runsc version fake\n"
                    "a=()\nfor x; do case $x in --network=*|--ignore-cgroups) ;; *) a+=(\"$x\");; esac; done\nexec runc \"${a[@]}\"\n")
        os.chmod(fake, 0o755)
        done, result, table, _ = self.measure("kernel,runsc", fake)
        self.addCleanup(lambda: os.unlink(f"{fake}.log"))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(result["environment"]["runsc"], "runsc version fake")
        self.assertGreater(result["results"][0]["median"]["runsc"], 0)
        self.assertNotIn("not installed", table)
        with open(f"{fake}.log", encoding="utf-8") as f:
            self.assertRegex(f.read(), r"--network=sandbox --ignore-cgroups run --bundle")

    def test_documents_hold_what_was_published(self):
        with open(f"{ROOT}/README.md", encoding="utf-8") as f:
            readme = f.read()
        self.assertRegex(readme, r"(?s)<!-- bench -->.*scripts/bench .*\| work \| unit \| kernel \| packet \|.*<!-- /bench -->")
        self.assertIn("](docs/benchmarks.svg)", readme)
        ElementTree.parse(f"{ROOT}/docs/benchmarks.svg")


if __name__ == "__main__":
    unittest.main()
