"""`sluice capture`: what a running sandbox sends and receives, as pcapng."""
import os
import signal
import subprocess
import time

from harness import INSIDE, PATIENCE, PEER, SLUICE, SluiceTest, sandbox_only, wait_for
from pcapng import Capture

# Echoes on the device and on the loopback.
ECHO = """
import socket, threading
def serve(address):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((address, 7))
    while True:
        data, peer = s.recvfrom(65536)
        s.sendto(data, peer)
        if data == b'local':
            c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            c.sendto(b'over-lo', ('127.0.0.1', 7))
            c.recv(100)
for address in ('%s', '127.0.0.1'):
    threading.Thread(target=serve, args=(address,)).start()
print('ready', flush=True)
""" % INSIDE

SINK = """
import socket
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('0.0.0.0', 9))
s.listen()
print('ready', flush=True)
while True:
    c, _ = s.accept()
    total = 0
    while data := c.recv(1 << 20):
        total += len(data)
    print('got', total, flush=True)
"""


@sandbox_only
class CaptureTest(SluiceTest):
    def setUp(self):
        super().setUp()
        self.out = os.path.join(self.directory, "out.pcapng")

    def capture(self, *options, stdout=subprocess.DEVNULL):
        p = subprocess.Popen([SLUICE, "capture", *options, self.net.inside.name], stdout=stdout, stderr=subprocess.PIPE, text=True)
        self.addCleanup(p.stderr.close)
        self.addCleanup(p.wait)
        self.addCleanup(p.kill)
        return p

    def echo(self, text):
        s = self.net.peer.socket(kind=2)
        s.settimeout(PATIENCE)
        with s:
            s.sendto(text, (INSIDE, 7))
            self.assertEqual(s.recv(100), text)

    def read(self, path=None):
        with open(path or self.out, "rb") as f:
            return Capture(f.read())

    def wait_frames(self, count, path=None):
        """Until the file holds whole blocks with so many frames."""
        def enough():
            try:
                return len(self.read(path).frames) >= count
            except (OSError, ValueError, KeyError):
                return False
        wait_for(enough, f"no {count} frames in the file")

    def start_echo(self):
        program = self.python_inside(ECHO)
        program.wait_log("ready")
        return program

    def start_capture(self, *options):
        """A capture that runs: its first frame is there."""
        p = self.capture("-w", self.out, *options)
        wait_for(lambda: self.echo(b"first") or (os.path.exists(self.out) and self.read_or_none()), "the capture does not begin")
        return p

    def read_or_none(self):
        try:
            return self.read().frames
        except (ValueError, KeyError):
            return None

    def finish(self, p, number=signal.SIGINT):
        p.send_signal(number)
        self.assertEqual(p.wait(PATIENCE), 0)
        return p.stderr.read()

    def test_devices_loopback_directions_and_times(self):
        self.start_echo()
        begin = time.time()
        p = self.start_capture()
        self.echo(b"local")
        self.echo(b"marker")
        said = self.finish(p)
        got = self.read()
        self.assertEqual(sorted(got.interfaces), ["eth0", "lo"])
        self.assertEqual({n: d for n, d in got.dropped.items() if d}, {})
        self.assertIn(f"{len(got.frames)} frames captured, 0 dropped", said)
        for payload in (b"local", b"marker"):
            self.assertEqual([f.direction for f in got.frames if f.interface == "eth0" and f.data.endswith(payload)], ["in", "out"])
        # As the kernel's loopback shows it to a reader: once each way, zero addresses, IPv4.
        looped = [f for f in got.frames if f.interface == "lo" and f.data.endswith(b"over-lo")]
        self.assertEqual([f.data[:14] for f in looped], [bytes(12) + b"\x08\x00"] * 2)
        times = [f.time for f in got.frames]
        self.assertEqual(times, sorted(times))
        self.assertTrue(begin - 1 <= times[0] <= times[-1] <= time.time() + 1, times)
        # tcpdump reads the same.
        listing = subprocess.run(["tcpdump", "-nr", self.out, "udp"], capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
        self.assertIn(f"> {INSIDE}.7: UDP, length 6", listing)
        self.assertIn("> 127.0.0.1.7: UDP, length 7", listing)

    def test_device_count_and_snaplen(self):
        self.start_echo()
        p = self.start_capture("--device=eth0", "--snaplen=40", "--count=40")
        for _ in range(20):
            self.echo(b"local")
        self.assertEqual(p.wait(PATIENCE), 0)
        self.assertIn("40 frames captured", p.stderr.read())
        got = self.read()
        self.assertEqual((got.interfaces, got.snaplens, len(got.frames)), (["eth0"], [40], 40))
        self.assertTrue(all(len(f.data) == min(40, f.original) for f in got.frames))
        self.assertTrue(any(f.original > 40 for f in got.frames))

    def test_ends_with_its_reader_and_with_the_sandbox(self):
        program = self.start_echo()
        read_end, write_end = os.pipe()
        p = self.capture(stdout=write_end)
        os.close(write_end)
        self.assertEqual(os.read(read_end, 4), b"\x0a\x0d\x0d\x0a")
        os.close(read_end)
        self.assertEqual(p.wait(PATIENCE), 0)
        p = self.start_capture()
        program.stop()
        self.assertEqual(p.wait(PATIENCE), 0)
        self.assertIn("frames captured", p.stderr.read())
        self.assertGreater(len(self.read().frames), 0)

    def test_a_stalled_reader_stalls_nobody_and_losses_are_told(self):
        self.python_inside(SINK).wait_log("ready")
        read_end, write_end = os.pipe()
        p = self.capture(stdout=write_end)
        os.close(write_end)
        os.read(read_end, 4)  # it runs, and now nobody reads
        size = 64 << 20
        s = self.net.peer.connect((INSIDE, 9))
        with s:
            s.sendall(bytes(size))
        self.programs[-1].wait_log(f"got {size}")
        stats = subprocess.run([SLUICE, "stats", self.net.inside.name], capture_output=True, text=True, check=True, timeout=PATIENCE)
        self.assertIn("TcpInSegs", stats.stdout)
        p.send_signal(signal.SIGINT)
        data = b"\x0a\x0d\x0d\x0a"
        while piece := os.read(read_end, 1 << 20):
            data += piece
        os.close(read_end)
        self.assertEqual(p.wait(PATIENCE), 0)
        got = Capture(data)
        self.assertGreater(got.dropped["eth0"], 0)
        self.assertGreater(len(got.frames), 0)
        self.assertIn(f"{sum(got.dropped.values())} dropped", p.stderr.read())
        self.assertEqual(got.received["eth0"], got.dropped["eth0"] + sum(f.interface == "eth0" for f in got.frames))

    def test_bounds_and_bad_input(self):
        self.start_echo()
        name = self.net.inside.name

        def refused(*argv, status):
            r = subprocess.run([SLUICE, "capture", *argv], capture_output=True, text=True, check=False, timeout=PATIENCE)
            self.assertEqual(r.returncode, status, r)
            self.assertEqual(r.stderr.count("\n"), 1, r)
            return r.stderr
        self.assertIn("there are: ", refused("--device=eth7", name, status=1))
        self.assertIn("--count=0: not a valid value", refused("--count=0", name, status=2))
        self.assertIn("--snaplen=x: not a valid value", refused("--snaplen=x", name, status=2))
        self.assertIn("name one sandbox", refused(status=2))
        self.assertIn("cannot open the file", refused("-w", "/nonexistent/x", name, status=1))
        self.assertIn("no sandbox", refused(str(os.getpid()), status=1))
        captures = []
        for i in range(4):
            path = f"{self.out}{i}"
            captures.append(self.capture("-w", path))
            wait_for(lambda path=path: os.path.exists(path), "the capture does not begin")
        self.assertIn("4 captures run already", refused("-w", self.out, name, status=1))
        self.echo(b"to all")
        for i, p in enumerate(captures):
            self.finish(p, signal.SIGTERM)
            self.assertTrue(any(f.data.endswith(b"to all") for f in self.read(f"{self.out}{i}").frames))

    def test_full_disk(self):
        self.start_echo()
        p = self.capture("-w", "/dev/full")
        wait_for(lambda: self.echo(b"x") or p.poll() is not None, "it goes on without room")
        self.assertEqual(p.returncode, 1)
        self.assertIn("cannot write /dev/full: No space left on device", p.stderr.read())
