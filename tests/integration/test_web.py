"""HTTP servers and clients: unmodified nginx, curl, wget, http.server, asyncio, Go."""
import hashlib
import os
import re
import shutil
import subprocess
import unittest

from harness import INSIDE, PEER, PROGRAMS, ROOT, SluiceTest, debian_binary

SIZES = {"1k": 1024, "1m": 1 << 20, "100m": 100 << 20}


def sha(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


class WebFixture(SluiceTest):
    """nginx with files whose bytes are known."""

    def document_root(self, sizes):
        root = os.path.join(self.directory, "www")
        os.mkdir(root)
        for name in sizes:
            self.file(f"www/{name}", SIZES[name])
        return root

    def nginx_argv(self, root):
        """nginx with Debian's own configuration: 2 workers, its files in the test's directory, listening on 80 and [::]:80."""
        with open("/etc/nginx/nginx.conf", encoding="utf-8") as f:
            main = f.read()
        with open("/etc/nginx/sites-available/default", encoding="utf-8") as f:
            site = f.read()
        d = self.directory
        main = re.sub(r"worker_processes \w+;", "worker_processes 2;", main)
        main = re.sub(r"pid [^;]+;", f"pid {d}/nginx.pid;", main)
        main = main.replace("/var/log/nginx", d).replace("include /etc/nginx/sites-enabled/*;", f"include {d}/site.conf;")
        site = site.replace("root /var/www/html;", f"root {root};")
        self.file("nginx.conf", text=main)
        self.file("site.conf", text=site)
        return [debian_binary("nginx"), "-c", f"{d}/nginx.conf", "-e", f"{d}/error.log", "-g", "daemon off;"]

    def fetch_all(self, client, host, root, sizes):
        for name in sizes:
            out = os.path.join(self.directory, f"got-{name}")
            client("curl", "-sS", "--fail", "-o", out, f"http://{host}/{name}").expect_success(120)
            self.assertEqual(sha(out), sha(f"{root}/{name}"), name)
            os.unlink(out)


class WebTest(WebFixture):
    def test_nginx_serves_exact_bytes(self):
        root = self.document_root(SIZES)
        server = self.inside(*self.nginx_argv(root))
        self.wait_peer_sees(80, server)
        self.fetch_all(self.peer, INSIDE, root, SIZES)

    def test_nginx_keepalive_and_close(self):
        root = self.document_root(["1k"])
        server = self.inside(*self.nginx_argv(root))
        self.wait_peer_sees(80, server)
        out = self.peer("wrk", "-t2", "-c64", "-d2s", "--timeout", "30s", f"http://{INSIDE}/1k").expect_success()
        self.assertNotIn("Socket errors", out)
        self.assertNotIn("Non-2xx", out)
        self.assertGreater(int(re.search(r"(\d+) requests in", out).group(1)), 64)
        out = self.peer("wrk", "-t2", "-c16", "-d2s", "--timeout", "30s", "-H", "Connection: close", f"http://{INSIDE}/1k").expect_success()
        self.assertNotIn("Non-2xx", out)
        self.assertGreater(int(re.search(r"(\d+) requests in", out).group(1)), 16)

    def test_curl_inside_gets_exact_bytes(self):
        root = self.document_root(SIZES)
        self.peer(*self.nginx_argv(root))
        self.wait_listening_on_peer(80)
        self.fetch_all(self.inside, PEER, root, SIZES)

    def test_curl_upload_inside(self):
        path = self.file("up", 8 << 20)
        source = ("import http.server,hashlib\n"
                  "class H(http.server.BaseHTTPRequestHandler):\n"
                  " def do_PUT(self):\n"
                  "  d=hashlib.sha256(self.rfile.read(int(self.headers['Content-Length']))).hexdigest().encode()\n"
                  "  self.send_response(200);self.send_header('Content-Length',str(len(d)));self.end_headers();self.wfile.write(d)\n"
                  "http.server.ThreadingHTTPServer(('0.0.0.0',8080),H).serve_forever()\n")
        self.peer("/usr/bin/python3", "-c", source)
        self.wait_listening_on_peer(8080)
        out = self.inside("curl", "-sS", "--fail", "-T", path, f"http://{PEER}:8080/up").expect_success()
        self.assertIn(sha(path), out)

    def test_wget_inside(self):
        root = self.document_root(["1m"])
        self.peer(*self.nginx_argv(root))
        self.wait_listening_on_peer(80)
        out = os.path.join(self.directory, "got")
        self.inside("wget", "-q", "-O", out, f"http://{PEER}/1m").expect_success()
        self.assertEqual(sha(out), sha(f"{root}/1m"))

    def test_python_http_server(self):
        root = self.document_root(["1m"])
        server = self.inside("/usr/bin/python3", "-m", "http.server", "8000", "--directory", root)
        self.wait_peer_sees(8000, server)
        out = os.path.join(self.directory, "got")
        self.peer("curl", "-sS", "--fail", "-o", out, f"http://{INSIDE}:8000/1m").expect_success()
        self.assertEqual(sha(out), sha(f"{root}/1m"))

    def test_asyncio_echo(self):
        source = ("import asyncio\n"
                  "async def echo(r, w):\n"
                  " while d := await r.read(65536):\n"
                  "  w.write(d); await w.drain()\n"
                  " w.close()\n"
                  "async def main():\n"
                  " s = await asyncio.start_server(echo, '0.0.0.0', 7000)\n"
                  " await s.serve_forever()\n"
                  "asyncio.run(main())\n")
        server = self.python_inside(source)
        self.wait_peer_sees(7000, server)
        data = os.urandom(1 << 20)
        import threading
        for _ in range(3):
            with self.net.peer.connect((INSIDE, 7000)) as s:
                def send():
                    s.sendall(data)
                    s.shutdown(1)
                sender = threading.Thread(target=send)
                sender.start()
                got = b""
                while part := s.recv(65536):
                    got += part
                sender.join()
                self.assertEqual(got, data)


class GoTest(SluiceTest):
    """A static Go program: no C library, its own poller on edge-triggered epoll."""
    @classmethod
    def setUpClass(cls):
        go = shutil.which("go") or "/usr/local/go/bin/go"
        os.makedirs(PROGRAMS, exist_ok=True)
        cls.binary = os.path.join(PROGRAMS, "gohttp")
        source = os.path.join(ROOT, "tests/programs/go")
        env = {**os.environ, "CGO_ENABLED": "0", "GO111MODULE": "off", "GOFLAGS": "", "HOME": os.environ.get("HOME", "/root")}
        newest = os.path.getmtime(os.path.join(source, "gohttp.go"))
        if not os.path.exists(cls.binary) or os.path.getmtime(cls.binary) < newest:
            subprocess.run([go, "build", "-o", cls.binary, "gohttp.go"], cwd=source, env=env, check=True, timeout=300)

    def test_server(self):
        server = self.inside(self.binary, "serve", ":8081")
        self.wait_peer_sees(8081, server)
        out = self.net.peer.run(self.binary, "get", f"http://{INSIDE}:8081/bytes?n=5000000", "20").stdout
        self.assertIn("20 answers, 100000000 bytes, all right", out)

    def test_client(self):
        self.peer(self.binary, "serve", ":8081")
        self.wait_listening_on_peer(8081)
        out = self.inside(self.binary, "get", f"http://{PEER}:8081/bytes?n=5000000", "20").expect_success()
        self.assertIn("20 answers, 100000000 bytes, all right", out)


if __name__ == "__main__":
    unittest.main()
