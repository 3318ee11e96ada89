"""A real containerd with ctr."""
import contextlib
import os
import subprocess

from docker_host import SLUICE, wait_for
from engine_host import EngineHost, write_archive

CONFIG = """# kept: the machine's owner wrote this
version = 2
root = "{directory}/root"
state = "/run/containerd"
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
"""


class ContainerdHost(EngineHost):
    """`config`: further text of config.toml, for the CRI plug-in or others."""

    def __init__(self, config=""):
        super().__init__("containerd")
        self.socket = "/run/containerd/sock"
        self.config = f"{self.directory}/config.toml"
        with open(self.config, "w", encoding="utf-8") as f:
            f.write(CONFIG.format(directory=self.directory, socket=self.socket) + config)
        # The end of its first process would be the end of all.
        again = 'while true; do "$@"; sleep 0.2; done'
        self.start(["sh", "-c", again, "sh", "containerd", "--config", self.config], lambda: self.ctr("version", check=False).returncode == 0)

    def ctr(self, *args, **kw):
        return self.host("ctr", "-a", self.socket, *args, **kw)

    def load_image(self, name, image):
        path = f"{self.directory}/image.tar"
        write_archive(image, path, f"localhost/{name}:latest")
        self.ctr("image", "import", path, timeout=120)
        os.unlink(path)

    def run_options(self, name, runtime, options):
        return ["--runc-binary", runtime, "--cgroup", f"{self.cgroup}/{name}", *options]

    def run(self, name, *command, runtime=SLUICE, options=(), image="bb", **kw):
        """In the foreground: its output and status are the program's."""
        return self.ctr("run", "--rm", *self.run_options(name, runtime, options), f"localhost/{image}:latest", name, *command, **kw)

    @contextlib.contextmanager
    def running(self, name, *command, runtime=SLUICE, options=(), image="bb"):
        """As run(), in the background: gives its Popen, whose status and stderr are the program's."""
        argv = ["ctr", "-a", self.socket, "run", "--rm", *self.run_options(name, runtime, options), f"localhost/{image}:latest", name, *command]
        with subprocess.Popen(self.inside(*argv), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            try:
                wait_for(lambda: self.tasks().get(name) == "RUNNING", f"{name} does not start")
                yield process
            finally:
                process.kill()

    def run_detached(self, name, *command, runtime=SLUICE, options=(), image="bb", **kw):
        return self.ctr("run", "-d", *self.run_options(name, runtime, options), f"localhost/{image}:latest", name, *command, **kw)

    def tasks(self):
        """Container -> status of its task."""
        lines = self.ctr("tasks", "ls").stdout.splitlines()[1:]
        return {line.split()[0]: line.split()[2] for line in lines}

    def pid(self, name):
        for line in self.ctr("tasks", "ls").stdout.splitlines()[1:]:
            if line.split()[0] == name:
                return int(line.split()[1])
        raise AssertionError(f"{name} has no task")

    def remove(self, name):
        self.ctr("tasks", "delete", "--force", name, check=False)
        self.ctr("containers", "delete", name, check=False)

    def network(self, name, subnet):
        """A network namespace with a device: the host's end is SUBNET.1, the namespace's eth0 SUBNET.2."""
        for argv in (["netns", "add", name], ["link", "add", f"h-{name}", "type", "veth", "peer", "name", "eth0", "netns", name],
                     ["addr", "add", f"{subnet}.1/24", "dev", f"h-{name}"], ["link", "set", f"h-{name}", "up"],
                     ["-n", name, "addr", "add", f"{subnet}.2/24", "dev", "eth0"], ["-n", name, "link", "set", "eth0", "up"],
                     ["-n", name, "route", "add", "default", "via", f"{subnet}.1"]):
            self.host("ip", *argv)
        return f"network:/run/netns/{name}"

    def remove_network(self, name):
        self.host("ip", "link", "del", f"h-{name}")  # at once, which the end of its namespace is not
        self.host("ip", "netns", "del", name)
