"""Docker with sluice as a runtime: what people do with containers, on a real dockerd."""
import concurrent.futures
import os
import pty
import shutil
import subprocess
import unittest

from docker_host import SLUICE, DockerHost, busybox, servers, wait_for

RUNTIMES = {"sluice": [], "sluice-host": ["--network=host"], "sluice-none": ["--network=none"], "sluice-nogso": ["--gso=false"],
            "sluice-raw": ["--net-raw"], "sluice-xdp": ["--link=xdp"]}
NAME_SERVER = "10.99.0.53"
# How many addresses the resolver gives for a name whose answer, asked for with EDNS, is longer than a frame.
LONG_ANSWER = ("import socket, struct; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20); s.connect(('127.0.0.11', 53)); "
               "s.send(bytes.fromhex('777701000001000000000001') + b'\\4long\\4test\\0\\0\\1\\0\\1' + bytes.fromhex('0000291000000000000000')); "
               "print(struct.unpack('!H', s.recv(65535)[6:8])[0])")
SERVER = "import http.server,sys; http.server.ThreadingHTTPServer(('0.0.0.0', int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()"


class DockerTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if shutil.which("dockerd") is None:
            raise unittest.SkipTest("dockerd is not installed (docker.io)")
        if not hasattr(DockerTest, "shared"):
            DockerTest.shared = DockerHost(RUNTIMES)
            unittest.addModuleCleanup(DockerTest.shared.close)
            DockerTest.shared.import_image("bb", busybox())
            DockerTest.shared.import_image("servers", servers())
        cls.host = DockerTest.shared
        cls.docker = cls.host.docker

    def tearDown(self):
        names = self.host.out("ps", "-aq").split()
        if names:
            self.host.docker("rm", "-f", *names)
        self.host.docker("network", "prune", "-f")
        wait_for(lambda: not self.host.leftovers(), "not all of it goes", 10)

    def run_in(self, *command, options=(), runtime="sluice", image="bb", **kw):
        return self.host.docker("run", "--rm", f"--runtime={runtime}", *options, image, *command, **kw)

    def start(self, name, *command, options=(), runtime="sluice", image="bb"):
        self.host.docker("run", "-d", "--name", name, f"--runtime={runtime}", *options, image, *command)
        return name

    def serve_names(self):
        if not hasattr(DockerTest, "asked"):
            DockerTest.asked = staticmethod(self.host.serve_names(NAME_SERVER))
        return DockerTest.asked

    def look_up(self, name, what):
        """By the C library, which asks again by TCP where an answer was truncated."""
        program = f"import socket\ntry: print(*sorted({{a[4][0] for a in socket.getaddrinfo('{what}', 80, socket.AF_INET)}}))\nexcept socket.gaierror: pass"
        return self.host.out("exec", name, "python3", "-c", program).split()

    def start_server(self, name, port=80, options=(), **kw):
        self.start(name, "python3", "-c", SERVER, str(port), options=options, image="servers", **kw)
        wait_for(lambda: f"0.0.0.0:{port} " in self.host.host(SLUICE, "sockets", self.host.inspect(name, "{{.Id}}"), check=False).stdout, f"{name} does not listen")


class RunTest(DockerTest):
    def test_addresses_and_routes_are_the_containers(self):
        out = self.run_in("ip", "addr").stdout
        self.assertRegex(out, r"inet 10\.213\.0\.\d+/24 .*eth0")
        self.assertIn("inet 127.0.0.1/8", out)
        self.assertIn("default via 10.213.0.1 dev eth0", self.run_in("ip", "route").stdout)

    def test_it_is_our_stack(self):
        self.start("one", "sleep", "1000")
        self.assertEqual([s["network"] for s in self.host.sandboxes()], ["sandbox"])
        pid = self.host.inspect("one", "{{.State.Pid}}")
        self.assertEqual(self.host.host("cat", f"/proc/{pid}/status").stdout.split("Seccomp_filters:")[1].split()[0], "1")
        # The kernel of the namespace answers nobody while our stack does.
        self.host.host("ping", "-c1", "-W5", self.host.address("one"))
        self.assertIn("echo", self.host.host(SLUICE, "stats", self.host.inspect("one", "{{.Id}}")).stdout.lower())

    def test_exit_status_and_signals(self):
        self.assertEqual(self.run_in("sh", "-c", "exit 7", check=False).returncode, 7)
        self.assertEqual(self.run_in("nonsense", check=False).returncode, 127)
        self.start("trap", "sh", "-c", "trap 'exit 42' USR1; echo up; while true; do sleep 0.05; done")
        wait_for(lambda: "up" in self.host.out("logs", "trap"), "the program does not start")
        self.host.docker("kill", "-s", "USR1", "trap")
        self.assertEqual(self.host.out("wait", "trap").strip(), "42")

    def in_terminal(self, *arguments, types=b"", after=b""):
        """docker with a terminal: (status, what it shows). `types` is typed when `after` has been shown."""
        parent, child = pty.openpty()
        p = subprocess.Popen(["docker", "-H", f"unix://{self.host.socket}", *arguments], stdin=child, stdout=child, stderr=child, start_new_session=True)
        os.close(child)
        seen = b""
        try:
            while True:
                chunk = os.read(parent, 4096)
                if not chunk:
                    break
                seen += chunk
                if types and after in seen:
                    os.write(parent, types)
                    types = b""
        except OSError:
            pass
        status = p.wait(60)
        os.close(parent)
        return status, seen

    def test_terminal(self):
        status, seen = self.in_terminal("run", "--rm", "-it", "--runtime=sluice", "bb", "sh", "-c", "tty; ip -4 route; echo fin")
        self.assertEqual(status, 0, seen)
        self.assertIn(b"/dev/pts/", seen)
        self.assertIn(b"default via", seen)

    def test_terminal_of_exec_and_its_signals(self):
        self.start("box", "sleep", "1000")
        status, seen = self.in_terminal("exec", "-it", "box", "sh", "-c", "tty; ip -4 route; exit 9")
        self.assertEqual(status, 9, seen)
        self.assertIn(b"/dev/pts/", seen)
        self.assertIn(b"default via", seen)
        # A typed ^C.
        status, seen = self.in_terminal("exec", "-it", "box", "sh", "-c", "trap 'exit 33' INT; echo ready; while true; do sleep 0.05; done", types=b"\x03", after=b"ready")
        self.assertEqual(status, 33, seen)

    def test_signals_as_with_runc(self):
        trap = "trap 'echo got TERM; exit 5' TERM; trap 'echo got HUP' HUP; echo up; while true; do sleep 0.05; done"
        seen = []
        for runtime in ("runc", "sluice"):
            name = self.start(f"trap-{runtime}", "sh", "-c", trap, runtime=runtime)
            wait_for(lambda: "up" in self.host.out("logs", name), "the program does not start")
            self.host.docker("kill", "-s", "HUP", name)
            wait_for(lambda: "got HUP" in self.host.out("logs", name), "the signal does not come")
            self.host.docker("stop", "-t", "20", name)
            self.start(f"plain-{runtime}", "sleep", "1000", runtime=runtime, options=["--init=false", "--stop-signal", "KILL"])
            self.host.docker("stop", "-t", "20", f"plain-{runtime}")
            seen.append((self.host.out("logs", name), self.host.out("wait", name).strip(), self.host.out("wait", f"plain-{runtime}").strip()))
        self.assertEqual(seen[0], seen[1])
        self.assertEqual(seen[1][1:], ("5", "137"))

    def test_every_capability(self):
        options = ["--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE", "--security-opt", "seccomp=unconfined"]
        reference, ours = (self.run_in("sh", "-c", "grep ^Cap /proc/self/status; ip route", options=options, runtime=r).stdout for r in ("runc", "sluice"))
        self.assertEqual([line for line in ours.splitlines() if "Cap" in line], [line for line in reference.splitlines() if "Cap" in line])
        self.assertIn("default via", ours)

    def test_privileged_where_runc_can(self):
        script = "grep -e ^Cap -e ^NoNew /proc/self/status; ip -4 route"
        reference = self.run_in("sh", "-c", script, options=["--privileged"], runtime="runc", check=False)
        ours = self.run_in("sh", "-c", script, options=["--privileged"], check=False)
        self.assertEqual(ours.returncode, reference.returncode, ours.stderr)
        self.assertEqual([line for line in ours.stdout.splitlines() if ":" in line], [line for line in reference.stdout.splitlines() if ":" in line])
        self.assertEqual("default via" in ours.stdout, reference.returncode == 0)

    def test_rights_are_those_of_runc(self):
        script = ("id; grep -e ^Cap -e ^NoNew -e ^Uid /proc/self/status; touch /made && echo made; cat /sys/fs/cgroup/memory/memory.limit_in_bytes "
                  "/sys/fs/cgroup/memory.max 2>/dev/null; true")
        for options in (["--user", "1000:1001"], ["--read-only"], ["--cap-drop", "ALL"], ["--security-opt", "no-new-privileges"], ["--memory", "64m"],
                        ["--security-opt", "seccomp=unconfined"]):
            with self.subTest(options=options):
                reference, ours = (self.run_in("sh", "-c", script, options=options, runtime=r) for r in ("runc", "sluice"))
                self.assertEqual((ours.stdout, ours.stderr), (reference.stdout, reference.stderr))

    def test_rights(self):
        for options in (["--user", "1000"], ["--read-only"], ["--cap-drop", "ALL"], ["--security-opt", "no-new-privileges"], ["--memory", "64m"],
                        ["--security-opt", "seccomp=unconfined"], ["--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE", "--security-opt", "seccomp=unconfined"],
                        ["--pid", "host"], ["--ipc", "host"]):
            with self.subTest(options=options):
                self.assertIn("default via 10.213.0.1", self.run_in("ip", "route", options=options).stdout)

    def test_raw_sockets_only_by_flag(self):
        self.assertEqual(self.run_in("ping", "-c1", "-W5", "10.213.0.1", runtime="sluice-raw").returncode, 0)
        self.assertIn("permission denied", self.run_in("ping", "-c1", "-W1", "10.213.0.1", check=False).stderr)

    def test_changes_need_the_capability(self):
        self.assertNotEqual(self.run_in("ip", "addr", "add", "10.213.0.77/24", "dev", "eth0", check=False).returncode, 0)
        out = self.run_in("sh", "-c", "ip addr add 10.213.0.77/24 dev eth0 && ip -4 addr", options=["--cap-add", "NET_ADMIN"]).stdout
        self.assertIn("10.213.0.77/24", out)

    def test_sysctl(self):
        out = self.run_in("python3", "-c", "import socket; s = socket.socket(); print(s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)); "
                          "print(open('/proc/sys/net/ipv4/tcp_rmem').read())", image="servers", options=["--sysctl", "net.ipv4.tcp_rmem=4096 9216 18432"]).stdout
        self.assertEqual(out.split(), ["9216", "4096", "9216", "18432"])

    def test_no_other_sockets_and_no_i386(self):
        probe = ("import socket, ctypes\n"
                 "for family in (socket.AF_VSOCK, 38, 44):\n"
                 "    try: socket.socket(family, socket.SOCK_STREAM); print('made', family)\n"
                 "    except OSError: pass\n"
                 "libc = ctypes.CDLL(None, use_errno=True)\n"
                 "for nr, args in ((425, (8, 0)), (317, (1, 8, 0))):\n"
                 "    print(nr, libc.syscall(nr, *args), ctypes.get_errno())\n")
        for options in ([], ["--security-opt", "seccomp=unconfined"]):
            self.assertEqual(self.run_in("python3", "-c", probe, image="servers", options=options).stdout.split("\n")[:2], ["425 -1 38", "317 -1 16"])


class LifeTest(DockerTest):
    def test_published_port(self):
        self.start_server("web", options=["-p", "8080:80"])
        self.assertIn("Directory listing", self.host.host("curl", "-s", "-m10", "http://10.213.0.1:8080/").stdout)
        self.assertIn("Directory listing", self.host.host("curl", "-s", "-m10", f"http://{self.host.address('web')}/").stdout)

    def test_nginx_serves_a_file_byte_exact(self):
        conf = "daemon off; user root; pid /tmp/pid; error_log /dev/stderr; events {} http { access_log off; server { listen 80; root /; } }"
        self.start("ng", "sh", "-c", f"mkdir -p /var/log/nginx; echo 'root:x:0:0::/:/bin/sh' >/etc/passwd; echo 'root:x:0:' >/etc/group; echo '{conf}' >/tmp/n.conf; exec nginx -c /tmp/n.conf",
                   options=["--tmpfs", "/etc"], image="servers")
        url = f"http://{self.host.address('ng')}/usr/bin/python3"
        same = f"curl -s -m20 {url} | cmp - /usr/bin/python3"
        wait_for(lambda: self.host.host("sh", "-c", same, check=False).returncode == 0, "nginx does not serve the file", 20)

    def test_logs_exec_stop_restart(self):
        self.start("box", "sh", "-c", "echo out; echo err >&2; exec sleep 1000")
        wait_for(lambda: "out" in self.host.out("logs", "box"), "no logs")
        self.assertEqual(self.host.docker("logs", "box").stderr.strip(), "err")
        self.assertIn("10.213.0.", self.host.out("exec", "box", "ip", "-4", "addr", "show", "eth0"))
        self.assertEqual(self.host.docker("exec", "box", "sh", "-c", "exit 3", check=False).returncode, 3)
        self.host.docker("restart", "-t", "1", "box")
        self.assertIn("default via", self.host.out("exec", "box", "ip", "route"))
        self.host.docker("stop", "-t", "1", "box")
        self.assertEqual(self.host.inspect("box", "{{.State.Status}}"), "exited")
        self.assertEqual(self.host.sandboxes(), [])
        self.host.docker("start", "box")
        self.host.docker("kill", "box")
        self.assertEqual(self.host.out("wait", "box").strip(), "137")

    def test_exec_many_times(self):
        self.start_server("web")
        for _ in range(20):
            self.assertIn("200", self.host.out("exec", "web", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1/"))

    def test_pause(self):
        self.start_server("web")
        url = f"http://{self.host.address('web')}/"
        self.host.docker("pause", "web")
        self.assertEqual(self.host.host("curl", "-s", "-m2", "-o", "/dev/null", url, check=False).returncode, 28)
        # The stack is not frozen with the container: it answers.
        self.host.host("ping", "-c1", "-W5", self.host.address("web"))
        self.host.docker("unpause", "web")
        self.assertIn("Directory", self.host.host("curl", "-s", "-m20", url).stdout)
        self.host.docker("pause", "web")
        self.host.docker("rm", "-f", "web")

    def test_memory_of_an_idle_container(self):
        self.start("idle", "sleep", "1000")
        pss = ("for p in $(ps -eo pid,comm | awk '$2 ~ /^sluice/ {print $1}'); do grep ^Pss: /proc/$p/smaps_rollup; done | awk '{sum += $2} END {print NR, sum}'")
        processes, kibibytes = map(int, self.host.host("sh", "-c", pss).stdout.split())
        self.assertEqual(processes, 4)
        self.assertLess(kibibytes, 24 << 10)

    def test_many_at_once(self):
        """50, which start and go at once; nothing of them is left (tearDown looks at the rest)."""
        count = 50
        before = self.traces()
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda i: self.host.docker("run", "-d", "--name", f"m{i}", "--runtime=sluice", "bb", "sleep", "1000", timeout=600), range(count)))
            self.assertEqual(len(self.host.sandboxes()), count)
            for i in range(0, count, 7):
                self.host.host("ping", "-c1", "-W10", self.host.address(f"m{i}"))
            list(pool.map(lambda i: self.host.docker("rm", "-f", f"m{i}", timeout=600), range(count)))
        self.assertEqual(self.host.sandboxes(), [])
        try:
            wait_for(lambda: self.traces() == before, "something is left", 60)
        except AssertionError:
            self.assertEqual(self.traces(), before)

    def traces(self):
        """What containers leave where they leave something: namespaces, devices, processes, mounts, control groups, records, pins."""
        commands = {"processes": "ps -eo comm | grep -c -e sluice -e runc -e sleep", "devices": "ip -o link | wc -l", "mounts": "wc -l </proc/mounts",
                    "network namespaces": "lsns -t net -n -o NS | wc -l",
                    "records": "find /run/sluice /run/docker/runtime-runc /run/runc -mindepth 1 2>/dev/null | grep -v -e lock$ -e /bpf$ -e /oci$ -e /moby$ | sort",
                    "control groups": f"find /sys/fs/cgroup -type d | grep -c {self.host.cgroup}/"}
        return {what: self.host.host("sh", "-c", command, check=False).stdout for what, command in commands.items()}


class NetworkTest(DockerTest):
    def test_names_on_a_user_network(self):
        self.host.docker("network", "create", "un")
        self.start_server("web", options=["--network", "un"])
        self.assertIn("Directory", self.run_in("curl", "-s", "-m10", "http://web/", options=["--network", "un"], image="servers").stdout)
        # By TCP too: the resolver's relay takes both.
        tcp = ("import socket, struct; s = socket.create_connection(('127.0.0.11', 53), 10); q = bytes.fromhex('123401000001000000000000') + b'\\3web\\0\\0\\1\\0\\1'; "
               "s.sendall(struct.pack('!H', len(q)) + q); print(s.recv(4096)[2:4].hex())")
        self.assertEqual(self.run_in("python3", "-c", tcp, options=["--network", "un"], image="servers").stdout.strip(), "1234")
        # Nothing else of the kernel's loopback is there.
        ports = "import socket\nfor a in ('127.0.0.1', '127.0.0.11'):\n  s = socket.socket(); print(s.connect_ex((a, 54)))"
        self.assertEqual(self.run_in("python3", "-c", ports, options=["--network", "un"], image="servers").stdout.split(), ["111", "111"])

    def test_names_outside(self):
        asked = self.serve_names()
        self.host.docker("network", "create", "un")
        for runtime in ("sluice", "sluice-xdp"):
            with self.subTest(runtime=runtime):
                options = ["--network", "un", "--dns", NAME_SERVER]
                self.start("box", "sleep", "1000", options=options, image="servers", runtime=runtime)
                self.start("peer", "sleep", "1000", options=options)
                address = self.host.address("box", "un")
                before = len(asked())
                self.assertEqual(self.look_up("box", "outside.test"), ["192.0.2.7"])
                self.assertEqual(self.look_up("box", "truncated.test"), ["192.0.2.7", "192.0.2.8"])
                # It was the engine that asked, from the container's address, and nobody was told anything else of it.
                self.assertLessEqual({f"udp outside.test {address}", f"udp truncated.test {address}", f"tcp truncated.test {address}"}, set(asked()[before:]))
                # An answer in fragments.
                self.assertEqual(self.host.out("exec", "box", "python3", "-c", LONG_ANSWER).strip(), "150")
                self.assertEqual(self.look_up("box", "peer"), [self.host.address("peer", "un")])
                self.assertEqual(self.look_up("box", "nowhere.test"), [])
                self.host.docker("rm", "-f", "box", "peer")

    def test_the_first_user_network_is_connected_later(self):
        asked = self.serve_names()
        self.host.docker("network", "create", "un")
        self.start("peer", "sleep", "1000", options=["--network", "un"])
        self.start("box", "sleep", "1000", image="servers", options=["--dns", NAME_SERVER])
        # On the default bridge the container asks the server itself.
        self.assertEqual(self.look_up("box", "outside.test"), ["192.0.2.7"])
        self.host.docker("network", "connect", "un", "box")
        wait_for(lambda: self.look_up("box", "peer") == [self.host.address("peer", "un")], "names of the network do not resolve", 30)
        before = len(asked())
        self.assertEqual(self.look_up("box", "outside.test"), ["192.0.2.7"])
        self.assertIn("udp outside.test", "\n".join(asked()[before:]))

    def test_connect_and_disconnect_live(self):
        self.host.docker("network", "create", "un")
        self.start_server("web")
        self.host.docker("network", "connect", "un", "web")
        address = self.host.address("web", "un")
        wait_for(lambda: f"inet {address}/" in self.host.out("exec", "web", "ip", "-4", "addr"), "the new device does not show")
        self.assertIn("Directory", self.run_in("curl", "-s", "-m10", f"http://{address}/", options=["--network", "un"], image="servers").stdout)
        self.host.docker("network", "disconnect", "bridge", "web")
        wait_for(lambda: "inet 10.213." not in self.host.out("exec", "web", "ip", "-4", "addr"), "the old device still shows")
        self.assertIn("Directory", self.run_in("curl", "-s", "-m10", f"http://{address}/", options=["--network", "un"], image="servers").stdout)

    def test_containers_that_share_a_namespace(self):
        self.start_server("web")
        self.assertIn("Directory", self.run_in("curl", "-s", "-m10", "http://127.0.0.1/", options=["--network", "container:web"], image="servers").stdout)
        self.start("side", "sleep", "1000", options=["--network", "container:web"])
        self.assertEqual(len(self.host.sandboxes()), 1)
        self.host.docker("rm", "-f", "web")
        # Docker takes the device away with its owner; the stack goes on.
        self.assertIn("127.0.0.1/8", self.host.out("exec", "side", "ip", "addr"))
        self.host.docker("rm", "-f", "side")
        self.assertEqual(self.host.sandboxes(), [])

    def test_sharing_is_refused_where_it_cannot_be(self):
        self.start("web", "sleep", "1000")
        refused = self.run_in("true", options=["--network", "container:web"], runtime="sluice-nogso", check=False)
        self.assertIn("they must agree", refused.stderr)
        self.start("plain", "sleep", "1000", runtime="runc")
        refused = self.run_in("true", options=["--network", "container:plain"], check=False)
        self.assertIn("would lose its network", refused.stderr)
        self.assertIn("default via", self.host.out("exec", "plain", "ip", "route"))

    def test_modes(self):
        plain = self.start("hosted", "sleep", "1000", runtime="sluice-host")
        status = self.host.host("cat", f"/proc/{self.host.inspect(plain, '{{.State.Pid}}')}/status").stdout
        self.assertEqual(self.host.sandboxes(), [])
        self.assertEqual(self.host.host("sh", "-c", "ls /run/sluice/oci 2>/dev/null; ps -eo comm | grep ^sluice || :").stdout, "")
        self.start("plain", "sleep", "1000", runtime="runc")
        reference = self.host.host("cat", f"/proc/{self.host.inspect('plain', '{{.State.Pid}}')}/status").stdout
        filters = [s.split("Seccomp:")[1].split()[:3] for s in (status, reference)]
        self.assertEqual(filters[0], filters[1])
        out = self.run_in("ip", "addr", runtime="sluice-none").stdout
        self.assertNotIn("eth0", out)
        self.assertIn("127.0.0.1/8", out)
        self.assertIn("default via", self.run_in("ip", "route", runtime="sluice-nogso").stdout)
        for runtime in RUNTIMES:
            with self.subTest(runtime=runtime):
                out = self.run_in("ip", "addr", options=["--network", "none"], runtime=runtime).stdout
                self.assertIn("127.0.0.1/8", out)
                self.assertNotIn("eth0", out)

    def test_the_hosts_network_is_refused_with_a_remedy(self):
        refused = self.run_in("true", options=["--network", "host"], check=False)
        self.assertEqual(refused.returncode, 125)
        self.assertIn("--network=host in its arguments", refused.stderr)
        self.assertIn("docker0", self.run_in("ip", "link", options=["--network", "host"], runtime="sluice-host").stdout)


class FaultTest(DockerTest):
    def part(self, name):
        """Process ids of a part of the only sandbox, as dockerd's namespace numbers them."""
        return [int(line.split()[0]) for line in self.host.host("ps", "-eo", "pid,comm").stdout.splitlines() if line.split()[1] == name]

    def test_a_part_that_dies_ends_the_container(self):
        for part in ("sluice-sentry", "sluice-broker", "sluice-keeper"):
            with self.subTest(part=part):
                self.start("box", "sleep", "1000")
                (pid,) = self.part(part)
                self.host.host("kill", "-9", str(pid))
                self.assertEqual(self.host.out("wait", "box").strip(), "137")
                self.assertIn("the sandbox was ended", self.host.docker("logs", "box").stderr)
                self.host.docker("rm", "-f", "box")
                wait_for(lambda: not self.host.leftovers(), "nothing is left")

    def test_guard_that_dies_ends_the_container(self):
        self.start("box", "sleep", "1000")
        (pid,) = self.part("sluice-guard")
        self.host.host("kill", "-9", str(pid))
        self.assertEqual(self.host.out("wait", "box").strip(), "137")

    def test_a_paused_container_is_ended_too(self):
        self.start("box", "sleep", "1000")
        self.host.docker("pause", "box")
        (pid,) = self.part("sluice-sentry")
        self.host.host("kill", "-9", str(pid))
        wait_for(lambda: self.host.inspect("box", "{{.State.Status}}") == "exited", "the container goes on")

    def test_two_ids_and_a_vanished_listener(self):
        self.start("box", "sleep", "1000")
        folder = self.host.host("sh", "-c", "ls -d /run/sluice/oci/*").stdout.strip()
        self.host.host("rm", f"{folder}/listener")
        failed = self.host.docker("exec", "box", "true", check=False)
        self.assertNotEqual(failed.returncode, 0)
        self.assertIn("listener", failed.stdout + failed.stderr)
        self.assertIn("inet", self.host.host("ping", "-c1", "-W5", self.host.address("box")).stdout.replace("PING", "inet"))


if __name__ == "__main__":
    unittest.main()
