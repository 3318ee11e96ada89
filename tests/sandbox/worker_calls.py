"""Calls whose order and rules hold whichever worker has the sockets; same_as_native compares the output.

What one call does, the next one sees: a port that was closed is free, a closed socket hears nothing, a port that is taken is taken.
Every question is asked often enough to meet sockets of all workers; what is printed are the different answers.
"""
import contextlib
import ctypes
import errno
import os
import re
import resource
import select
import signal
import socket
import struct
import threading

ROUNDS = 40
LO = "127.0.0.1"
libc = ctypes.CDLL(None)
IP_LOCAL_PORT_RANGE = 51
# Inside there is what the kernel may not have yet; both tell the same release.
KERNEL = tuple(int(number) for number in re.match(r"(\d+)\.(\d+)", os.uname().release).groups())


def outcome(call, *args):
    try:
        result = call(*args)
        return "ok" if result is None else result
    except OSError as e:
        return errno.errorcode[e.errno]


def tcp(*options):
    return made(socket.socket(), *options)


def udp(*options):
    return made(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), *options)


def made(s, *options):
    for o in options:
        s.setsockopt(socket.SOL_SOCKET, o, 1)
    return s


def listening(port=0, backlog=128):
    """A listener at LO."""
    s = tcp()
    s.bind((LO, port))
    s.listen(backlog)
    return s


def different(ask):
    """The set of what ROUNDS questions were answered."""
    return sorted({str(ask(i)) for i in range(ROUNDS)})


def datagrams_free_their_ports(i):
    port = 4000 + i
    with udp() as first:
        first.bind((LO, port))
    with udp() as second:
        return outcome(second.bind, (LO, port))


def datagram_ports_conflict(i):
    port = 4100 + i
    with udp() as first, udp() as second, udp() as third, udp(socket.SO_REUSEPORT) as fourth:
        first.bind((LO, port))
        answers = [outcome(second.bind, (LO, port)), outcome(third.bind, ("", port)), outcome(fourth.bind, (LO, port))]
        answers.append(outcome(second.bind, ("127.0.0.2", port)))
        answers.append(outcome(third.bind, (LO, port + 1000)))
        return answers


def datagram_ports_are_shared(i):
    port = 4200 + i
    with udp(socket.SO_REUSEADDR) as wide, udp(socket.SO_REUSEADDR) as narrow, udp() as client:
        wide.bind(("", port))
        narrow.bind((LO, port))
        client.sendto(b"narrow", (LO, port))
        client.sendto(b"wide", ("127.0.0.3", port))
        return narrow.recv(9), wide.recv(9)


def a_connected_one_is_preferred(i):
    port = 4300 + i
    with udp(socket.SO_REUSEADDR) as server, udp(socket.SO_REUSEADDR) as session, udp() as client, udp() as other:
        server.bind((LO, port))
        client.bind((LO, 0))
        session.bind((LO, port))
        session.connect(client.getsockname())
        client.sendto(b"of the session", (LO, port))
        other.sendto(b"of nobody", (LO, port))
        session.send(b"answer")
        return session.recv(20), server.recv(20), client.recv(20)


def a_closed_datagram_port_refuses(i):
    port = 4400 + i
    with udp() as client:
        with udp() as server:
            server.bind((LO, port))
            client.connect((LO, port))
            client.send(b"x")
            got = server.recv(9)
        again = outcome(client.sendto, b"y", (LO, port))
        return got, again, outcome(client.recvfrom, 9)


def options_and_groups_survive_bind(i):
    port = 4500 + i
    with udp(socket.SO_BROADCAST) as s, udp() as client:
        s.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 33)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100000)
        s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.1.1.1") + socket.inet_aton(LO))
        s.bind(("", port))
        client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LO))
        client.sendto(b"to the group", ("239.1.1.1", port))
        twice = outcome(s.setsockopt, socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.1.1.1") + socket.inet_aton(LO))
        return (s.recv(20), twice, s.getsockopt(socket.IPPROTO_IP, socket.IP_TTL), s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
                s.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST))


def a_receive_waits_through_a_bind(i):
    port = 4600 + i
    with udp() as s, udp() as client:
        got = []
        reader = threading.Thread(target=lambda: got.append(s.recvfrom(20)[0]))
        reader.start()
        s.bind((LO, port))
        client.sendto(b"late", (LO, port))
        reader.join(10)
        return got


def a_duplicate_names_the_same_socket(i):
    port = 4700 + i
    with udp() as s, udp() as client:
        with s.dup() as copy:
            copy.bind((LO, port))
        client.sendto(b"x", (LO, port))
        return s.getsockname()[1] == port, s.recv(9)


def listeners_free_their_ports(i):
    port = 5000 + i
    listening(port).close()
    with tcp() as refused:
        answer = outcome(refused.connect, (LO, port))
    with tcp() as second:
        return answer, outcome(second.bind, (LO, port)), outcome(second.listen)


def waiting_connections_free_their_port(i):
    port = 5200 + i
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(tcp()) for _ in range(4)]
        with listening(port):
            for c in clients:
                c.connect((LO, port))
            second = stack.enter_context(tcp())
        return (outcome(second.bind, (LO, port)), outcome(second.listen),
                {outcome(c.recv, 1) for c in clients})


def accepted_connections_free_their_port(i):
    """Their reset is over when close() has returned."""
    port = 6100 + i
    with tcp() as client:
        with listening(port) as listener:
            client.connect((LO, port))
            accepted = listener.accept()[0]
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with tcp() as second:
            taken = outcome(second.bind, (LO, port))
            accepted.close()
            return taken, outcome(second.bind, (LO, port))


def accepted_connections_keep_their_port(i):
    port = 5250 + i
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(tcp()) for _ in range(2)]
        with listening(port) as first:
            for c in clients:
                c.connect((LO, port))
            second, third = (stack.enter_context(tcp()) for _ in range(2))
            accepted = stack.enter_context(first.accept()[0])
        answer = outcome(second.bind, (LO, port))
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()
        return answer, outcome(third.bind, (LO, port))


def accepts_that_fail_lose_nothing(i):
    """Connections of all workers; each of the first accepts has no descriptor."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with tcp() as server, contextlib.ExitStack() as stack:
        server.bind((LO, 0))
        server.listen(16)
        clients = [stack.enter_context(tcp()) for _ in range(4)]
        for c in clients:
            c.connect(server.getsockname())
        select.select([server], [], [])
        resource.setrlimit(resource.RLIMIT_NOFILE, (clients[0].fileno(), limits[1]))
        failed = [outcome(server.accept) for _ in range(3)]
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        got = {}
        for _ in clients:
            accepted, peer = server.accept()
            got[peer] = stack.enter_context(accepted)
        for n, c in enumerate(clients):
            c.sendall(b"%d" % n)
        return failed, [got[c.getsockname()].recv(9) for c in clients]


def time_limits_are_of_the_connections_behind_them(i):
    """Some wait in the listener's queue when a limit is set that those behind them inherit."""
    def limit(s):
        return s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)

    with tcp() as server, contextlib.ExitStack() as stack:
        server.bind((LO, 0))
        server.listen(16)
        clients, got = [], []
        for seconds in (0, 7, 0):
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))
            some = [stack.enter_context(tcp()) for _ in range(3)]
            for c in some:
                c.connect(server.getsockname())
            # The first of them is here; so are those that the next connect() comes behind.
            accepted, peer = server.accept()
            got.append((stack.enter_context(accepted), peer))
            clients += some
        while len(got) < len(clients):
            accepted, peer = server.accept()
            got.append((stack.enter_context(accepted), peer))
        by_name = {peer: accepted for accepted, peer in got}
        for n, c in enumerate(clients):
            c.sendall(b"%d" % n)
        return [by_name[c.getsockname()].recv(9) for c in clients]


def listeners_that_close_reset_and_listen_again(i):
    port = 6400 + i
    answers = []
    with tcp(socket.SO_REUSEADDR) as server:
        server.bind((LO, port))
        for _ in range(2):
            server.listen(16)
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(tcp()) for _ in range(4)]
                for c in clients:
                    c.connect((LO, port))
                server.accept()[0].close()
                server.shutdown(socket.SHUT_RD)
                answers.append(sorted(str(outcome(c.recv, 1)) for c in clients))
    return answers


def bound_ports_connect(i):
    port = 5100 + i
    with listening() as server, tcp(socket.SO_REUSEADDR) as client, tcp() as taken:
        client.bind((LO, port))
        client.connect(server.getsockname())
        accepted, peer = server.accept()
        with accepted:
            accepted.sendall(b"hello")
            answer = client.recv(9), peer[1] == port, client.getsockname()[1] == port
            return *answer, outcome(taken.bind, (LO, port))


def chosen_ports_connect(_):
    with listening() as server, tcp() as client, tcp() as taken:
        client.bind((LO, 0))
        before = client.getsockname()
        client.connect(server.getsockname())
        accepted, peer = server.accept()
        with accepted:
            client.sendall(b"hello")
            return accepted.recv(9), peer == before == client.getsockname(), outcome(taken.bind, before)


def chosen_ports_are_free(i):
    """bind() and listen() find the ports that connections have not."""
    if KERNEL < (6, 3):
        return "the kernel has no IP_LOCAL_PORT_RANGE"
    low = 7000 + 16 * i
    with listening(backlog=16) as server, contextlib.ExitStack() as stack:
        sockets, made = [], []
        for n in range(10):
            s = stack.enter_context(tcp())
            s.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, (low + 9) << 16 | low)
            call = (s.connect, server.getsockname()) if n < 6 else (s.bind, (LO, 0)) if n % 2 else (s.listen,)
            made.append(outcome(*call))
            sockets.append(s)
        return made, len({s.getsockname()[1] for s in sockets})


def addresses_without_ports_connect(_):
    with listening() as server, tcp() as client:
        client.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        client.bind(("127.0.0.9", 0))
        before = client.getsockname()
        client.connect(server.getsockname())
        accepted, peer = server.accept()
        with accepted:
            return before, peer[0], peer[1] != 0


def a_refused_one_keeps_its_port(i):
    port = 5200 + i
    # Every other one does not wait for its connect().
    with tcp() as client, tcp() as other, tcp() as server:
        client.bind((LO, port))
        client.settimeout(20 if i % 2 else None)
        refused = outcome(client.connect, (LO, 9))
        taken = outcome(other.bind, (LO, port))
        server.bind((LO, 0))
        server.listen()
        again = outcome(client.connect, server.getsockname())
        return refused, taken, client.getsockname()[1] == port, again


def a_refused_one_binds(i):
    """Whichever worker it was refused in: a port that is taken, and one that is free."""
    with tcp() as client, listening(6200 + i):
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            client.connect((LO, 9))
        ended = select.poll()
        ended.register(client, select.POLLERR | select.POLLHUP)
        ended.poll(10000)
        return outcome(client.bind, (LO, 6200 + i)), outcome(client.bind, (LO, 6300 + i))


def connections_spread(_):
    """One listener, several clients at once, each with its own bytes."""
    with listening(backlog=32) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(tcp()) for _ in range(8)]
        for n, c in enumerate(clients):
            c.connect(server.getsockname())
            c.sendall(bytes([65 + n]) * 1000)
            c.shutdown(socket.SHUT_WR)
        got = set()
        for _ in clients:
            accepted = stack.enter_context(server.accept()[0])
            data = b""
            while more := accepted.recv(4096):
                data += more
            got.add((data[:1], len(data), len(set(data))))
        return len(got), sorted(got)[0]


def children_ask_at_once(_):
    """Several processes bind and connect side by side."""
    pipes = []
    for n in range(3):
        r, w = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(r)
            with udp() as s, udp() as c:
                s.bind((LO, 5300 + n))
                c.sendto(b"x" * (n + 1), (LO, 5300 + n))
                os.write(w, s.recv(9))
            os._exit(0)
        os.close(w)
        pipes.append((pid, r))
    answers = []
    for pid, r in pipes:
        answers.append(os.read(r, 99))
        os.close(r)
        answers.append(os.waitpid(pid, 0)[1])
    return answers


def closed_while_it_binds(i):
    """Another thread closes the descriptor: whatever bind() says, the next one has the port."""
    for make in (udp, tcp):
        fd = make().detach()
        address = struct.pack("=H", socket.AF_INET) + struct.pack("!H", 6000 + i) + socket.inet_aton(LO) + bytes(8)
        thread = threading.Thread(target=os.close, args=(fd,))
        thread.start()
        libc.bind(fd, address, len(address))
        thread.join()
        with make() as second:
            second.bind((LO, 6000 + i))
    return "bound"


def closed_while_it_finds_its_port_taken(_):
    with listening() as taken:
        port = taken.getsockname()[1]
        address = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(LO) + bytes(8)
        fd = tcp().detach()
        thread = threading.Thread(target=os.close, args=(fd,))
        thread.start()
        said = libc.bind(fd, address, len(address))
        thread.join()
        with tcp() as client:
            return said, outcome(client.connect, (LO, port))


signal.alarm(100)  # the calls wait without a bound
for question in (datagrams_free_their_ports, datagram_ports_conflict, datagram_ports_are_shared, a_connected_one_is_preferred,
                 a_closed_datagram_port_refuses, options_and_groups_survive_bind, a_receive_waits_through_a_bind,
                 a_duplicate_names_the_same_socket, listeners_free_their_ports, waiting_connections_free_their_port,
                 accepted_connections_free_their_port,
                 accepted_connections_keep_their_port, accepts_that_fail_lose_nothing,
                 time_limits_are_of_the_connections_behind_them, listeners_that_close_reset_and_listen_again, bound_ports_connect, chosen_ports_connect,
                 chosen_ports_are_free, addresses_without_ports_connect, a_refused_one_keeps_its_port, a_refused_one_binds, connections_spread,
                 closed_while_it_binds, closed_while_it_finds_its_port_taken,
                 children_ask_at_once):
    print(f"{question.__name__}: {different(question)}", flush=True)
