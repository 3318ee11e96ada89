"""Prints what socket calls say in many states, one line each; run natively and in the sandbox, the lines must be the same.

Only what Linux promises whatever the timing: an end, a reset, an error is waited for by poll before it is looked at.
"""
import ctypes
import errno
import hashlib
import os
import resource
import select
import signal
import socket
import struct
import threading
import time

ENDED = select.POLLRDHUP | select.POLLHUP | select.POLLERR


def events(s, wanted=0x2017, until=ENDED, timeout=10000):
    p = select.poll()
    p.register(s, until)
    p.poll(timeout)
    p.modify(s, wanted)
    return [hex(mask & 0x203F) for _, mask in p.poll(0)]


def attempt(call, *args):
    try:
        result = call(*args)
        return "socket" if isinstance(result, socket.socket) else result
    except OSError as e:
        return errno.errorcode.get(e.errno, str(e))


listener = socket.create_server(("127.0.0.1", 0), backlog=16)
ADDRESS = listener.getsockname()


def pair():
    client = socket.create_connection(ADDRESS)
    return client, listener.accept()[0]


def reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def ends():
    c, s = pair()
    c.sendall(b"x" * 10)
    reset(c)
    print("reset after data, reader that never wrote:", events(s), attempt(s.recv, 100), attempt(s.recv, 10), attempt(s.recv, 10))
    c, s = pair()
    reset(c)
    print("reset:", events(s), attempt(s.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR), attempt(s.recv, 1))
    c, s = pair()
    c.close()
    print("end:", events(s), attempt(s.recv, 1))
    c, s = pair()
    c.shutdown(socket.SHUT_WR)
    print("half closed:", events(s), attempt(s.recv, 1))
    s.sendall(b"answer")
    s.close()
    print("both closed:", events(c, until=select.POLLHUP), attempt(c.recv, 10), attempt(c.recv, 1))
    c, s = pair()
    c.shutdown(socket.SHUT_WR)
    s.recv(1)
    reset(s)
    print("half closed, then reset:", events(c, until=select.POLLERR), attempt(c.recv, 1))


def masked(s, until=select.POLLHUP):
    """Without POLLERR, which is not shown of a reset behind an end."""
    return [hex(int(m, 16) & ~select.POLLERR) for m in events(s, until=until)]


def broken_streams():
    c, s = pair()
    c.shutdown(socket.SHUT_WR)
    s.recv(1)
    s.sendall(b"answer")
    events(c, until=select.POLLIN)
    c.close()
    print("half closed, closed with bytes unread:", masked(s), attempt(s.recv, 1))
    c, s = pair()
    s.sendall(b"for nobody")
    events(c, until=select.POLLIN)
    c.shutdown(socket.SHUT_RDWR)
    c.close()
    print("shut down and closed with bytes unread:", masked(s), attempt(s.recv, 1))
    c, s = pair()
    s.sendall(b"last words")
    c.sendall(b"unread")
    for end in (c, s):
        events(end, until=select.POLLIN)
    s.close()
    print("bytes, then a reset:", events(c), attempt(c.recvfrom, 100), attempt(c.recvfrom, 100))
    c, s = pair()
    s.close()
    events(c, until=select.POLLRDHUP)
    c.send(b"x")
    print("an end, then a reset:", masked(c), attempt(c.recvfrom, 100))
    c, s = pair()
    reset(s)
    print("connect after a reset:", events(c), attempt(c.connect, ADDRESS))
    c, s = pair()
    c.shutdown(socket.SHUT_WR)
    events(s)
    s.shutdown(socket.SHUT_WR)
    print("both ended:", events(c, until=select.POLLHUP), attempt(c.shutdown, socket.SHUT_WR), attempt(c.getpeername))
    for what, tell in (("a receive", lambda n: n.recvfrom(10)), ("a connect", lambda n: n.connect(ADDRESS))):
        n = socket.socket()
        n.setblocking(False)
        n.connect_ex(("127.0.0.1", 1))
        events(n)
        print("refused, told by", what + ":", attempt(tell, n), events(n, until=0, timeout=0), n.getsockopt(1, 4))


def connects():
    n = socket.socket()
    n.setblocking(False)
    print("fresh:", events(n, until=select.POLLHUP))
    print("refused:", errno.errorcode[n.connect_ex(("127.0.0.1", 1))], events(n), n.getsockopt(1, 4), n.getsockopt(1, 4))
    n = socket.socket()
    n.setblocking(False)
    print("connects:", errno.errorcode[n.connect_ex(ADDRESS)], events(n, until=select.POLLOUT), n.getsockopt(1, 4), n.connect_ex(ADDRESS),
          errno.errorcode[n.connect_ex(ADDRESS)])
    s = listener.accept()[0]
    n.send(b"q")
    print("carries:", s.recv(5))
    b = socket.socket()
    print("blocking:", attempt(b.connect, ("127.0.0.1", 1)), attempt(b.connect, ADDRESS))
    listener.accept()
    print("names:", attempt(socket.socket().getpeername), attempt(listener.getpeername), attempt(listener.connect, ADDRESS))


def connects_again():
    """What connect() says goes by what connects said before, not by what became of the connection."""
    c, s = pair()
    d = socket.socket()
    d.setblocking(False)
    d.connect_ex(ADDRESS)
    events(d, until=select.POLLOUT)
    for k in (s, listener.accept()[0]):
        reset(k)
    print("reset, told of it and not:", events(c) and attempt(c.connect, ADDRESS), events(d) and attempt(d.connect, ADDRESS),
          attempt(d.connect, ADDRESS), events(d, until=select.POLLOUT), attempt(d.connect, ADDRESS), attempt(d.connect, ADDRESS))
    listener.accept()
    c, s = pair()
    reset(c)
    print("accepted and reset:", events(s) and attempt(s.connect, ADDRESS))
    c, s = pair()
    s.close()
    c.shutdown(socket.SHUT_WR)
    print("ended:", events(c, until=select.POLLHUP) and attempt(c.connect, ADDRESS))
    for asks in (False, True):
        d = socket.socket()
        d.setblocking(False)
        d.connect_ex(("127.0.0.1", 1))
        print("refused:", events(d) and asks and attempt(d.getsockopt, 1, 4), attempt(d.connect, ADDRESS), attempt(d.connect, ADDRESS))
        events(d, until=select.POLLOUT)
        listener.accept()
    d = socket.socket()
    d.setblocking(False)
    d.connect_ex(("127.0.0.1", 1))
    print("refused, then shut down:", events(d) and attempt(d.shutdown, socket.SHUT_WR), attempt(d.connect, ADDRESS), attempt(d.listen))


def given_up_connects():
    """shutdown() ends a connect() that is under way: to a listener whose queue is full, in all workers."""
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = [socket.socket() for _ in range(250)]
    for w in waiting:
        w.setblocking(False)
        w.connect_ex(full.getsockname())
    for how in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
        c, d, e = waiting.pop(), waiting.pop(), waiting.pop()
        edges = select.epoll()
        edges.register(c, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        print("connecting:", edges.poll(0), attempt(c.shutdown, 3), attempt(c.shutdown, -1), edges.poll(0))
        print("given up:", attempt(c.shutdown, how), [bool(mask & select.EPOLLERR) for _, mask in edges.poll(0)],
              [attempt(c.getsockopt, 1, 4) for _ in range(2)], attempt(c.getpeername), attempt(c.connect, ADDRESS),
              events(c, until=select.POLLOUT), attempt(c.connect, ADDRESS), attempt(c.connect, ADDRESS))
        s = listener.accept()[0]
        c.send(b"carries")
        print("and made:", s.recv(9), s.getpeername() == c.getsockname())
        print("given up unasked:", attempt(d.shutdown, how), attempt(d.connect, ADDRESS), events(d, until=select.POLLOUT))
        listener.accept()
        print("given up, listens:", attempt(e.shutdown, how), attempt(e.listen), attempt(socket.create_connection, e.getsockname()),
              os.get_blocking(e.fileno()))
        for s in (socket.socket(), waiting.pop()):
            s.setblocking(True)
            said = []
            t = threading.Thread(target=lambda: said.append(attempt(s.connect, full.getsockname())))
            t.start()
            while not said:  # one that came before it gave nothing up, or the attempt before
                attempt(s.shutdown, how)
                time.sleep(0.001)
            t.join()
            print("given up under a connect that waits:", said, attempt(s.getsockopt, 1, 4), attempt(s.connect, ADDRESS))
            listener.accept()
        c.close()


def accepts():
    def later(delay):
        time.sleep(delay)
        with socket.create_connection(ADDRESS) as x:
            x.sendall(b"late")
    t = threading.Thread(target=later, args=(0.1,))
    t.start()
    s = listener.accept()[0]
    print("accept waits:", s.recv(10), s.recv(10))
    t.join()
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.02)
    t = threading.Thread(target=later, args=(0.4,))
    t.start()
    s = listener.accept()[0]
    signal.setitimer(signal.ITIMER_REAL, 0)
    print("accept among signals:", s.recv(10))
    t.join()
    child = os.fork()
    if child == 0:
        with socket.create_connection(ADDRESS) as x:
            x.sendall(b"child")
        os._exit(0)
    s = listener.accept()[0]
    print("from a child:", s.recv(10), s.recv(10))
    os.waitpid(child, 0)


libc = ctypes.CDLL(None, use_errno=True)


def raw_accept(s, address, length, flags=0):
    fd = libc.accept4(s.fileno(), address, length, flags)
    return socket.socket(fileno=fd) if fd >= 0 else errno.errorcode[ctypes.get_errno()]


def failing_accepts():
    c = socket.create_connection(ADDRESS)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (c.fileno(), limits[1]))
    full = attempt(listener.accept), events(listener, until=select.POLLIN)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    s, name = listener.accept()
    print("no descriptor, then one:", full, name == c.getsockname(), events(listener, until=0, timeout=0))
    c.sendall(b"kept")
    print("kept:", s.recv(9))
    size = ctypes.c_int(16)
    for what, address, length in (("address", 8, ctypes.byref(size)), ("length", ctypes.create_string_buffer(16), 8),
                                  ("negative length", ctypes.create_string_buffer(16), ctypes.byref(ctypes.c_int(-1)))):
        c = socket.create_connection(ADDRESS)
        print("bad", what + ":", raw_accept(listener, address, length), attempt(c.recv, 1))
    c = socket.create_connection(ADDRESS)
    print("bad flags:", raw_accept(listener, None, None, 1), type(raw_accept(listener, None, None)).__name__)
    name, size = ctypes.create_string_buffer(b"\x5a" * 16), ctypes.c_int(4)
    c = socket.create_connection(ADDRESS)
    s = raw_accept(listener, name, ctypes.byref(size), socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    print("short name:", name.raw[0], name.raw[2:4] == c.getsockname()[1].to_bytes(2, "big"), name.raw[4:], size.value,
          os.get_inheritable(s.fileno()), attempt(s.recv, 1))


def waiting_accepts():
    lost = socket.create_server(("127.0.0.1", 0))
    lost.setblocking(False)
    print("none:", attempt(lost.accept))
    edges = select.epoll()
    edges.register(lost, select.EPOLLIN | select.EPOLLET)
    clients = [socket.create_connection(lost.getsockname()) for _ in range(3)]
    got = []
    while len(got) < 3:
        edges.poll(10)
        while (s := attempt(lambda: lost.accept()[0])) == "socket":
            got.append(s)
    print("by edges:", len(got), attempt(lost.accept), events(lost, until=0, timeout=0))
    for c in clients:
        c.close()
    for _ in range(200):  # more than wait at a time: one that ended in the queue takes nobody's place
        gone = socket.create_connection(lost.getsockname())
        gone.shutdown(socket.SHUT_WR)
        reset(gone)
        if events(lost, until=select.POLLIN) != ["0x1"] or attempt(lambda: lost.accept()[0].close()) is not None:
            print("a connection that had ended was not accepted")
    c, gone = socket.create_connection(lost.getsockname()), socket.create_connection(lost.getsockname())
    gone.sendall(b"x")
    reset(gone)
    print("reset in the queue:", events(lost, until=select.POLLIN), [attempt(lambda: lost.accept()[0]) for _ in range(2)],
          events(lost, until=0, timeout=0))
    c, d = (socket.create_connection(lost.getsockname()) for _ in range(2))
    d.sendall(b"unread")
    events(lost, until=select.POLLIN)
    lost.close()
    print("closed with a queue:", [attempt(x.recv, 1) for x in (c, d)])


def accepting_threads():
    shared = socket.create_server(("127.0.0.1", 0))
    said, threads = [], []

    def serve():
        said.append(attempt(lambda: shared.accept()[0].sendall(b"served")))
    for _ in range(4):
        threads.append(threading.Thread(target=serve))
        threads[-1].start()
    print("threads:", [socket.create_connection(shared.getsockname()).recv(9) for _ in range(4)])
    for t in threads:
        t.join()
    t = threading.Thread(target=serve)
    t.start()
    while open(f"/proc/self/task/{t.native_id}/stat").read().rsplit(")")[1].split()[0] == "R":
        time.sleep(0.01)
    shared.shutdown(socket.SHUT_RDWR)
    t.join()
    print("shut down:", said, attempt(shared.accept))
    shared.listen(5)
    c = socket.create_connection(shared.getsockname())
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50000))
    print("listens again:", shared.accept()[1] == c.getsockname(), raw_accept(shared, None, None))
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))
    children = []
    for _ in range(3):
        children.append(os.fork())
        if children[-1] == 0:
            shared.accept()[0].sendall(b"child")
            os._exit(0)
    print("children:", [socket.create_connection(shared.getsockname()).recv(9) for _ in range(3)],
          [os.waitpid(c, 0)[1] for c in children])


def discards():
    """Receives that only count what they take, and wait longer than the sentry keeps a copy of their descriptor."""
    for how in ("data", "an end", "a reset"):
        c, s = pair()

        def act():
            if how == "data":
                c.sendall(b"discarded")
            elif how == "an end":
                c.close()
            else:
                reset(c)
        t = threading.Timer(0.1, act)
        t.start()
        said = attempt(s.recv, 100, socket.MSG_TRUNC)
        t.join()
        print("a receive that discards waits for", how + ":", len(said) if isinstance(said, bytes) else said)


def mixed_receives():
    """What one receive took, the next one does not see, whichever calls they are, behind the peer's end, too."""
    takes = {"recvfrom": lambda c: c.recvfrom(3)[0], "recvmsg": lambda c: c.recvmsg(3)[0],
             "discard": lambda c: "abc"[:len(c.recv(3, socket.MSG_TRUNC))].encode(), "recv": lambda c: c.recv(3)}
    for ends in (False, True):
        for name, take in takes.items():
            got = set()
            for _ in range(50):
                c, s = pair()
                s.sendall(b"abcdefghi")
                if ends:
                    s.close()
                    events(c, until=select.POLLRDHUP)
                got.add((take(c), c.recv(3), len(take(c)), s.close(), c.recv(9)))
            print("behind a", name, ends, got)


def interrupted_receives(size=100000):
    """Signals end calls whose bytes are on their way: none is lost, none comes twice."""
    sent = os.urandom(size)
    signal.signal(signal.SIGALRM, lambda *_: None)
    for ends in (False, True):
        c, s = pair()
        t = threading.Thread(target=lambda: (s.sendall(sent), s.close()))
        t.start()
        if ends:  # what fits into the buffers
            t.join()
            events(c, until=select.POLLRDHUP)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        got = b""
        while data := c.recvfrom(700)[0]:
            got += data
        signal.setitimer(signal.ITIMER_REAL, 0)
        t.join()
        print("interrupted:", len(got), got == sent)


def writes_until(s):
    """Of a writer that never reads: what its calls say in the end (which of the two errors comes first is not promised)."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        said = attempt(s.send, b"x" * 131072)
        if not isinstance(said, int):
            return "an error" if said in ("EPIPE", "ECONNRESET") else said
    return "none"


def writers():
    for how in ("reset", "close", "close with bytes unread"):
        for _ in range(3):
            c, s = pair()
            for _ in range(20):
                s.send(b"x" * 100000)
                c.recv(100000)
            if how == "close":
                c.setblocking(False)
                while isinstance(attempt(c.recv, 1 << 20), bytes):
                    pass
            if how == "reset":
                reset(c)
            else:
                c.close()
            print(how, "under a writer:", writes_until(s), attempt(s.send, b"x"), "RDHUP" if int(events(s)[0], 16) & 0x2000 else "")
            s.close()
    # Linux carries bytes to a local peer before send() returns, as far as the peer's window goes; a reset discards the rest.
    for how in ("reset", "close with bytes unread", "disconnect"):
        said = {behind_bytes(how) for _ in range(10)}
        print(how, "behind bytes that nobody read yet:", said)


def behind_bytes(how):
    c, s = pair()
    if how == "close with bytes unread":
        s.send(b"x")
        events(c, until=select.POLLIN)
    c.sendall(b"y" * 90000)
    if how == "reset":
        reset(c)
    elif how == "disconnect":
        libc.connect(c.fileno(), struct.pack("HHIQ", socket.AF_UNSPEC, 0, 0, 0), 16)
    else:
        c.close()
    said, got = writes_until(s), 0
    while isinstance(data := attempt(s.recv, 65536), bytes) and data:
        got += len(data)
    return said, got


def full_and_reset():
    """Nobody waits for a reader who does not come: the connection is gone with its port."""
    for how in ("SO_LINGER 0", "bytes unread"):
        c = socket.socket()
        c.bind(("127.0.0.1", 0))
        port = c.getsockname()[1]
        c.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        c.connect(ADDRESS)
        s = listener.accept()[0]
        if how == "bytes unread":
            s.send(b"x")
            events(c, until=select.POLLIN)
        c.setblocking(False)
        while events(c, wanted=select.POLLOUT, until=select.POLLOUT, timeout=200):
            attempt(c.send, b"z" * 65536)
        if how == "SO_LINGER 0":
            reset(c)
        else:
            c.close()
        again = socket.socket()
        print("full, closed with", how, attempt(again.bind, ("127.0.0.1", port)))


def bulk(size=16 << 20):
    c, s = pair()
    sent, got = [], []

    def send(k):
        h = hashlib.sha256()
        for i in range(size >> 16):
            block = bytes([(i * 7 + 1) & 255]) * 65536 if i > 3 else os.urandom(65536)
            h.update(block)
            k.sendall(block)
        k.shutdown(socket.SHUT_WR)
        sent.append(h.hexdigest())

    def receive(k):
        h, n = hashlib.sha256(), 0
        while data := k.recv(100000):
            h.update(data)
            n += len(data)
        got.append((n, h.hexdigest()))
    threads = [threading.Thread(target=f, args=(k,)) for f, k in ((send, c), (receive, s), (send, s), (receive, c))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    print("bulk both ways:", [n for n, _ in got], sorted(sent) == sorted(d for _, d in got))


def options():
    s = pair()[1]
    print("options:", s.getsockopt(6, 1), listener.getsockopt(1, 30), s.getsockopt(1, 3), s.getsockopt(1, 39), s.getsockopt(1, 38),
          attempt(s.getsockopt, 1, 99), attempt(s.setsockopt, 6, 1, 1), s.getsockopt(6, 1))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50000))
    print("receive timeout:", attempt(s.recv, 1))
    print("refused:", attempt(socket.socket, 2, 5, 0), attempt(socket.socket, 2, 1, 17), attempt(socket.socketpair, 2, 1))


MSG_FASTOPEN = 0x20000000
TCP_FASTOPEN, TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_KEY, TCP_FASTOPEN_NO_COOKIE = 23, 30, 33, 34


def fast_open_options():
    s = socket.socket()
    for name, values in ((TCP_FASTOPEN, (-1, 0, 7, 100000)), (TCP_FASTOPEN_CONNECT, (-1, 2, 1, 0)), (TCP_FASTOPEN_NO_COOKIE, (-1, 2, 1))):
        print("option", name, [(attempt(s.setsockopt, 6, name, v), s.getsockopt(6, name)) for v in values])
    print("key:", s.getsockopt(6, TCP_FASTOPEN_KEY, 32), [(attempt(s.setsockopt, 6, TCP_FASTOPEN_KEY, b"0123456789abcdef" * 2 + b"g")),
          [(attempt(s.setsockopt, 6, TCP_FASTOPEN_KEY, (b"0123456789abcdef" * 2)[:n]), s.getsockopt(6, TCP_FASTOPEN_KEY, 40))
           for n in (0, 15, 16, 31, 32)], s.getsockopt(6, TCP_FASTOPEN_KEY, 20)])
    c, accepted = pair()
    for which in (c, accepted, listener):
        print("state:", [attempt(which.setsockopt, 6, name, 1) for name in (TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE, TCP_FASTOPEN)])
    print("listener:", listener.getsockopt(6, TCP_FASTOPEN), pair()[1].getsockopt(6, TCP_FASTOPEN))
    listener.setsockopt(6, TCP_FASTOPEN, 0)


def fast_open():
    """The server has it off by default, so that no SYN is known to carry data: what the calls say all the same."""
    s = socket.socket()
    print("blocking:", s.sendto(b"hello", MSG_FASTOPEN, ADDRESS))
    a = listener.accept()[0]
    print("arrived:", a.recv(10), attempt(s.sendto, b"x", MSG_FASTOPEN, ADDRESS), attempt(s.send, b"x", MSG_FASTOPEN),
          attempt(s.sendmsg, [b"x"], [], MSG_FASTOPEN), attempt(s.connect, ADDRESS))
    s.close()
    print("end:", a.recv(10))
    s = socket.socket()
    s.setblocking(False)
    print("non-blocking, no cookie:", attempt(s.sendto, b"hello", MSG_FASTOPEN, ADDRESS), events(s, until=select.POLLOUT),
          attempt(s.connect, ADDRESS), attempt(s.send, b"later"))
    print("arrived:", listener.accept()[0].recv(10))
    print("errors:", attempt(socket.socket().send, b"x", MSG_FASTOPEN), attempt(listener.sendto, b"x", MSG_FASTOPEN, ADDRESS),
          attempt(socket.socket().sendmsg, [b"x"], [], MSG_FASTOPEN))
    s = socket.socket()
    print("refused:", attempt(s.sendto, b"x", MSG_FASTOPEN, ("127.0.0.1", 1)), s.getsockopt(1, 4),
          attempt(s.sendto, b"again", MSG_FASTOPEN, ADDRESS), listener.accept()[0].recv(10))
    s = socket.socket()
    print("sendmsg:", s.sendmsg([b"two ", b"parts"], [], MSG_FASTOPEN, ADDRESS), listener.accept()[0].recv(10))
    s = socket.socket()
    print("large:", s.sendto(b"x" * 60000, MSG_FASTOPEN, ADDRESS), len(listener.accept()[0].recv(60000, socket.MSG_WAITALL)))
    s = socket.socket()
    s.setsockopt(6, TCP_FASTOPEN_CONNECT, 1)
    print("connect without a cookie:", attempt(s.connect, ADDRESS), attempt(s.send, b"hi"), listener.accept()[0].recv(10))


def fast_open_without_cookie():
    """No cookie is needed, so that the SYN has data, which the server does not take: it is sent again."""
    def fresh(connect=False):
        s = socket.socket()
        s.setsockopt(6, TCP_FASTOPEN_NO_COOKIE, 1)
        if connect:
            s.setsockopt(6, TCP_FASTOPEN_CONNECT, 1)
        return s
    s = fresh()
    print("blocking:", s.sendto(b"hello", MSG_FASTOPEN, ADDRESS), listener.accept()[0].recv(10))
    s = fresh()
    s.setblocking(False)
    print("non-blocking:", s.sendto(b"hello", MSG_FASTOPEN, ADDRESS), listener.accept()[0].recv(10))
    s = fresh(True)
    print("deferred:", attempt(s.connect, ADDRESS), events(s, until=select.POLLOUT), attempt(s.getpeername),
          attempt(s.recv, 1, socket.MSG_DONTWAIT), listener_has_one())
    s.setblocking(False)
    print("once more:", attempt(s.connect, ADDRESS))
    s.setblocking(True)
    print("first write:", s.send(b"hello"))
    a = listener.accept()[0]
    print("arrived:", a.recv(10), s.getpeername() == ADDRESS, s.getsockopt(1, 4))
    a.sendall(b"answer")
    print("back:", s.recv(10), attempt(s.sendto, b"x", MSG_FASTOPEN, ADDRESS))
    s = fresh(True)
    s.connect(ADDRESS)
    print("by sendto:", attempt(s.sendto, b"hello", MSG_FASTOPEN, ADDRESS), listener.accept()[0].recv(10))
    s = fresh(True)
    s.connect(ADDRESS)
    s.sendall(b"x" * 100000)
    s.shutdown(socket.SHUT_WR)
    a = listener.accept()[0]
    print("shut down:", len(a.recv(100001, socket.MSG_WAITALL)), a.recv(1))
    s = fresh(True)
    s.connect(ADDRESS)
    s.sendall(b"gone")
    s.close()
    a = listener.accept()[0]
    print("closed:", a.recv(5, socket.MSG_WAITALL))
    s = fresh(True)
    s.connect(ADDRESS)
    s.close()
    print("closed unused:", listener_has_one())


def listener_has_one():
    return bool(select.select([listener], [], [], 0)[0])


def datagrams():
    a = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    a.bind(("127.0.0.1", 0))
    b = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    b.bind(("127.0.0.1", 0))
    c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    c.bind(("127.0.0.1", 0))
    right = 0
    for i in range(300):  # senders alternate, every third datagram is read without its address
        sender = (b, c)[i % 2]
        sender.sendto(b"%d" % i, a.getsockname())
        if i % 3 == 2:
            right += a.recv(100) == b"%d" % i
        else:
            data, source = a.recvfrom(100)
            right += data == b"%d" % i and source == sender.getsockname()
    print("datagrams with their sources:", right)
    b.connect(a.getsockname())
    b.send(b"")
    print("empty:", a.recvfrom(10)[0], attempt(b.sendto, b"x" * 65508, a.getsockname()))
    b.send(b"abcdef")
    print("cut:", a.recvmsg(3)[0::2])
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    u.connect(("127.0.0.1", 1))
    u.send(b"a")
    print("nobody there:", attempt(u.recvfrom, 10))


def whole_messages():
    """sendmsg of a socket that has connected sends all that it is given."""
    c = socket.create_connection(ADDRESS)
    a = listener.accept()[0]
    got = []
    t = threading.Thread(target=lambda: got.append(len(a.recv(1000000, socket.MSG_WAITALL))), daemon=True)
    t.start()
    print("sent:", c.sendmsg([b"x" * 600000, b"y" * 400000]))
    t.join(20)
    print("arrived:", got)


def close_heard(s, other):
    """close() is over before calls that come behind it, but not before what is sent natively at once (docs/limits.md)."""
    s.close()
    other.getpeername()
    socket.socket().close()


def datagram_errors():
    a = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    a.bind(("127.0.0.1", 0))
    name = a.getsockname()
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    u.connect(name)
    for _ in range(2):  # as a resolver that asks again
        close_heard(a, u)
        u.send(b"lost")
        print("nobody there any more:", events(u, until=select.POLLERR), type(attempt(u.recv, 10)).__name__)  # which error: docs/limits.md
        a = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        a.bind(name)
        a.settimeout(10)
        u.send(b"again")
        print("somebody again:", attempt(a.recv, 10))
    close_heard(a, u)
    u.send(b"lost")
    events(u, until=select.POLLERR)
    print("told by a send:", attempt(u.sendmsg, [b"x"]), events(u, until=0, timeout=0), u.getsockopt(1, 4))
    w = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    w.bind(("127.0.0.1", 0))
    got = []
    t = threading.Thread(target=lambda: got.append(attempt(w.recvfrom, 10)), daemon=True)
    t.start()
    print("shutdown without a peer:", attempt(w.shutdown, socket.SHUT_RD), events(w, until=select.POLLRDHUP))
    t.join(10)
    print("wakes who waits:", got)


def names_and_checks():
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.bind(("::ffff:127.0.0.1", 0))
    print("this host, of IPv4:", attempt(s.connect, ("::", 9)), s.getpeername()[0], attempt(s.sendto, b"", ("::1", 9)))
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    print("sent to nobody, and yet bound:", attempt(s.sendmsg, [b"x"]), s.getsockname()[1] != 0)
    print("port 0:", attempt(s.connect, ("::1", 0)), attempt(s.getpeername))
    for family, there, elsewhere in ((socket.AF_INET, "127.0.0.1", "10.1.2.3"), (socket.AF_INET6, "::1", "2001:db8::1")):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            s = socket.socket(family, kind)
            s.bind((there, 0))
            print("bound twice:", attempt(s.bind, (elsewhere, 0)), attempt(s.bind, (there, 0)),
                  family == socket.AF_INET or s.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
    d = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    d.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 7, 3))
    print("linger of datagrams:", struct.unpack("ii", d.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)))
    print("no urgent mark:", libc.ioctl(d.fileno(), 0x8905, ctypes.byref(ctypes.c_int())), errno.errorcode[ctypes.get_errno()])
    t = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    ipv4 = struct.pack("=H", socket.AF_INET) + struct.pack(">H", ADDRESS[1]) + socket.inet_aton("127.0.0.1") + bytes(12)
    for length in (16, 28):
        print("an IPv4 address for IPv6:", libc.connect(t.fileno(), ipv4, length), errno.errorcode[ctypes.get_errno()])


def ports_after_close():
    """A close has happened when the next call is made: its port is free."""
    free = {socket.SOCK_STREAM: 0, socket.SOCK_DGRAM: 0}
    for kind in free:
        port = 0
        for _ in range(1500):
            s = socket.socket(socket.AF_INET, kind)
            port = port if attempt(s.bind, ("127.0.0.1", port)) is None else 0
            if kind == socket.SOCK_STREAM:
                s.listen()
            free[kind] += port != 0
            port = s.getsockname()[1]
            s.close()
    print("ports free after a close:", list(free.values()))


for part in (ends, broken_streams, connects, connects_again, given_up_connects, accepts, failing_accepts, waiting_accepts, accepting_threads, discards,
             mixed_receives, interrupted_receives, writers, full_and_reset, bulk, whole_messages, options, fast_open_options, fast_open, fast_open_without_cookie,
             datagrams, datagram_errors, names_and_checks, ports_after_close):
    part()
listener.close()
print("closed:", attempt(socket.create_connection, ADDRESS))
