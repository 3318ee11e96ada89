"""What a benchmark's server runs on: the plain kernel, sluice over one of its ports, a container of runc's or runsc's.

The peer, where the clients run, is a namespace of the plain kernel in all of them. Beds are made for one measurement and leave nothing.
"""
import dataclasses
import json
import os
import re
import resource
import subprocess

import harness
from harness import INSIDE, ROOT, SLUICE, wait_for


RR = os.path.join(ROOT, "build/release/bench/rr")
HTTP_ECHO = os.path.join(ROOT, "build/release/http_echo")


@dataclasses.dataclass(frozen=True)
class Mode:
    kind: str  # library: examples/http_echo in the place of rr and nginx; kernel: the namespace's own stack; netns: `sluice do` in it; tap: `sluice do` joined to the peer by a TAP device; container
    flags: tuple = ()  # sluice's, or the container runtime's
    binary: str = SLUICE


MODES = {
    "kernel": Mode("kernel"),
    "runc": Mode("container", (), "runc"),
    "packet": Mode("netns", ("--link=packet",)),
    "packet-w2": Mode("netns", ("--link=packet", "--num-network-channels=2")),
    "packet-nogso": Mode("netns", ("--link=packet", "--gso=false")),
    "xdp": Mode("netns", ("--link=xdp",)),
    "xdp-nogso": Mode("netns", ("--link=xdp", "--gso=false")),
    "tap": Mode("tap", ("--link=tap",)),
    "tap-nogso": Mode("tap", ("--link=tap", "--gso=false")),
    "library": Mode("library", ("--link=packet",), HTTP_ECHO),
    "host": Mode("netns", ("--network=host",)),
    "runsc": Mode("container", ("--network=sandbox", "--ignore-cgroups"), "runsc"),  # its path: --runsc
}


def bundle(directory, netns, argv, cwd):
    """An OCI bundle whose root is this machine's programs, read-only, in the namespace."""
    rootfs = f"{directory}/bundle/rootfs"
    os.makedirs(rootfs)
    for link in ("bin", "sbin", "lib", "lib64"):
        os.symlink(f"usr/{link}", f"{rootfs}/{link}")
    mounts = [{"destination": "/proc", "type": "proc", "source": "proc"},
              {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}]
    mounts += [{"destination": d, "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]} for d in ("/run", "/var/lib/nginx", "/var/log")]
    mounts += [{"destination": d, "type": "bind", "source": d, "options": ["rbind", "ro"]} for d in ("/usr", "/etc", f"{ROOT}/build/release")]
    mounts.append({"destination": directory, "type": "bind", "source": directory, "options": ["rbind", "rw"]})
    capabilities = [f"CAP_{c}" for c in ("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID")]
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    config = {
        "ociVersion": "1.0.2",
        "process": {"args": list(argv), "cwd": cwd or "/", "env": ["PATH=/usr/sbin:/usr/bin"], "user": {"uid": 0, "gid": 0},
                    "capabilities": {s: capabilities for s in ("bounding", "effective", "permitted")},
                    "rlimits": [{"type": "RLIMIT_NOFILE", "soft": descriptors, "hard": descriptors}]},
        "root": {"path": "rootfs"},
        "mounts": mounts,
        "linux": {"namespaces": [{"type": t} for t in ("pid", "mount", "ipc", "uts")] + [{"type": "network", "path": netns}]},
    }
    with open(f"{directory}/bundle/config.json", "w", encoding="utf-8") as f:
        json.dump(config, f)


class NotMeasured(Exception):
    """This workload has no figure in this mode."""


class Bed(harness.SluiceTest):
    """A server's side and its peer, for one measurement."""

    def __init__(self, mode):
        super().__init__()
        self.mode = mode

    def runTest(self):
        pass

    def setUp(self):
        super().setUp()
        self.addCleanup(self.unmount_runtime)
        # A client that closes first gathers TIME_WAITs, and with ten thousand of them its connect() looks for a port for milliseconds.
        self.net.peer.run("sysctl", "-qw", "net.ipv4.tcp_max_tw_buckets=0")

    def argv(self, *argv, cwd=None):
        """The command that runs argv in this mode."""
        m = self.mode
        if m.kind == "kernel":
            return self.net.inside.argv(*argv)
        if m.kind == "library":
            return self.library_argv(*argv)
        if m.kind == "tap":
            return self.net.peer.argv(SLUICE, *m.flags, "do", "--", *argv)
        if m.kind == "netns":
            return self.sandbox_argv(*argv, flags=m.flags)
        bundle(self.directory, self.net.inside.path, argv, cwd)
        return self.runtime("run", "--bundle", f"{self.directory}/bundle", self.container)

    def library_argv(self, *argv):
        if argv[:2] != (RR, "serve"):
            raise NotMeasured("a program of the kernel's sockets")
        port = int(argv[2])
        return self.example_argv(*(f"--{name}-port={port + i}" for i, name in enumerate(("echo", "discard", "chargen"))))

    def example_argv(self, *services):
        # The address must not be the kernel's.
        self.net.inside.run("ip", "-4", "addr", "flush", "dev", "eth0")
        return self.net.inside.argv(HTTP_ECHO, "--device=eth0", f"--address={INSIDE}/24", *self.mode.flags, *services)

    def start_http(self, *server, **paths):
        """A web server's command, or the example in its place, which knows its pages by their sizes; returns the program and the
        path for each name."""
        if self.mode.kind != "library":
            return self.start(*server), {name: name for name in paths}
        return self._start(self.example_argv("--http-port=80")), {name: str(size) for name, size in paths.items()}

    def unmount_runtime(self):
        """runsc keeps a network namespace in its directory, which could not be removed with it."""
        kept = f"{self.directory}/runtime/null-netns"
        if os.path.ismount(kept):
            subprocess.run(["umount", kept], check=True)

    @property
    def container(self):
        return f"{self.net.inside.name}-bench"

    def runtime(self, *argv):
        return [self.mode.binary, f"--root={self.directory}/runtime", *self.mode.flags, *argv]

    def ask_runtime(self, *argv):
        subprocess.run(self.runtime(*argv), capture_output=True, check=False, timeout=60)

    def start(self, *argv, cwd=None, **kw):
        if self.mode.kind == "container":
            # In this order backwards: the first process of a container is deaf to SIGTERM.
            self.addCleanup(self.ask_runtime, "delete", "--force", self.container)
            self.addCleanup(self.stop_all)
            self.addCleanup(self.ask_runtime, "kill", self.container, "KILL")
        program = self._start(self.argv(*argv, cwd=cwd), cwd=cwd, **kw)
        program.sandbox = self.mode.kind in ("netns", "tap")
        return program

    def address(self):
        """The server's. Made with the sandbox where that makes its own device."""
        if self.mode.kind != "tap":
            return INSIDE
        m = wait_for(lambda: re.search(r"slu\d+ +inet (\d+\.\d+\.\d+\.)(\d+)/30", self.net.peer.run("ip", "-o", "-4", "addr").stdout), "no TAP device")
        return m.group(1) + str(int(m.group(2)) + 1)

    def wait_answers(self, port, program):
        self.wait_peer_sees(port, program, self.address())

    def is_ours(self, pid):
        """Whether the process is the runtime's and not the program's."""
        try:
            return os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith(os.path.basename(self.mode.binary))
        except OSError:
            return False
