"""podman, which has no daemon, with its own storage."""
import os
import subprocess

from docker_host import SLUICE
from engine_host import EngineHost, write_archive

CONTAINERS_CONF = """# kept: the machine's owner wrote this
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
[engine.runtimes]
theirs = ["/usr/bin/runc"]
"""


class PodmanHost(EngineHost):
    def __init__(self):
        super().__init__("podman")
        self.start(["sleep", "infinity"], lambda: self.host("true", check=False).returncode == 0)
        self.write("/etc/containers/containers.conf", CONTAINERS_CONF)
        self.host("sh", "-c", "mkdir -p /var/lib/cni && mount -t tmpfs tmpfs /var/lib/cni")  # else leases stay on the machine
        self.options = ["--root", f"{self.directory}/root", "--runroot", "/run/podman", "--tmpdir", "/run/podman-tmp", "--storage-driver", "vfs"]

    def podman(self, *args, runtime="sluice", **kw):
        return self.host("podman", *self.options, "--runtime", runtime, *args, **kw)

    def load_image(self, name, image):
        path = f"{self.directory}/image.tar"
        write_archive(image, path, f"localhost/{name}:latest")
        self.podman("load", "-i", path, runtime="runc", timeout=120)
        os.unlink(path)

    def install(self, *args):
        return self.host(SLUICE, "install", "--engine=podman", *args)

    def run_options(self, options):
        return [f"--cgroup-parent={self.cgroup}", *options]

    def run(self, *command, options=(), image="bb", **kw):
        return self.podman("run", "--rm", *self.run_options(options), image, *command, **kw)

    def run_detached(self, name, *command, options=(), image="bb", **kw):
        return self.podman("run", "-d", "--name", name, *self.run_options(options), image, *command, **kw)

    def inspect(self, name, template):
        return self.podman("inspect", "-f", template, name).stdout.strip()

    def address(self, name):
        return self.inspect(name, "{{.NetworkSettings.IPAddress}}")

    def in_terminal(self, *args):
        """podman with a terminal: what it shows."""
        argv = self.inside("podman", *self.options, "--runtime", "sluice", *args)
        return subprocess.run(["script", "-qec", " ".join(argv), "/dev/null"], text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False)
