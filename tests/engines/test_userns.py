"""dockerd --userns-remap: every container lives in a user namespace, in which its root is nobody of the host."""
import unittest

from docker_case import DockerCase
from docker_host import FIRST_REMAPPED_ID, SLUICE, wait_for

SERVER = "import http.server; http.server.ThreadingHTTPServer(('0.0.0.0', 80), http.server.SimpleHTTPRequestHandler).serve_forever()"


class RemappedTest(DockerCase):
    runtimes = {"sluice": [], "sluice-raw": ["--net-raw"]}
    remapped = True

    def test_root_inside_is_nobody_outside(self):
        self.assertEqual(self.run_in("cat", "/proc/self/uid_map").stdout.split(), ["0", str(FIRST_REMAPPED_ID), "65536"])

    def test_addresses_and_routes(self):
        self.assertRegex(self.run_in("ip", "addr").stdout, r"inet 10\.213\.0\.\d+/24 .*eth0")
        self.assertIn("default via 10.213.0.1 dev eth0", self.run_in("ip", "route").stdout)

    def test_server_and_exec(self):
        self.start("web", "python3", "-c", SERVER, options=["-p", "8080:80"], image="servers")
        wait_for(lambda: "0.0.0.0:80 " in self.host.host(SLUICE, "sockets", self.host.inspect("web", "{{.Id}}"), check=False).stdout, "the server does not listen")
        self.assertIn("Directory", self.host.host("curl", "-s", "-m10", "http://10.213.0.1:8080/").stdout)
        self.assertIn("Directory", self.host.out("exec", "web", "curl", "-s", "-m10", "http://127.0.0.1/"))
        self.assertIn("Directory", self.host.out("exec", "--user", "1000", "web", "curl", "-s", "-m10", "http://127.0.0.1/"))
        self.host.host("ping", "-c1", "-W5", self.host.address("web"))

    def test_rights_are_those_of_the_user_namespace(self):
        # Docker lets everybody have low ports, so say otherwise.
        low = ["python3", "-c", "import socket; print(socket.socket().bind(('0.0.0.0', 80)))"]
        ports = ["--sysctl", "net.ipv4.ip_unprivileged_port_start=1024"]
        self.assertIn("None", self.run_in(*low, options=ports, image="servers").stdout)
        self.assertIn("PermissionError", self.run_in(*low, options=[*ports, "--cap-drop", "NET_BIND_SERVICE"], image="servers", check=False).stderr)
        self.assertIn("PermissionError", self.run_in(*low, options=[*ports, "--user", "1000"], image="servers", check=False).stderr)

    def test_changes_need_the_capability(self):
        change = ("sh", "-c", "ip addr add 10.213.0.77/24 dev eth0 && ip -4 addr")
        self.assertIn("10.213.0.77/24", self.run_in(*change, options=["--cap-add", "NET_ADMIN"]).stdout)
        self.assertNotEqual(self.run_in(*change, check=False).returncode, 0)
        # The user namespace is that of the network namespace: its root may, another user may not.
        self.assertNotEqual(self.run_in(*change, options=["--cap-add", "NET_ADMIN", "--user", "1000"], check=False).returncode, 0)
        # A user namespace below gives its maker no right over the container's network.
        below = ("python3", "-c", "import ctypes, os, subprocess\nprint(ctypes.CDLL(None).unshare(0x10000000), os.geteuid())\n"
                 "print(subprocess.run(['ip', 'addr', 'add', '10.213.0.78/24', 'dev', 'eth0'], capture_output=True).returncode)")
        out = self.run_in(*below, options=["--user", "1000", "--security-opt", "seccomp=unconfined"], image="servers").stdout.split()
        self.assertEqual(out[0], "0")
        self.assertNotEqual(out[2], "0")

    def test_ping_and_raw_sockets(self):
        self.assertEqual(self.run_in("ping", "-c1", "-W5", "10.213.0.1", runtime="sluice-raw").returncode, 0)
        self.assertIn("permission denied", self.run_in("ping", "-c1", "-W1", "10.213.0.1", check=False).stderr)
        self.assertNotEqual(self.run_in("ping", "-c1", "-W1", "10.213.0.1", runtime="sluice-raw", options=["--cap-drop", "NET_RAW"], check=False).returncode, 0)

    def test_dead_sentry_ends_the_container(self):
        self.start("box", "sleep", "1000")
        self.host.host("kill", "-9", self.part("sentry"))
        self.assertEqual(self.host.out("wait", "box").strip(), "137")
        self.assertIn("the sandbox was ended", self.host.docker("logs", "box").stderr)


if __name__ == "__main__":
    unittest.main()
