"""random_calls.py [-v] LOOPBACK_SANDBOX [FIRST [COUNT]]: plays the same pseudo-random scripts of socket calls, one for each seed, on
the kernel's loopback of a fresh network namespace and in the sandbox, and compares what every call says and what all descriptors
show after it. Status 0 where both say the same. Needs root.

A script whose answers differ is played again, alone; what differs each time is made as short as it gets, and printed with both
answers. What is known to differ (docs/limits.md) is not asked: `left_out` in call_player.py.
"""
import argparse
import json
import os
import random
import select
import subprocess
import sys

PLAYER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "call_player.py")
AGAIN = 4           # times that a difference must show
SCRIPTS_OF_ONE = 1500  # then both sides begin anew: fixed ports, and connections in TIME_WAIT
SILENCE = 60        # seconds


# -- the scripts

SLOTS = "abcdef"
HOSTS4 = ["127.0.0.1"] * 6 + ["0.0.0.0"] * 3 + ["127.0.0.2", "10.1.2.3"]
HOSTS6 = ["[::1]"] * 4 + ["[::]"] * 3 + ["[::ffff:127.0.0.1]"] * 3 + ["[::ffff:0.0.0.0]", "127.0.0.1", "[2001:db8::1]"]
SIZES = [0, 1, 3, 10, 100, 1000, 5000, 20000]
EVENTS = ["IN", "OUT", "IN|OUT", "IN|RDHUP", "IN|OUT|RDHUP|ET", "IN|ET", "IN|ONESHOT", "PRI", "IN|PRI|ET"]
TCP_OPTIONS = {
    "TCP_NODELAY": [1, 2], "TCP_CORK": [0, 1], "TCP_QUICKACK": [0, 1], "TCP_MAXSEG": [0, 500, 1400, 70000],
    "TCP_KEEPIDLE": [0, 10, 40000], "TCP_KEEPINTVL": [5], "TCP_KEEPCNT": [3, 200], "TCP_SYNCNT": [2, 0], "TCP_LINGER2": [3],
    "TCP_DEFER_ACCEPT": [0], "TCP_USER_TIMEOUT": [1000, -1],
}
OPTIONS = {
    "SO_REUSEADDR": [0, 1, 1, 1], "SO_REUSEPORT": [0, 1, 1], "SO_KEEPALIVE": [0, 1], "SO_BROADCAST": [0, 1], "SO_OOBINLINE": [0, 1],
    "SO_RCVBUF": [65536, 200000], "SO_SNDBUF": [65536, 200000], "SO_RCVLOWAT": [0, 1],
    "SO_LINGER": ["1,0", "0,0", "1,1"], "SO_DONTROUTE": [0, 1], "SO_PRIORITY": [0, 3, 9], "SO_ERROR": [1], "SO_TYPE": [1],
    "IP_TOS": [0, 16, 255], "IP_TTL": [0, 64, 255, 256, -1], "IP_MTU_DISCOVER": [0, 2], "IP_FREEBIND": [0, 1],
    "IP_RECVERR": [0, 1], "IPV6_V6ONLY": [0, 1], "IPV6_UNICAST_HOPS": [-1, 0, 64, 300],
}
GETTABLE = ["SO_ERROR", "SO_ERROR", "SO_ERROR", "SO_TYPE", "SO_DOMAIN", "SO_PROTOCOL", "SO_ACCEPTCONN", "SO_SNDLOWAT", "SO_PEERNAME", "IP_MTU",
            "TCP_INFO", "TCP_INFO"]


class Script:
    """A script of one seed. It knows only roughly what its calls will come to, so that most of them make sense."""

    def __init__(self, seed):
        self.r = random.Random(seed)
        self.kinds, self.lines = {}, []  # kinds: of slots, with what was done: tcp4, "listening" ...

    def make(self):
        for beginning in self.r.sample([self.stream, self.stream, self.datagrams, self.listener, self.nothing], self.r.choice([1, 1, 2])):
            beginning()
        for _ in range(self.r.randrange(3, 22)):
            self.any_call()
        return self.lines

    def say(self, *words):
        self.lines.append(" ".join(str(w) for w in words))

    # -- choices

    def free(self):
        return next((s for s in SLOTS if s not in self.kinds), None)

    def some(self, *wanted):
        return [s for s, k in self.kinds.items() if not wanted or any(w in k for w in wanted)]

    def pick(self, *wanted):
        fitting = self.some(*wanted) if self.r.random() < 0.93 else self.some()
        return self.r.choice(fitting) if fitting else self.r.choice(SLOTS)

    def kind(self):
        return self.r.choice(["tcp4", "tcp4", "tcp6", "udp4", "udp6"])

    def flags(self):
        return self.r.choice(["-", "nonblock"])

    def host(self, slot):
        return self.r.choice(HOSTS6 if "6" in self.kinds.get(slot, "") else HOSTS4)

    def port_to_bind(self):
        return self.r.choice(["0", "0", "P1", "P2", "@" + self.r.choice(SLOTS)])

    def target(self, slot):
        """Mostly where somebody is."""
        if self.r.random() < 0.06:
            return "unspec"
        if self.r.random() < 0.1:
            return f"{self.host(slot)}:{self.r.choice(['P4', '0', '@' + slot])}"
        there = self.some("listening") if "tcp" in self.kinds.get(slot, "") else self.some("udp")
        return f"{self.host(slot)}:@{self.r.choice(there or SLOTS)}"

    # -- beginnings

    def nothing(self):
        pass

    def new(self, kind=None):
        slot = self.free()
        if slot is None:
            return self.pick()
        kind = kind or self.kind()
        self.say("socket", slot, kind, self.flags())
        self.kinds[slot] = kind
        return slot

    def listener(self, family=None):
        slot = self.new("tcp" + (family or self.r.choice("46")))
        host = self.r.choice(["[::]", "[::]", "[::1]", "[::ffff:127.0.0.1]"] if "6" in self.kinds[slot] else ["127.0.0.1", "0.0.0.0"])
        if self.r.random() < 0.85:
            self.say("bind", slot, f"{host}:{self.r.choice(['0', '0', 'P1'])}")
        self.say("listen", slot, self.r.choice([16, 128, -1]))
        self.kinds[slot] += " listening"
        return slot

    def stream(self):
        at = self.listener()
        to = self.new("tcp" + ("6" if "6" in self.kinds[at] and self.r.random() < 0.7 else "4"))
        host = self.r.choice(["[::1]", "[::ffff:127.0.0.1]"]) if "6" in self.kinds[to] else "127.0.0.1"
        self.say("connect", to, f"{host}:@{at}")
        self.kinds[to] += " connected"
        self.accept(at)
        if self.r.random() < 0.5:
            self.close(at)

    def datagrams(self):
        kind = self.r.choice(["udp4", "udp6"])
        a, b = self.new(kind), self.new(kind)
        host = self.r.choice(["[::1]", "[::ffff:127.0.0.1]"]) if kind == "udp6" else "127.0.0.1"
        self.say("bind", a, f"{host}:0")
        if self.r.random() < 0.7:
            self.say("connect", b, f"{host}:@{a}")
            self.kinds[b] += " connected"
        if self.r.random() < 0.4:
            self.say("connect", a, f"{host}:@{b}")
            self.kinds[a] += " connected"

    # -- calls

    def any_call(self):
        calls = [(self.new, 6), (self.bind, 6), (self.listen, 4), (self.connect, 9), (self.accept, 7), (self.send, 22), (self.recv, 20),
                 (self.shutdown, 6), (self.close, 6), (self.dup, 2), (self.dup2, 1), (self.set, 9), (self.get, 9), (self.names, 8),
                 (self.ioctl, 3), (self.watch, 4), (self.wait, 5), (self.nonblock, 2)]
        self.r.choices([c for c, _ in calls], [w for _, w in calls])[0]()

    def bind(self):
        slot = self.pick("tcp", "udp")
        self.say("bind", slot, f"{self.host(slot)}:{self.port_to_bind()}")

    def listen(self):
        slot = self.pick("tcp")
        self.say("listen", slot, self.r.choice([16, 16, 128, -1, 10000]))
        self.kinds[slot] = self.kinds.get(slot, "") + " listening"

    def connect(self):
        slot = self.pick("tcp", "udp")
        self.say("connect", slot, self.target(slot))
        self.kinds[slot] = self.kinds.get(slot, "") + " connected"

    def accept(self, at=None):
        slot, to = at or self.pick("listening"), self.free()
        if to is None:
            return
        self.say("accept", slot, to, self.r.choice(["name", "-"]), self.flags())
        self.kinds[to] = (self.kinds.get(slot) or "tcp4").split()[0] + " connected"

    def send(self):
        slot = self.pick("connected", "udp")
        kind = self.kinds.get(slot, "")
        how = self.r.choice(["send", "send", "write", "writev", "sendto", "sendmsg", "sendmsg"])
        flags = [f for f, p in (("NOSIGNAL", 0.4), ("DONTWAIT", 0.3), ("MORE", 0.1), ("OOB", 0.06)) if self.r.random() < p]
        to = [self.target(slot)] if how.startswith("sendto") or how == "sendmsg" and ("udp" in kind or self.r.random() < 0.1) else []
        if to and self.r.random() < 0.3 and "connected" in kind:
            to = []
        self.say("send", slot, how, self.r.choice(SIZES), "|".join(flags) or "-", *to)

    def recv(self):
        slot = self.pick("connected", "udp")
        how = self.r.choice(["recv", "recv", "read", "readv", "recvfrom", "recvfrom", "recvmsg", "recvmsg"])
        flags = [f for f, p in (("PEEK", 0.2), ("TRUNC", 0.1), ("WAITALL", 0.1), ("DONTWAIT", 0.3), ("OOB", 0.05), ("ERRQUEUE", 0.03))
                 if self.r.random() < p]
        self.say("recv", slot, how, self.r.choice(SIZES), "|".join(flags) or "-")

    def shutdown(self):
        self.say("shutdown", self.pick("connected", "listening"), self.r.choice([0, 1, 1, 2]))

    def close(self, slot=None):
        slot = slot or self.pick()
        self.say("close", slot)
        self.kinds.pop(slot, None)

    def dup(self):
        slot, to = self.pick(), self.free()
        if to is not None:
            self.say("dup", slot, to)
            self.kinds[to] = self.kinds.get(slot, "")

    def dup2(self):
        slot, to = self.pick(), self.pick()
        self.say("dup2", slot, to)
        self.kinds[to] = self.kinds.get(slot, "")

    def set(self):
        slot = self.pick("tcp", "udp")
        options = {**OPTIONS, **TCP_OPTIONS} if "tcp" in self.kinds.get(slot, "") else OPTIONS
        name = self.r.choice(list(options))
        self.say("set", slot, name, self.r.choice(options[name]))
        if self.r.random() < 0.3:
            self.say("get", slot, name)

    def get(self):
        name = self.r.choice(GETTABLE if self.r.random() < 0.7 else list(OPTIONS) + list(TCP_OPTIONS))
        self.say("get", self.pick("tcp", "udp"), name)

    def names(self):
        self.say(self.r.choice(["name", "peer"]), self.pick("tcp", "udp"))

    def ioctl(self):
        self.say("ioctl", self.pick("tcp", "udp"), self.r.choice(["FIONREAD", "SIOCATMARK"]))

    def watch(self):
        sets = self.some("epoll")
        if not sets:
            slot = self.free()
            if slot is None:
                return
            self.say("epoll", slot)
            self.kinds[slot] = "epoll"
            sets = [slot]
        self.say("watch", sets[0], self.pick("tcp", "udp"), self.r.choice(["add", "add", "add", "mod", "del"]), self.r.choice(EVENTS))

    def wait(self):
        sets = self.some("epoll")
        if sets:
            self.say("wait", sets[0])

    def nonblock(self):
        self.say("nonblock", self.pick("tcp", "udp"), self.r.choice([0, 1]))


# -- both sides

class Gone(Exception):
    pass


class Side:
    """A player that runs."""

    def __init__(self, command, rounds):
        self.process = subprocess.Popen([*command, sys.executable, PLAYER, str(rounds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def begin(self, script):
        self.process.stdin.write(json.dumps(script).encode() + b"\n")
        self.process.stdin.flush()

    def answers(self):
        if not select.select([self.process.stdout], [], [], SILENCE)[0]:
            raise Gone("says nothing")
        line = self.process.stdout.readline()
        if not line:
            raise Gone(f"ended with {self.process.wait()}")
        return json.loads(line)

    def end(self):
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Both:
    """The kernel and the sandbox."""
    NATIVE = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]

    def __init__(self, sandbox, rounds):
        self.sides = [Side(self.NATIVE, rounds), Side([sandbox], rounds)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for side in self.sides:
            side.end()

    def play(self, script):
        """What each answered."""
        for side in self.sides:
            try:
                side.begin(script)
            except BrokenPipeError:
                pass
        out = []
        for name, side in zip(("kernel", "sandbox"), self.sides):
            try:
                out.append(side.answers())
            except Gone as e:
                print(f"the player on the {name}: {e}", flush=True)
                out.append([str(e)])
        return out


def differ(answers):
    """The first call whose answers differ."""
    native, sandbox = answers
    for i in range(max(len(native), len(sandbox))):
        if i >= len(native) or i >= len(sandbox) or native[i] != sandbox[i]:
            return i
    return None


class Judge:
    def __init__(self, sandbox):
        self.sandbox = sandbox

    def differs(self, script, times=AGAIN):
        """Both answers, where they differ each time, played by players that have played nothing else."""
        last = None
        with Both(self.sandbox, 3) as both:
            for _ in range(times):
                last = both.play(script)
                if differ(last) is None:
                    return None
                if min(len(a) for a in last) < len(script):
                    break
        return last

    def shorten(self, script, answers):
        script = script[:differ(answers) + 1]
        answers = self.differs(script, 2) or answers
        i, before = len(script) - 1, len(script) + 1
        while i >= 0:
            shorter = script[:i] + script[i + 1:]
            found = self.differs(shorter, 2) if shorter else None
            if found:
                script, answers = shorter[:differ(found) + 1], found
            i = min(i, len(script)) - 1
            if i < 0 and len(script) < before:  # once more: what was needed may not be any more
                i, before = len(script) - 2, len(script)
        return script, answers


def report(seed, script, answers):
    print(f"seed {seed}: the answers differ")
    native, sandbox = answers
    for i, call in enumerate(script):
        a, b = (side[i] if i < len(side) else "" for side in (native, sandbox))
        print(f"  {call:45} {a}" if a == b else f"  {call:45} kernel:  {a}\n  {'':45} sandbox: {b}")
    if len(sandbox) < len(script):
        print(f"  sandbox: {sandbox[-1:]}")
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-v", action="store_true", help="print every script and its answers")
    parser.add_argument("--unsettled", action="store_true", help="print what differed once and not again, too")
    parser.add_argument("--keep-going", type=int, default=1, metavar="N", help="stop after N differences")
    parser.add_argument("sandbox")
    parser.add_argument("first", type=int, nargs="?", default=1)
    parser.add_argument("count", type=int, nargs="?", default=1000)
    args = parser.parse_args()
    judge = Judge(args.sandbox)
    found = unsettled = 0
    seed, end = args.first, args.first + args.count
    while seed < end and found < args.keep_going:
        with Both(args.sandbox, 1) as both:
            for seed in range(seed, min(end, seed + SCRIPTS_OF_ONE)):
                script = Script(seed).make()
                answers = both.play(script)
                if args.v:
                    report(seed, script, answers)
                if differ(answers) is None:
                    continue
                again = judge.differs(script)
                if again is None:
                    unsettled += 1
                    if args.unsettled:
                        report(seed, script, answers)
                else:
                    found += 1
                    report(seed, *judge.shorten(script, again))
                    if found >= args.keep_going:
                        break
                if min(len(a) for a in answers) < len(script):
                    break
        seed += 1
    print(f"{seed - args.first} scripts, {found} differ" + (f"; {unsettled} differed once and not again" if unsettled else ""))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
