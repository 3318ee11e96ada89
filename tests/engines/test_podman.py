"""podman with sluice as a runtime, as a drop-in file of containers.conf.d names it."""
import shutil
import unittest

from docker_host import SLUICE, busybox, wait_for
from podman_host import CONTAINERS_CONF, PodmanHost

LISTEN = "trap 'exit 3' TERM; while true; do echo hello | nc -l -p 80 & wait $!; done"
DROP_IN = "/etc/containers/containers.conf.d/sluice.conf"


class PodmanTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if shutil.which("podman") is None:
            raise unittest.SkipTest("podman is not installed")
        if not hasattr(PodmanTest, "shared"):
            host = PodmanTest.shared = PodmanHost()
            unittest.addModuleCleanup(host.close)
            host.load_image("bb", busybox())
            plain = host.run("true", runtime="runc", check=False)
            PodmanTest.plain = "" if plain.returncode == 0 else plain.stderr
            host.install()
        if PodmanTest.plain:
            raise unittest.SkipTest(f"podman cannot run containers on this machine, with runc either: {PodmanTest.plain.strip()}")
        cls.host = PodmanTest.shared

    def tearDown(self):
        self.host.podman("pod", "rm", "-f", "-a", "-t", "0")
        self.host.podman("rm", "-f", "-a", "-t", "0")
        self.host.host("sh", "-c", "rm -rf /etc/sluice/*")
        wait_for(lambda: not self.host.leftovers(), "not all of it goes", 10)

    def start_server(self, *options):
        self.host.run_detached("web", "sh", "-c", LISTEN, options=options)
        wait_for(lambda: ":80 " in self.host.host(SLUICE, "sockets", self.host.inspect("web", "{{.Id}}"), check=False).stdout, "it does not listen")

    def fetch(self, address, port="80"):
        return self.host.host("nc", "-d", "-w10", address, port).stdout


class RunTest(PodmanTest):
    def test_addresses_and_routes_are_the_containers(self):
        self.assertRegex(self.host.run("ip", "addr").stdout, r"inet 10\.88\.\d+\.\d+/16 .*eth0")
        self.assertIn("default via 10.88.0.1 dev eth0", self.host.run("ip", "route").stdout)
        none = self.host.run("ip", "addr", options=["--network", "none"]).stdout
        self.assertIn("inet 127.0.0.1/8", none)
        self.assertNotIn("eth0", none)

    def test_it_is_our_stack(self):
        self.start_server()
        self.assertEqual([s["network"] for s in self.host.sandboxes()], ["sandbox"])
        self.assertIn("hello", self.fetch(self.host.address("web")))
        self.host.host("ping", "-c1", "-W5", self.host.address("web"))
        pid = self.host.inspect("web", "{{.State.Pid}}")
        self.assertEqual(len(self.host.host("cat", f"/proc/{pid}/net/tcp").stdout.splitlines()), 1)  # the head alone

    def test_exit_status_and_signals(self):
        self.assertEqual(self.host.run("sh", "-c", "exit 7", check=False).returncode, 7)
        failed = self.host.run("nonsense", check=False)
        self.assertEqual(failed.returncode, 127)
        self.assertIn("executable file not found", failed.stderr)
        self.start_server()
        self.host.podman("kill", "-s", "TERM", "web")
        self.assertEqual(self.host.podman("wait", "web").stdout.strip(), "3")

    def test_exec_logs_pause_restart(self):
        self.start_server()
        self.assertIn("10.88.", self.host.podman("exec", "web", "ip", "addr").stdout)
        self.assertEqual(self.host.podman("exec", "web", "sh", "-c", "exit 5", check=False).returncode, 5)
        self.host.podman("pause", "web")
        self.assertEqual(self.host.inspect("web", "{{.State.Status}}"), "paused")
        self.host.host("ping", "-c1", "-W5", self.host.address("web"))
        self.host.podman("unpause", "web")
        self.assertIn("sh", self.host.podman("top", "web").stdout)
        self.host.podman("restart", "-t", "5", "web")
        wait_for(lambda: "hello" in self.fetch(self.host.address("web")), "it does not serve again")
        self.host.podman("stop", "-t", "10", "web")
        self.assertEqual(self.host.inspect("web", "{{.State.ExitCode}}"), "3")
        self.assertEqual(self.host.sandboxes(), [])
        self.host.run_detached("talk", "echo", "said")
        self.host.podman("wait", "talk")
        self.assertEqual(self.host.podman("logs", "talk").stdout, "said\n")

    def test_terminal(self):
        shown = self.host.in_terminal("run", "--rm", "-t", f"--cgroup-parent={self.host.cgroup}", "bb", "sh", "-c", "'tty; ip -4 route'")
        self.assertEqual(shown.returncode, 0, shown.stdout)
        self.assertIn("/dev/pts/", shown.stdout)
        self.assertIn("default via", shown.stdout)

    def test_published_port(self):
        self.start_server("-p", "8080:80")
        self.assertIn("hello", self.fetch("10.88.0.1", "8080"))

    def test_rights(self):
        for options in (["--user", "1000"], ["--read-only"], ["--cap-drop", "ALL"], ["--security-opt", "no-new-privileges"], ["--memory", "64m"],
                        ["--security-opt", "seccomp=unconfined"], ["--cap-add", "AUDIT_WRITE"]):
            with self.subTest(options=options):
                self.assertIn("default via 10.88.0.1", self.host.run("ip", "route", options=options).stdout)

    def test_containers_that_share_a_namespace(self):
        self.start_server()
        shared = ["--network", "container:web"]
        self.assertIn("hello", self.host.run("sh", "-c", "nc -w5 127.0.0.1 80 </dev/null", options=shared).stdout)
        other = self.host.run("true", options=[*shared, "--annotation", "dev.sluice.flag.network=none"], check=False)
        self.assertIn("they must agree", other.stderr)

    def test_pod(self):
        # Its first container, which only holds the namespaces, is ours too.
        self.host.podman("pod", "create", "--name", "pod", "--infra-image", "localhost/bb", "--infra-command", "sleep 1000", f"--cgroup-parent={self.host.cgroup}")
        self.host.podman("run", "-d", "--pod", "pod", "--name", "web", "bb", "sh", "-c", LISTEN)
        self.assertEqual(len(self.host.sandboxes()), 1)
        out = self.host.podman("run", "--rm", "--pod", "pod", "bb", "sh", "-c", "until nc -w5 127.0.0.1 80 </dev/null; do :; done")
        self.assertIn("hello", out.stdout)

    def test_what_is_refused(self):
        refused = self.host.run("true", options=["--network", "host"], check=False)
        self.assertIn("--network=host in its arguments or in its file", refused.stderr)
        self.host.run_detached("plain", "sleep", "1000", runtime="runc")
        refused = self.host.run("true", options=["--network", "container:plain"], check=False)
        self.assertIn("would lose its network", refused.stderr)

    def test_a_sentry_that_dies_ends_the_container(self):
        self.host.run_detached("box", "sleep", "1000")
        found = [line.split()[0] for line in self.host.host("ps", "-eo", "pid,comm").stdout.splitlines() if line.split()[1] == "sluice-sentry"]
        self.host.host("kill", "-9", *found)
        self.assertEqual(self.host.podman("wait", "box").stdout.strip(), "137")
        self.assertIn("the sandbox was ended", self.host.podman("logs", "box").stderr)


class SettingsTest(PodmanTest):
    RAW = ("ping", "-c1", "-W5", "10.88.0.1")
    CAP = ("--cap-add", "NET_RAW")

    def test_file_of_the_program(self):
        self.assertNotEqual(self.host.run(*self.RAW, options=self.CAP, check=False).returncode, 0)
        self.host.write("/etc/sluice/sluice.flags", "--net-raw\n")
        self.assertEqual(self.host.run(*self.RAW, options=self.CAP).returncode, 0)
        self.host.write("/etc/sluice/sluice.flags", "--frobnicate\n")
        self.assertIn("/etc/sluice/sluice.flags:1: --frobnicate: unknown flag", self.host.run("true", check=False).stderr)

    def test_flags_of_one_call(self):
        out = self.host.podman("--runtime-flag", "network=none", "run", "--rm", *self.host.run_options([]), "bb", "ip", "addr").stdout
        self.assertNotIn("eth0", out)

    def test_annotations(self):
        refused = self.host.run("true", options=["--annotation", "dev.sluice.flag.net-raw=true"], check=False)
        self.assertIn("annotation dev.sluice.flag.net-raw: --net-raw=true loosens", refused.stderr)
        self.assertNotIn("eth0", self.host.run("ip", "addr", options=["--annotation", "dev.sluice.flag.network=none"]).stdout)


class InstallTest(PodmanTest):
    def test_second_runtime_and_away(self):
        self.host.install("--runtime=sluice-none", "--", "--network", "none")
        self.assertNotIn("eth0", self.host.run("ip", "addr", runtime="sluice-none").stdout)
        self.assertIn("eth0", self.host.run("ip", "addr").stdout)
        self.assertIn("eth0", self.host.run("ip", "addr", runtime="theirs").stdout)
        self.assertIn("nothing was changed", self.host.install("--runtime=sluice-none", "--", "--network=none").stdout)
        self.host.host(SLUICE, "uninstall", "--engine=podman", "--runtime=sluice-none")
        self.assertEqual(self.host.host("ls", "/etc/sluice").stdout, "")
        self.assertNotEqual(self.host.run("true", runtime="sluice-none", check=False).returncode, 0)
        self.assertEqual(self.host.host("cat", "/etc/containers/containers.conf").stdout, CONTAINERS_CONF)

    def test_file_of_somebody_else_is_left_alone(self):
        mine = self.host.host("cat", DROP_IN).stdout
        self.host.write(DROP_IN, "[engine]\n" + mine)
        refused = self.host.host(SLUICE, "uninstall", "--engine=podman", check=False)
        self.assertIn(f"{DROP_IN}: was not made by sluice install", refused.stderr)
        self.host.write(DROP_IN, mine)


if __name__ == "__main__":
    unittest.main()
