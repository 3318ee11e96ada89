"""What programs meet beyond plain reads and writes: netlink without addresses, multicast, urgent data, terminals, recovery."""
import ctypes
import json
import os
import pty
import select
import signal
import struct
import subprocess
import time
import unittest

import processes
from harness import INSIDE, PATIENCE, PEER, SluiceTest, sandbox_only, wait_for


class FlushTest(SluiceTest):
    """`ip ... flush` sends what it wants changed by send() without an address."""

    def test_addresses(self):
        self.net.inside.run("ip", "addr", "add", "10.99.0.1/24", "dev", "eth0")
        self.inside("ip", "addr", "flush", "to", "10.99.0.0/24", "dev", "eth0").expect_success()
        wait_for(lambda: "10.99.0.1" not in self.net.inside.run("ip", "addr").stdout, "the address stays")
        self.assertIn(INSIDE, self.net.inside.run("ip", "addr").stdout)

    def test_routes(self):
        self.net.inside.run("ip", "route", "add", "10.98.0.0/16", "via", PEER)
        self.net.inside.run("ip", "route", "add", "10.97.0.0/16", "via", PEER)
        self.inside("ip", "route", "flush", "root", "10.98.0.0/16").expect_success()
        wait_for(lambda: "10.98" not in self.net.inside.run("ip", "route").stdout, "the route stays")
        self.assertIn("10.97", self.net.inside.run("ip", "route").stdout)

    def test_neighbours(self):
        self.net.inside.run("ip", "neigh", "add", "10.77.0.50", "lladdr", "02:00:00:00:00:50", "dev", "eth0", "nud", "permanent")
        self.inside("ip", "neigh", "flush", "dev", "eth0", "nud", "permanent").expect_success()
        wait_for(lambda: "10.77.0.50" not in self.net.inside.run("ip", "neigh").stdout, "the neighbour stays")

    def test_not_for_those_who_may_not(self):
        self.net.inside.run("ip", "route", "add", "10.98.0.0/16", "via", PEER)
        self.inside("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--", "ip", "route", "flush", "root", "10.98.0.0/16").wait()
        self.inside("setpriv", "--reuid=nobody", "--clear-groups", "--", "ip", "route", "flush", "root", "10.98.0.0/16").wait()
        self.assertIn("10.98", self.net.inside.run("ip", "route").stdout)


MULTICAST = r"""
import socket, struct, sys
here, group, port, role = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(60)
if role == "hear":
    s.bind(("0.0.0.0", port))
    s.setsockopt(0, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + socket.inet_aton(here))
    s.setsockopt(0, 8, 1)
    s.setsockopt(0, 12, 1)
    print("joined", flush=True)
    data, ancillary, _, source = s.recvmsg(100, 200)
    for level, kind, value in ancillary:
        if kind == 8:
            index, spec, to = struct.unpack("i4s4s", value)
            print("heard", data, socket.if_indextoname(index), socket.inet_ntoa(to), source[0], flush=True)
        elif kind == 2:
            print("ttl", struct.unpack("i", value)[0], flush=True)
    s.setsockopt(0, socket.IP_DROP_MEMBERSHIP, socket.inet_aton(group) + socket.inet_aton(here))
    s.sendto(b"left", source)
else:
    s.setsockopt(0, socket.IP_MULTICAST_IF, socket.inet_aton(here))
    s.setsockopt(0, socket.IP_MULTICAST_TTL, 7)
    s.setsockopt(0, socket.IP_MULTICAST_LOOP, 0)
    s.settimeout(0.5)
    for _ in range(100):
        s.sendto(b"to all", (group, port))
        try:
            print("answer", s.recvfrom(100)[0], flush=True)
            break
        except TimeoutError:
            pass
"""


class MulticastTest(SluiceTest):
    def hear(self, listener, speaker, here, there):
        a = listener("/usr/bin/python3", "-c", MULTICAST, here, "239.5.5.5", "7500", "hear")
        a.wait_log("joined")
        b = speaker("/usr/bin/python3", "-c", MULTICAST, there, "239.5.5.5", "7500", "speak")
        out = a.expect_success()
        self.assertIn(f"heard b'to all' eth0 239.5.5.5 {there}", out)
        self.assertIn("ttl 7", out)
        self.assertIn("answer b'left'", b.expect_success())

    def test_hears_the_peer(self):
        self.hear(self.inside, self.peer, INSIDE, PEER)

    def test_speaks_to_the_peer(self):
        self.hear(self.peer, self.inside, PEER, INSIDE)


URGENT = r"""
import fcntl, select, socket, struct, sys
mark = lambda s: struct.unpack("i", fcntl.ioctl(s, 0x8905, bytes(4)))[0]
def wait(s, what):
    p = select.poll(); p.register(s, what); return bool(p.poll(60000))
serves = sys.argv[1] == "serve"
if serves:
    l = socket.create_server(("0.0.0.0", 7600)); print("listening", flush=True)
def hear():
    assert wait(s, select.POLLPRI), "no POLLPRI"
    assert s.recv(1, socket.MSG_OOB) == b"!", "urgent byte"
    got = b""
    while not mark(s):
        got += s.recv(100)
    assert got == b"before", got
    assert s.recv(5, socket.MSG_WAITALL) == b"after"
def say():
    s.sendall(b"before"); s.send(b"!", socket.MSG_OOB); s.sendall(b"after")
for _ in range(20):
    s = l.accept()[0] if serves else socket.create_connection((sys.argv[2], 7600))
    (say, hear)[serves]()
    (hear, say)[serves]()
    s.shutdown(socket.SHUT_WR); assert s.recv(1) == b""
    s.close()
print("all right", flush=True)
"""


class UrgentTest(SluiceTest):
    def check(self, server, client, address):
        a = server("/usr/bin/python3", "-c", URGENT, "serve")
        a.wait_log("listening")
        b = client("/usr/bin/python3", "-c", URGENT, "connect", address)
        self.assertIn("all right", b.expect_success())
        self.assertIn("all right", a.expect_success())

    def test_server_inside(self):
        self.check(self.inside, self.peer, INSIDE)

    def test_client_inside(self):
        self.check(self.peer, self.inside, PEER)


class DeviceBindTest(SluiceTest):
    def test_socket_bound_to_a_device(self):
        self.peer("socat", "UDP-RECVFROM:7700,fork", "EXEC:cat")
        self.inside("/usr/bin/python3", "-c",
                    "import socket\n"
                    "for device, wanted in ((b'eth0', True), (b'lo', False)):\n"
                    "  for _ in range(40):\n"
                    "    s=socket.socket(2,2); s.setsockopt(1,25,device+b'\\0'); s.settimeout(0.5 if wanted else 1)\n"
                    "    try: s.sendto(b'x',('10.77.0.2',7700)); got=s.recvfrom(10)[0]==b'x'\n"
                    "    except OSError: got=False\n"
                    "    if got==wanted: break\n"
                    "  assert got==wanted, device\n").expect_success()


class RawTest(SluiceTest):
    ECHO = ("import socket,struct\n"
            "s=socket.socket(2,3,1); s.settimeout(60)\n"
            "b=struct.pack('!BBHHH',8,0,0,9,1)+b'ping'; c=sum(struct.unpack('!6H',b)); c=(c&0xffff)+(c>>16)\n"
            "s.sendto(b[:2]+struct.pack('!H',~c&0xffff)+b[4:],('10.77.0.2',0))\n"
            "while True:\n"
            " d,a=s.recvfrom(100)\n"
            " if d[20]==0: print('answer',a[0],d[24:]); break\n")

    @sandbox_only
    def test_raw_sockets_need_the_flag(self):
        p = self.inside("/usr/bin/python3", "-c", self.ECHO)
        self.assertNotEqual(p.wait(), 0)
        self.assertIn("PermissionError", p.output())

    @sandbox_only
    def test_raw_sockets_with_the_flag(self):
        p = self.inside("/usr/bin/python3", "-c", self.ECHO, flags=(*self.flags, "--net-raw"))
        self.assertIn("answer 10.77.0.2", p.expect_success())

    @sandbox_only
    def test_raw_sockets_need_the_capability_too(self):
        p = self.inside("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", "--", "/usr/bin/python3", "-c", self.ECHO,
                        flags=(*self.flags, "--net-raw"))
        self.assertNotEqual(p.wait(), 0)
        self.assertIn("PermissionError", p.output())

    @sandbox_only
    def test_packet_sockets_are_refused(self):
        p = self.inside("/usr/bin/python3", "-c", "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)",
                        flags=(*self.flags, "--net-raw"))
        self.assertNotEqual(p.wait(), 0)
        self.assertIn("Errno 97", p.output())


INTERRUPTED = r"""
import ctypes, errno, os, select, signal, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, True)
s = socket.socket()
address = struct.pack("=H", 2) + struct.pack("!H4s", int(sys.argv[2]), socket.inet_aton(sys.argv[1])) + bytes(8)
def connect():
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    r = libc.connect(s.fileno(), address, 16)
    e = ctypes.get_errno()
    signal.setitimer(signal.ITIMER_REAL, 0)
    return 0 if r == 0 else errno.errorcode[e]
print("first", connect(), flush=True)
p = select.poll(); p.register(s, select.POLLOUT)
while p.poll(0): time.sleep(0.01)  # the sandbox learns of the signal a moment later
s.setblocking(False)
print("again", connect(), flush=True)
sys.stdin.readline()
p.poll(60000)
print("then", s.getsockopt(1, 4), connect(), connect(), flush=True)
s.setblocking(True)
s.sendall(b"over"); print(s.recv(10))
"""


class InterruptedConnectTest(SluiceTest):
    def test_goes_on_by_itself(self):
        # The peer hears nothing at first: its address is not there yet.
        self.net.peer.run("ip", "addr", "del", f"{PEER}/24", "dev", "eth0")
        mac = json.loads(self.net.peer.run("ip", "-j", "link", "show", "eth0").stdout)[0]["address"]
        self.net.inside.run("ip", "neigh", "replace", PEER, "lladdr", mac, "dev", "eth0", "nud", "permanent")
        program = self.inside("/usr/bin/python3", "-c", INTERRUPTED, PEER, "7800", stdin=subprocess.PIPE)
        program.wait_log("again")
        self.net.peer.run("ip", "addr", "add", f"{PEER}/24", "dev", "eth0")
        listener = self.net.peer.listen((PEER, 7800))
        self.addCleanup(listener.close)
        accepted, _ = listener.accept()
        self.addCleanup(accepted.close)
        program.process.stdin.write(b"\n")
        program.process.stdin.close()
        self.assertEqual(accepted.recv(10), b"over")
        accepted.sendall(b"done")
        lines = program.expect_success().splitlines()
        self.assertEqual(lines, ["first EINTR", "again EALREADY", "then 0 0 EISCONN", "b'done'"])


class EtcFilesTest(SluiceTest):
    @sandbox_only
    def test_files_of_the_namespace_lie_over_those_of_etc(self):
        folder = f"/etc/netns/{self.net.inside.name}"
        there = os.path.isdir("/etc/netns")
        os.makedirs(folder)
        self.addCleanup(lambda: (os.remove(f"{folder}/hosts"), os.rmdir(folder), there or os.rmdir("/etc/netns")))
        with open(f"{folder}/hosts", "w", encoding="utf-8") as f:
            f.write("10.77.0.2 only-in-this-namespace\n")
        self.assertIn("only-in-this-namespace", self.inside("cat", "/etc/hosts").expect_success())
        with open("/etc/hosts", encoding="utf-8") as f:
            self.assertNotIn("only-in-this-namespace", f.read())


class TerminalTest(SluiceTest):
    """An interactive shell with a terminal of its own; sluice as its job."""

    def shell(self):
        pid, terminal = pty.fork()
        if pid == 0:
            for number in (signal.SIGINT, signal.SIGQUIT):  # ignored where the tests run in the background
                signal.signal(number, signal.SIG_DFL)
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], {**os.environ, "PS1": "prompt> ", "TERM": "dumb"})
        self.seen = b""

        def end():
            os.close(terminal)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.addCleanup(end)
        return terminal

    def expect(self, terminal, text):
        deadline = time.monotonic() + PATIENCE
        while text.encode() not in self.seen:
            if not select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0]:
                self.fail(f"no {text!r} on the terminal:\n{self.seen.decode(errors='replace')}")
            self.seen += os.read(terminal, 4096)
        self.seen = self.seen[self.seen.index(text.encode()) + len(text):]

    def test_stop_and_go_on(self):
        terminal = self.shell()
        self.expect(terminal, "prompt> ")
        argv = " ".join(self.sandbox_argv("sh", "-c", "'echo run''ning; exec cat'"))
        os.write(terminal, f"{argv}\n".encode())
        self.expect(terminal, "running")
        os.write(terminal, b"one\n")
        self.expect(terminal, "one\r\none")
        os.write(terminal, b"\x1a")
        self.expect(terminal, "Stopped")
        self.expect(terminal, "prompt> ")
        os.write(terminal, b"echo shell $((40+2))\n")
        self.expect(terminal, "shell 42")
        os.write(terminal, b"fg\n")
        self.expect(terminal, "cat")
        os.write(terminal, b"two\n")
        self.expect(terminal, "two\r\ntwo")
        os.write(terminal, b"\x03")
        self.expect(terminal, "prompt> ")
        os.write(terminal, b"echo status $?\n")
        self.expect(terminal, "status 130")


class RecoveryTest(SluiceTest):
    @sandbox_only
    def test_after_guard_and_broker_are_both_killed(self):
        program = self.inside("sh", "-c", "echo ready; exec sleep 600")
        program.wait_log("ready")
        family = processes.children(program.pid)
        broker = wait_for(lambda: processes.role(program.pid, "broker"), "no process named broker")
        os.kill(broker, signal.SIGSTOP)  # it must not act on the guard's death
        os.kill(program.pid, signal.SIGKILL)
        os.kill(broker, signal.SIGKILL)
        program.wait()
        # The program dies with the kernel's help, the keeper some seconds later.
        wait_for(lambda: not any(processes.alive(p) for p in family), f"processes are left: {family}")
        self.inside("ping", "-c", "1", "-W", "15", PEER).expect_success()
        self.peer("ping", "-c", "1", "-W", "15", INSIDE).expect_success()


class SysctlTest(SluiceTest):
    @sandbox_only
    def test_a_key_without_effect_is_named_once(self):
        out = self.inside("true", flags=(*self.flags, "--sysctl=net.ipv4.tcp_recovery=0")).expect_success()
        self.assertEqual(out.count("tcp_recovery = 0 has no effect"), 1, out)
        self.assertNotIn("has no effect", self.inside("true").expect_success())


def is_empty(group):
    with open(f"{group}/cgroup.events", encoding="ascii") as f:
        return "populated 0" in f.read()


class CgroupFilterTest(SluiceTest):
    BPF_PROG_LOAD, BPF_PROG_ATTACH, CGROUP_SKB, INET_EGRESS = 5, 8, 8, 1

    def bpf(self, command, attributes):
        buffer = ctypes.create_string_buffer(attributes, 128)
        result = ctypes.CDLL(None, use_errno=True).syscall(321, command, buffer, 128)
        if result < 0:
            self.skipTest(f"bpf: {os.strerror(ctypes.get_errno())}")
        return result

    @sandbox_only
    def test_programs_on_the_cgroup_are_not_bypassed_in_silence(self):
        root = next((line.split()[1] for line in open("/proc/mounts", encoding="utf-8") if line.split()[2] == "cgroup2"), None)
        if root is None:
            self.skipTest("no cgroup2 is mounted")
        group = os.path.join(root, self.net.inside.name)
        os.mkdir(group)
        # The keeper, which has no part in the sandbox's end any more, may still be ending.
        self.addCleanup(lambda: (wait_for(lambda: is_empty(group), "the group is not empty"), os.rmdir(group)))
        instructions = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xb7, 0, 0, 1, 0x95, 0, 0, 0))
        licence = ctypes.create_string_buffer(b"GPL")
        program = self.bpf(self.BPF_PROG_LOAD, struct.pack("IIQQ", self.CGROUP_SKB, 2, ctypes.addressof(instructions), ctypes.addressof(licence)) +
                           bytes(48) + struct.pack("I", self.INET_EGRESS))
        folder = os.open(group, os.O_RDONLY)
        self.bpf(self.BPF_PROG_ATTACH, struct.pack("IIII", folder, program, self.INET_EGRESS, 0))
        os.close(program)
        os.close(folder)
        argv = ["sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh"]
        refused = self._start(argv + self.sandbox_argv("true"))
        self.assertEqual(refused.wait(), 1, refused.describe())
        self.assertRegex(refused.output(), r"cgroup")
        self.assertRegex(refused.output(), r"--netfilter=ignore")
        ignored = self._start(argv + self.sandbox_argv("ping", "-c", "1", "-W", "15", PEER, flags=("--netfilter=ignore",)))
        ignored.expect_success()


if __name__ == "__main__":
    unittest.main()
