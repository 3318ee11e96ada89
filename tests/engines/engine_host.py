"""Where an engine other than dockerd runs: the same namespaces of its own (docker_host.py)."""
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile

from docker_host import INNER, RUN, Host, wait_for


def write_archive(image, path, name, entrypoint=()):
    """As `docker save` writes it: what every engine can load."""
    layer = f"{path}.layer"
    image.write(layer)
    with open(layer, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    config = json.dumps({"architecture": "amd64", "os": "linux",
                         "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Entrypoint": list(entrypoint)},
                         "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]}})
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}])
    with tarfile.open(path, "w") as tar:
        tar.add(layer, arcname="layer.tar")
        for member, text in (("config.json", config), ("manifest.json", manifest)):
            info = tarfile.TarInfo(member)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    os.unlink(layer)


def children_of(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
            return [int(child) for child in f.read().split()]
    except FileNotFoundError:
        return []


def name_of(pid):
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as f:
            return f.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class EngineHost(Host):
    def __init__(self, name):
        self.directory = tempfile.mkdtemp(prefix=f"{RUN}-{name}-", dir="/var/tmp")
        self.cgroup = f"/{os.path.basename(self.directory)}"
        self.log = open(f"{self.directory}/daemon.log", "w", encoding="utf-8")
        self.process = None
        self.inner = None

    def start(self, argv, is_up):
        """Runs the engine's daemon; returns when `is_up` says so."""
        inner = f"{self.directory}/inner"
        with open(inner, "w", encoding="utf-8") as f:
            f.write(INNER)
        self.process = subprocess.Popen(["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", inner, *argv],
                                        stdout=self.log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                                        env=dict(os.environ, SLUICE_TEST_RUN=RUN))

        def up():
            if self.process.poll() is not None:
                raise AssertionError(f"{argv[0]} ended:\n{self.daemon_log()}")
            self.inner = next(iter(children_of(self.process.pid)), None)
            # Before the daemon runs, its /etc is still being made.
            return self.inner is not None and os.path.basename(argv[0]) in map(name_of, children_of(self.inner)) and is_up()
        wait_for(up, f"{argv[0]} does not answer")

    def inside(self, *argv):
        """The command line of a command where the engine is: its network, its processes, its /run and /etc."""
        return ["nsenter", "-t", str(self.inner), "-n", "-m", "-p", *argv]

    def host(self, *argv, check=True, timeout=60):
        done = subprocess.run(self.inside(*argv), text=True, capture_output=True, timeout=timeout, check=False,
                              stdin=subprocess.DEVNULL)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(argv)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def write(self, path, text):
        """A file there; empty text: none."""
        self.host("sh", "-c", 'mkdir -p "$(dirname "$1")" && if [ -n "$2" ]; then printf %s "$2" >"$1"; else rm -f "$1"; fi', "sh", path, text)

    def leftovers(self):
        """What containers of sluice left: processes, records, pins, devices."""
        found = [line for line in self.host("ps", "-eo", "args").stdout.splitlines() if "sluice" in line.split()[0]]
        found += self.host("sh", "-c", "ls -A /run/sluice/oci; ls -A /run/sluice/bpf; ls -A /run/sluice | grep -v -e '^oci$' -e '^bpf$' -e '\\.lock$'", check=False).stdout.split()
        found += [line for line in self.host("ip", "-o", "link").stdout.splitlines() if "veth" in line]
        return found
