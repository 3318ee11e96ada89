"""A real containerd with its CRI plug-in, Debian's CNI plug-ins and a client of our own (cri/): pods as a kubelet makes them."""
import base64
import contextlib
import json
import os
import shutil
import subprocess

from containerd_host import ContainerdHost
from docker_host import ROOT, SLUICE, Image, wait_for
from engine_host import write_archive

PROGRAMS = os.path.join(ROOT, "build/engines")
SOURCES = os.path.join(ROOT, "tests/engines")
SUBNET = "10.215.0"

CONFIG = """
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:latest"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/run/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.sluice]
      runtime_type = "io.containerd.runc.v2"
      pod_annotations = ["dev.sluice.*"]
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.sluice.options]
        BinaryName = "{sluice}"
"""

NETWORK = {
    "cniVersion": "0.4.0", "name": "pods",
    "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": False,
         "ipam": {"type": "host-local", "dataDir": "/run/cni-addresses", "ranges": [[{"subnet": f"{SUBNET}.0/24"}]],
                  "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": False}]}


def build_client():
    """Rebuilt where the sources changed: Go's cache knows."""
    os.makedirs(PROGRAMS, exist_ok=True)
    go = shutil.which("go") or "/usr/local/go/bin/go"
    subprocess.run([go, "build", "-o", f"{PROGRAMS}/cri", "."], cwd=f"{SOURCES}/cri", check=True, timeout=900,
                   env={**os.environ, "CGO_ENABLED": "0", "HOME": os.environ.get("HOME", "/root")})
    return f"{PROGRAMS}/cri"


def build_pause():
    os.makedirs(PROGRAMS, exist_ok=True)
    subprocess.run(["gcc", "-O2", "-static", "-o", f"{PROGRAMS}/pause", f"{SOURCES}/pause.c"], check=True)
    return Image().add(f"{PROGRAMS}/pause", "/pause")


class Pod:
    def __init__(self, host, name, runtime="sluice", host_network=False, sysctls=None, annotations=None, ports=()):
        self.host = host
        security = {"namespace_options": {"network": "NODE" if host_network else "POD", "pid": "CONTAINER"}}
        self.config = {"metadata": {"name": name, "uid": f"{name}-uid", "namespace": "default", "attempt": 0},
                       "log_directory": f"{host.directory}/logs/{name}", "annotations": annotations or {}, "port_mappings": list(ports),
                       "linux": {"cgroup_parent": f"{host.cgroup}/{name}", "security_context": security, "sysctls": sysctls or {}}}
        self.id = host.call("RunPodSandbox", config=self.config, runtime_handler=runtime)["podSandboxId"]

    def status(self):
        return self.host.call("PodSandboxStatus", pod_sandbox_id=self.id)["status"]

    def address(self):
        return self.status()["network"]["ip"]

    def netns(self):
        info = self.host.call("PodSandboxStatus", pod_sandbox_id=self.id, verbose=True)["info"]["info"]
        return next(n["path"] for n in json.loads(info)["runtimeSpec"]["linux"]["namespaces"] if n["type"] == "network")

    def start(self, name, *command, image="servers"):
        config = {"metadata": {"name": name}, "image": {"image": f"localhost/{image}:latest"}, "command": list(command),
                  "log_path": f"{name}.log", "linux": {}}
        container = self.host.call("CreateContainer", pod_sandbox_id=self.id, config=config, sandbox_config=self.config)["containerId"]
        self.host.call("StartContainer", container_id=container)
        return container

    def log(self, name):
        """What the container wrote, without the marks of CRI's log format."""
        with open(f"{self.config['log_directory']}/{name}.log", encoding="utf-8") as f:
            return "".join(line.split(" ", 3)[3] for line in f)

    def in_namespace(self, *argv, **kw):
        """A command of the host in the pod's network namespace: there the kernel is."""
        return self.host.host("nsenter", f"--net={self.netns()}", *argv, **kw)

    def remove(self):
        self.host.call("StopPodSandbox", pod_sandbox_id=self.id)
        self.host.call("RemovePodSandbox", pod_sandbox_id=self.id)


class CriHost(ContainerdHost):
    def __init__(self):
        self.client = build_client()
        super().__init__(CONFIG.format(sluice=SLUICE))
        # The CNI library keeps its results below /var/lib.
        self.host("mount", "-t", "tmpfs", "tmpfs", "/var/lib")
        self.write("/run/cni/pods.conflist", json.dumps(NETWORK))
        self.import_image("pause", build_pause(), ["/pause"])

        def ready():
            conditions = self.call("Status")["status"]["conditions"]
            return all(c.get("status") for c in conditions)
        wait_for(ready, "CRI is not ready")

    def import_image(self, name, image, entrypoint=()):
        path = f"{self.directory}/image.tar"
        write_archive(image, path, f"localhost/{name}:latest", entrypoint)
        self.ctr("-n", "k8s.io", "image", "import", path, timeout=120)
        os.unlink(path)
        wait_for(lambda: self.call("ImageStatus", image={"image": f"localhost/{name}:latest"}).get("image"), f"CRI does not know {name}")

    def cri(self, *args, **kw):
        return self.host(self.client, self.socket, *args, **kw)

    def call(self, method, **request):
        return json.loads(self.cri("call", method, json.dumps(request), timeout=120).stdout)

    def exec_sync(self, container, *command):
        """Exit code and standard output, as a probe gets them."""
        answer = self.call("ExecSync", container_id=container, cmd=list(command), timeout=60)
        return int(answer.get("exitCode", 0)), base64.b64decode(answer.get("stdout", "")).decode()

    def state(self, container):
        return self.call("ContainerStatus", container_id=container)["status"]["state"]

    def pods(self):
        return [p["id"] for p in self.call("ListPodSandbox").get("items", [])]

    @contextlib.contextmanager
    def port_forward(self, pod, port):
        """Gives the host's port of 127.0.0.1 that leads into the pod."""
        argv = self.inside(self.client, self.socket, "port-forward", pod.id, str(port))
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield int(process.stdout.readline())
            finally:
                process.stdin.close()
                process.wait(20)

    def leftovers(self):
        found = super().leftovers()
        found += self.host("sh", "-c", "ls -A /run/netns; ls -A /run/cni-addresses/pods | grep -v -e last_reserved -e lock", check=False).stdout.split()
        found += [line for line in self.host("cat", "/proc/self/mountinfo").stdout.splitlines() if "/run/netns/cni-" in line or "sandboxes/" in line]
        # The pod's own group is the kubelet's; what is below is its containers'.
        found += self.host("sh", "-c", f"find /sys/fs/cgroup -path '*{self.cgroup}/*/*' -type d", check=False).stdout.split()
        return found
