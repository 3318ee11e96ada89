"""A server of names outside, for tests: name_server.py ADDRESS. Answers A queries at port 53 by UDP and TCP, and prints "TRANSPORT NAME
CLIENT" for each.

outside.test   one address
truncated.test by UDP truncated, by TCP two addresses
long.test      an answer that does not fit into one frame
"""
import socket
import struct
import sys
import threading

ADDRESSES = {"outside.test": 1, "truncated.test": 2, "long.test": 150}


def answer(query, transport, client):
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode())
        at += 1 + query[at]
    question = query[12:at + 5]
    name = ".".join(labels).lower()
    print(transport, name, client[0], flush=True)
    count = ADDRESSES.get(name) if question[-4:-2] == b"\0\1" else 0
    truncated = name == "truncated.test" and transport == "udp" and count
    flags = 0x8180 | (0x0200 if truncated else 0) | (3 if count is None else 0)
    count = 0 if truncated else count or 0
    records = b"".join(b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + bytes((192, 0, 2, i % 256)) for i in range(7, 7 + count))
    return query[:2] + struct.pack("!HHHHH", flags, 1, count, 0, 0) + question + records


def serve_tcp(listener):
    while True:
        connection, client = listener.accept()
        with connection, connection.makefile("rwb") as stream:
            while len(size := stream.read(2)) == 2:
                reply = answer(stream.read(struct.unpack("!H", size)[0]), "tcp", client)
                stream.write(struct.pack("!H", len(reply)) + reply)
                stream.flush()


def main():
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((sys.argv[1], 53))
    threading.Thread(target=serve_tcp, args=(socket.create_server((sys.argv[1], 53)),), daemon=True).start()
    print("ready", flush=True)
    while True:
        query, client = datagrams.recvfrom(65535)
        datagrams.sendto(answer(query, "udp", client), client)


main()
