"""TCP Fast Open with the kernel at the other end: both are clients and servers of each other, by data in the SYN."""
import re

from harness import INSIDE, PEER, SluiceTest, sandbox_only, wait_for

PORT, ROUNDS = 7600, 6
SYN_DATA = 32  # tcpi_options: data in the SYN was acknowledged

# Answers each connection's first bytes, and says whether they came with the SYN.
SERVER = f"""
import socket, sys
l = socket.socket()
l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
l.bind((sys.argv[1], {PORT}))
l.setsockopt(6, 23, 16)
l.listen(16)
print("listening", flush=True)
for i in range({ROUNDS}):
    s = l.accept()[0]
    data = s.recv(100)
    print("served", data.decode(), "in the SYN" if s.getsockopt(6, 11, 8)[5] & {SYN_DATA} else "after it", flush=True)
    s.sendall(data.upper())
    s.close()
"""
CLIENT = f"""
import socket, sys
how, to = sys.argv[1], (sys.argv[2], {PORT})
for i in range({ROUNDS}):
    s = socket.socket()
    data = b"request %d" % i
    if how == "deferred":
        s.setsockopt(6, 30, 1)
        s.connect(to)
        s.sendall(data)
    else:
        assert s.sendto(data, 0x20000000, to) == len(data)
    answer = b""
    while piece := s.recv(100):
        answer += piece
    assert answer == data.upper(), answer
    print("got", i, "in the SYN" if s.getsockopt(6, 11, 8)[5] & {SYN_DATA} else "after it", flush=True)
    s.close()
"""


class FastOpenTest(SluiceTest):
    def setUp(self):
        super().setUp()
        for namespace in (self.net.inside, self.net.peer):
            namespace.run("sysctl", "-qw", "net.ipv4.tcp_fastopen=3")

    def kernel_counter(self, name):
        """TCPFastOpen* of the peer's kernel."""
        lines = [line.split() for line in self.net.peer.run("cat", "/proc/net/netstat").stdout.splitlines()]
        names, values = next((a, b) for a, b in zip(lines, lines[1:]) if a[0] == b[0] == "TcpExt:")
        return int(dict(zip(names, values))["TCPFastOpen" + name])

    # The first connection of each worker asks for a cookie; those behind have one.
    def expect_most_in_the_syn(self, output, word):
        seen = re.findall(rf"{word} .*(in the SYN|after it)", output)
        self.assertEqual(len(seen), ROUNDS, output)
        self.assertEqual(seen[0], "after it", output)
        self.assertEqual(seen[-1], "in the SYN", output)
        return seen.count("in the SYN")

    def client_inside(self, how):
        server = self.peer("/usr/bin/python3", "-u", "-c", SERVER, PEER)
        server.wait_log("listening")
        out = self.python_inside(CLIENT, how, PEER).expect_success()
        early = self.expect_most_in_the_syn(out, "got")
        self.assertEqual(self.expect_most_in_the_syn(server.expect_success(), "served"), early)
        self.assertEqual(self.kernel_counter("Passive"), early)
        self.assertEqual(self.kernel_counter("CookieReqd"), ROUNDS - early)
        self.assertEqual(self.kernel_counter("PassiveFail"), 0)

    def test_client_by_sendto(self):
        self.client_inside("sendto")

    def test_client_whose_connect_waits_for_data(self):
        self.client_inside("deferred")

    def server_inside(self, how):
        server = self.python_inside(SERVER, INSIDE)
        server.wait_log("listening")
        out = self.peer("/usr/bin/python3", "-u", "-c", CLIENT, how, INSIDE).expect_success()
        early = self.expect_most_in_the_syn(out, "got")
        self.assertEqual(early, ROUNDS - 1)  # one key, whichever worker answers
        self.assertEqual(self.expect_most_in_the_syn(server.expect_success(), "served"), early)
        self.assertEqual(self.kernel_counter("Active"), early)
        self.assertEqual(self.kernel_counter("ActiveFail"), 0)

    def test_server(self):
        self.server_inside("sendto")

    def test_server_of_a_client_whose_connect_waits(self):
        self.server_inside("deferred")

    @sandbox_only
    def test_the_key_is_the_namespaces_and_its_cookies_the_kernels(self):
        key = "00112233-44556677-8899aabb-ccddeeff"
        self.net.inside.run("sysctl", "-qw", f"net.ipv4.tcp_fastopen_key={key}")
        self.server_inside("sendto")
        # Of 10.77.0.2 at 10.77.0.1: the peer's cache, which has what our server gave; a kernel there with the key knows it.
        known = self.net.peer.run("ip", "tcp_metrics", "show", INSIDE).stdout
        ours = re.search(r"fo_cookie (\w+)", known).group(1)
        self.net.inside.run("sysctl", "-qw", "net.ipv4.tcp_fastopen=3")
        self.assertEqual(ours, self.cookie_of_the_kernel(key))

    def cookie_of_the_kernel(self, key):
        """The cookie that a kernel gives 10.77.0.2 at 10.77.0.1: in the peer's namespace, which has both for the moment."""
        ns = self.net.peer
        ns.run("sysctl", "-qw", f"net.ipv4.tcp_fastopen_key={key}")
        ns.run("ip", "tcp_metrics", "flush")
        ns.run("ip", "addr", "add", f"{INSIDE}/32", "dev", "lo")
        server = self.peer("/usr/bin/python3", "-u", "-c", SERVER, INSIDE)
        server.wait_log("listening")
        client = CLIENT.replace("s = socket.socket()", f"s = socket.socket(); s.bind(('{PEER}', 0))")
        self.peer("/usr/bin/python3", "-u", "-c", client, "sendto", INSIDE).expect_success()
        found = wait_for(lambda: re.search(r"fo_cookie (\w+)", ns.run("ip", "tcp_metrics", "show").stdout), "no cookie is known")
        return found.group(1)
