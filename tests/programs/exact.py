"""Moves SIZE bytes both ways at once over one TCP connection and checks every byte: exact.py serve PORT SIZE | connect HOST PORT SIZE."""
import hashlib
import socket
import struct
import sys
import threading


def stream(role, size):
    """The bytes that a role sends: a hash chain, so that no shift, repeat or swap goes unseen."""
    block = hashlib.sha256(role.encode()).digest()
    while size > 0:
        block = hashlib.sha256(block).digest()
        part = (block * 2048)[:min(size, 65536)]
        size -= len(part)
        yield part


def exchange(s, own, other, size):
    failure = []

    def send():
        try:
            for part in stream(own, size):
                s.sendall(part)
            s.shutdown(socket.SHUT_WR)
        except OSError as e:
            failure.append(f"send: {e}")

    sender = threading.Thread(target=send)
    sender.start()
    at = 0
    for wanted in stream(other, size):
        got = b""
        while len(got) < len(wanted):
            part = s.recv(len(wanted) - len(got))
            if not part:
                sys.exit(f"the stream ended at byte {at + len(got)} of {size}")
            got += part
        if got != wanted:
            first = next(i for i, (a, b) in enumerate(zip(got, wanted)) if a != b)
            sys.exit(f"byte {at + first} is wrong")
        at += len(got)
    if s.recv(1):
        sys.exit(f"more than {size} bytes came")
    sender.join()
    if failure:
        sys.exit(failure[0])
    info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    agreed, seen, marked = info[5] & 8 != 0, info[5] & 16 != 0, struct.unpack_from("I", info, 196)[0]
    print(f"{size} bytes each way, all right; ECN {agreed}, seen {seen}, delivered marked {marked > 0}", flush=True)


def main():
    if sys.argv[1] == "serve":
        with socket.create_server(("0.0.0.0", int(sys.argv[2]))) as listener:
            print("listening", flush=True)
            s, _ = listener.accept()
            with s:
                exchange(s, "server", "client", int(sys.argv[3]))
    else:
        with socket.create_connection((sys.argv[2], int(sys.argv[3]))) as s:
            exchange(s, "client", "server", int(sys.argv[4]))


main()
