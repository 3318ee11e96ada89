"""What the integration tests stand on: a pair of network namespaces joined by a veth, programs on both sides, waits on conditions.

  inside  10.77.0.1/24 on eth0, default route by 10.77.0.2; programs run there under `sluice do` (or, with --reference, on the kernel)
  peer    10.77.0.2/24 on eth0; the kernel's own stack, cubic

Names start with the run's id, so that whatever is left can be found. Every object cleans up after itself when the test ends.
"""
import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import processes

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SLUICE = os.environ.get("SLUICE_BIN", os.path.join(ROOT, "build/release/sluice"))
REFERENCE = os.environ.get("SLUICE_REFERENCE") == "1"  # the same tests with the kernel's stack inside: what Linux does
ALL = os.environ.get("SLUICE_TEST_ALL") == "1"
RUN_ID = os.environ.setdefault("SLUICE_TEST_RUN", f"slt{os.getpid()}")
PROGRAMS = os.path.join(ROOT, "build/release/tests/programs")
INSIDE, PEER = "10.77.0.1", "10.77.0.2"
PATIENCE = 60  # seconds that a condition may take on a loaded machine before the test gives up

_libc = ctypes.CDLL(None, use_errno=True)
_counter = 0


def sh(*argv, check=True, timeout=PATIENCE, **kw):
    """Runs a command on the host side of the test (no sandbox), output captured."""
    r = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False, **kw)
    if check and r.returncode != 0:
        raise AssertionError(f"{' '.join(argv)}: status {r.returncode}\n{r.stdout}{r.stderr}")
    return r


def wait_for(condition, what, timeout=PATIENCE, step=0.05):
    """Waits until condition() is true and returns what it returned; fails with `what` otherwise."""
    end = time.monotonic() + timeout
    while True:
        got = condition()
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(f"gave up after {timeout} s: {what}")
        time.sleep(step)


def set_cubic(namespace):
    """Kernel figures and behaviour are cubic's. A new namespace may choose it only while the machine's list allows it to all."""
    argv = namespace.argv("sysctl", "-qw", "net.ipv4.tcp_congestion_control=cubic")
    if sh(*argv, check=False).returncode == 0:
        return
    allowed = "/proc/sys/net/ipv4/tcp_allowed_congestion_control"
    with open("/run/sluice-test.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(allowed, encoding="utf-8") as f:
            before = f.read().strip()
        try:
            with open(allowed, "w", encoding="utf-8") as f:
                f.write(f"{before} cubic")
            sh(*argv)
        finally:
            with open(allowed, "w", encoding="utf-8") as f:
                f.write(before)


class Namespace:
    def __init__(self, suffix):
        self.name = f"{RUN_ID}{suffix}"
        self.path = f"/run/netns/{self.name}"
        sh("ip", "netns", "add", self.name)
        try:
            set_cubic(self)
            self.run("ip", "link", "set", "lo", "up")
        except BaseException:
            self.remove()
            raise

    def argv(self, *argv):
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(self, *argv, **kw):
        return sh(*self.argv(*argv), **kw)

    def enter(self, function):
        """Calls function() in a thread that is in the namespace: sockets it makes belong there."""
        result = []

        def body():
            try:
                with open(self.path, "rb") as f:
                    if _libc.setns(f.fileno(), 0x40000000) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                result.append((True, function()))
            except BaseException as e:  # handed to the caller
                result.append((False, e))

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        ok, value = result[0]
        if not ok:
            raise value
        return value

    def socket(self, family=socket.AF_INET, kind=socket.SOCK_STREAM, protocol=0):
        return self.enter(lambda: socket.socket(family, kind, protocol))

    def connect(self, address, timeout=PATIENCE):
        s = self.socket()
        s.settimeout(timeout)
        try:
            s.connect(address)
        except BaseException:
            s.close()
            raise
        return s

    def listen(self, address, backlog=128):
        s = self.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(address)
        s.listen(backlog)
        s.settimeout(PATIENCE)
        return s

    def answers(self, address):
        """True where a TCP connection to the address is accepted."""
        try:
            self.connect(address, timeout=5).close()
            return True
        except OSError:
            return False

    def remove(self):
        sh("ip", "netns", "del", self.name, check=False)


class Program:
    """A running program with its output in a file. stop() ends it (and only it: by its own pid and process group)."""

    def __init__(self, argv, directory, stdin=subprocess.DEVNULL, env=None, cwd=None, pass_fds=()):
        self.argv = argv
        self.sandbox = False  # sluice itself: all its processes must end with it
        self.log_path = tempfile.mktemp(prefix="log-", dir=directory)
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(argv, stdin=stdin, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                                            env={**os.environ, **(env or {})}, cwd=cwd, pass_fds=pass_fds)

    @property
    def pid(self):
        return self.process.pid

    def output(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def wait_log(self, pattern, timeout=PATIENCE):
        def seen():
            m = re.search(pattern, self.output())
            if m is None and self.process.poll() is not None:
                m = re.search(pattern, self.output())
                if m is None:
                    raise AssertionError(f"{self.describe()} ended before {pattern!r}")
            return m
        return wait_for(seen, f"no {pattern!r} from {self.describe()}", timeout)

    def wait(self, timeout=PATIENCE):
        """Waits for the end; returns the exit status."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s: {self.describe()}") from None

    def expect_success(self, timeout=PATIENCE):
        status = self.wait(timeout)
        if status != 0:
            raise AssertionError(f"status {status}: {self.describe()}")
        return self.output()

    def describe(self):
        text = "\n".join(self.output().splitlines()[-40:])
        return f"{' '.join(self.argv)}\n--- its output:\n{text}\n---"

    def stop(self):
        family = processes.children(self.process.pid) if self.sandbox and self.process.poll() is None else {}
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
        try:
            wait_for(lambda: not any(processes.alive(p) for p in family), f"{self.argv} has ended and processes of {family} are left")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)


class Net:
    """The two namespaces and their veth."""

    def __init__(self, mtu=1500):
        global _counter
        _counter += 1
        self.inside = Namespace(f"n{_counter}a")
        try:
            self.peer = Namespace(f"n{_counter}b")
        except BaseException:
            self.inside.remove()
            raise
        try:
            sh("ip", "link", "add", "eth0", "netns", self.inside.name, "mtu", str(mtu), "type", "veth",
               "peer", "name", "eth0", "netns", self.peer.name, "mtu", str(mtu))
            for ns, address in ((self.inside, INSIDE), (self.peer, PEER)):
                ns.run("ip", "addr", "add", f"{address}/24", "dev", "eth0")
                ns.run("ip", "link", "set", "eth0", "up")
            self.inside.run("ip", "route", "add", "default", "via", PEER)
            # The carrier is seen by a kernel thread of its own, a moment later.
            for ns in (self.inside, self.peer):
                wait_for(lambda ns=ns: "state UP" in ns.run("ip", "link", "show", "eth0").stdout, "eth0 has no carrier")
        except BaseException:
            self.remove()
            raise

    def remove(self):
        self.inside.remove()
        self.peer.remove()


class SluiceTest(unittest.TestCase):
    """A test with a fresh pair of namespaces. `flags` are sluice's global flags."""
    flags = tuple(f for f in os.environ.get("SLUICE_FLAGS", "").split() if f)

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix=f"{RUN_ID}-")
        os.chmod(self.directory, 0o755)
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.net = Net()
        self.addCleanup(self.net.remove)
        self.programs = []
        self.addCleanup(self.stop_all)

    def stop_all(self):
        problems = []
        for p in reversed(self.programs):
            try:
                p.stop()
            except AssertionError as e:
                problems.append(str(e))
        if problems:
            raise AssertionError("\n".join(problems))

    def run(self, result=None):
        before = len(result.failures) + len(result.errors)
        super().run(result)
        if len(result.failures) + len(result.errors) > before:
            for p in getattr(self, "programs", []):
                if hasattr(p, "final"):
                    print(f"  {p.final}", flush=True)

    def sandbox_argv(self, *argv, flags=None):
        if REFERENCE:
            return self.net.inside.argv(*argv)
        return [SLUICE, *(self.flags if flags is None else flags), "do", f"--netns={self.net.inside.name}", "--", *argv]

    def _start(self, argv, **kw):
        p = Program(argv, self.directory, **kw)
        self.programs.append(p)
        stop = p.stop

        def stop_and_keep_output():
            stop()
            with contextlib.suppress(OSError):
                p.final = p.describe()
        p.stop = stop_and_keep_output
        return p

    def inside(self, *argv, flags=None, **kw):
        """Starts a program in the sandbox."""
        p = self._start(self.sandbox_argv(*argv, flags=flags), **kw)
        p.sandbox = not REFERENCE
        return p

    def peer(self, *argv, **kw):
        """Starts a program on the kernel peer."""
        return self._start(self.net.peer.argv(*argv), **kw)

    def python_inside(self, source, *args, **kw):
        return self.inside("/usr/bin/python3", "-u", "-c", source, *args, **kw)

    def wait_peer_sees(self, port, program, address=INSIDE):
        """Waits until the peer's connection to the sandbox's port is accepted."""
        def up():
            if program.process.poll() is not None:
                raise AssertionError(f"ended with {program.process.returncode}: {program.describe()}")
            return self.net.peer.answers((address, port))
        wait_for(up, f"{address}:{port} does not answer; {program.describe()}")

    def wait_listening_on_peer(self, port):
        """Waits for a kernel listener of the peer without touching it."""
        wait_for(lambda: self.net.peer.run("ss", "-Htln", f"sport = :{port}").stdout.strip(), f"peer does not listen on {port}")

    def file(self, name, size=None, text=None):
        """A file with bytes that depend on their position (a shift, a repeat or a swap shows)."""
        path = os.path.join(self.directory, name)
        with open(path, "wb") as f:
            if text is not None:
                f.write(text.encode())
            else:
                write_pattern(f, size)
        os.chmod(path, 0o644)
        return path


def pattern_block(index):
    """64 KiB that differ for every index."""
    return b"".join(((index << 16) + i).to_bytes(8, "little") for i in range(8192))


_pattern_cache = {}


def write_pattern(f, size):
    index = 0
    while size > 0:
        block = _pattern_cache.get(index)
        if block is None:
            block = pattern_block(index)
            if index < 1024:
                _pattern_cache[index] = block
        f.write(block[:size])
        size -= len(block)
        index += 1


def sandbox_only(test):
    """The test is about sluice itself and says nothing on the kernel."""
    return unittest.skipIf(REFERENCE, "about sluice itself")(test)


def debian_binary(name):
    for d in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        if os.path.exists(f"{d}/{name}"):
            return f"{d}/{name}"
    raise AssertionError(f"{name} is not installed: run scripts/setup")


def log(text):
    print(f"  {text}", file=sys.stderr, flush=True)
