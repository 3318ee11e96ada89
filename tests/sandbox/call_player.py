"""Plays scripts of socket calls (random_calls.py makes and compares them): one from each line of standard input, as JSON, and one
line of what was seen to standard output, as JSON. Runs on the kernel's loopback and in the sandbox.

What arrives a moment later in the sandbox than on the kernel is waited for: after each call bytes make their way through the stack
and back until nothing of what the descriptors show changes any more (`settle`).
"""
import ctypes
import errno
import json
import os
import select
import signal
import socket
import struct
import sys
import zlib

LIBC = ctypes.CDLL(None, use_errno=True)
MASKS = (("IN", 1), ("PRI", 2), ("OUT", 4), ("ERR", 8), ("HUP", 16), ("RDHUP", 0x2000))
# When a FIN is acknowledged is a matter of time.
STATES = ("?", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT", "FIN_WAIT", "TIME_WAIT", "CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN",
          "CLOSING")
MSG = {name: getattr(socket, "MSG_" + name) for name in ("PEEK", "TRUNC", "WAITALL", "DONTWAIT", "OOB", "NOSIGNAL", "MORE", "ERRQUEUE")}
KINDS = {"tcp4": (2, 1), "tcp6": (10, 1), "udp4": (2, 2), "udp6": (10, 2)}
# name: level, number, kind of value
OPTIONS = {
    "SO_ERROR": (1, 4, "errno"), "SO_TYPE": (1, 3, "int"), "SO_DOMAIN": (1, 39, "int"), "SO_PROTOCOL": (1, 38, "int"),
    "SO_ACCEPTCONN": (1, 30, "int"), "SO_REUSEADDR": (1, 2, "int"), "SO_REUSEPORT": (1, 15, "int"), "SO_KEEPALIVE": (1, 9, "int"),
    "SO_BROADCAST": (1, 6, "int"), "SO_OOBINLINE": (1, 10, "int"), "SO_RCVBUF": (1, 8, "int"), "SO_SNDBUF": (1, 7, "int"),
    "SO_RCVLOWAT": (1, 18, "int"), "SO_SNDLOWAT": (1, 19, "int"), "SO_LINGER": (1, 13, "linger"), "SO_PEERNAME": (1, 28, "name"),
    "SO_DONTROUTE": (1, 5, "int"), "SO_PRIORITY": (1, 12, "int"), "SO_MARK": (1, 36, "int"),
    "IP_TOS": (0, 1, "int"), "IP_TTL": (0, 2, "int"), "IP_MTU": (0, 14, "int"), "IP_RECVERR": (0, 11, "int"),
    "IP_MTU_DISCOVER": (0, 10, "int"), "IP_FREEBIND": (0, 15, "int"), "IP_PKTINFO": (0, 8, "int"), "IP_RECVTTL": (0, 12, "int"),
    "IPV6_V6ONLY": (41, 26, "int"), "IPV6_UNICAST_HOPS": (41, 16, "int"), "IPV6_RECVPKTINFO": (41, 49, "int"),
    "TCP_NODELAY": (6, 1, "int"), "TCP_MAXSEG": (6, 2, "int"), "TCP_CORK": (6, 3, "int"), "TCP_KEEPIDLE": (6, 4, "int"),
    "TCP_KEEPINTVL": (6, 5, "int"), "TCP_KEEPCNT": (6, 6, "int"), "TCP_SYNCNT": (6, 7, "int"), "TCP_LINGER2": (6, 8, "int"),
    "TCP_DEFER_ACCEPT": (6, 9, "int"), "TCP_QUICKACK": (6, 12, "int"), "TCP_USER_TIMEOUT": (6, 18, "int"), "TCP_INFO": (6, 11, "info"),
}
IOCTLS = {"FIONREAD": 0x541B, "SIOCOUTQ": 0x5411, "SIOCATMARK": 0x8905}
LONGEST = 1  # seconds that a call may wait: it is to wait for nothing


def masks(value):
    return "|".join(name for name, bit in MASKS if value & bit) or "-"


class Ports:
    """Of one script: P1 ... are fixed numbers that no script before had, @a is the local port of a, and what the stack chose is
    called E1 ... in the order in which it shows."""

    def __init__(self, base):
        self.base, self.names = base, {0: "0"}
        for i in range(1, 5):
            self.names[base + i] = f"P{i}"

    def number(self, word, local_port):
        if word.startswith("P"):
            return self.base + int(word[1:])
        return local_port(word[1:]) if word.startswith("@") else int(word)

    def name(self, number):
        if number not in self.names:
            self.names[number] = f"E{sum(n.startswith('E') for n in self.names.values()) + 1}"
        return self.names[number]


class Description:
    """What a descriptor and its duplicates refer to."""

    def __init__(self, kind):
        self.kind, self.tcp, self.facts, self.slots = kind, kind.startswith("tcp"), set(), set()
        self.state = "CLOSE"


# -- what is not asked, as docs/limits.md says that it differs

NATIVE_SENDS, NATIVE_RECEIVES = ("send", "write", "writev"), ("recv", "read", "readv")


def left_out(player, d, verb, args):
    """Why this call is left out, if it is."""
    facts = d.facts
    shared = len(d.slots) > 1 or "watched" in facts
    if verb == "send" and d.tcp and not facts & {"stream"}:
        return "a write that is not connected"
    if verb == "send" and d.tcp and "ERR" in facts:
        return "a write after a reset"
    if verb == "send" and d.tcp and "OOB" in args[2] and len(args) > 3:
        return "an urgent byte with an address"
    if verb == "send" and (args[0] in NATIVE_SENDS or len(args) < 4 and args[0] == "sendto"):
        if not d.tcp and not player.has_peer(d):
            return "a native send without a peer"
    if verb == "recv" and args[0] in NATIVE_RECEIVES:
        if d.tcp and not facts & {"stream"}:
            return "a native read that is not connected"
    if verb == "recv" and d.tcp and "TRUNC" in args[2]:
        return "a discarding receive"
    if verb == "recv" and d.tcp and "WAITALL" in args[2] and args[0] not in NATIVE_RECEIVES:
        return "MSG_WAITALL with an address"
    if d.tcp and verb == "get" and args[0] in ("SO_SNDBUF", "SO_RCVBUF", "TCP_QUICKACK"):
        return "what a connection adapts"
    if d.tcp and verb == "connect" and "stream" in facts and d.state == "CLOSE" and "RDHUP" in facts:
        return "a connect of what ended"
    if d.tcp and verb == "set" and args[0] == "IPV6_V6ONLY" and "stream" in facts:
        return "IPV6_V6ONLY of what ended"
    if d.tcp and verb == "listen" and "listening" in facts and d.state == "CLOSE":
        return "who has a port beside accepted connections"
    if d.tcp and verb == "connect" and args[0] == "unspec" and d.state == "CLOSE":
        return "connect(AF_UNSPEC) of what is not connected"
    if verb == "get" and args[0] == "SO_ERROR" and "read ECONNRESET" in facts:
        return "SO_ERROR after a read told of the reset"
    if verb == "connect" and args[0] != "unspec" and player.port(args[0]) == 0:
        return "port 0 as a peer's"
    if verb in ("send", "recv") and not d.tcp and "OOB" in args[2]:
        return "out-of-band datagrams"
    if verb == "connect" and d.tcp and shared:
        return "a connect that may replace the end of a duplicate"
    if verb == "send" and any("read shut" in o.facts and (not d.tcp or o is not d) for _, o in player.slots.values()):
        return "bytes for who has shut down reading"
    if verb == "send" and "MORE" in args[2]:
        return "MSG_MORE"
    if verb == "connect" and d.tcp and "listening" in facts and d.state == "CLOSE":
        return "a connect of what listened before"
    if verb == "bind" and d.tcp and facts & {"stream", "listening"} and d.state == "CLOSE":
        return "a bind of what was connected before"
    if verb == "recv" and d.tcp and "OOB" in args[2] and "stream" not in facts:
        return "an urgent byte of what is not connected"
    if verb == "send" and "OOB" in args[2] and args[1] == "0":
        return "an urgent byte that is none"
    if verb == "send" and not d.tcp and "failed" in facts:
        return "datagrams after a connect that failed"
    if verb == "send" and args[-1] == "unspec":
        return "a datagram to nobody"
    if verb == "connect" and d.kind.endswith("6") and "tried" in facts:
        return "another peer, perhaps of another family"
    if verb == "name" and d.tcp and d.state == "CLOSE" and facts & {"tried", "dissolved"}:
        return "the name of what is not connected any more"
    if verb == "get" and args[0] in ("IP_MTU", "SO_PEERNAME") and not player.has_peer(d):
        return "the MTU of a connection that failed"
    if verb == "get" and args[0] == "TCP_MAXSEG":
        return "TCP_MAXSEG"
    if d.tcp and "dissolved" in facts and (verb in ("send", "recv") or args[:1] == ["SO_ERROR"]):
        return "the error after connect(AF_UNSPEC)"
    if d.tcp and verb in ("recv", "send") and "read shut" in facts:
        return "bytes after SHUT_RD"
    if d.kind == "udp6" and verb in ("send", "connect") and player.mixes(d, args[-1]):
        return "IPv4 and IPv6 by one name"
    if not d.tcp and "told natively" in facts and (args[:1] == ["SO_ERROR"] or verb == "recv" or verb == "send" and (
            args[0] == "sendmsg" or len(args) > 3)):
        return "an error that a native call has told of"
    if verb == "shutdown" and d.state == "LISTEN" and shared:
        return "a shutdown that replaces the end of a duplicate"
    if verb == "ioctl" and "urgent" in facts:
        return "bytes around an urgent one"
    if verb == "shutdown" and d.tcp and d.state == "CLOSE" and ("stream" not in facts or "dissolved" in facts):
        return "shutdown of what is not connected"
    return None


class Player:
    def __init__(self, rounds):
        self.rounds, self.scripts = rounds, 0
        self.sigpipe = False
        signal.signal(signal.SIGPIPE, self.on_sigpipe)
        signal.signal(signal.SIGALRM, lambda *_: None)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.one = socket.create_connection(listener.getsockname())
            self.two = listener.accept()[0]
        self.echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.echo.bind(("127.0.0.1", 0))
        self.echo.connect(self.echo.getsockname())
        for s in (self.one, self.two, self.echo):
            s.settimeout(20)

    def on_sigpipe(self, *_):
        self.sigpipe = True

    # -- one script

    def play(self, script):
        self.scripts += 1
        self.ports = Ports(1100 + self.scripts * 5)
        self.slots, self.out, self.sent, self.shown = {}, [], 0, {}
        for line in script:
            words = line.split()
            self.play_call(words)
        for slot in list(self.slots):
            os.close(self.slots.pop(slot)[0])
        self.barrier()
        return self.out

    def play_call(self, words):
        verb, args = words[0], words[1:]
        fresh = verb in ("socket", "epoll")
        if fresh == (args[0] in self.slots):
            return self.out.append("taken" if fresh else "nothing there")
        why = None if fresh else left_out(self, self.slots[args[0]][1], verb, args[1:])
        if why:
            return self.out.append("left out: " + why)
        self.sigpipe = False
        signal.setitimer(signal.ITIMER_REAL, LONGEST)
        said = getattr(self, "do_" + verb)(*args)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if said == "EINTR":
            said = "waits"
        if verb == "send" and len(args) > 4 and said == "EPIPE":
            self.sigpipe = False  # where the call has an address there is none
        self.out.append(said + (" SIGPIPE" if self.sigpipe else "") + self.settle())

    # -- what the descriptors show

    def barrier(self):
        for a, b in ((self.one, self.two), (self.two, self.one), (self.echo, self.echo)):
            a.send(b"x")
            b.recv(1)

    def look(self):
        seen = {}
        for slot, (fd, d) in self.slots.items():
            if d.kind == "epoll" or slot != min(d.slots):
                continue
            mask = self.poll(fd, 0x2007)
            unread = self.int_ioctl(fd, IOCTLS["FIONREAD"])
            if {"RDHUP", "stream"} <= d.facts or "dissolved" in d.facts:
                mask &= ~8  # of a reset behind an end POLLERR is not shown, nor behind connect(AF_UNSPEC)
            if mask & 2:
                d.facts.add("urgent")
            if "urgent" in d.facts:  # an urgent byte counts as one that can be read
                mask, unread = mask & ~1, 0
            text = masks(mask)
            if unread != 0:
                text += f" {unread}"
            if d.tcp:
                d.state = self.state(fd)
                text += " " + d.state
                if d.state in ("ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT"):
                    d.facts.add("stream")
                elif d.state == "LISTEN":
                    d.facts.add("listening")
            seen[slot] = text
        return seen

    def hidden(self, slot):
        """Of the mask, what is not compared."""
        facts = self.slots[slot][1].facts if slot in self.slots else set()
        return (8 if {"RDHUP", "stream"} <= facts or "dissolved" in facts else 0) | (1 if "urgent" in facts else 0)

    def settle(self):
        last, same = None, 0
        while same < self.rounds:
            self.barrier()
            seen = self.look()
            same = same + 1 if seen == last else 0
            last = seen
        changed = [f"{slot}: {text}" for slot, text in sorted(seen.items()) if self.shown.get(slot) != text]
        self.shown = seen
        for slot, text in seen.items():
            facts = self.slots[slot][1].facts
            facts.update(word for word in ("ERR", "RDHUP", "HUP") if word in text.split()[0].split("|"))
        return "".join("; " + c for c in changed)

    @staticmethod
    def poll(fd, wanted):
        p = select.poll()
        p.register(fd, wanted)
        return sum(mask for _, mask in p.poll(0))

    @staticmethod
    def int_ioctl(fd, number):
        value = ctypes.c_int(0)
        if LIBC.ioctl(fd, number, ctypes.byref(value)) < 0:
            return errno.errorcode[ctypes.get_errno()]
        return value.value

    @staticmethod
    def state(fd):
        value, length = ctypes.create_string_buffer(8), ctypes.c_uint(8)
        if LIBC.getsockopt(fd, 6, 11, value, ctypes.byref(length)) < 0:
            return errno.errorcode[ctypes.get_errno()]
        return STATES[value.raw[0]]

    # -- helpers of calls

    @staticmethod
    def call(name, *args):
        """The result, or the name of the error."""
        result = getattr(LIBC, name)(*args)
        return errno.errorcode[ctypes.get_errno()] if result < 0 else result

    def mixes(self, d, where):
        """Whether the address and the socket's own are of different families."""
        host = where.rsplit(":", 1)[0]
        error, raw = self.name_of("getsockname", self.slots[min(d.slots)][0])
        if ":" not in where or error:
            return False
        if raw[8:24] == bytes(16):  # nor where the other end is bound to an address of the other family
            return any("6" in o.kind and o is not d and o.facts & {"bound"} for _, o in self.slots.values())
        return (raw[8:20] == bytes(10) + b"\xff\xff") != ("." in host) or host in ("[::]", "[::ffff:0.0.0.0]")

    def has_peer(self, d):
        return self.name_of("getpeername", self.slots[min(d.slots)][0])[0] is None

    def add(self, slot, fd, description):
        if not isinstance(fd, int):
            return fd
        self.slots[slot] = (fd, description)
        description.slots.add(slot)
        return "ok"

    def simply(self, name, *args):
        result = self.call(name, *args)
        return "ok" if result == 0 else str(result)

    def local_port(self, slot):
        if slot not in self.slots or self.slots[slot][1].kind == "epoll":
            return 0
        d = self.slots[slot][1]
        if d.tcp and d.state == "CLOSE" and "bound" not in d.facts:
            return 0
        _, name = self.name_of("getsockname", self.slots[slot][0])
        return struct.unpack(">H", name[2:4])[0]

    def port(self, word):
        return self.ports.number(word.rsplit(":", 1)[1], self.local_port)

    def address(self, word):
        if word == "unspec":
            return struct.pack("=H14x", 0)
        host, port = word.rsplit(":", 1)[0], self.port(word)
        if host.startswith("["):
            return struct.pack("=H", 10) + struct.pack(">HI", port, 0) + socket.inet_pton(10, host[1:-1]) + bytes(4)
        return struct.pack("=H", 2) + struct.pack(">H", port) + socket.inet_aton(host) + bytes(8)

    def show_address(self, raw):
        if len(raw) < 2:
            return f"({len(raw)} bytes)"
        family, = struct.unpack("=H", raw[:2])
        if family == 2:
            return f"{socket.inet_ntoa(raw[4:8])}:{self.ports.name(struct.unpack('>H', raw[2:4])[0])}"
        if family == 10 and len(raw) == 28:
            flow, scope = raw[4:8], raw[24:28]
            odd = "" if flow + scope == bytes(8) else f" flow {flow.hex()} scope {scope.hex()}"
            return f"[{socket.inet_ntop(10, raw[8:24])}]:{self.ports.name(struct.unpack('>H', raw[2:4])[0])}{odd}"
        return f"family {family} ({len(raw)} bytes)"

    def name_of(self, call, fd):
        name, length = ctypes.create_string_buffer(128), ctypes.c_uint(128)
        result = self.call(call, fd, name, ctypes.byref(length))
        return (None if result == 0 else result), name.raw[:length.value]

    def bytes_to_send(self, size):
        self.sent += 1
        if size <= 12:
            return bytes([97 + self.sent % 26]) * size
        return bytes((self.sent * 7 + i) % 251 for i in range(size))

    @staticmethod
    def show_bytes(data):
        return data.decode("latin1") if len(data) <= 12 and data.isalpha() else f"{len(data)}:{zlib.crc32(data):08x}"

    # -- the calls: do_NAME(slot, words of the script...) says what came of it

    def do_socket(self, slot, kind, flags):
        family, type_ = KINDS[kind]
        said = self.add(slot, self.call("socket", family, type_ | (0x800 if flags == "nonblock" else 0), 0), Description(kind))
        if type_ == 1:  # when a small segment may follow another is a matter of time
            self.do_set(slot, "TCP_NODELAY", "1")
        return said

    def do_epoll(self, slot):
        return self.add(slot, self.call("epoll_create1", 0), Description("epoll"))

    def do_bind(self, slot, where):
        raw = self.address(where)
        said = self.simply("bind", self.slots[slot][0], raw, len(raw))
        if said == "ok":
            self.slots[slot][1].facts.add("bound")
        return said

    def do_listen(self, slot, backlog):
        return self.simply("listen", self.slots[slot][0], int(backlog))

    def do_connect(self, slot, where):
        raw = self.address(where)
        fd, d = self.slots[slot]
        fresh = self.poll(fd, 0) & 16
        said = self.simply("connect", self.slots[slot][0], raw, len(raw))
        if fresh and said != "EISCONN":
            d.facts -= {"stream", "ERR", "RDHUP", "read ECONNRESET", "dissolved"}
        d.facts.add("dissolved" if where == "unspec" else "tried")
        if where == "unspec":
            d.facts.discard("bound")  # which of these keep a port differs
        if not d.tcp and said != "ok":
            d.facts.add("failed")
        return said

    def do_accept(self, slot, to, name, flags):
        if to in self.slots:
            return "taken"
        fd, d = self.slots[slot]
        if not self.poll(fd, 1) and not os.get_blocking(fd) is False:
            return "would wait"
        raw, length = ctypes.create_string_buffer(128), ctypes.c_uint(128)
        new = self.call("accept4", fd, raw if name == "name" else None, ctypes.byref(length) if name == "name" else None,
                        0x800 if flags == "nonblock" else 0)
        said = self.add(to, new, Description(d.kind))
        return said + (" " + self.show_address(raw.raw[:length.value]) if said == "ok" and name == "name" else "")

    def do_shutdown(self, slot, how):
        if how != "1":
            self.slots[slot][1].facts.add("read shut")
        return self.simply("shutdown", self.slots[slot][0], int(how))

    def do_close(self, slot):
        fd, d = self.slots.pop(slot)
        d.slots.discard(slot)
        return self.simply("close", fd)

    def do_dup(self, slot, to):
        if to in self.slots:
            return "taken"
        fd, d = self.slots[slot]
        return self.add(to, self.call("dup", fd), d)

    def do_dup2(self, slot, to):
        if to not in self.slots or to == slot:
            return "nothing there"
        fd, d = self.slots[slot]
        over, old = self.slots[to]
        old.slots.discard(to)
        return self.add(to, self.call("dup2", fd, over), d)

    def do_nonblock(self, slot, on):
        os.set_blocking(self.slots[slot][0], on == "0")
        return "ok"

    def do_set(self, slot, name, value):
        level, number, kind = OPTIONS[name]
        raw = struct.pack("ii", *map(int, value.split(","))) if kind == "linger" else struct.pack("i", int(value))
        return self.simply("setsockopt", self.slots[slot][0], level, number, raw, len(raw))

    def do_get(self, slot, name):
        level, number, kind = OPTIONS[name]
        raw, length = ctypes.create_string_buffer(256), ctypes.c_uint(16 if kind == "name" else 128)
        result = self.call("getsockopt", self.slots[slot][0], level, number, raw, ctypes.byref(length))
        if result != 0:
            return result
        value = raw.raw[:length.value]
        if kind == "name":
            return self.show_address(value)
        if kind == "info":
            # Of a listener: how many wait, and the backlog.
            queue = struct.unpack_from("II", value, 24) if value[0] == 10 else ""
            return f"{STATES[value[0]]} {queue}"
        numbers = struct.unpack(f"{len(value) // 4}i", value)
        return errno.errorcode.get(numbers[0], "0") if kind == "errno" else " ".join(map(str, numbers))

    def do_name(self, slot):
        error, raw = self.name_of("getsockname", self.slots[slot][0])
        return error or self.show_address(raw)

    def do_peer(self, slot):
        error, raw = self.name_of("getpeername", self.slots[slot][0])
        return error or self.show_address(raw)

    def do_ioctl(self, slot, name):
        return str(self.int_ioctl(self.slots[slot][0], IOCTLS[name]))

    def do_watch(self, slot, what, op, events):
        if what not in self.slots:
            return "nothing there"
        value = sum(bit for name, bit in MASKS if name in events.split("|")) | (1 << 31 if "ET" in events else 0) | (
            1 << 30 if "ONESHOT" in events else 0)
        event = struct.pack("=IQ", value, ord(what))
        d = self.slots[what][1]
        d.facts.add("watched")
        return self.simply("epoll_ctl", self.slots[slot][0], {"add": 1, "del": 2, "mod": 3}[op], self.slots[what][0], event)

    def do_wait(self, slot):
        raw = ctypes.create_string_buffer(12 * 16)
        n = self.call("epoll_wait", self.slots[slot][0], raw, 16, 0)
        if not isinstance(n, int):
            return n
        events = sorted((chr(tag), masks(value & ~self.hidden(chr(tag)))) for value, tag in struct.iter_unpack("=IQ", raw.raw[:12 * n]))
        return "events " + " ".join(f"{tag}:{mask}" for tag, mask in events)

    def do_send(self, slot, how, size, flags, *to):
        said = self.transmit(slot, how, size, flags, *to)
        if said == "EPIPE":
            self.slots[slot][1].facts.add("read ECONNRESET")
        return self.native_error(slot, said, how in NATIVE_SENDS or how == "sendto" and not to, True)

    def native_error(self, slot, said, native, sends):
        """ECONNRESET, in what the kernel says of a datagram socket by itself, is ECONNREFUSED."""
        d = self.slots[slot][1]
        if not d.tcp and native:
            if said == "ECONNRESET":
                said = "ECONNREFUSED"
            if said == "ECONNREFUSED":
                d.facts.add("told natively")
            elif sends and said.isdigit():  # the sentry knows by that
                d.facts.discard("told natively")
        return said

    def transmit(self, slot, how, size, flags, *to):
        fd, _ = self.slots[slot]
        data = self.bytes_to_send(int(size))
        raw = self.address(to[0]) if to else b""
        value = sum(MSG[f] for f in flags.split("|") if f != "-")
        if how == "send":
            return str(self.call("send", fd, data, len(data), value))
        if how == "write":
            return str(self.call("write", fd, data, len(data)))
        if how == "writev":
            vector, count, kept = self.vector(data)
            return str(self.call("writev", fd, vector, count))
        if how == "sendto":
            return str(self.call("sendto", fd, data, len(data), value, raw or None, len(raw)))
        vector, count, kept = self.vector(data)
        name = ctypes.create_string_buffer(raw, len(raw)) if raw else None
        header = self.header(name, len(raw), vector, count, None, 0)
        return str(self.call("sendmsg", fd, header, value))

    @staticmethod
    def vector(data):
        """Two pieces of it."""
        buffer = data if isinstance(data, ctypes.Array) else ctypes.create_string_buffer(data, len(data))
        size = ctypes.sizeof(buffer)
        at, half = ctypes.addressof(buffer), size // 2
        return ctypes.create_string_buffer(struct.pack("QQQQ", at, half, at + half, size - half)), 2, buffer

    @staticmethod
    def header(name, name_length, vector, count, control, control_length):
        at = lambda b: ctypes.addressof(b) if b is not None else 0
        return ctypes.create_string_buffer(
            struct.pack("QI4xQQQQi4x", at(name), name_length, at(vector), count, at(control), control_length, 0))

    def do_recv(self, slot, how, size, flags):
        said = self.receive(slot, how, size, flags)
        if said == "ECONNRESET":
            self.slots[slot][1].facts.add("read ECONNRESET")
        return self.native_error(slot, said, how in NATIVE_RECEIVES, False)

    def receive(self, slot, how, size, flags):
        fd, d = self.slots[slot]
        value = sum(MSG[f] for f in flags.split("|") if f != "-")
        if os.get_blocking(fd) and value & (MSG["DONTWAIT"] | (MSG["OOB"] if d.tcp else 0) | MSG["ERRQUEUE"]) == 0 and not self.poll(fd, 0x2001):
            return "would wait"
        if os.get_blocking(fd) and value & MSG["WAITALL"]:
            value |= MSG["DONTWAIT"]
        data = ctypes.create_string_buffer(int(size))
        if how in ("recv", "read", "readv"):
            if how == "recv":
                n = self.call("recv", fd, data, len(data), value)
            elif how == "read":
                n = self.call("read", fd, data, len(data))
            else:
                vector, count, kept = self.vector(data)
                n = self.call("readv", fd, vector, count)
            return self.show_received(n, data)
        name, length = ctypes.create_string_buffer(128), ctypes.c_uint(128)
        if how == "recvfrom":
            n = self.call("recvfrom", fd, data, len(data), value, name, ctypes.byref(length))
            return self.show_received(n, data) + (" from " + self.show_address(name.raw[:length.value]) if isinstance(n, int) else "")
        vector, count, kept = self.vector(data)
        control = ctypes.create_string_buffer(256)
        header = self.header(name, 128, vector, count, control, 256)
        n = self.call("recvmsg", fd, header, value)
        said = self.show_received(n, data)
        if isinstance(n, int):
            _, name_length, _, _, _, control_length, got = struct.unpack("QI4xQQQQi4x", header.raw[:56])
            said += f" from {self.show_address(name.raw[:name_length])} flags {got:#x}" + (
                f" control {self.show_control(control.raw[:control_length])}" if control_length else "")
        return said

    def show_control(self, raw):
        texts, at = [], 0
        while at + 16 <= len(raw):
            length, level, kind = struct.unpack_from("Qii", raw, at)
            data = raw[at + 16:at + length]
            if (level, kind) in ((0, 11), (41, 25)):  # sock_extended_err and the offender
                data = data[:16] + self.show_address(data[16:]).encode()
            texts.append(f"{level}/{kind}:{data.hex()}")
            at += (length + 7) & ~7
        return " ".join(texts)

    def show_received(self, n, data):
        if not isinstance(n, int):
            return n
        return f"{n} {self.show_bytes(data.raw[:min(n, len(data))])}" if n else "0"


def main():
    player = Player(int(sys.argv[1]))
    for line in sys.stdin:
        print(json.dumps(player.play(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
