"""Kubernetes pods on sluice, by containerd's CRI plug-in and Debian's CNI plug-ins; the kubelet's part is a client of our own (cri/)."""
import base64
import glob
import json
import os
import shutil
import subprocess
import tempfile
import unittest

from cri_host import SUBNET, CriHost, Pod, build_client
from docker_host import ROOT, SLUICE, busybox, servers, wait_for

# Answers a stream with what it got, when the stream has ended.
ECHO = r"""
import socket, threading
def serve(c):
    got = b""
    while part := c.recv(65536): got += part
    c.sendall(got); c.close()
s = socket.create_server(("%s", %d)); print("up", flush=True)
while True: threading.Thread(target=serve, args=(s.accept()[0],)).start()
"""
# The program that dials the kernel's loopback of the pod, as the engine does: sends all, half closes, checks what comes back.
HALF_CLOSE = r"""
import os, socket, sys, threading
data = os.urandom(10 << 20)
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 60)
def send(): s.sendall(data); s.shutdown(socket.SHUT_WR)
t = threading.Thread(target=send); t.start()
got = bytearray()
while part := s.recv(1 << 16): got += part
t.join(); sys.exit(0 if got == data else "differs after %d bytes" % len(got))
"""
# Both directions at once, each of its own length and content.
DUPLEX = r"""
import hashlib, socket, threading
s = socket.create_server(("127.0.0.1", 7)); print("up", flush=True)
while True:
    c = s.accept()[0]
    def send(c=c): c.sendall(bytes(range(256)) * (40 << 10))
    t = threading.Thread(target=send); t.start()
    h = hashlib.sha256(); n = 0
    while n < 10 << 20:
        part = c.recv(65536)
        if not part: break
        h.update(part); n += len(part)
    t.join(); c.sendall(h.digest()); c.close()
"""


class CriTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        for program in ("containerd", "ctr", "/usr/lib/cni/bridge"):
            if shutil.which(program) is None:
                raise unittest.SkipTest(f"{program} is not installed")
        if not hasattr(CriTest, "shared"):
            CriTest.shared = CriHost()
            unittest.addModuleCleanup(CriTest.shared.close)
            CriTest.shared.import_image("bb", busybox())
            CriTest.shared.import_image("servers", servers())
        cls.host = CriTest.shared

    def tearDown(self):
        for pod in self.host.pods():
            self.host.call("StopPodSandbox", pod_sandbox_id=pod)
            self.host.call("RemovePodSandbox", pod_sandbox_id=pod)
        wait_for(lambda: not self.host.leftovers(), f"not all of it goes: {self.host.leftovers()}", 20)

    def echo(self, pod, port, at="0.0.0.0", name="echo"):
        container = pod.start(name, "python3", "-c", ECHO % (at, port))
        wait_for(lambda: "up" in pod.log(name), "the server does not listen")
        return container

    def dial(self, pod, port, check=True):
        """From the kernel's side of the pod's namespace."""
        return pod.in_namespace("python3", "-c", HALF_CLOSE, str(port), check=check)

    def kernel_listens(self, pod, family="-4"):
        lines = pod.in_namespace("ss", "-Htln", family).stdout.splitlines()
        return sorted(line.split()[3] for line in lines)


class PodTest(CriTest):
    def test_address_and_routes_are_those_of_cni(self):
        pod = Pod(self.host, "one")
        container = pod.start("main", "sleep", "1000", image="bb")
        address = pod.address()
        self.assertTrue(address.startswith(SUBNET))
        code, out = self.host.exec_sync(container, "ip", "addr")
        self.assertEqual(code, 0)
        self.assertIn(f"inet {address}/24", out)
        self.assertIn(f"default via {SUBNET}.1 dev eth0", self.host.exec_sync(container, "ip", "route")[1])
        # They stay on the device, where a CNI plug-in looks.
        self.assertIn(f"inet {address}/24", pod.in_namespace("ip", "addr", "show", "eth0").stdout)
        self.assertEqual([s["network"] for s in self.host.sandboxes()], ["sandbox"])

    def cni(self, command, pod):
        """Runs the plug-ins as the CNI library does: with what it kept of their ADD."""
        [kept] = self.host.host("sh", "-c", "cat /var/lib/cni/results/*eth0").stdout.splitlines()
        kept = json.loads(kept)
        network = json.loads(base64.b64decode(kept["config"]))
        for plugin in network["plugins"]:
            config = json.dumps({**plugin, "name": network["name"], "cniVersion": network["cniVersion"], "prevResult": kept["result"]})
            done = subprocess.run(self.host.inside("env", f"CNI_COMMAND={command}", f"CNI_CONTAINERID={kept['containerId']}", f"CNI_NETNS={pod.netns()}",
                                                   "CNI_IFNAME=eth0", "CNI_PATH=/usr/lib/cni", f"/usr/lib/cni/{plugin['type']}"),
                                  input=config, text=True, capture_output=True, check=False, timeout=60)
            if done.returncode != 0:
                return done.stdout + done.stderr
        return ""

    def test_cni_check_finds_what_it_set_up(self):
        pod = Pod(self.host, "one")
        pod.start("main", "sleep", "1000", image="bb")
        self.assertEqual(self.cni("CHECK", pod), "")
        pod.in_namespace("ip", "addr", "del", f"{pod.address()}/24", "dev", "eth0")
        self.assertNotEqual(self.cni("CHECK", pod), "")

    def test_containers_share_stack_loopback_and_ports(self):
        pod = Pod(self.host, "two")
        pod.start("web", "python3", "-m", "http.server", "8000", "--directory", "/bin")
        client = pod.start("client", "sleep", "1000")
        fetch = ("curl", "-sS", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", "-o", "/dev/null", "-w", "%{http_code} %{size_download}")
        size = os.path.getsize("/bin/busybox")
        code, out = self.host.exec_sync(client, *fetch, "http://127.0.0.1:8000/busybox")
        self.assertEqual((code, out), (0, f"200 {size}"))
        self.assertEqual(self.host.host(*fetch, f"http://{pod.address()}:8000/busybox").stdout, f"200 {size}")
        code, _ = self.host.exec_sync(client, "python3", "-c", "import socket; socket.create_server(('', 8000))")
        self.assertEqual(code, 1)
        self.assertEqual(len(self.host.sandboxes()), 1)
        # One container ends; the stack stays for the other.
        self.host.call("StopContainer", container_id=client, timeout=0)
        self.assertEqual(self.host.host(*fetch, f"http://{pod.address()}:8000/busybox").stdout, f"200 {size}")

    def test_nginx_in_a_pod_and_by_a_port_of_the_host(self):
        pod = Pod(self.host, "web", ports=[{"container_port": 80, "host_port": 8080, "protocol": "TCP"}])
        config = "daemon off; error_log stderr; events {} http { access_log off; server { listen 80; return 200 pod; } }"
        users = "mkdir -p /etc; echo root:x:0:0::/:/bin/sh >/etc/passwd; echo root:x:0: >/etc/group"
        pod.start("nginx", "sh", "-c", f"{users}; echo '{config}' >/tmp/c; exec nginx -c /tmp/c -g 'user root;'")
        fetch = ("curl", "-sS", "-m10", "--retry", "20", "--retry-connrefused", "--retry-delay", "1")
        self.assertEqual(self.host.host(*fetch, f"http://{pod.address()}/").stdout, "pod")
        self.assertEqual(self.host.host(*fetch, f"http://{SUBNET}.1:8080/").stdout, "pod")

    def test_exec_probes_and_logs(self):
        pod = Pod(self.host, "one")
        container = pod.start("main", "sh", "-c", "echo to the log; sleep 1000", image="bb")
        wait_for(lambda: pod.log("main") == "to the log\n", "no log")
        self.assertEqual(self.host.exec_sync(container, "sh", "-c", "echo out; exit 7"), (7, "out\n"))
        done = self.host.host(self.host.client, self.host.socket, "exec", container, "sh", "-c", "ip -o addr show eth0; exit 3", check=False)
        self.assertEqual(done.returncode, 3)
        self.assertIn(pod.address(), done.stdout)

    def test_changes_in_the_namespace_arrive(self):
        pod = Pod(self.host, "live")
        container = pod.start("main", "sleep", "1000", image="bb")
        pod.in_namespace("ip", "addr", "add", f"{SUBNET}.250/24", "dev", "eth0")
        pod.in_namespace("ip", "route", "add", "192.0.2.0/24", "via", f"{SUBNET}.1")
        wait_for(lambda: f"{SUBNET}.250/24" in self.host.exec_sync(container, "ip", "addr")[1], "the address does not arrive")
        wait_for(lambda: "192.0.2.0/24 via" in self.host.exec_sync(container, "ip", "route")[1], "the route does not arrive")
        self.host.host("ping", "-c1", "-W10", f"{SUBNET}.250")
        pod.in_namespace("ip", "addr", "del", f"{SUBNET}.250/24", "dev", "eth0")
        wait_for(lambda: f"{SUBNET}.250/24" not in self.host.exec_sync(container, "ip", "addr")[1], "the address stays")

    def test_sysctls_of_the_pod(self):
        pod = Pod(self.host, "tuned", sysctls={"net.ipv4.ip_local_port_range": "50000 50009"})
        container = pod.start("main", "sleep", "1000")
        self.assertEqual(self.host.exec_sync(container, "cat", "/proc/sys/net/ipv4/ip_local_port_range")[1].split(), ["50000", "50009"])
        code, out = self.host.exec_sync(container, "python3", "-c", "import socket; s = socket.create_server(('127.0.0.1', 7)); "
                                        "print(socket.create_connection(('127.0.0.1', 7)).getsockname()[1])")
        self.assertEqual((code, out[:4]), (0, "5000"))

    def test_host_network_is_refused_with_the_way_out(self):
        with self.assertRaisesRegex(AssertionError, "uses the host's network namespace.*--network=host"):
            Pod(self.host, "host", host_network=True)
        # A runtime of the pod's own choice may loosen nothing.
        with self.assertRaisesRegex(AssertionError, "dev.sluice.flag.network"):
            Pod(self.host, "host", host_network=True, annotations={"dev.sluice.flag.network": "host"})

    def test_death_of_the_sentry_ends_the_containers(self):
        pod = Pod(self.host, "dies")
        containers = [pod.start(name, "sleep", "1000", image="bb") for name in ("a", "b")]
        [sentry] = self.host.host("pgrep", "-x", "sluice-sentry").stdout.split()
        self.host.host("kill", "-KILL", sentry)
        for container in containers:
            wait_for(lambda c=container: self.host.state(c) == "CONTAINER_EXITED", "containerd still shows it")
            status = self.host.call("ContainerStatus", container_id=container)["status"]
            self.assertEqual(status["exitCode"], 137)
        wait_for(lambda: pod.status().get("state") == "SANDBOX_NOTREADY", "the pod is still ready")

    def test_containers_and_pods_come_and_go(self):
        pod = Pod(self.host, "again")
        for _ in range(2):
            container = self.echo(pod, 9000)
            wait_for(lambda: self.kernel_listens(pod) == ["127.0.0.1:9000"], "nobody listens for the engine")
            self.dial(pod, 9000)
            self.host.call("StopContainer", container_id=container, timeout=0)
            self.host.call("RemoveContainer", container_id=container)
            os.unlink(f"{pod.config['log_directory']}/echo.log")
        pod.remove()
        self.assertEqual(self.host.pods(), [])


class PortForwardTest(CriTest):
    def test_through_the_engine(self):
        pod = Pod(self.host, "forward")
        self.echo(pod, 9000)
        pod.start("duplex", "python3", "-c", DUPLEX)
        wait_for(lambda: "up" in pod.log("duplex"), "the server does not listen")
        wait_for(lambda: self.kernel_listens(pod) == ["127.0.0.1:7", "127.0.0.1:9000"], "nobody listens for the engine")
        with self.host.port_forward(pod, 7) as port:
            program = ("import hashlib, os, socket, sys, threading\n"
                       "data = os.urandom(10 << 20); s = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 60)\n"
                       "t = threading.Thread(target=s.sendall, args=(data,)); t.start(); got = bytearray()\n"
                       "while part := s.recv(65536): got += part\n"
                       "t.join(); n = 10 << 20\n"
                       "assert got[:n] == bytes(range(256)) * (40 << 10), 'what comes differs'\n"
                       "assert got[n:] == hashlib.sha256(data).digest(), 'what went differs'\n")
            for _ in range(3):
                self.host.host("python3", "-c", program, str(port), timeout=120)

    def test_half_close_and_ten_mebibytes_each_way(self):
        pod = Pod(self.host, "half")
        self.echo(pod, 9000)
        wait_for(lambda: self.kernel_listens(pod) == ["127.0.0.1:9000"], "nobody listens for the engine")
        self.dial(pod, 9000)

    def test_exactly_what_the_pod_listens_on(self):
        pod = Pod(self.host, "exact")
        main = self.echo(pod, 9000)
        self.echo(pod, 9001, at="127.0.0.1", name="local")
        self.echo(pod, 9002, at=pod.address(), name="outer")
        wait_for(lambda: self.kernel_listens(pod) == ["127.0.0.1:9000", "127.0.0.1:9001"], "not what the pod listens on")
        self.dial(pod, 9001)
        self.host.call("StopContainer", container_id=main, timeout=0)
        wait_for(lambda: self.kernel_listens(pod) == ["127.0.0.1:9001"], "a port stays open")
        self.assertNotEqual(self.dial(pod, 9000, check=False).returncode, 0)

    def test_nothing_inside_reaches_the_kernels_loopback(self):
        pod = Pod(self.host, "apart")
        self.echo(pod, 9000)
        probe = pod.start("probe", "sleep", "1000")
        outside = subprocess.Popen(self.host.inside("nsenter", f"--net={pod.netns()}", "nc", "-l", "127.0.0.1", "9999"), stdin=subprocess.DEVNULL)
        try:
            wait_for(lambda: "127.0.0.1:9999" in self.kernel_listens(pod), "nc does not listen")
            code, out = self.host.exec_sync(probe, "python3", "-c", "import socket\ntry: socket.create_connection(('127.0.0.1', 9999), 5)\nexcept ConnectionRefusedError: print('refused')")
            self.assertEqual((code, out), (0, "refused\n"))
            self.assertIsNone(outside.poll())
        finally:
            outside.kill()
            outside.wait()

    def test_its_process_has_no_rights_and_its_end_is_survived(self):
        pod = Pod(self.host, "rights")
        main = self.echo(pod, 9000)
        wait_for(lambda: self.kernel_listens(pod) == ["127.0.0.1:9000"], "nobody listens for the engine")
        [relay] = self.host.host("pgrep", "-x", "sluice-forward").stdout.split()
        status = dict(line.split(":\t", 1) for line in self.host.host("cat", f"/proc/{relay}/status").stdout.splitlines() if ":\t" in line)
        self.assertEqual([int(status[c], 16) for c in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")], [0] * 5)
        self.assertEqual(status["NoNewPrivs"].strip(), "1")
        self.assertEqual(status["Seccomp"].strip(), "2")
        self.assertNotIn("0", status["Uid"].split())
        self.host.host("kill", "-KILL", relay)
        wait_for(lambda: self.kernel_listens(pod) == [], "listens without a relay")
        self.assertEqual(self.host.exec_sync(main, "true")[0], 0)
        pod.start("next", "sleep", "1000", image="bb")
        wait_for(lambda: self.kernel_listens(pod) == ["127.0.0.1:9000"], "nobody listens for the engine")
        self.dial(pod, 9000)

    def test_many_connections_are_bounded(self):
        pod = Pod(self.host, "many")
        self.echo(pod, 9000)
        wait_for(lambda: self.kernel_listens(pod) == ["127.0.0.1:9000"], "nobody listens for the engine")
        program = ("import select, socket, sys, time\n"
                   "all = []; cut = set(); early = 0\n"
                   "for _ in range(80):\n"
                   "  try: all.append(socket.create_connection(('127.0.0.1', 9000), 20))\n"
                   "  except ConnectionResetError: early += 1\n"
                   "end = time.monotonic() + 30\n"
                   "while early + len(cut) < 16 and time.monotonic() < end:\n"
                   "  for s in select.select([s for s in all if s not in cut], [], [], 1)[0]:\n"
                   "    try: s.recv(1)\n"
                   "    except ConnectionResetError: pass\n"
                   "    cut.add(s)\n"
                   "print(early + len(cut))\n"
                   "for s in all:\n"
                   "  if s not in cut: s.sendall(b'x'); s.shutdown(1); assert s.recv(2) == b'x'\n")
        self.assertEqual(pod.in_namespace("python3", "-c", program).stdout, "16\n")
        self.dial(pod, 9000)

    def test_docker_like_containers_have_none(self):
        self.host.load_image("bb", busybox())
        network = self.host.network("n1", "10.214.1")
        try:
            self.host.run_detached("plain", "nc", "-l", "-p", "80", options=["--with-ns", network])
            wait_for(lambda: ":80 " in self.host.host(SLUICE, "sockets", "plain", check=False).stdout, "it does not listen")
            self.assertEqual(self.host.host("ip", "netns", "exec", "n1", "ss", "-Htln").stdout, "")
        finally:
            self.host.remove("plain")
            self.host.host("ip", "netns", "del", "n1")


class ManifestTest(unittest.TestCase):
    def test_deploy_is_what_the_api_knows(self):
        files = sorted(glob.glob(os.path.join(ROOT, "deploy/kubernetes/*.yaml")))
        done = subprocess.run([build_client(), "check", *files], text=True, capture_output=True, check=False, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.split(), ["DaemonSet", "sluice-installer", "Pod", "web", "Pod", "two", "RuntimeClass", "sluice"])

    def test_fields_that_the_api_does_not_know_are_found(self):
        with open(os.path.join(ROOT, "deploy/kubernetes/pod-nginx.yaml"), encoding="utf-8") as f:
            text = f.read()
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as f:
            f.write(text.replace("runtimeClassName", "runtimeClass"))
            f.flush()
            done = subprocess.run([build_client(), "check", f.name], text=True, capture_output=True, check=False, timeout=60)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn('unknown field "spec.runtimeClass"', done.stderr)


if __name__ == "__main__":
    unittest.main()
