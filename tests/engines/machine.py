"""A machine of its own for tests that call the runtime themselves: namespaces of network, mounts and processes with a private /run, and
in it a network namespace as an engine would have made it, joined to the machine by a veth pair. The end of its first process ends
everything."""
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from docker_host import INNER, RUN, SLUICE, busybox, remove_cgroup, remove_option_groups, wait_for

NETNS = "pod"
DEVICE = "eth0"
ADDRESS = "10.214.0.2"
ID = "box"


class Machine:
    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix=f"{RUN}-machine-", dir="/var/tmp")
        with open(f"{self.directory}/inner", "w", encoding="utf-8") as f:
            f.write(INNER + "\n")
        self.process = subprocess.Popen(["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", f"{self.directory}/inner",
                                         "sh", "-c", f"touch {self.directory}/up; exec sleep infinity"], stdin=subprocess.DEVNULL, start_new_session=True,
                                        env=dict(os.environ, SLUICE_TEST_RUN=RUN))
        wait_for(lambda: os.path.exists(f"{self.directory}/up"), "the machine does not start")
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="ascii") as f:
            self.inner = int(f.read().split()[0])
        self.bundle = f"{self.directory}/b"
        os.makedirs(f"{self.bundle}/rootfs")
        busybox().write(f"{self.directory}/tar")
        subprocess.run(["tar", "-C", f"{self.bundle}/rootfs", "-xf", f"{self.directory}/tar"], check=True)
        self.run("ip", "netns", "add", NETNS)
        self.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", DEVICE, "netns", NETNS)
        self.run("sh", "-ec", f"ip addr add 10.214.0.1/24 dev v0; ip link set v0 up; ip -n {NETNS} addr add {ADDRESS}/24 dev {DEVICE}; ip -n {NETNS} link set {DEVICE} up")

    def popen(self, *argv, **kw):
        return subprocess.Popen(["/usr/bin/nsenter", "-t", str(self.inner), "-n", "-m", "-p", *argv], text=True, stdin=subprocess.DEVNULL, **kw)

    def run(self, *argv, check=True, timeout=60, env=None):
        """A command on the machine; it may leave children behind that hold its descriptors."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            p = self.popen(*argv, stdout=out, stderr=err, env=env)
            try:
                status = p.wait(timeout)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
                raise
            out.seek(0)
            err.seek(0)
            done = subprocess.CompletedProcess(argv, status, out.read(), err.read())
        if check and status != 0:
            raise AssertionError(f"{' '.join(argv)}: status {status}\n{done.stdout}{done.stderr}")
        return done

    def processes(self, name=""):
        """(process id, name) of the parts of sandboxes."""
        lines = [line.split(None, 1) for line in self.run("ps", "-eo", "pid,comm").stdout.splitlines()[1:]]
        return [(int(pid), comm.strip()) for pid, comm in lines if comm.startswith("sluice") and name in comm]

    def close(self):
        try:
            os.kill(self.inner, signal.SIGKILL)  # the first process: the kernel ends the others
        except ProcessLookupError:
            pass
        self.process.wait()
        for folder, _, _ in list(os.walk("/sys/fs/cgroup", topdown=False)):
            if f"/{RUN}-{ID}" in folder:
                remove_cgroup(folder)
        remove_option_groups()
        shutil.rmtree(self.directory, ignore_errors=True)


class MachineTest(unittest.TestCase):
    """One container `ID` of the bundle, by `create`, `start`, `delete` as an engine calls them."""

    @classmethod
    def setUpClass(cls):
        if shutil.which("runc") is None:
            raise unittest.SkipTest("runc is not installed")
        cls.machine = Machine()
        cls.addClassCleanup(cls.machine.close)

    def setUp(self):
        self.bundle = self.machine.bundle
        self.root = f"{self.machine.directory}/root"
        self.log = f"{self.machine.directory}/log"
        self.config = self.configure()
        self.mounts = self.machine.run("cat", "/proc/mounts").stdout
        self.addCleanup(self.machine.run, SLUICE, "--root", self.root, "delete", "--force", ID, check=False)
        self.addCleanup(self.forget_log)

    def forget_log(self):
        if os.path.exists(self.log):
            os.unlink(self.log)

    def specification(self):
        path = f"{self.bundle}/config.json"
        if os.path.lexists(path):
            os.unlink(path)
        self.machine.run("runc", "spec", "--bundle", self.bundle)
        with open(path, encoding="utf-8") as f:
            config = json.load(f)
        config["process"].update(terminal=False, args=["sleep", "1000"])
        config["linux"]["cgroupsPath"] = f"/{RUN}-{ID}"
        for one in config["linux"]["namespaces"]:
            if one["type"] == "network":
                one["path"] = f"/run/netns/{NETNS}"
        return config

    def configure(self, content=None):
        """Puts bytes, or the default, into config.json and returns them."""
        data = json.dumps(self.specification()).encode() if content is None else content
        with open(f"{self.bundle}/config.json", "wb") as f:
            f.write(data)
        return data

    def argv(self, *command):
        return [SLUICE, "--root", self.root, "--log", self.log, "--log-format", "json", *command]

    def sluice(self, *command, check=True, **kw):
        return self.machine.run(*self.argv(*command), check=check, **kw)

    def create(self, check=True, **kw):
        return self.sluice("create", "--bundle", self.bundle, ID, check=check, **kw)

    def errors(self):
        """What the engine finds in the log."""
        if not os.path.exists(self.log):
            return []
        with open(self.log, encoding="utf-8") as f:
            lines = [json.loads(line) for line in f]
        return [line["msg"] for line in lines if line["level"] == "error"]

    def status(self):
        done = self.machine.run("runc", "--root", self.root, "state", ID, check=False)
        return json.loads(done.stdout)["status"] if done.returncode == 0 else "unknown"

    def leftovers(self):
        found = [str(one) for one in self.machine.processes()]
        found += self.machine.run("sh", "-c", "ls -A /run/sluice/oci; ls -A /run/sluice/bpf; ls -A /run/sluice | grep -v -e '^oci$' -e '^bpf$' -e '^bpf\\.lock$'", check=False).stdout.split()
        found += os.listdir(self.root) if os.path.isdir(self.root) else []
        found += [f for f in os.listdir(self.bundle) if f not in ("config.json", "rootfs")]
        found += [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if f"/{RUN}-{ID}" in folder]
        return found

    def assert_nothing_left(self):
        try:
            wait_for(lambda: not self.leftovers(), "nothing is left", 30)
        except AssertionError as e:
            raise AssertionError(f"{e}: {self.leftovers()}") from None

    def kernel_answers(self):
        return self.machine.run("ping", "-c1", "-W1", ADDRESS, check=False).returncode == 0

    def assert_clean(self):
        """Nothing is left, the namespace's kernel answers, also on its device when that is moved away; config.json is what it was."""
        self.assert_nothing_left()
        wait_for(self.kernel_answers, "the kernel answers again", 30)
        self.machine.run("sh", "-ec", f"""
            ip netns add other; ip -n {NETNS} link set {DEVICE} netns other
            ip -n other addr add {ADDRESS}/24 dev {DEVICE}; ip -n other link set {DEVICE} up""")
        wait_for(self.kernel_answers, "the kernel answers on the device elsewhere", 30)
        self.machine.run("sh", "-ec", f"""
            ip -n other link set {DEVICE} netns {NETNS}; ip netns del other
            ip -n {NETNS} addr add {ADDRESS}/24 dev {DEVICE}; ip -n {NETNS} link set {DEVICE} up""")
        with open(f"{self.bundle}/config.json", "rb") as f:
            self.assertEqual(f.read(), self.config)
        self.assertEqual(self.machine.run("cat", "/proc/mounts").stdout, self.mounts)

    def recover(self):
        """What an engine does with a container that went wrong."""
        self.sluice("delete", "--force", ID)
        self.assert_clean()
