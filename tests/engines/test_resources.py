"""What a container and its sandbox may use of the machine, and of each other."""
import errno
import json
import posixpath
import unittest

from docker_case import DockerCase
from docker_host import wait_for

PARTS = ("guard", "broker", "keeper", "sentry")
# Processes that allocate in the control group argv[2] until the process argv[1] is killed for it; each is smaller than that one counts.
HOG = """
import os, sys, time
def runs():
    try: return ') Z' not in open('/proc/' + sys.argv[1] + '/stat').read()
    except OSError: return False
open(sys.argv[2] + '/cgroup.procs', 'w').write('0')
first = os.fork(), os.fork()
held = []
while runs():
    held.append(os.urandom(1 << 15))
    time.sleep(0.005)  # slower than the kernel frees what the killed one held
if all(first):
    try:
        while True: os.wait()
    except ChildProcessError: pass
"""
class ControlGroupTest(DockerCase):
    runtimes = {"sluice": [], "sluice-small": ["--sentry-memory=64m"]}

    def read(self, path):
        return self.host.host("cat", path).stdout.strip()

    def groups(self, pid):
        """Controllers -> path."""
        return {line.split(":")[1]: line.split(":", 2)[2] for line in self.read(f"/proc/{pid}/cgroup").splitlines()}

    def container(self, name):
        return self.host.host("sh", "-c", f"grep -l {self.host.inspect(name, '{{.Id}}')[:12]} /proc/[0-9]*/cgroup | head -1").stdout.split("/")[2]

    def memory_folder(self, pid):
        groups = self.groups(pid)
        return "/sys/fs/cgroup/memory" + groups["memory"] if "memory" in groups else "/sys/fs/cgroup" + groups[""]

    def test_beside_the_containers(self):
        self.start("box", "sleep", "1000", options=["--oom-score-adj", "300"], runtime="sluice-small")
        own = self.groups(1)
        container = {name: path for name, path in self.groups(self.container("box")).items() if path not in ("/", own[name])}
        self.assertIn(self.host.inspect("box", "{{.Id}}"), " ".join(container.values()))
        for part in PARTS:
            groups = self.groups(self.part(part))
            for name, path in container.items():
                # Options that the kernel answers need a group of the sentry's own, below.
                got = posixpath.dirname(groups[name]) if name == "" and part == "sentry" else groups[name]
                self.assertEqual(posixpath.dirname(got), posixpath.dirname(path), (part, name))
                self.assertRegex(posixpath.basename(got), r"^sluice-\d+$")
        self.assertEqual(self.read(f"/proc/{self.part('sentry')}/oom_score_adj"), "300")  # the container's
        folder = self.memory_folder(self.part("guard"))
        bound = self.host.host("sh", "-c", f"cat {folder}/memory.max {folder}/memory.limit_in_bytes 2>/dev/null", check=False).stdout.split()
        self.assertEqual(bound, [str(64 << 20)])
        # The second container of the namespace has the sandbox that is there.
        self.start("side", "sleep", "1000", options=["--network", "container:box"], runtime="sluice-small")
        self.host.docker("rm", "-f", "box")
        self.host.host("test", "-d", folder)
        self.host.docker("rm", "-f", "side")
        self.host.host("test", "!", "-e", folder)

    def test_killed_parts_leave_no_groups(self):
        for parts in (["guard"], ["guard", "broker"]):
            with self.subTest(parts=parts):
                self.start("box", "sleep", "1000")
                self.host.host("kill", "-9", *(self.part(part) for part in parts))
                self.host.docker("rm", "-f", "box")
                wait_for(lambda: not self.host.leftovers(), "nothing is left", 20)

    def test_out_of_memory_inside_is_the_containers(self):
        hog = "python3 -c 'import os; held = [os.urandom(1 << 20) for _ in range(500)]'; echo status $?; exec sleep 1000"
        self.start("box", "sh", "-c", hog, options=["--memory", "64m"], image="servers")
        sentry = self.part("sentry")
        wait_for(lambda: "status 137" in self.host.out("logs", "box"), "the program is killed")
        self.host.host("ping", "-c1", "-W5", self.host.address("box"))
        self.host.docker("pause", "box")
        self.host.host("ping", "-c1", "-W5", self.host.address("box"))
        self.host.docker("unpause", "box")
        self.assertEqual(self.part("sentry"), sentry)
        done = self.run_in("python3", "-c", "import os; held = [os.urandom(1 << 20) for _ in range(500)]", options=["--memory", "64m"], image="servers", check=False)
        self.assertEqual(done.returncode, 137)

    def test_sentry_killed_for_memory_says_so(self):
        # The sentry has the container's score, by which it is picked first.
        self.start("box", "sleep", "1000", options=["--oom-score-adj", "1000"], runtime="sluice-small")
        sentry = self.part("sentry")
        # The hogs may be next before they notice.
        self.host.host("python3", "-c", HOG, sentry, self.memory_folder(sentry), check=False)
        self.assertEqual(self.host.out("wait", "box").strip(), "137")
        said = self.host.docker("logs", "box").stderr
        self.assertIn("the sentry died: the kernel's OOM killer ended it (--sentry-memory", said)


# Makes sockets until it is refused, says how many and why, and holds them.
TAKER = """
import socket, time
held = []
try:
    while True: held.append(socket.socket())
except OSError as e: print(len(held), e.errno, flush=True)
time.sleep(1000)
"""
# A new socket and a connection to it, within the container.
USER = """
import socket
s = socket.create_server(('127.0.0.1', 0))
c = socket.create_connection(s.getsockname(), 10)
p, _ = s.accept()
p.sendall(b'fine')
print(c.recv(9).decode())
"""


class QuotaTest(DockerCase):
    runtimes = {"sluice": [], "sluice-few": ["--container-sockets=100"]}
    LIMITS = ["--ulimit", "nofile=20000:20000"]

    def taken(self, name):
        return tuple(map(int, wait_for(lambda: self.host.out("logs", name).split(), "sockets are taken")))

    def test_one_container_leaves_room_for_the_other(self):
        self.start("greedy", "python3", "-c", TAKER, options=self.LIMITS, image="servers")
        first, error = self.taken("greedy")
        self.assertEqual(error, errno.ENFILE)
        together = ["--network", "container:greedy", *self.LIMITS]
        self.assertEqual(self.run_in("python3", "-c", USER, options=together, image="servers").stdout.strip(), "fine")
        # And so for the next, however many are greedy.
        self.start("second", "python3", "-c", TAKER, options=together, image="servers")
        second, error = self.taken("second")
        self.assertEqual(error, errno.ENFILE)
        self.assertGreater(first, second)
        self.assertGreater(second, 1000)
        self.assertEqual(self.run_in("python3", "-c", USER, options=together, image="servers").stdout.strip(), "fine")
        # The greedy one itself still has what it has, and gets new ones for those that it gives back.
        use = {c["id"]: c for c in json.loads(self.query("stats", "second"))["containers"]}
        self.assertEqual(use[self.host.inspect("greedy", "{{.Id}}")]["sockets"], first)
        self.assertGreater(use[self.host.inspect("second", "{{.Id}}")]["refused_sockets"], 0)

    def test_bound_by_flag(self):
        self.start("one", "python3", "-c", TAKER, runtime="sluice-few", image="servers")
        self.assertEqual(self.taken("one"), (100, errno.ENFILE))
        self.start("two", "python3", "-c", TAKER, options=["--network", "container:one"], runtime="sluice-few", image="servers")
        self.assertEqual(self.taken("two"), (100, errno.ENFILE))
        self.assertEqual(self.host.docker("exec", "one", "python3", "-c", USER, check=False).returncode, 1)  # exec counts as its container

    def test_connections_wait_for_room(self):
        # A server at its bound takes the next connection when one of its sockets is closed.
        server = """
import socket
s = socket.create_server(('0.0.0.0', 80))
held = []
try:
    while True: held.append(socket.socket())
except OSError: print('full', flush=True)
s.settimeout(1)
try: s.accept()
except TimeoutError: print('waits', flush=True)
s.settimeout(None)
held.pop().close()
c, _ = s.accept()
c.sendall(b'fine')
"""
        self.start("web", "python3", "-c", server, runtime="sluice-few", image="servers")
        wait_for(lambda: "full" in self.host.out("logs", "web"), "it is full")
        client = "import socket, sys; c = socket.create_connection((sys.argv[1], 80), 20); print(c.recv(9).decode())"
        self.assertEqual(self.host.host("python3", "-c", client, self.host.address("web")).stdout.strip(), "fine")
        self.assertIn("waits", self.host.out("logs", "web"))


if __name__ == "__main__":
    unittest.main()
