"""containerd with sluice as its runtime, by ctr: no arguments reach the runtime, so flags come from files and annotations."""
import shutil
import unittest

from containerd_host import ContainerdHost
from docker_host import SLUICE, busybox, wait_for

LISTEN = "echo up; while true; do echo hello | nc -l -p 80; done"


class ContainerdTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if shutil.which("containerd") is None or shutil.which("ctr") is None:
            raise unittest.SkipTest("containerd is not installed")
        if not hasattr(ContainerdTest, "shared"):
            ContainerdTest.shared = ContainerdHost()
            unittest.addModuleCleanup(ContainerdTest.shared.close)
            ContainerdTest.shared.load_image("bb", busybox())
        cls.host = ContainerdTest.shared

    def setUp(self):
        self.network = ["--with-ns", self.host.network("n1", "10.214.1")]

    def tearDown(self):
        for name in self.host.ctr("containers", "ls", "-q").stdout.split():
            self.host.remove(name)
        self.host.remove_network("n1")
        wait_for(lambda: not self.host.leftovers(), "not all of it goes", 10)
        self.host.host("sh", "-c", "rm -rf /etc/sluice/*")

    def run_in(self, *command, options=(), **kw):
        return self.host.run("one", *command, options=[*self.network, *options], **kw)

    def start(self, name, *command, options=None, **kw):
        self.host.run_detached(name, *command, options=self.network if options is None else options, **kw)
        return name

    def execute(self, name, *command, **kw):
        return self.host.ctr("tasks", "exec", "--exec-id", "e1", name, *command, **kw)

    def start_server(self):
        self.start("web", "sh", "-c", LISTEN)
        wait_for(lambda: ":80 " in self.host.host(SLUICE, "sockets", "web", check=False).stdout, "it does not listen")


class RunTest(ContainerdTest):
    def test_addresses_and_routes_are_the_namespaces(self):
        self.assertRegex(self.run_in("ip", "addr").stdout, r"inet 10\.214\.1\.2/24 .*eth0")
        self.assertIn("default via 10.214.1.1 dev eth0", self.run_in("ip", "route").stdout)
        # Without a network of the engine's there is our loopback.
        own = self.host.run("own", "ip", "addr").stdout
        self.assertIn("inet 127.0.0.1/8", own)
        self.assertNotIn("eth0", own)

    def test_it_is_our_stack(self):
        self.start_server()
        self.assertEqual([s["network"] for s in self.host.sandboxes()], ["sandbox"])
        self.host.host("ping", "-c1", "-W5", "10.214.1.2")
        self.assertIn("hello", self.host.host("nc", "-d", "-w10", "10.214.1.2", "80").stdout)
        kernel = self.host.host("ip", "netns", "exec", "n1", "cat", "/proc/net/tcp").stdout
        self.assertEqual(len(kernel.splitlines()), 1, kernel)  # the head alone
        # The namespace stays as it was found when its container goes: then its kernel answers.
        self.host.remove("web")
        self.host.host("ping", "-c1", "-W5", "10.214.1.2")

    def test_exit_status_and_signals(self):
        self.assertEqual(self.run_in("sh", "-c", "exit 7", check=False).returncode, 7)
        failed = self.run_in("nonsense", check=False)
        self.assertNotEqual(failed.returncode, 0)
        self.assertIn("executable file not found", failed.stderr)
        with self.host.running("trap", "sh", "-c", "trap 'exit 42' USR1; touch /up; while true; do sleep 0.05; done", options=self.network) as run:
            wait_for(lambda: self.execute("trap", "ls", "/up", check=False).returncode == 0, "the program does not start")
            self.host.ctr("tasks", "kill", "-s", "USR1", "trap")
            self.assertEqual(run.wait(30), 42)

    def test_exec(self):
        self.start_server()
        self.assertIn("10.214.1.2/24", self.execute("web", "ip", "addr").stdout)
        self.assertIn("hello", self.execute("web", "sh", "-c", "nc -w5 127.0.0.1 80 </dev/null").stdout)
        self.assertEqual(self.execute("web", "sh", "-c", "exit 5", check=False).returncode, 5)
        self.assertNotEqual(self.execute("web", "nonsense", check=False).returncode, 0)

    def test_pause_resume_kill_and_tasks(self):
        with self.host.running("box", "sleep", "1000", options=self.network) as run:
            self.pause_resume_kill()
            self.assertEqual(run.wait(30), 137)
        self.assertEqual(self.host.sandboxes(), [])

    def pause_resume_kill(self):
        self.host.ctr("tasks", "pause", "box")
        self.assertEqual(self.host.tasks(), {"box": "PAUSED"})
        self.host.host("ping", "-c1", "-W5", "10.214.1.2")  # the stack is no part of the container
        self.host.ctr("tasks", "resume", "box")
        self.assertEqual(self.host.tasks(), {"box": "RUNNING"})
        self.assertIn("10.214.1.2", self.execute("box", "ip", "addr").stdout)
        self.assertIn(str(self.host.pid("box")), self.host.ctr("tasks", "ps", "box").stdout)
        self.assertIn("memory", self.host.ctr("tasks", "metrics", "box").stdout)
        self.host.ctr("tasks", "kill", "-s", "KILL", "box")

    def test_containers_that_share_a_namespace(self):
        self.start_server()
        self.start("side", "sleep", "1000")
        self.assertEqual(len(self.host.sandboxes()), 1)
        self.assertIn("hello", self.execute("side", "sh", "-c", "nc -w5 127.0.0.1 80 </dev/null").stdout)
        other = self.run_in("true", options=["--annotation", "dev.sluice.flag.network=none"], check=False)
        self.assertIn("they must agree", other.stderr)
        self.host.remove("web")
        self.assertIn("10.214.1.2", self.execute("side", "ip", "addr").stdout)

    def test_what_is_refused(self):
        host = self.host.run("hosted", "true", options=["--net-host"], check=False)
        self.assertIn("--network=host in its arguments or in its file", host.stderr)
        self.start("plain", "sleep", "1000", runtime="runc")
        refused = self.run_in("true", check=False)
        self.assertIn("would lose its network", refused.stderr)
        self.assertIn("10.214.1.2", self.execute("plain", "ip", "addr").stdout)

    def test_a_sentry_that_dies_ends_the_container(self):
        with self.host.running("box", "sleep", "1000", options=self.network) as run:
            self.kill_sentry()
            self.assertEqual(run.wait(30), 137)
            self.assertIn("the sandbox was ended", run.stderr.read())

    def kill_sentry(self):
        found = [line.split()[0] for line in self.host.host("ps", "-eo", "pid,comm").stdout.splitlines() if line.split()[1] == "sluice-sentry"]
        self.host.host("kill", "-9", *found)

    def test_containers_outlive_the_daemon(self):
        self.start_server()
        self.host.host("sh", "-c", "kill -9 $(pidof containerd)")
        self.assertIn("hello", self.host.host("nc", "-d", "-w10", "10.214.1.2", "80").stdout)
        wait_for(lambda: self.host.ctr("tasks", "ls", check=False).returncode == 0, "containerd does not come back")
        self.assertEqual(self.host.tasks(), {"web": "RUNNING"})
        self.assertIn("10.214.1.2", self.execute("web", "ip", "addr").stdout)


class SettingsTest(ContainerdTest):
    RAW = ("ping", "-c1", "-W5", "10.214.1.1")

    def test_file_of_the_program(self):
        self.assertNotEqual(self.run_in(*self.RAW, check=False).returncode, 0)
        self.host.write("/etc/sluice/sluice.flags", "# for all engines\n--net-raw\n")
        self.assertEqual(self.run_in(*self.RAW).returncode, 0)
        self.host.write("/etc/sluice/sluice.flags", "--net-raw\n--gso=maybe\n")
        wrong = self.run_in("true", check=False)
        self.assertIn("/etc/sluice/sluice.flags:2: --gso=maybe: not a valid value (allowed: true, false)", wrong.stderr)

    def test_runtime_of_a_link(self):
        config = f"--config={self.host.directory}/installed.toml"
        self.host.host(SLUICE, "install", "--engine=containerd", config, "--runtime=sluice-none", "--", "--network=none")
        out = self.run_in("ip", "addr", runtime="/etc/sluice/sluice-none").stdout
        self.assertIn("inet 127.0.0.1/8", out)
        self.assertNotIn("eth0", out)
        self.assertIn("eth0", self.run_in("ip", "addr").stdout)
        self.host.host(SLUICE, "uninstall", "--engine=containerd", config, "--runtime=sluice-none")
        self.assertEqual(self.host.host("ls", "/etc/sluice").stdout, "")

    def test_annotations(self):
        raw = ["--annotation", "dev.sluice.flag.net-raw=true"]
        refused = self.run_in(*self.RAW, options=raw, check=False)
        self.assertIn("annotation dev.sluice.flag.net-raw: --net-raw=true loosens", refused.stderr)
        none = self.run_in("ip", "addr", options=["--annotation", "dev.sluice.flag.network=none"]).stdout
        self.assertNotIn("eth0", none)
        self.host.write("/etc/sluice/sluice.flags", "--allow-flag-override\n")
        self.assertEqual(self.run_in(*self.RAW, options=raw).returncode, 0)
        plain = self.run_in("grep", "Seccomp_filters", "/proc/self/status", options=["--annotation", "dev.sluice.flag.network=host"])
        self.assertEqual(plain.stdout.split()[1], "0")  # ctr sets no profile: nothing is intercepted

    def test_host_network_by_a_link(self):
        self.host.host("sh", "-c", f"mkdir -p /etc/sluice; ln -s {SLUICE} /etc/sluice/sluice-host")
        self.host.write("/etc/sluice/sluice-host.flags", "--network=host\n")
        out = self.host.run("hosted", "ip", "addr", options=["--net-host"], runtime="/etc/sluice/sluice-host").stdout
        self.assertIn("h-n1", out)
        # Beside containers on our stack the kernel's is silent.
        self.start("box", "sleep", "1000")
        refused = self.run_in("true", runtime="/etc/sluice/sluice-host", check=False)
        self.assertIn("--network=host is not possible there", refused.stderr)


class InstallTest(ContainerdTest):
    def dump(self):
        return self.host.host("containerd", "--config", "/etc/containerd/config.toml", "config", "dump").stdout

    def test_config_is_what_containerd_then_has(self):
        for version, head in ((1, ""), (2, "version = 2\n")):
            with self.subTest(version=version):
                plugin = "cri" if version == 1 else '"io.containerd.grpc.v1.cri"'
                before = (f'{head}# a comment\n[plugins.{plugin}]\n  sandbox_image = "our/pause:1"\n  [plugins.{plugin}.containerd.runtimes.other]\n'
                          f'    runtime_type = "io.containerd.runc.v2"\n  [plugins.{plugin}.containerd.runtimes.runc.options]\n    SystemdCgroup = true\n')
                self.host.write("/etc/containerd/config.toml", before)
                self.host.host(SLUICE, "install", "--engine=containerd")
                after = self.host.host("cat", "/etc/containerd/config.toml").stdout
                self.assertTrue(after.startswith(before))
                self.assertEqual(self.host.host("cat", "/etc/containerd/config.toml.before-sluice").stdout, before)
                dump = self.dump()
                ours = dump[dump.index(".containerd.runtimes.sluice]"):].split("runtimes.sluice.options]")
                self.assertIn('pod_annotations = ["dev.sluice.flag.*"]', ours[0])
                self.assertIn('runtime_type = "io.containerd.runc.v2"', ours[0])
                self.assertIn(f'BinaryName = "{SLUICE}"', ours[1].split("[")[0])
                self.assertIn("SystemdCgroup = true", ours[1].split("[")[0])
                self.assertIn('sandbox_image = "our/pause:1"', dump)
                self.assertIn(".containerd.runtimes.other]", dump)
                again = self.host.host(SLUICE, "install", "--engine=containerd")
                self.assertIn("nothing was changed", again.stdout)
                self.assertEqual(self.host.host("cat", "/etc/containerd/config.toml").stdout, after)
                self.host.host(SLUICE, "uninstall", "--engine=containerd")
                self.assertEqual(self.host.host("cat", "/etc/containerd/config.toml").stdout, before)
                self.host.host("rm", "/etc/containerd/config.toml.before-sluice")

    def test_where_there_is_no_config(self):
        self.host.host("rm", "-rf", "/etc/containerd")
        self.host.host(SLUICE, "install", "--engine=containerd", "--runtime=a", "--", "--gso=false")
        self.assertIn('BinaryName = "/etc/sluice/a"', self.dump())
        self.assertEqual(self.host.host("cat", "/etc/sluice/a.flags").stdout, "# Made by sluice install.\n--gso=false\n")
        self.assertEqual(self.host.host("readlink", "/etc/sluice/a").stdout.strip(), SLUICE)


if __name__ == "__main__":
    unittest.main()
