"""iperf3: 1 and 8 streams, both ways, UDP."""
import json
import unittest

from harness import INSIDE, PEER, SluiceTest

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


if __name__ == "__main__":
    unittest.main()
