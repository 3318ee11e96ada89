"""redis, memcached, PostgreSQL."""
import glob
import os
import re
import shutil
import subprocess
import unittest

from harness import INSIDE, PEER, SluiceTest


class RedisTest(SluiceTest):
    ARGV = ("redis-server", "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--appendonly", "no")

    def check_benchmark(self, output):
        rates = dict(re.findall(r'"(\w+)","([\d.]+)"', output))
        self.assertEqual(set(rates), {"SET", "GET"}, output)
        self.assertNotRegex(output, "(?i)error")

    def benchmark(self, host, *arguments):
        return ("redis-benchmark", "-h", host, "-t", "set,get", "-n", "20000", "-r", "1000", "--csv", *arguments)

    def test_server(self):
        server = self.inside(*self.ARGV, cwd=self.directory)
        self.wait_peer_sees(6379, server)
        self.check_benchmark(self.peer(*self.benchmark(INSIDE, "-c", "50")).expect_success())
        self.check_benchmark(self.peer(*self.benchmark(INSIDE, "-c", "50", "-P", "16", "-d", "1000")).expect_success())
        value = "v" * 300000
        out = self.net.peer.run("redis-cli", "-h", INSIDE, "-x", "set", "big", input=value).stdout
        self.assertIn("OK", out)
        self.assertEqual(self.net.peer.run("redis-cli", "-h", INSIDE, "get", "big").stdout.strip(), value)

    def test_client(self):
        self.peer(*self.ARGV, cwd=self.directory)
        self.wait_listening_on_peer(6379)
        self.check_benchmark(self.inside(*self.benchmark(PEER, "-c", "50")).expect_success())

    def test_both_inside_over_loopback(self):
        script = "redis-server --port 6379 --bind 127.0.0.1 --save '' >/dev/null & " \
                 "until redis-cli ping >/dev/null 2>&1; do sleep 0.1; done; " \
                 "redis-benchmark -h 127.0.0.1 -t set,get -n 20000 --csv -c 50; redis-cli shutdown nosave; wait"
        self.check_benchmark(self.inside("sh", "-c", script, cwd=self.directory).expect_success())


class MemcachedTest(SluiceTest):
    def test_server(self):
        server = self.inside("memcached", "-u", "nobody", "-p", "11211", "-U", "0", "-l", "0.0.0.0", "-t", "2")
        self.wait_peer_sees(11211, server)
        value = os.urandom(500000).hex().encode()[:900000]
        with self.net.peer.connect((INSIDE, 11211)) as s, s.makefile("rwb") as f:
            for i in range(20):
                f.write(b"set key%d 0 0 %d\r\n%s\r\n" % (i, len(value), value))
                f.flush()
                self.assertEqual(f.readline(), b"STORED\r\n")
            for i in range(20):
                f.write(b"get key%d\r\n" % i)
                f.flush()
                self.assertEqual(f.readline(), b"VALUE key%d 0 %d\r\n" % (i, len(value)))
                self.assertEqual(f.read(len(value) + 2), value + b"\r\n")
                self.assertEqual(f.readline(), b"END\r\n")


class PostgresTest(SluiceTest):
    def setUp(self):
        super().setUp()
        self.bin = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
        self.data = os.path.join(self.directory, "pg")
        os.mkdir(self.data)
        shutil.chown(self.data, "postgres", "postgres")
        subprocess.run(self.as_postgres(f"{self.bin}/initdb", "-D", self.data, "-A", "trust", "-N"), check=True, capture_output=True,
                       timeout=120, cwd="/")
        with open(f"{self.data}/pg_hba.conf", "a", encoding="utf-8") as f:
            f.write("host all all 10.77.0.0/24 trust\n")

    @staticmethod
    def as_postgres(*argv):
        return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *argv]

    def server_argv(self):
        return self.as_postgres(f"{self.bin}/postgres", "-D", self.data, "-c", "listen_addresses=*", "-c", f"unix_socket_directories={self.data}",
                                "-c", "fsync=off")

    def pgbench(self, host):
        """pgbench: tables made, then TPC-B and selects on 8 connections; every account's history adds up."""
        script = (f"set -e; export PGHOST={host} PGUSER=postgres PGDATABASE=postgres; pgbench -q -i -s 2 >/dev/null 2>&1; "
                  "pgbench -n -c 8 -j 2 -t 100; pgbench -n -S -c 8 -j 2 -t 500; "
                  "psql -Atc 'select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history), "
                  "(select count(*) from pgbench_history)'")
        return "sh", "-c", script

    def check(self, output):
        self.assertIn("number of transactions actually processed: 800/800", output)
        self.assertIn("number of transactions actually processed: 4000/4000", output)
        self.assertIn("t|800", output)

    def test_server(self):
        server = self.inside(*self.server_argv(), cwd="/")
        server.wait_log("ready to accept connections")
        self.check(self.peer(*self.pgbench(INSIDE), cwd="/").expect_success(180))

    def test_client(self):
        server = self.peer(*self.server_argv(), cwd="/")
        server.wait_log("ready to accept connections")
        self.check(self.inside(*self.pgbench(PEER), cwd="/").expect_success(180))


if __name__ == "__main__":
    unittest.main()
