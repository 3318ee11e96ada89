"""The kernel on the sandbox's side neither answers nor emits, also while the sentry stands still."""
import os
import re
import signal
import socket
import struct
import time
import unittest

import processes
from harness import INSIDE, PEER, SluiceTest, sandbox_only, wait_for

ETH_P_ALL = 3


def snmp(namespace):
    """Counters of /proc/net/snmp by 'Proto.Name', read in the namespace itself."""
    lines = [line.split() for line in namespace.run("cat", "/proc/net/snmp").stdout.splitlines()]
    return {f"{names[0]}{n}": int(v) for names, values in zip(lines[::2], lines[1::2]) for n, v in zip(names[1:], values[1:])}


class SilenceTest(SluiceTest):
    COUNTED = ("Ip:InReceives", "Ip:OutRequests", "Icmp:InMsgs", "Icmp:OutMsgs", "Tcp:InSegs", "Tcp:OutSegs", "Udp:InDatagrams", "Udp:OutDatagrams")

    def start_server(self):
        server = self.inside("socat", "TCP-LISTEN:7000,fork,reuseaddr", "EXEC:cat")
        self.wait_peer_sees(7000, server)
        return server

    @sandbox_only
    def test_kernel_counts_nothing_and_shows_no_socket(self):
        server = self.start_server()  # the peer's attempts before the sandbox stands were the kernel's to answer
        before = snmp(self.net.inside)
        with self.net.peer.connect((INSIDE, 7000)) as s:
            s.sendall(b"hello")
            self.assertEqual(s.recv(5), b"hello")
            sockets = self.net.inside.run("ss", "-Hatuwn").stdout
            self.assertEqual(sockets.strip(), "")
        self.peer("ping", "-c", "2", "-i", "0.2", "-W", "10", INSIDE).expect_success()
        after = snmp(self.net.inside)
        self.assertEqual({k: after[k] - before[k] for k in self.COUNTED}, {k: 0 for k in self.COUNTED})
        server.stop()

    @sandbox_only
    def test_nothing_answers_while_the_sentry_is_stopped(self):
        server = self.start_server()
        sentry = wait_for(lambda: processes.role(server.pid, "sentry"), "no process named sentry")
        mac = self.mac_of_inside()
        os.kill(sentry, signal.SIGSTOP)
        try:
            before = snmp(self.net.inside)
            answers = self.provoke(mac)
            self.assertEqual(answers, [], "the kernel answered")
            after = snmp(self.net.inside)
            self.assertEqual({k: after[k] - before[k] for k in self.COUNTED}, {k: 0 for k in self.COUNTED})
        finally:
            os.kill(sentry, signal.SIGCONT)
        # Alive again: the same server goes on, which also shows that the silence above was the sentry's.
        self.wait_peer_sees(7000, server)
        self.assertNotEqual(self.provoke(mac), [])

    def mac_of_inside(self):
        text = self.net.inside.run("ip", "-o", "link", "show", "eth0").stdout
        return bytes.fromhex(re.search(r"link/ether (\S+)", text).group(1).replace(":", ""))

    def provoke(self, mac):
        """Sends an ARP request, an echo request, a SYN and a neighbour solicitation; returns the frames that came from `mac`."""
        text = self.net.peer.run("ip", "-o", "link", "show", "eth0").stdout
        own = bytes.fromhex(re.search(r"link/ether (\S+)", text).group(1).replace(":", ""))
        frames = [arp_request(own), echo_request(own, mac), syn(own, mac), neighbour_solicitation(own)]
        with self.net.peer.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as s:
            self.net.peer.enter(lambda: s.bind(("eth0", ETH_P_ALL)))
            for _ in range(3):
                for f in frames:
                    s.send(f)
                time.sleep(0.2)
            s.settimeout(0.7)
            got = []
            try:
                while True:
                    frame = s.recv(2048)
                    if frame[6:12] == mac:
                        got.append(frame[:60].hex())
            except TimeoutError:
                return got


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return 0xffff - total


def ipv4(protocol, payload):
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0, socket.inet_aton(PEER), socket.inet_aton(INSIDE))
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def arp_request(own):
    return b"\xff" * 6 + own + b"\x08\x06" + struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, own, socket.inet_aton(PEER), b"\0" * 6,
                                                       socket.inet_aton(INSIDE))


def echo_request(own, mac):
    icmp = struct.pack("!BBHHH", 8, 0, 0, 77, 1) + b"silence"
    icmp = icmp[:2] + struct.pack("!H", checksum(icmp)) + icmp[4:]
    return mac + own + b"\x08\x00" + ipv4(1, icmp)


def syn(own, mac):
    tcp = struct.pack("!HHIIBBHHH", 45678, 7000, 1, 0, 0x50, 2, 65535, 0, 0)
    pseudo = socket.inet_aton(PEER) + socket.inet_aton(INSIDE) + struct.pack("!BBH", 0, 6, len(tcp))
    tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
    return mac + own + b"\x08\x00" + ipv4(6, tcp)


def neighbour_solicitation(own):
    source = bytes.fromhex("fe80000000000000") + bytes([own[0] ^ 2]) + own[1:3] + b"\xff\xfe" + own[3:]
    target = bytes.fromhex("ff020000000000000000000000000001")
    body = struct.pack("!BBHI", 135, 0, 0, 0) + source + bytes([1, 1]) + own
    pseudo = source + target + struct.pack("!IHBB", len(body), 0, 0, 58)
    body = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
    return b"\x33\x33\x00\x00\x00\x01" + own + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + source + target + body


if __name__ == "__main__":
    unittest.main()
