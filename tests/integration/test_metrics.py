"""--metrics: counters of sandboxes for Prometheus."""
import json
import os
import re
import socket
import subprocess
import time

from harness import INSIDE, PATIENCE, PEER, SLUICE, Namespace, SluiceTest, sandbox_only, wait_for

SLEEP = "import time; print('ready', flush=True); time.sleep(1000)"
SAMPLE = re.compile(r'([a-z_0-9]+)\{((?:[a-z]+="(?:[^"\\]|\\.)*",?)*)\} (\S+)')


def parse(text):
    """The exposition: {(name, labels): value}. Everything that is not one raises."""
    samples, helped, typed = {}, set(), {}
    for line in text.splitlines():
        if line.startswith("# HELP "):
            _, _, name, words = line.split(" ", 3)
            assert words and name not in helped, line
            helped.add(name)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name in helped and name not in typed and kind in ("counter", "gauge"), line
            typed[name] = kind
        else:
            m = SAMPLE.fullmatch(line)
            assert m and m[1] in typed, line
            key = (m[1], tuple(sorted(re.findall(r'([a-z]+)="((?:[^"\\]|\\.)*)"', m[2]))))
            assert key not in samples, line
            samples[key] = float(m[3])
    return samples


@sandbox_only
class MetricsTest(SluiceTest):
    def setUp(self):
        super().setUp()
        self.root = os.path.join(self.directory, "root")
        self.path = os.path.join(self.directory, "metrics.sock")

    def sandbox(self, address, namespace=None):
        namespace = namespace or self.net.inside
        p = self._start(self.net.peer.argv(SLUICE, f"--root={self.root}", f"--metrics={address}", "do", f"--netns={namespace.name}", "--",
                                           "/usr/bin/python3", "-u", "-c", SLEEP))
        p.sandbox = True
        return p

    def request(self, text, address=None):
        if address is None:
            s = socket.socket(socket.AF_UNIX)
            s.settimeout(PATIENCE)
            s.connect(self.path)
        else:
            s = self.net.peer.connect(address)
        with s:
            s.sendall(text.encode())
            data = b""
            while piece := s.recv(65536):
                data += piece
        head, _, body = data.decode().partition("\r\n\r\n")
        return head.split("\r\n")[0].partition(" ")[2], head, body

    def scrape(self, address=None):
        status, head, body = self.request("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", address)
        self.assertEqual(status, "200 OK")
        self.assertIn("Content-Type: text/plain; version=0.0.4", head)
        self.assertIn(f"Content-Length: {len(body.encode())}", head)
        return parse(body)

    def scrape_or_none(self):
        try:
            return self.scrape()
        except OSError:
            return None

    def sandboxes(self):
        got = self.scrape_or_none()
        return None if got is None else sorted(dict(labels)["sandbox"] for (name, labels), value in got.items() if name == "sluice_up" and value == 1)

    def test_counters_on_a_port_of_the_host(self):
        self.sandbox(f"{PEER}:9464").wait_log("ready")
        self.net.peer.run("ping", "-c2", "-i0.2", INSIDE)
        name = ("sandbox", self.net.inside.name)
        got = self.scrape((PEER, 9464))
        self.assertEqual(got["sluice_up", (name,)], 1)
        self.assertGreaterEqual(got["sluice_icmp_in_echos_total", (name,)], 2)
        self.assertGreater(got["sluice_port_receive_frames_total", (("device", "eth0"), ("kind", "packet"), name)], 2)
        # As `sluice stats` counts them, name by name.
        stats = json.loads(subprocess.run([SLUICE, f"--root={self.root}", "stats", "--json", self.net.inside.name], capture_output=True, text=True,
                                          check=True, timeout=PATIENCE).stdout)
        again = self.scrape((PEER, 9464))
        for counter, value in stats["counters"].items():
            if not counter.startswith("Drop"):
                flat = {n.removeprefix("sluice_").removesuffix("_total").replace("_", ""): v for (n, _), v in again.items()}
                self.assertGreaterEqual(flat[counter.lower()], value, counter)
        self.assertEqual(len([1 for n, _ in again if n == "sluice_drops_total"]), len([1 for c in stats["counters"] if c.startswith("Drop")]))

    def test_one_address_for_several_sandboxes_that_take_over(self):
        other = Namespace("m")
        self.addCleanup(other.remove)
        first = self.sandbox(f"unix:{self.path}")
        first.wait_log("ready")
        second = self.sandbox(f"unix:{self.path}", other)
        second.wait_log("ready")
        both = sorted([self.net.inside.name, other.name])
        wait_for(lambda: self.sandboxes() == both, "not both are served")
        first.stop()
        wait_for(lambda: self.sandboxes() == [other.name], "nobody took over")
        second.stop()
        self.assertEqual([f for f in os.listdir(self.root) if "metrics" in f], [])
        self.assertFalse(os.path.exists(self.path))

    def test_http_and_slow_scrapers(self):
        self.sandbox(f"unix:{self.path}").wait_log("ready")
        idle = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        for s in idle:
            s.connect(self.path)
            s.sendall(b"GET /met")
        self.assertIn(self.net.inside.name, self.sandboxes())
        self.assertEqual(self.request("GET /metrics?x=1 HTTP/1.0\r\n\r\n")[0], "200 OK")
        self.assertEqual(self.request("GET /other HTTP/1.1\r\n\r\n")[0], "404 Not Found")
        self.assertEqual(self.request("POST /metrics HTTP/1.1\r\n\r\n")[0], "405 Method Not Allowed")
        self.assertEqual(self.request("nonsense\r\n\r\n")[0], "400 Bad Request")
        self.assertEqual(self.request("GET /" + "x" * 9000)[0], "431 Request Header Fields Too Large")
        for s in idle:
            s.close()

    def test_the_server_has_no_rights(self):
        p = self.sandbox(f"unix:{self.path}")
        p.wait_log("ready")
        servers = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/status", encoding="utf-8") as f:
                    status = dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
            except OSError:
                continue
            if status["Name"] == "sluice-metrics" and status["PPid"] in (str(p.pid), str(self.guard(p))):
                servers.append((pid, status))
        ((pid, status),) = servers
        self.assertEqual({status[k] for k in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")}, {"0" * 16})
        self.assertNotIn("0", status["Uid"].split())
        self.assertEqual((status["Seccomp"], status["NoNewPrivs"], status["Groups"].strip()), ("2", "1", ""))
        # Its death ends the counters, not the sandbox.
        os.kill(int(pid), 9)
        p.wait_log("counters are not served any more")
        self.net.peer.run("ping", "-c1", INSIDE)

    def guard(self, p):
        out = subprocess.run([SLUICE, f"--root={self.root}", "sandboxes", "--json"], capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
        return json.loads(out)[0]["pid"]

    def test_bad_addresses(self):
        def refused(*flags):
            r = self.net.peer.run(SLUICE, f"--root={self.root}", *flags, "do", f"--netns={self.net.inside.name}", "--", "true", check=False)
            self.assertEqual((r.returncode, r.stderr.count("\n")), (1, 1), r)
            return r.stderr
        for value in ("9464", "host:9464", "127.0.0.1:0", "127.0.0.1:70000", "unix:relative", "[::1:9464"):
            self.assertIn(f"--metrics={value}: not a valid value", refused(f"--metrics={value}"))
        self.assertIn("cannot listen there: Cannot assign requested address", refused("--metrics=192.0.2.1:9464"))
        with self.net.peer.listen((PEER, 9464)):
            self.assertIn("cannot listen there: Address already in use", refused(f"--metrics={PEER}:9464"))
        self.assertIn("--network=host", refused(f"--metrics={PEER}:9464", "--network=host"))
        self.assertEqual([f for f in os.listdir(self.root) if "metrics" in f], [])
