"""Commands about a running sandbox whose sentry was taken over: it may answer anything."""
import json
import os
import socket
import struct
import subprocess
import tempfile
import threading
import unittest

from harness import SLUICE, REFERENCE


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
