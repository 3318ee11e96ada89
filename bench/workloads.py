"""The workloads: each starts a real server on a bed (modes.py), drives it from the peer and returns its figures."""
import dataclasses
import json
import os
import re
import subprocess
import time

import harness
import processes
from harness import SLUICE
from modes import RR, NotMeasured
from typing import Callable

IDLE_CONNECTIONS = 10000
SANDBOXES = 20


@dataclasses.dataclass(frozen=True)
class Work:
    run: Callable  # (bed, seconds) -> one value for each figure
    figures: tuple  # (name, unit, more is better)


def iperf3(arguments):
    def work(bed, seconds):
        server = bed.start("iperf3", "-s", "-1", "--forceflush")
        server.wait_log("Server listening")
        out = bed.peer("iperf3", "-c", bed.address(), "-J", "-t", str(seconds), "-O", "1", *arguments).expect_success()
        return [json.loads(out[out.index("{"):])["end"]["sum_received"]["bits_per_second"] / 1e9]
    return work


PAGES = {"1k": 1024, "16k": 16384, "1m": 1 << 20}


def nginx_argv(directory):
    with open(f"{directory}/nginx.conf", "w", encoding="utf-8") as f:
        f.write(f"worker_processes 2; pid {directory}/pid; error_log {directory}/error.log; daemon off;\n"
                "events { worker_connections 1024; }\n"
                f"http {{ access_log off; keepalive_requests 1000000000; sendfile on; tcp_nopush on;\n"
                f"  server {{ listen 80; root {directory}; }} }}\n")
    for name, size in PAGES.items():
        with open(f"{directory}/{name}", "wb") as f:
            f.write(b"x" * size)
    return [harness.debian_binary("nginx"), "-c", f"{directory}/nginx.conf", "-e", f"{directory}/error.log"]


def nginx(path, close=False):
    """Thousands of requests a second, and the 99th percentile of their latency in microseconds. Library: of the example's server."""
    arguments = ("-H", "Connection: close") if close else ()

    def work(bed, seconds):
        server, paths = bed.start_http(*nginx_argv(bed.directory), **PAGES)
        bed.wait_answers(80, server)
        out = bed.peer("wrk", "-t2", "-c64", "--latency", f"-d{seconds}s", *arguments, f"http://{bed.address()}/{paths[path]}").expect_success()
        if "Non-2xx" in out:
            raise AssertionError("refused: " + " ".join(out.split()))
        value, unit = re.search(r"^\s*99%\s+([\d.]+)(us|ms|s)$", out, re.MULTILINE).groups()
        return [float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1)) / 1e3, float(value) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]]
    return work


def redis(arguments, scale):
    def work(bed, seconds):
        server = bed.start("redis-server", "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", cwd=bed.directory)
        bed.wait_answers(6379, server)
        out = bed.peer(*redis_benchmark(bed.address(), 6379, arguments, scale * seconds)).expect_success(120)
        return [float(re.search(r'"GET","([\d.]+)"', out).group(1)) / 1e3]
    return work


def redis_benchmark(address, port, arguments, requests):
    return ("redis-benchmark", "-h", address, "-p", str(port), "-t", "get", "-n", str(requests), "--csv", *arguments)


def redis_echo(arguments, scale):
    """redis-benchmark against rr: the request, an array, is a valid reply. So there is no server's work, and the library has a figure."""
    def work(bed, seconds):
        start_rr(bed)
        out = bed.peer(*redis_benchmark(bed.address(), 7000, arguments, scale * seconds)).expect_success(120)
        return [float(re.search(r'"GET","([\d.]+)"', out).group(1)) / 1e3]
    return work


def memcached(bed, seconds):
    server = bed.start(harness.debian_binary("memcached"), "-u", "nobody", "-p", "11211", "-U", "0", "-l", "0.0.0.0", "-t", "2")
    bed.wait_answers(11211, server)
    out = bed.peer("memcaslap", "-s", f"{bed.address()}:11211", "-T", "2", "-c", "50", "-t", f"{seconds}s").expect_success(120)
    if not re.search(r"get_misses: 0\b", out):
        raise AssertionError("memcached lost values: " + " ".join(out.split()))
    return [float(re.search(r"TPS: (\d+)", out).group(1)) / 1e3]


def start_rr(bed):
    server = bed.start(RR, "serve", "7000")
    server.wait_log("listening|serving")
    bed.wait_answers(7000, server)
    return server


def plain_bulk(direction, streams):
    """Bulk with nothing but sockets: the client and the kernel's server have one thread each."""
    def work(bed, seconds):
        start_rr(bed)
        port = {"in": "7001", "out": "7002"}[direction]
        out = bed.peer(RR, direction, bed.address(), port, str(seconds), str(streams)).expect_success()
        return [json.loads(out.splitlines()[-1])["gbps"]]
    return Work(work, ((f"bulk {direction}, {streams} stream{'s' if streams > 1 else ''}, one thread", "Gbps", True),))


def request_response(kind):
    def work(bed, seconds):
        start_rr(bed)
        result = json.loads(bed.peer(RR, kind, bed.address(), "7000", str(seconds)).expect_success().splitlines()[-1])
        return [result["per_second"] / 1e3, result["p50_us"], result["p99_us"], result["p999_us"]]
    return work


def start_up(bed, _):
    """Milliseconds that `true` takes (the kernel's row: nsenter and true)."""
    argv = bed.argv("true")
    start = time.monotonic()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    took = (time.monotonic() - start) * 1e3
    if bed.mode.kind == "container":
        bed.ask_runtime("delete", "--force", bed.container)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(argv)}: status {done.returncode}: {done.stderr}")
    return [took]


def idle(bed, seconds):
    """Of all processes with an idle server: percent of one core; of those that are not the server's: MiB."""
    server = start_rr(bed)
    time.sleep(1)  # the connection of the check above ends
    pids = [server.pid, *processes.children(server.pid)]
    before = processes.cpu_seconds(pids)
    time.sleep(seconds)
    used = (processes.cpu_seconds(pids) - before) / seconds * 100
    own = [] if bed.mode.kind == "kernel" else [p for p in pids if bed.is_ours(p)]
    return [used, processes.pss_kib(own) / 1024]


def sandboxes(bed, _):
    """Several that are started at once, in namespaces of their own: milliseconds for each until all run, MiB of each, CPU of all when idle."""
    if bed.mode.kind in ("container", "library"):
        raise NotMeasured("containers want an engine for this: bench/container_start.py")
    argv = ["unshare", "--net"] if bed.mode.kind == "kernel" else [SLUICE, *bed.mode.flags, "do", "--"]
    if bed.mode.kind == "netns" and "--network=host" in bed.mode.flags:
        argv = bed.net.inside.argv(*argv)  # not in the machine's own
    start = time.monotonic()
    programs = [bed._start([*argv, "sh", "-c", "echo running; exec sleep 600"]) for _ in range(SANDBOXES)]
    for p in programs:
        p.sandbox = bed.mode.kind != "kernel"
        p.wait_log("running")
    took = (time.monotonic() - start) * 1e3 / SANDBOXES
    pids = [pid for p in programs for pid in (p.pid, *processes.children(p.pid))]
    own = [] if bed.mode.kind == "kernel" else [p for p in pids if bed.is_ours(p)]
    memory = processes.pss_kib(own) / 1024 / SANDBOXES
    before = processes.cpu_seconds(pids)
    time.sleep(2)
    return [took, memory, (processes.cpu_seconds(pids) - before) / 2 * 100]


def available_kib():
    with open("/proc/meminfo", encoding="utf-8") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("MemAvailable:"))


def idle_connections(bed, _):
    """KiB of the machine's memory that an idle TCP connection takes, both ends (the client's is the kernel's)."""
    start_rr(bed)
    before = available_kib()
    client = bed.peer(RR, "hold", bed.address(), "7000", str(IDLE_CONNECTIONS), stdin=subprocess.PIPE)
    client.wait_log("holding")
    taken = before - available_kib()
    client.process.stdin.close()
    client.expect_success()
    return [taken / IDLE_CONNECTIONS]


def bulk(direction, flags):
    return [Work(iperf3([*flags, *(["-P", str(n)] if n > 1 else [])]), ((f"iperf3 {direction}, {n} stream{'s' if n > 1 else ''}", "Gbps", True),))
            for n in (1, 4, 16, 64)]


def page(path, size, close):
    how = "connection each" if close else "keep-alive"
    return Work(nginx(path, close), ((f"nginx {size} {how}, wrk -c64", "k/s", True), (f"nginx {size} {how} p99", "us", False)))


def round_trips(kind, name):
    return Work(request_response(kind), ((name, "k/s", True), *((f"{name} {q}", "us", False) for q in ("p50", "p99", "p99.9"))))


WORKS = (
    *bulk("in", []), *bulk("out", ["-R"]),
    *(plain_bulk(direction, streams) for direction in ("in", "out") for streams in (1, 16)),
    *(page(path, size, close) for close in (False, True) for path, size in (("1k", "1 KiB"), ("16k", "16 KiB"), ("1m", "1 MiB"))),
    Work(redis(["-c", "50"], 20000), (("redis GET -c50", "k/s", True),)),
    Work(redis(["-c", "50", "-P", "16"], 200000), (("redis GET -c50 -P16", "k/s", True),)),
    Work(redis_echo(["-c", "50"], 20000), (("redis-benchmark GET -c50 of an echo", "k/s", True),)),
    Work(redis_echo(["-c", "50", "-P", "16"], 200000), (("redis-benchmark GET -c50 -P16 of an echo", "k/s", True),)),
    Work(memcached, (("memcached 9 get 1 set, memaslap -c50", "k/s", True),)),
    round_trips("tcp", "TCP 1 B request/response"),
    round_trips("crr", "TCP connection per request"),
    round_trips("udp", "UDP 1 B echo"),
    Work(start_up, (("start-up: true", "ms", False),)),
    Work(sandboxes, ((f"start-up: {SANDBOXES} at once", "ms each", False), (f"memory: {SANDBOXES} at once", "MiB PSS each", False),
                     (f"idle CPU: {SANDBOXES} at once", "% of a core", False))),
    Work(idle_connections, (("memory of an idle connection", "KiB", False),)),
    Work(idle, (("idle CPU", "% of a core", False), ("memory of our processes", "MiB PSS", False))),
)
