"""iperf3: 1 and 8 streams, both ways, UDP."""
import json
import unittest

from harness import INSIDE, PEER, SluiceTest, sandbox_only

SECONDS = "2"


class Iperf3Test(SluiceTest):
    def check_tcp(self, output, streams):
        result = json.loads(output[output.index("{"):])
        self.assertNotIn("error", result, result.get("error"))
        self.assertEqual(len(result["start"]["connected"]), streams)
        for s in result["end"]["streams"]:
            self.assertGreater(s["receiver"]["bytes"], 1 << 20, "a stream moved next to nothing")

    def server_inside(self, *arguments, streams):
        server = self.inside("iperf3", "-s", "-1", "--forceflush")
        server.wait_log("Server listening on 5201")
        out = self.peer("iperf3", "-c", INSIDE, "-J", "-t", SECONDS, "-P", str(streams), *arguments).expect_success()
        self.check_tcp(out, streams)
        server.expect_success()

    def client_inside(self, *arguments, streams):
        self.peer("iperf3", "-s", "-1")
        self.wait_listening_on_peer(5201)
        out = self.inside("iperf3", "-c", PEER, "-J", "-t", SECONDS, "-P", str(streams), *arguments).expect_success()
        self.check_tcp(out, streams)

    def test_server_receives_one_stream(self):
        self.server_inside(streams=1)

    def test_server_sends_one_stream(self):
        self.server_inside("-R", streams=1)

    def test_server_receives_eight_streams(self):
        self.server_inside(streams=8)

    def test_server_sends_eight_streams(self):
        self.server_inside("-R", streams=8)

    def test_client_sends_one_stream(self):
        self.client_inside(streams=1)

    def test_client_receives_eight_streams(self):
        self.client_inside("-R", streams=8)

    def check_udp(self, output):
        result = json.loads(output[output.index("{"):])
        self.assertNotIn("error", result, result.get("error"))
        self.assertGreater(result["end"]["sum"]["packets"], 1000)
        self.assertLess(result["end"]["sum"]["lost_percent"], 50)

    def test_udp_to_the_server(self):
        server = self.inside("iperf3", "-s", "-1", "--forceflush")
        server.wait_log("Server listening on 5201")
        self.check_udp(self.peer("iperf3", "-c", INSIDE, "-J", "-u", "-b", "50M", "-l", "1200", "-t", SECONDS).expect_success())

    def test_udp_from_the_client(self):
        self.peer("iperf3", "-s", "-1")
        self.wait_listening_on_peer(5201)
        self.check_udp(self.inside("iperf3", "-c", PEER, "-J", "-u", "-b", "50M", "-l", "1200", "-t", SECONDS).expect_success())


# Sends 4 MiB that the peer reads, then until nothing more is taken; prints how much was taken beyond.
WRITER = """
import select, signal, socket, sys
s = socket.socket()
if len(sys.argv) > 1:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, int(sys.argv[1]))
s.bind(("0.0.0.0", 7100)); s.listen(1); print("listening", flush=True)
c, _ = s.accept()
block = bytes(65536)
for _ in range(64): c.sendall(block)
c.setblocking(False)
poll = select.poll(); poll.register(c, select.POLLOUT)
ahead = 0
while poll.poll(2000):
    try:
        while True: ahead += c.send(block)
    except BlockingIOError: pass
print("ahead", ahead, flush=True)
signal.pause()
"""
# Reads 4 MiB through a small receive buffer and then no more.
READER = """
import signal, socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768); s.connect((sys.argv[1], 7100))
left = 4 << 20
while left: left -= len(s.recv(min(left, 65536)))
print("done", flush=True)
signal.pause()
"""


class WriteAheadTest(SluiceTest):
    """How far a program may write ahead of a peer that stopped reading."""

    def ahead(self, *size):
        server = self.inside("python3", "-c", WRITER, *size)
        server.wait_log("listening")
        self.peer("python3", "-c", READER, INSIDE).wait_log("done")
        return int(server.wait_log(r"ahead (\d+)").group(1))

    @sandbox_only
    def test_bulk_writer_runs_far_ahead(self):
        self.assertGreater(self.ahead(), 2 << 20)

    def test_writer_that_chose_its_buffer_does_not(self):
        self.assertLess(self.ahead("65536"), 1 << 20)


if __name__ == "__main__":
    unittest.main()
