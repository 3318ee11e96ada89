"""The network tests of Python and Go themselves, on the kernel's loopback and inside: what passes there passes here (--all only)."""
import os
import re
import subprocess
import unittest

from harness import ALL, SLUICE, sandbox_only

PYTHON = ("test_socket test_asyncore test_select test_selectors test_epoll test_poll test_socketserver test_httplib test_httpservers test_ftplib "
          "test_smtplib test_poplib test_imaplib test_urllib2_localnet test_xmlrpc test_ssl test_timeout test_wsgiref test_asyncio").split()

# What is not as on the kernel, by name, and why (docs/limits.md).
DIFFERENT = {
    "UDPLITE": "no UDP-Lite",
    r"test_control_and_wait": "bytes sent over the loopback are there a moment after send() has returned",
    r"test_sock_client_connect_racing": "a connect over the loopback ends a moment after it was asked for",
    r"TestIPConn|TestMultiPathTCP": "raw sockets need --net-raw; no MPTCP",
}


def native(*argv):
    return ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", *argv]


def inside(*argv):
    return [SLUICE, "do", "--", *argv]


def python_passes(said):
    """Some tests print between their name and "ok"."""
    run = set(re.findall(r"^\w+ \((test\.[\w.]+)\) \.\.\. (?!skipped)", said, re.MULTILINE))
    return run - set(re.findall(r"^(?:FAIL|ERROR): \w+ \((test\.[\w.]+)", said, re.MULTILINE))


def go_passes(said):
    return set(re.findall(r"^--- PASS: (\w+)", said, re.MULTILINE))


@sandbox_only
@unittest.skipUnless(ALL, "minutes: only with --all")
class SuitesTest(unittest.TestCase):
    def passed(self, argv, passes, cwd=None):
        p = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=1200, check=False)
        said = p.stdout.decode(errors="replace")
        return passes(said), said

    def compare(self, argv, again, passes, cwd=None):
        """again: the arguments that run one test; passes: the names in an output. Such that depend on the moment have three attempts."""
        wanted, said = self.passed(native(*argv), passes, cwd)
        self.assertGreater(len(wanted), 100, said[-2000:])
        got, said = self.passed(inside(*argv), passes, cwd)
        missing = {t for t in wanted - got if not any(re.search(d, t) for d in DIFFERENT)}
        for _ in range(2):
            for test in sorted(missing):
                more, said = self.passed(inside(*again(test)), passes, cwd)
                missing -= more
        self.assertEqual(sorted(missing), [], said[-4000:])

    def test_python(self):
        base = ["/usr/bin/python3", "-m", "test", "-v", "--timeout=300"]
        if subprocess.run([base[0], "-c", "import test.test_socket"], capture_output=True, check=False).returncode != 0:
            self.skipTest("libpython3-testsuite is not installed")
        # VSOCK and the name are the host's; the first hangs where there is none.
        base += ["-i", "*VSOCK*", "-i", "test_sethostname"]
        self.compare([*base, "-j1", *PYTHON], lambda test: [*base, "-m", test, test.split(".")[1]], python_passes, "/tmp")

    def go(self, package):
        root = subprocess.run(["go", "env", "GOROOT"], capture_output=True, text=True, timeout=60, check=True).stdout.strip()
        source = os.path.join(root, "src", package)
        binary = f"/tmp/{os.environ['SLUICE_TEST_RUN']}-{package.replace('/', '-')}"
        self.addCleanup(lambda: os.path.exists(binary) and os.unlink(binary))
        subprocess.run(["go", "test", "-c", "-o", binary, "."], cwd=source, timeout=600, check=True)
        run = [binary, "-test.short", "-test.v"]
        self.compare(run, lambda test: [*run, f"-test.run=^{test}$"], go_passes, source)

    def test_go_net(self):
        self.go("net")

    def test_go_net_http(self):
        self.go("net/http")


if __name__ == "__main__":
    unittest.main()
