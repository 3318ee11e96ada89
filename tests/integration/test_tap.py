"""--link=tap: `sluice do` without --netns, joined to its host by a TAP device. The peer's namespace is the host here."""
import os
import re
import subprocess
import unittest

from harness import SLUICE, sandbox_only, wait_for
from test_web import SIZES, WebFixture, sha


@sandbox_only
class TapTest(WebFixture):
    flags = ("--link=tap",)

    def setUp(self):
        super().setUp()
        self.net.peer.run("ip", "link", "set", "lo", "up")

    def sandbox_argv(self, *argv, flags=None):
        return self.net.peer.argv(SLUICE, *(self.flags if flags is None else flags), "do", "--", *argv)

    def addresses(self):
        """Of the host's end and of the one inside."""
        def found():
            return re.search(r"slu\d+ +inet (\d+\.\d+\.\d+\.)(\d+)/30", self.net.peer.run("ip", "-o", "-4", "addr").stdout)
        m = wait_for(found, "no device slu* with an address on the host")
        return m.group(1) + m.group(2), m.group(1) + str(int(m.group(2)) + 1)

    def test_nginx_serves_exact_bytes(self):
        root = self.document_root(SIZES)
        server = self.inside(*self.nginx_argv(root))
        inside = self.addresses()[1]
        self.wait_peer_sees(80, server, inside)
        self.assertRegex(self.net.peer.run("ip", "-d", "-o", "link").stdout, r"slu\d+.*tun type tap")
        self.fetch_all(self.peer, inside, root, SIZES)

    def test_nginx_serves_exact_bytes_without_gso(self):
        root = self.document_root(["1k", "1m"])
        server = self.inside(*self.nginx_argv(root), flags=("--link=tap", "--gso=false"))
        inside = self.addresses()[1]
        self.wait_peer_sees(80, server, inside)
        self.fetch_all(self.peer, inside, root, ["1k", "1m"])

    def test_curl_inside_gets_exact_bytes(self):
        root = self.document_root(SIZES)
        self.peer(*self.nginx_argv(root))
        self.wait_listening_on_peer(80)
        got = os.path.join(self.directory, "got")
        # The address of the host's end is the gateway of the default route.
        script = "curl -sS --fail -o $0 http://$(ip route show default | cut -d' ' -f3)/100m"
        self.inside("sh", "-c", script, got).expect_success(120)
        self.assertEqual(sha(got), sha(f"{root}/100m"))

    def test_bulk_both_ways(self):
        server = self.inside("iperf3", "-s", "--forceflush")
        server.wait_log("Server listening on 5201")
        inside = self.addresses()[1]
        for direction in ([], ["-R"], ["-u", "-b", "200M"]):
            wait_for(lambda d=direction: self.peer("iperf3", "-c", inside, "-t", "1", *d).wait() == 0, "iperf3 fails", timeout=30)

    def test_device_goes_with_the_sandbox(self):
        self.inside("sh", "-c", "exit 7").wait()
        wait_for(lambda: "slu" not in self.net.peer.run("ip", "-o", "link").stdout, "the tap is still there")

    def test_device_goes_when_the_guard_is_killed(self):
        p = self.inside("sh", "-c", "echo ready; sleep 1000")
        p.wait_log("ready")
        p.process.kill()
        wait_for(lambda: "slu" not in self.net.peer.run("ip", "-o", "link").stdout, "the tap is still there")

    def test_a_namespace_of_its_own_is_refused(self):
        p = subprocess.run([SLUICE, "--link=tap", "do", f"--netns={self.net.inside.name}", "--", "true"], capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(p.returncode, 1)
        self.assertIn(f"--netns={self.net.inside.name} has devices of its own", p.stderr)


if __name__ == "__main__":
    unittest.main()
