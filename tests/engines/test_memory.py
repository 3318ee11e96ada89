"""Programs that do not read, on a sandbox with little memory: it lives, others are served, and every byte comes in the end."""
import json
import re
import unittest

from docker_case import DockerCase
from docker_host import wait_for

STREAMS = 120
BYTES = 1 << 20
SOCKETS = 200

# Listens at 80 and does not read what it accepts until it is told at 82; echoes at 81; has UDP sockets that it never reads.
SERVER = f"""
import hashlib, resource, socket, threading
bulk, echo, go = (socket.create_server(('', port), backlog=1000) for port in (80, 81, 82))
unread = []
for port in range(5000, 5000 + {SOCKETS}):
    unread.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    unread[-1].bind(('', port))
streams = []
def take():
    while True: streams.append(bulk.accept()[0])
def answer(c):
    while data := c.recv(65536): c.sendall(data)
    c.close()
def serve():
    while True: threading.Thread(target=answer, args=(echo.accept()[0],), daemon=True).start()
for f in (take, serve): threading.Thread(target=f, daemon=True).start()
print('ready', flush=True)
while True:
    c = go.accept()[0]
    read = []
    for s in streams:
        h, n = hashlib.sha256(), 0
        while data := s.recv(1 << 18): h.update(data); n += len(data)
        read.append(f'{{n}}:{{h.hexdigest()}}')
    c.sendall(' '.join(sorted(read)).encode())
    c.close()
"""
# Opens the streams and fills them as far as they go, floods, prints "filled" once nothing moves; says what it sent when all is taken.
CLIENT = f"""
import hashlib, selectors, socket, sys, time
host = sys.argv[1]
selector, streams = selectors.DefaultSelector(), []
for i in range({STREAMS}):
    s = socket.create_connection((host, 80), 60)
    s.setblocking(False)
    data = hashlib.shake_128(str(i).encode()).digest({BYTES})
    streams.append((hashlib.sha256(data).hexdigest()))
    selector.register(s, selectors.EVENT_WRITE, [data, 0])
flood, datagram, told, moved = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), bytes(1400), False, time.monotonic()
while selector.get_map():
    for key, _ in selector.select(1):
        data, at = key.data
        try: n = key.fileobj.send(memoryview(data)[at:at + (1 << 18)])
        except BlockingIOError: continue
        key.data[1], moved = at + n, time.monotonic()
        if key.data[1] == len(data):
            selector.unregister(key.fileobj)
            key.fileobj.shutdown(socket.SHUT_WR)
    if not told:
        for port in range(5000, 5000 + {SOCKETS}):
            for _ in range(5): flood.sendto(datagram, (host, port))
        if time.monotonic() - moved > 3:
            print('filled', sum(k.data[1] for k in selector.get_map().values()), flush=True)
            told = True
print(' '.join(sorted(f'{BYTES}:{{h}}' for h in streams)), flush=True)
"""
ECHO = """
import socket, sys, threading
c = socket.create_connection((sys.argv[1], 81), 60)
data = bytes(range(256)) * 4096
threading.Thread(target=lambda: (c.sendall(data), c.shutdown(socket.SHUT_WR))).start()
got = b''
while part := c.recv(65536): got += part
print('same' if got == data else len(got))
"""
# The reading program asks to be told; what it answers is what it read.
GO = "import socket, sys; c = socket.create_connection((sys.argv[1], 82), 60); c.settimeout(300); print(''.join(iter(lambda: c.recv(65536).decode(), '')))"


class UnreadTest(DockerCase):
    runtimes = {"sluice-small": ["--sentry-memory=64m"]}

    def test_unread_streams_and_datagrams(self):
        self.start("box", "python3", "-c", SERVER, options=["--ulimit", "nofile=10000:10000"], runtime="sluice-small", image="servers")
        wait_for(lambda: "ready" in self.host.out("logs", "box"), "the server listens")
        sentry, address = self.part("sentry"), self.host.address("box")
        client = self.host.popen("python3", "-c", CLIENT, address)
        try:
            filled = client.stdout.readline()
            self.assertIn("filled", filled)
            stats = json.loads(self.query("stats", "box"))
            self.assertEqual(self.part("sentry"), sentry)
            self.assertGreater(stats["memory"]["unread_bytes"], 1 << 20)
            for _ in range(3):
                self.assertEqual(self.host.host("python3", "-c", ECHO, address).stdout.strip(), "same")
            read = self.host.host("python3", "-c", GO, address, timeout=300).stdout.strip()
            sent = client.stdout.readline().strip()
        finally:
            client.kill()
            client.wait()
            client.stdout.close()
        self.assertEqual(read, sent)
        self.assertEqual(len(re.findall(":", read)), STREAMS)
        self.assertEqual(self.part("sentry"), sentry)


if __name__ == "__main__":
    unittest.main()
