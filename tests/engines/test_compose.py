"""docker-compose with three services on our stack: they find each other by name, one publishes a port, and they are restarted."""
import json
import shutil
import unittest

from docker_host import DockerHost, servers, wait_for

FILE = """
version: "2.4"
services:
  store:
    image: servers
    runtime: sluice
    command: {store}
  web:
    image: servers
    runtime: sluice
    restart: always
    depends_on: [store]
    command: {web}
    ports: ["8080:80"]
  probe:
    image: servers
    runtime: sluice
    command: sleep 1000
"""
SERVER = ("import http.server, urllib.request; "
          "h = type('H', (http.server.BaseHTTPRequestHandler,), dict(do_GET=lambda s: (s.send_response(200), s.end_headers(), s.wfile.write(%s)))); "
          "http.server.ThreadingHTTPServer(('', 80), h).serve_forever()")
STORE = SERVER % "b'from the store'"
WEB = SERVER % "b'by way of web: ' + urllib.request.urlopen('http://store/', timeout=20).read()"
ANSWER = "by way of web: from the store"


class ComposeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        for program in ("dockerd", "docker-compose"):
            if shutil.which(program) is None:
                raise unittest.SkipTest(f"{program} is not installed")
        cls.host = DockerHost({"sluice": []})
        cls.addClassCleanup(cls.host.close)
        cls.host.import_image("servers", servers())
        with open(f"{cls.host.directory}/compose.yml", "w", encoding="utf-8") as f:
            f.write(FILE.format(**{name: json.dumps(["python3", "-c", code]) for name, code in (("store", STORE), ("web", WEB))}))

    def compose(self, *args, **kw):
        return self.host.host("docker-compose", "-p", "three", "-f", f"{self.host.directory}/compose.yml", *args, timeout=180, **kw)

    def answers(self):
        inside = self.compose("exec", "-T", "probe", "curl", "-s", "-m10", "http://web/", check=False).stdout
        outside = self.host.host("curl", "-s", "-m10", "http://10.213.0.1:8080/", check=False).stdout
        return (inside, outside) == (ANSWER, ANSWER)

    def test_names_port_and_restart(self):
        self.compose("up", "-d")
        wait_for(self.answers, "the services answer")
        self.assertEqual(len(self.host.sandboxes()), 3)
        self.compose("restart", "-t", "1", "store", "web")
        wait_for(self.answers, "they answer after a restart")
        # Killed, not stopped: the policy starts it again.
        before = self.host.inspect("three_web_1", "{{.State.Pid}}")
        self.host.host("kill", "-9", before)
        wait_for(lambda: self.host.inspect("three_web_1", "{{.State.Pid}}") not in (before, "0"), "it is started again")
        wait_for(self.answers, "they answer after the end of one")
        self.compose("down", "-t", "1")
        wait_for(lambda: not self.host.leftovers(), "nothing is left", 30)


if __name__ == "__main__":
    unittest.main()
