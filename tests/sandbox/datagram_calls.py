"""Prints what calls on datagram and raw sockets say, one line each; natively and in the sandbox the lines must be the same."""
import errno
import os
import select
import signal
import socket
import struct
import sys
import threading

IP_RETOPTS, IP_PKTINFO, IP_RECVERR, IP_RECVTTL, IP_RECVTOS, IP_MTU_DISCOVER = 7, 8, 11, 12, 13, 10
MSG_ERRQUEUE = 0x2000
NAMES = {(0, IP_PKTINFO): "IP_PKTINFO", (0, 2): "IP_TTL", (0, 1): "IP_TOS", (0, IP_RECVERR): "IP_RECVERR", (1, 29): "SO_TIMESTAMP",
         (1, 35): "SO_TIMESTAMPNS", (0, 7): "IP_RETOPTS", (0, 20): "IP_ORIGDSTADDR"}


def attempt(call, *args):
    try:
        result = call(*args)
        return "socket" if isinstance(result, socket.socket) else result
    except OSError as e:
        return errno.errorcode.get(e.errno, str(e))


def udp(address=("127.0.0.1", 0)):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(address)
    s.settimeout(10)
    return s


def drain(s):
    """What is there, once it came to rest: loopback delivers within the send."""
    s.setblocking(False)
    out = []
    while True:
        try:
            out.append(s.recv(100))
        except BlockingIOError:
            s.settimeout(10)
            return out


def until(s, last):
    out = []
    while not out or out[-1] != last:
        out.append(s.recv(100))
    return out


def wait(s, mask=select.POLLIN):
    p = select.poll()
    p.register(s, mask)
    return [hex(m) for _, m in p.poll(10000)]


def controls(ancillary, own=()):
    out = []
    for level, kind, data in ancillary:
        name = NAMES.get((level, kind), (level, kind))
        if name == "IP_PKTINFO":
            index, spec, to = struct.unpack("i4s4s", data)
            data = (socket.if_indextoname(index) if index else 0, socket.inet_ntoa(spec), socket.inet_ntoa(to))
        elif name in ("SO_TIMESTAMP", "SO_TIMESTAMPNS"):
            seconds, _ = struct.unpack("ll", data)
            data = "now" if abs(seconds - __import__("time").time()) < 60 else seconds
        elif name == "IP_RECVERR":
            data = (struct.unpack("IBBBBII", data[:16])[:4], socket.inet_ntoa(data[20:24]), len(data))
        else:
            data = data.hex()
        out.append((name, data))
    return sorted(out, key=str)


def control_messages():
    a, b = udp(), udp()
    for option in (IP_PKTINFO, IP_RECVTTL, IP_RECVTOS):
        a.setsockopt(0, option, 1)
        print("on:", option, a.getsockopt(0, option))
    b.setsockopt(0, socket.IP_TTL, 77)
    b.setsockopt(0, socket.IP_TOS, 0x10)
    b.sendto(b"x", a.getsockname())
    data, anc, flags, source = a.recvmsg(10, 1000)
    print("received:", data, controls(anc), flags, source == b.getsockname())
    b.sendmsg([b"y", b"z"], [(0, socket.IP_TTL, struct.pack("i", 5)), (0, socket.IP_TOS, struct.pack("i", 0x20))], 0, a.getsockname())
    data, anc, flags, source = a.recvmsg(10, 1000)
    print("with its own:", data, controls(anc), flags)
    b.sendto(b"x", a.getsockname())
    data, anc, flags, _ = a.recvmsg(10, 20)
    print("no room:", data, len(anc), flags)
    b.sendto(b"x", ("127.0.0.9", a.getsockname()[1]))
    c = udp(("0.0.0.0", 0))
    c.setsockopt(0, IP_PKTINFO, 1)
    b.sendto(b"to another", ("127.0.0.9", c.getsockname()[1]))
    print("destination:", controls(c.recvmsg(20, 100)[1]))
    b.sendmsg([b"from another"], [(0, IP_PKTINFO, struct.pack("i4s4s", 0, socket.inet_aton("127.0.0.7"), bytes(4)))], 0, c.getsockname()[:0] or ("127.0.0.1", c.getsockname()[1]))
    print("source chosen:", c.recvfrom(20)[1][0])
    print("bad control:", attempt(b.sendmsg, [b"q"], [(0, socket.IP_TTL, struct.pack("i", 300))], 0, a.getsockname()),
          attempt(b.sendmsg, [b"q"], [(0, 99, b"1234")], 0, a.getsockname()))
    for option in (29, 35):
        a.setsockopt(1, option, 1)
        b.sendto(b"t", a.getsockname())
        print("time stamp:", [c for c in controls(a.recvmsg(10, 1000)[1]) if "TIME" in str(c[0])], a.getsockopt(1, 29), a.getsockopt(1, 35))
    a.setsockopt(1, 35, 0)


def many():
    a, b = udp(), udp()
    a.setblocking(True)
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)

    class Iovec(ctypes.Structure):
        _fields_ = [("base", ctypes.c_char_p), ("length", ctypes.c_size_t)]

    class Msghdr(ctypes.Structure):
        _fields_ = [("name", ctypes.c_void_p), ("namelen", ctypes.c_uint32), ("iov", ctypes.POINTER(Iovec)), ("iovlen", ctypes.c_size_t),
                    ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t), ("flags", ctypes.c_int)]

    class Mmsghdr(ctypes.Structure):
        _fields_ = [("hdr", Msghdr), ("len", ctypes.c_uint32)]
    b.connect(a.getsockname())
    count = 12
    buffers = [ctypes.create_string_buffer(bytes([65 + i]) * (i + 1), 64) for i in range(count)]
    iov = (Iovec * count)(*[Iovec(ctypes.cast(x, ctypes.c_char_p), i + 1) for i, x in enumerate(buffers)])
    vector = (Mmsghdr * count)()
    for i in range(count):
        vector[i].hdr.iov = ctypes.pointer(iov[i])
        vector[i].hdr.iovlen = 1
    print("sendmmsg:", libc.sendmmsg(b.fileno(), vector, count, 0), [vector[i].len for i in range(count)])
    into = [ctypes.create_string_buffer(64) for _ in range(count + 4)]
    iov2 = (Iovec * len(into))(*[Iovec(ctypes.cast(x, ctypes.c_char_p), 5 if i == 8 else 64) for i, x in enumerate(into)])
    names = [ctypes.create_string_buffer(16) for _ in into]
    back = (Mmsghdr * len(into))()
    for i in range(len(into)):
        back[i].hdr.iov = ctypes.pointer(iov2[i])
        back[i].hdr.iovlen = 1
        back[i].hdr.name = ctypes.cast(names[i], ctypes.c_void_p)
        back[i].hdr.namelen = 16
    wait(a)
    got = libc.recvmmsg(a.fileno(), back, len(into), 0x40, None)
    print("recvmmsg:", got, [(back[i].len, into[i].raw[:back[i].len], hex(back[i].hdr.flags), back[i].hdr.namelen,
                             names[i].raw[2:8] == struct.pack("!H4s", b.getsockname()[1], socket.inet_aton("127.0.0.1"))) for i in range(got)])
    print("empty:", libc.recvmmsg(a.fileno(), back, 4, 0x40, None), errno.errorcode[ctypes.get_errno()])
    for i in range(3):
        b.send(b"%d" % i)
    wait(a)
    print("waits for one:", libc.recvmmsg(a.fileno(), back, 16, 0x10000, None) >= 1)

    a.setblocking(False)

    class Timespec(ctypes.Structure):
        _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
    drain(a)
    a.setblocking(True)
    b.send(b"one")
    print("with a time limit:", libc.recvmmsg(a.fileno(), back, 1, 0, ctypes.byref(Timespec(5, 0))))


def errors():
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    u.setsockopt(0, IP_RECVERR, 1)
    closed = udp()
    port = closed.getsockname()[1]
    closed.close()
    u.connect(("127.0.0.1", port))
    u.send(b"hello")
    print("error shows:", wait(u, select.POLLIN))
    data, anc, flags, source = u.recvmsg(100, 1000, MSG_ERRQUEUE)
    print("error queue:", data, controls(anc), hex(flags), source == ("127.0.0.1", port))
    print("afterwards:", attempt(u.recvmsg, 100, 1000, MSG_ERRQUEUE | socket.MSG_DONTWAIT), attempt(u.recvfrom, 10, socket.MSG_DONTWAIT),
          u.getsockopt(1, 4))
    v = udp()
    v.setsockopt(0, IP_RECVERR, 1)
    v.sendto(b"unconnected", ("127.0.0.1", port))
    wait(v, 0)
    data, anc, flags, source = v.recvmsg(100, 1000, MSG_ERRQUEUE)
    print("unconnected:", data, controls(anc), hex(flags), source == ("127.0.0.1", port))
    v.setsockopt(0, IP_MTU_DISCOVER, 2)
    print("too long:", attempt(v.sendto, b"x" * 65508, ("127.0.0.1", port)))
    w = udp()
    w.sendto(b"unheard", ("127.0.0.1", port))
    w.setblocking(False)
    print("without the option:", attempt(w.recvfrom, 10))


def multicast():
    group, other = "239.1.2.3", "239.9.9.9"
    r = udp(("0.0.0.0", 0))
    port = r.getsockname()[1]
    r_unicast = ("127.0.0.1", port)
    s = udp(("127.0.0.1", 0))
    s.setsockopt(0, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    print("interface:", socket.inet_ntoa(s.getsockopt(0, socket.IP_MULTICAST_IF, 4)))
    print("ttl and loop:", s.getsockopt(0, socket.IP_MULTICAST_TTL), s.getsockopt(0, socket.IP_MULTICAST_LOOP))
    membership = socket.inet_aton(group) + socket.inet_aton("127.0.0.1")
    r.setsockopt(0, IP_PKTINFO, 1)
    r.setsockopt(0, IP_RECVTTL, 1)
    print("join:", attempt(r.setsockopt, 0, socket.IP_ADD_MEMBERSHIP, membership), attempt(r.setsockopt, 0, socket.IP_ADD_MEMBERSHIP, membership))
    s.setsockopt(0, socket.IP_MULTICAST_TTL, 9)
    s.sendto(b"to the group", (group, port))
    data, anc, _, source = r.recvmsg(100, 1000)
    print("heard:", data, controls(anc), source == s.getsockname())
    s.setsockopt(0, socket.IP_MULTICAST_LOOP, 0)
    s.sendto(b"not looped", (group, port))
    s.setsockopt(0, socket.IP_MULTICAST_LOOP, 1)
    s.sendto(b"to another group", (other, port))
    s.sendto(b"looped", (group, port))
    s.sendto(b"last", r_unicast)
    print("next:", until(r, b"last"))
    print("leave:", attempt(r.setsockopt, 0, socket.IP_DROP_MEMBERSHIP, membership), attempt(r.setsockopt, 0, socket.IP_DROP_MEMBERSHIP, membership))
    s.sendto(b"left", (group, port))
    s.sendto(b"last", r_unicast)
    print("after leaving:", until(r, b"last"))
    print("not a group:", attempt(r.setsockopt, 0, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("10.0.0.1") + bytes(4)),
          attempt(r.setsockopt, 0, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + socket.inet_aton("10.9.9.9")),
          attempt(s.setsockopt, 0, socket.IP_MULTICAST_IF, socket.inet_aton("10.9.9.9")), attempt(s.setsockopt, 0, socket.IP_MULTICAST_TTL, 256),
          attempt(r.setsockopt, 0, socket.IP_ADD_MEMBERSHIP, b"123"))
    source_group = socket.inet_aton("239.4.4.4") + socket.inet_aton("127.0.0.1") + socket.inet_aton("127.0.0.1")
    print("one source:", attempt(r.setsockopt, 0, 39, source_group))
    t = udp(("127.0.0.2", 0))
    t.setsockopt(0, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    t.sendto(b"of another source", ("239.4.4.4", port))
    s.sendto(b"of the source", ("239.4.4.4", port))
    s.sendto(b"last", r_unicast)
    print("of one source:", until(r, b"last"))
    print("two readers:", end=" ")
    readers = []
    for _ in range(2):
        x = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        x.setsockopt(1, socket.SO_REUSEADDR, 1)
        x.settimeout(10)
        x.bind(("239.7.7.7", 7777))
        x.setsockopt(0, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.7.7.7") + socket.inet_aton("127.0.0.1"))
        readers.append(x)
    s.sendto(b"to both", ("239.7.7.7", 7777))
    print([x.recvfrom(20)[0] for x in readers])


def devices():
    a, b = udp(), udp()
    print("device:", attempt(a.setsockopt, 1, 25, b"lo\0"), a.getsockopt(1, 25, 16), attempt(a.setsockopt, 1, 25, b"nosuch\0"))
    b.sendto(b"by lo", a.getsockname())
    print("by the device:", a.recvfrom(10)[0])
    print("unbound:", attempt(a.setsockopt, 1, 25, b""), a.getsockopt(1, 25, 16))
    print("index:", a.getsockopt(1, 62), attempt(a.setsockopt, 1, 62, 1), a.getsockopt(1, 62), attempt(b.setsockopt, 1, 62, 9999))


def options():
    u = udp()
    print("received options:", [(o, attempt(u.setsockopt, 0, o, 1), u.getsockopt(0, o)) for o in (6, IP_RETOPTS)])
    for name, kind in (("udp", socket.SOCK_DGRAM), ("tcp", socket.SOCK_STREAM)):
        s = socket.socket(socket.AF_INET, kind)
        for level, option, value in ((1, 12, 5), (1, 12, 7), (1, 12, -1), (1, 10, 1), (1, 9, 1), (1, 18, 7), (1, 7, 20000), (1, 8, 20000), (1, 6, 1), (1, 2, 1), (1, 15, 1),
                                     (0, 10, 0), (0, 10, 1), (0, 10, 2), (0, 10, 3), (0, 10, 9), (0, 1, 0x1c),
                                     (0, 2, 0), (0, 2, 255), (0, 2, 256), (0, 15, 1), (0, 19, 1), (0, 21, 64), (1, 36, 5)):
            print(name, level, option, value, attempt(s.setsockopt, level, option, value), attempt(s.getsockopt, level, option))


def urgent():
    l = socket.create_server(("127.0.0.1", 0))
    c = socket.create_connection(l.getsockname())
    s = l.accept()[0]
    import fcntl
    for a, b in ((c, s), (s, c)):
        a.send(b"abc")
        a.send(b"D", socket.MSG_OOB)
        print("urgent:", wait(b, select.POLLPRI), attempt(b.recv, 1, socket.MSG_OOB), attempt(b.recv, 1, socket.MSG_OOB))
        mark = lambda: struct.unpack("i", fcntl.ioctl(b, 0x8905, bytes(4)))[0]
        print("to the mark:", mark(), b.recv(100), mark())
        a.send(b"efg")
        wait(b)
        print("behind it:", b.recv(100), mark())
        b.setsockopt(1, socket.SO_OOBINLINE, 1)
        a.send(b"hi")
        a.send(b"J", socket.MSG_OOB)
        print("inline:", wait(b, select.POLLPRI), b.recv(100), mark(), b.recv(100), attempt(b.recv, 1, socket.MSG_OOB))
        a.send(b"k", socket.MSG_OOB)
        a.send(b"lm")
        wait(b, select.POLLPRI)
        print("first is urgent:", mark(), b.recv(1), wait(b) and b.recv(10))


def raw():
    r = socket.socket(socket.AF_INET, socket.SOCK_RAW, 254)
    r.settimeout(10)
    r.sendto(b"raw payload", ("127.0.0.1", 0))
    data, source = r.recvfrom(100)
    print("raw:", len(data), data[0], data[9], data[20:], source)
    i = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
    i.settimeout(10)
    i.setsockopt(255, 1, struct.pack("I", ~(1 << 0) & 0xffffffff))
    echo = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + b"ping"
    total = sum(struct.unpack("!6H", echo))
    total = (total & 0xffff) + (total >> 16)
    echo = echo[:2] + struct.pack("!H", ~total & 0xffff) + echo[4:]
    i.sendto(echo, ("127.0.0.1", 0))
    data, source = i.recvfrom(100)
    print("echo by a raw socket:", data[20], data[21], data[24:], source)
    h = socket.socket(socket.AF_INET, socket.SOCK_RAW, 255)
    print("header included:", h.getsockopt(0, 3))
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0x1234, 0, 9, 254, 0, socket.inet_aton("127.0.0.3"), socket.inet_aton("127.0.0.1"))
    h.sendto(header + b"own header", ("127.0.0.1", 0))
    data, source = r.recvfrom(100)
    print("own header:", data[8], data[20:], source, struct.unpack("!H", data[2:4])[0], data[4:6].hex())
    print("no protocol:", attempt(socket.socket, 2, 3, 0))


def ping():
    p = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1)
    p.settimeout(10)
    print("return options:", attempt(p.setsockopt, 0, IP_RETOPTS, 1), attempt(p.getsockopt, 0, IP_RETOPTS))
    p.sendto(struct.pack("!BBHHH", 8, 0, 0, 0, 3) + b"data", ("127.0.0.1", 0))
    data, source = p.recvfrom(100)
    print("ping:", data[0], data[6:], source)


def interrupted():
    """A receive that a signal cuts short has taken nothing, whichever of many it was."""
    a, b = udp(), udp()
    a.settimeout(None)
    to = a.getsockname()
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    got = []
    for i in range(1000):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        b.sendto(struct.pack("!I", i), to)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
        got.append(struct.unpack("!I", a.recvfrom(10)[0])[0])
    signal.setitimer(signal.ITIMER_REAL, 0)
    print("among signals:", got == list(range(1000)))


parts = [f for n, f in list(globals().items()) if callable(f) and n in
         ("control_messages", "many", "errors", "multicast", "devices", "options", "urgent", "raw", "ping", "interrupted")]
for part in parts:
    if len(sys.argv) > 1 and part.__name__ not in sys.argv[1:]:
        continue
    print("--", part.__name__, flush=True)
    try:
        part()
    except Exception as e:  # what goes wrong on one side only is the difference
        print("stopped:", type(e).__name__, e, "line", e.__traceback__.tb_next.tb_lineno)
