"""Commands about running sandboxes, also one whose sentry was taken over: it may answer anything."""
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import tempfile
import termios
import threading
import unittest

from harness import INSIDE, PATIENCE, PEER, REFERENCE, SLUICE, SluiceTest, sandbox_only


@unittest.skipIf(REFERENCE, "only sluice has it")
class HostileAnswerTest(unittest.TestCase):
    def ask(self, command, answer):
        """What `sluice COMMAND` makes of an answer, from a listener where the sandbox of our own namespace would have one."""
        with tempfile.TemporaryDirectory() as root, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{root}/net-{os.stat('/proc/self/ns/net').st_ino}.sock")
            listener.listen(1)
            listener.settimeout(20)

            def serve():
                connection, _ = listener.accept()
                with connection:
                    connection.recv(100)
                    connection.sendall(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            result = subprocess.run([SLUICE, f"--root={root}", *command, str(os.getpid())], capture_output=True, text=True, timeout=20, check=False)
            thread.join()
            return result

    def test_answers_of_another_form_end_with_a_line(self):
        for command in (["stats"], ["sockets"], ["routes"], ["neigh"], ["drops"]):
            for answer in (b"{}", b"[]", b"", b"\xff{", b'{"counters":5,"ports":[7],"sockets":[{"state":"x"}],"routes":[1],"neighbors":[]}'):
                with self.subTest(command=command, answer=answer):
                    result = self.ask(command, answer)
                    self.assertIn(result.returncode, (0, 1), result)
                    if result.returncode == 1:
                        self.assertEqual(result.stderr.count("\n"), 1, result)
                        self.assertTrue(result.stderr.startswith("sluice: "), result)

    def test_captures_of_another_form_end_with_a_line(self):
        interface = struct.pack("<IiQIIII", 1, 2, 0, 3, 3, 0, 0) + b"\x1b[m"
        for records in (b"\xff" * 64,  # a kind that is none, of 4 GiB
                        struct.pack("<IiQIIII", 2, 2, 0, 4, 4, 1, 0) + b"xxxx",  # a frame of an interface that nobody named
                        interface + struct.pack("<IiQIIII", 2, 2, 0, 5, 4, 1, 0) + b"xxxxx"):  # more than the frame has
            with self.subTest(records=records):
                result = self.ask(["capture", "-w", "/dev/null"], b"{}\n" + records)
                self.assertEqual((result.returncode, result.stderr.count("\n")), (1, 1), result)
                self.assertIn("not one of sluice's", result.stderr)

    def test_a_protocol_of_another_version_is_named(self):
        result = self.ask(["stats"], json.dumps({"protocol": 99, "version": "7.0\x1b"}).encode() + b"\n")
        self.assertEqual(result.returncode, 1, result)
        self.assertIn("started by sluice 7.0?, which answers in another form", result.stderr)

    def test_missing_parts_are_an_error(self):
        result = self.ask(["stats"], b"{}")
        self.assertEqual(result.returncode, 1, result)
        self.assertIn("not one of sluice's", result.stderr)

    def test_no_control_characters_reach_the_terminal(self):
        result = self.ask(["drops"], json.dumps({"counters": {"\x1b[2J": "\x1b]0;x\x07"}}).encode())
        self.assertEqual(result.returncode, 0, result)
        self.assertNotIn("\x1b", result.stdout)
        self.assertNotIn("\x07", result.stdout)


@sandbox_only
class TopTest(SluiceTest):
    SERVER = """
import socket
s = socket.socket()
s.bind(('0.0.0.0', 9))
s.listen()
print('ready', flush=True)
while True:
    c, _ = s.accept()
    while c.recv(1 << 20):
        pass
"""

    def top(self, *options, **kw):
        return subprocess.run([SLUICE, "top", *options], capture_output=True, text=True, check=False, timeout=PATIENCE, **kw)

    def test_rates_and_connections(self):
        self.python_inside(self.SERVER).wait_log("ready")
        name = self.net.inside.name
        with self.net.peer.connect((INSIDE, 9)) as s:
            done = threading.Event()

            def pour():
                while not done.is_set():
                    s.sendall(bytes(100000))
                    done.wait(0.01)
            thread = threading.Thread(target=pour)
            thread.start()
            try:
                result = self.top("--once", "--json", name)
                table = self.top("--once", name)
            finally:
                done.set()
                thread.join()
        self.assertEqual(result.returncode, 0, result)
        (one,) = json.loads(result.stdout)
        self.assertEqual((one["sandbox"], one["answers"], one["connections"]), (name, True, 1))
        self.assertGreater(one["rx_bytes_per_second"], 100000)
        self.assertGreater(one["rx_packets_per_second"], 1)
        self.assertGreater(one["tx_packets_per_second"], 1)  # ACKs
        self.assertGreater(one["cpu_percent"], 0)
        self.assertLess(one["drops_per_second"], 100)  # what the kernel peer says in IPv6
        self.assertEqual([line.split()[0] for line in table.stdout.splitlines() if line], ["SANDBOX", name])
        self.assertNotIn("\x1b", table.stdout)
        everybody = json.loads(self.top("--once", "--json").stdout)
        self.assertIn(name, [one["sandbox"] for one in everybody])

    def test_bad_input(self):
        for argv, text, status in ((["--interval=0"], "--interval=0: not a valid value", 2), (["nosuchsandbox"], "nosuchsandbox", 1),
                                   (["--once", str(os.getpid())], "no sandbox of sluice", 1), (["--twice"], "--twice: unknown argument of top", 2)):
            result = self.top(*argv)
            self.assertEqual((result.returncode, result.stderr.count("\n")), (status, 1), result)
            self.assertIn(text, result.stderr)

    def read_until(self, terminal, condition):
        text = b""
        while not condition(text):
            self.assertTrue(select.select([terminal], [], [], PATIENCE)[0], text)
            text += os.read(terminal, 4096)

    def test_live_table_restores_the_terminal(self):
        self.python_inside(self.SERVER).wait_log("ready")
        for end in (b"q", signal.SIGINT):
            main, terminal = pty.openpty()
            before = termios.tcgetattr(terminal)
            p = subprocess.Popen([SLUICE, "top", self.net.inside.name], stdin=terminal, stdout=terminal, stderr=terminal)
            self.read_until(main, lambda text: text.startswith(b"\x1b[?1049h\x1b[?25l"))
            self.read_until(main, lambda text: text.count(b"SANDBOX") >= 2)
            self.assertNotEqual(termios.tcgetattr(terminal)[3], before[3])
            if isinstance(end, bytes):
                os.write(main, end)
            else:
                p.send_signal(end)
            self.assertEqual(p.wait(PATIENCE), 0)
            self.assertEqual(termios.tcgetattr(terminal), before)
            self.read_until(main, lambda text: text.endswith(b"\x1b[?25h\x1b[?1049l"))
            os.close(main)
            os.close(terminal)


@sandbox_only
class ShownTest(SluiceTest):
    """The commands' own form: that of the tools everybody knows."""

    def shown(self, command):
        return subprocess.run([SLUICE, command, self.net.inside.name], capture_output=True, text=True, check=True, timeout=PATIENCE).stdout

    def test_routes_neighbours_and_sockets_as_the_tools_print_them(self):
        self.net.inside.run("ip", "route", "add", "blackhole", "10.99.0.0/16", "metric", "7")
        expected = [line.split() for line in self.net.inside.run("ip", "-4", "route", "show").stdout.splitlines()]
        self.python_inside(TopTest.SERVER).wait_log("ready")
        with self.net.peer.connect((INSIDE, 9)) as s:
            routes = [line.split() for line in self.shown("routes").splitlines() if " table " not in line]
            for words in expected:
                words = [w for w in words if w not in ("proto", "kernel")]
                self.assertIn(words, routes)
            mac = json.loads(self.net.peer.run("ip", "-json", "link", "show", "eth0").stdout)[0]["address"]
            self.assertRegex(self.shown("neigh"), rf"(?m)^{PEER} dev eth0 lladdr {mac} (REACHABLE|STALE|DELAY|PROBE)$")
            sockets = self.shown("sockets")
            self.assertRegex(sockets, r"(?m)^tcp +LISTEN +0 +128 +0\.0\.0\.0:9 +0\.0\.0\.0:\* *(tid=\d+,fd=\d+)?$")
            self.assertRegex(sockets, rf"(?m)^tcp +ESTAB +0 +0 +{INSIDE}:9 +{PEER}:{s.getsockname()[1]} *(tid=\d+,fd=\d+)?$")
            columns = {line.index(":9 ") for line in sockets.splitlines() if ":9 " in line}
            self.assertEqual(len(sockets.splitlines()[0].split()), 9, sockets)
            self.assertTrue(columns)
