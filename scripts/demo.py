#!/usr/bin/env python3
"""What scripts/demo shows. Every step checks what it prints; the last line says whether all was right."""
import json
import os
import signal
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ["SLUICE_TEST_RUN"] = f"sld{os.getpid()}"
sys.path.insert(0, os.path.join(ROOT, "tests/integration"))
import processes  # noqa: E402
import test_silence  # noqa: E402
import test_web  # noqa: E402
from harness import INSIDE, PEER, SLUICE, wait_for  # noqa: E402

SECONDS = "3"


class Demo(test_web.WebTest, test_silence.SilenceTest):
    """Borrows the pieces of the integration tests."""

    def runTest(self):
        self.show_page()
        self.show_configuration()
        self.show_silence()
        self.show_throughput()

    def title(self, text):
        print(f"\n== {text}", flush=True)

    def command(self, argv):
        print("$ " + " ".join(argv).replace(SLUICE, "sluice"), flush=True)

    def show_page(self):
        self.title(f"nginx (Debian's package and configuration, 2 workers) on sluice's own TCP/IP stack at {INSIDE}; curl from a kernel namespace")
        root = os.path.join(self.directory, "www")
        os.mkdir(root)
        self.file("www/index.html", text="<h1>Served by unmodified nginx through a TCP/IP stack in user space</h1>\n")
        argv = self.sandbox_argv(*self.nginx_argv(root))
        self.command(argv)
        self.server = self.inside(*self.nginx_argv(root))
        self.wait_peer_sees(80, self.server)
        self.command(["curl", "-si", f"http://{INSIDE}/"])
        out = self.peer("curl", "-si", f"http://{INSIDE}/").expect_success()
        print(out)
        self.assertIn("200 OK", out)
        self.assertIn("TCP/IP stack in user space", out)
        self.server.stop()

    def show_configuration(self):
        self.title("the device's address and routes, seen from inside")
        for what, wanted in (("addr", f"inet {INSIDE}/24"), ("route", f"default via {PEER}")):
            self.command(self.sandbox_argv("ip", what))
            out = self.inside("ip", what).expect_success()
            print(out, end="")
            self.assertIn(wanted, out)

    def show_silence(self):
        self.title("the host kernel's stack is not involved")
        server = self.start_server()
        before = test_silence.snmp(self.net.inside)
        with self.net.peer.connect((INSIDE, 7000)) as s:
            s.sendall(b"hello")
            self.assertEqual(s.recv(5), b"hello")
            sockets = self.net.inside.run("ss", "-Hatuwn").stdout.strip()
            print(f"a connection is open; sockets that the kernel shows in the namespace (ss): {sockets or 'none'}")
            self.assertEqual(sockets, "")
        mac = self.mac_of_inside()
        sentry = wait_for(lambda: processes.role(server.pid, "sentry"), "no process named sentry")
        print(f"frames that come back for ARP, ping, SYN and neighbour solicitation: {len(self.provoke(mac))}")
        os.kill(sentry, signal.SIGSTOP)
        try:
            answers = self.provoke(mac)
        finally:
            os.kill(sentry, signal.SIGCONT)
        print(f"the same while the sentry is stopped (SIGSTOP): {len(answers)}")
        self.assertEqual(answers, [])
        after = test_silence.snmp(self.net.inside)
        counted = {k: after[k] - before[k] for k in self.COUNTED}
        print("what /proc/net/snmp of the namespace counted meanwhile: " + ", ".join(f"{k} {v}" for k, v in counted.items()))
        self.assertEqual(set(counted.values()), {0})
        server.stop()

    def show_throughput(self):
        self.title("iperf3, one stream, the server inside, the client on the kernel (cubic, unpinned), Gbps in / out")
        for name, flags in (("sandbox", ()), ("sandbox, --gso=false", ("--gso=false",)), ("host", ("--network=host",)), ("plain kernel", None)):
            speeds = []
            for direction in ([], ["-R"]):
                argv = ["iperf3", "-s", "-1", "--forceflush"]
                server = self._start(self.net.inside.argv(*argv)) if flags is None else self.inside(*argv, flags=flags)
                server.wait_log("Server listening")
                out = self.peer("iperf3", "-c", INSIDE, "-J", "-t", SECONDS, *direction).expect_success()
                speeds.append(json.loads(out[out.index("{"):])["end"]["sum_received"]["bits_per_second"] / 1e9)
                server.wait()
            print(f"{name:22} {speeds[0]:6.2f} / {speeds[1]:6.2f}", flush=True)


def main():
    if os.geteuid() != 0:
        sys.exit("scripts/demo: network namespaces need root")
    demo = Demo("runTest")
    try:
        demo.setUp()
        demo.runTest()
    except (AssertionError, OSError) as e:
        sys.exit(f"\nthe demo FAILED: {e}")
    finally:
        demo.doCleanups()
    print("\nthe demo ended with success")


if __name__ == "__main__":
    main()
