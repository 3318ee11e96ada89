"""A real dockerd in namespaces of its own (network, mounts, pids): nothing of the machine's network, /run or processes is touched, and
the end of its first process ends all of it. Images are made from the machine's own programs."""
import glob
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SLUICE = os.environ.get("SLUICE", os.path.join(ROOT, "build/release/sluice"))
RUN = os.environ.get("SLUICE_TEST_RUN", f"slt{os.getpid()}")

# Of user 0 in containers whose engine remaps.
FIRST_REMAPPED_ID = 0x60000000
# The first process reaps what engines leave; /run and /etc are private, cgroups stay the machine's, below a folder of ours.
INNER = """
set -eu
mount --make-rprivate /
# Namespaces that others have here, which come and go.
awk '$1 == "nsfs" {print $2}' /proc/self/mounts | xargs -r umount -l 2>/dev/null || :
mount -t tmpfs tmpfs /run
mkdir -p /run/cg /run/netns
cp -a /etc /run/etc
mount --bind /run/etc /etc
mount --rbind /sys/fs/cgroup /run/cg
mount -t sysfs sysfs /sys
mount --move /run/cg /sys/fs/cgroup
ip link set lo up
"$@" &
wait $!
"""


def wait_for(condition, what, timeout=60):
    deadline = time.monotonic() + timeout
    while True:
        got = condition()
        if got:
            return got
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} within {timeout} s")
        time.sleep(0.05)


class Image:
    """A root file system of programs of this machine and the libraries that they need."""

    def __init__(self):
        self.files = {}
        self.texts = {}

    def text(self, to, content):
        self.texts[to] = content.encode()
        return self

    def add(self, path, to=None):
        self.files[to or path] = os.path.realpath(path)
        return self

    def program(self, path, to=None):
        self.add(path, to)
        out = subprocess.run(["ldd", path], text=True, capture_output=True, check=False).stdout
        for library in re.findall(r"(/\S+) \(0x", out):
            self.add(library)
        return self

    def tree(self, path):
        for folder, _, names in os.walk(path):
            if "__pycache__" not in folder and "/test" not in folder:
                for name in names:
                    self.add(os.path.join(folder, name))
        return self

    def write(self, path):
        with tarfile.open(path, "w") as tar:
            for folder in ("proc", "sys", "dev", "tmp", "run", "var/log/nginx", "var/lib/nginx"):
                info = tarfile.TarInfo(folder)
                info.type, info.mode = tarfile.DIRTYPE, 0o1777
                tar.addfile(info)
            for to, source in sorted(self.files.items()):
                if os.path.isfile(source):
                    tar.add(source, arcname=to.lstrip("/"))
            for to, content in self.texts.items():
                info = tarfile.TarInfo(to.lstrip("/"))
                info.size, info.mode = len(content), 0o644
                tar.addfile(info, io.BytesIO(content))


def busybox():
    image = Image().add("/bin/busybox")
    for name in ("sh ls cat ip ping true false sleep nc wget nslookup id mount ps kill echo env hostname touch head grep stty tty seq wc".split()):
        image.add("/bin/busybox", f"/bin/{name}")
    return image


def servers():
    """python3, curl and nginx of Debian."""
    image = busybox().program("/usr/bin/curl").program("/usr/bin/ip", "/usr/sbin/ip").program("/usr/sbin/nginx")
    # glibc opens these by name at run time.
    for name in ("libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2"):
        image.add(f"/lib/x86_64-linux-gnu/{name}")
    python = "/usr/bin/python3"
    image.program(python)
    stdlib = subprocess.run([python, "-c", "import os; print(os.path.dirname(os.__file__))"], text=True, capture_output=True, check=True).stdout.strip()
    image.tree(stdlib)
    for module in glob.glob(f"{stdlib}/lib-dynload/*.so"):
        image.program(module)
    return image


def nginx():
    """An image that serves a page when it is started without a command."""
    return (servers().text("/etc/passwd", "root:x:0:0::/:/bin/sh\n").text("/etc/group", "root:x:0:\n").text("/index.html", "served by nginx\n")
            .text("/etc/nginx/nginx.conf", "user root; pid /tmp/pid; error_log /dev/stderr; events {} http { access_log off; server { listen 80; root /; } }"))


class Host:
    """What every engine's host has: `directory`, `cgroup`, `log` of the daemon, `process` (unshare) and `inner`, its first process."""

    def daemon_log(self):
        self.log.flush()
        with open(self.log.name, encoding="utf-8", errors="replace") as f:
            return "\n".join(f.read().splitlines()[-20:])

    def sandboxes(self):
        return json.loads(self.host(SLUICE, "sandboxes", "--json").stdout)

    def close(self):
        if self.process is not None and self.inner is not None:
            try:
                os.kill(self.inner, signal.SIGKILL)  # the first process: the kernel ends the others
            except ProcessLookupError:
                pass
            self.process.wait()
        self.log.close()
        remove_cgroups(self.cgroup)
        shutil.rmtree(self.directory, ignore_errors=True)
        if os.path.exists(self.directory):
            print(f"left: {self.directory}", file=sys.stderr)


class DockerHost(Host):
    def __init__(self, flags_of_runtimes, remapped=False):
        """`flags_of_runtimes`: runtime name -> flags, made by `sluice install`; None: dockerd reads /etc/docker/daemon.json, which nobody has made.
        `remapped`: containers live in a user namespace."""
        self.directory = tempfile.mkdtemp(prefix=f"{RUN}-docker-", dir="/var/tmp")
        self.socket = f"{self.directory}/sock"
        self.cgroup = f"/{os.path.basename(self.directory)}"
        self.config = f"{self.directory}/daemon.json" if flags_of_runtimes is not None else None
        more = os.environ.get("SLUICE_FLAGS", "").split()  # run.py --flags
        for name, flags in (flags_of_runtimes or {}).items():
            subprocess.run([SLUICE, "install", "--engine=docker", f"--runtime={name}", f"--config={self.config}", "--", *flags, *more], check=True, stdout=subprocess.DEVNULL)
        self.log = open(f"{self.directory}/dockerd.log", "w", encoding="utf-8")
        self.process = None
        self.inner = None
        self.name_server = None
        self._start(remapped)

    def _start(self, remapped):
        inner = f"{self.directory}/inner"
        prepare = ""
        if remapped:
            os.chmod(self.directory, 0o711)  # the containers' root walks through it
            with open(f"{self.directory}/subids", "w", encoding="ascii") as f:
                f.write(f"nobody:{FIRST_REMAPPED_ID}:65536\n")
            prepare = "".join(f"mount --bind {self.directory}/subids {file}\n" for file in ("/etc/subuid", "/etc/subgid"))
        with open(inner, "w", encoding="utf-8") as f:
            f.write(INNER.replace('"$@"', prepare + '"$@"'))
        dockerd = ["dockerd", "--data-root", f"{self.directory}/data", "--exec-root", "/run/docker", "--pidfile", "/run/dockerd.pid", "-H",
                   f"unix://{self.socket}", "--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", self.cgroup,
                   "--bip", "10.213.0.1/24", "--userland-proxy=false", *(["--config-file", self.config] if self.config else []),
                   *(["--userns-remap", "nobody:nogroup"] if remapped else [])]
        self.process = subprocess.Popen(["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", inner, *dockerd],
                                        stdout=self.log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                                        env=dict(os.environ, SLUICE_TEST_RUN=RUN))

        def up():
            if self.process.poll() is not None:
                raise AssertionError(f"dockerd ended:\n{self.daemon_log()}")
            return self.docker("version", check=False).returncode == 0
        wait_for(up, "dockerd does not answer")
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="ascii") as f:
            self.inner = int(f.read().split()[0])

    def docker(self, *args, check=True, timeout=120, **kw):
        done = subprocess.run(["docker", "-H", f"unix://{self.socket}", *args], text=True, capture_output=True, timeout=timeout, check=False,
                              stdin=kw.pop("stdin", subprocess.DEVNULL), **kw)
        if check and done.returncode != 0:
            raise AssertionError(f"docker {' '.join(args)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def out(self, *args, **kw):
        return self.docker(*args, **kw).stdout

    def import_image(self, name, image, *changes):
        path = f"{self.directory}/image.tar"
        image.write(path)
        self.docker("import", *(f"--change={change}" for change in changes), path, name)
        os.unlink(path)

    def inspect(self, name, template):
        return self.out("inspect", "-f", template, name).strip()

    def address(self, name, network="bridge"):
        return self.inspect(name, "{{(index .NetworkSettings.Networks \"%s\").IPAddress}}" % network)

    def host(self, *argv, check=True, timeout=60):
        """A command where dockerd is: its network, its processes, its /run; the programs docker and sluice are this one and ours."""
        env = dict(os.environ, DOCKER_HOST=f"unix://{self.socket}", PATH=f"{os.path.dirname(SLUICE)}:{os.environ['PATH']}")
        done = subprocess.run(["nsenter", "-t", str(self.inner), "-n", "-m", "-p", *argv], text=True, capture_output=True, timeout=timeout, check=False, env=env)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(argv)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def popen(self, *argv):
        return subprocess.Popen(["nsenter", "-t", str(self.inner), "-n", "-m", "-p", *argv], text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    def serve_names(self, address):
        """A server of names (name_server.py) at an address of the host's own. Returns how to read what it was asked."""
        self.host("ip", "addr", "replace", f"{address}/32", "dev", "lo")
        path = f"{self.directory}/names.log"
        with open(path, "w", encoding="ascii") as log:
            # It ends with the host's first process.
            self.name_server = subprocess.Popen(["nsenter", "-t", str(self.inner), "-n", "-m", "-p", "python3", f"{ROOT}/tests/engines/name_server.py", address],
                             stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)

        def asked():
            with open(path, encoding="ascii") as f:
                return f.read().splitlines()
        wait_for(lambda: "ready" in asked(), "the server of names does not start")
        return asked

    def leftovers(self):
        """What containers of sluice left: processes, records, pins, devices, control groups."""
        found = [line for line in self.host("ps", "-eo", "args").stdout.splitlines() if re.search(r"sluice", line) and "ps -eo" not in line and "dockerd" not in line]
        found += self.host("sh", "-c", "ls -A /run/sluice/oci; ls -A /run/sluice/bpf; ls -A /run/sluice | grep -v -e '^oci$' -e '^bpf$' -e '\\.lock$'", check=False).stdout.split()
        found += glob.glob(f"/sys/fs/cgroup/*{self.cgroup}/sluice-*") + glob.glob(f"/sys/fs/cgroup{self.cgroup}/sluice-*")
        found += [line for line in self.host("ip", "-o", "link").stdout.splitlines() if "veth" in line]
        return found

    def close(self):
        super().close()
        if self.name_server is not None:
            self.name_server.wait()


def remove_cgroups(cgroup):
    """The engine's, below its folder."""
    for controller in glob.glob(f"/sys/fs/cgroup/*{cgroup}") + glob.glob(f"/sys/fs/cgroup{cgroup}"):
        for folder, _, _ in os.walk(controller, topdown=False):
            remove_cgroup(folder)
    remove_option_groups()


def remove_option_groups():
    """The empty ones of sandboxes whose guard was killed with the machine."""
    for folder in glob.glob("/sys/fs/cgroup/sluice-[0-9]*") + glob.glob("/sys/fs/cgroup/unified/sluice-[0-9]*"):
        try:
            os.rmdir(folder)
        except OSError:
            pass  # somebody's that runs


def remove_cgroup(folder):
    def gone():
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            pass
        except OSError:
            return False  # its last processes are ending
        return True
    wait_for(gone, f"{folder} can be removed", 20)
