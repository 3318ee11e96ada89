"""What goes wrong with containers, by hand as an engine calls the runtime: each fault gives a clear error where the engine reads it, and
`delete --force` leaves nothing."""
import copy
import itertools
import json
import os
import signal
import time
import unittest

from docker_host import SLUICE, wait_for
from machine import ADDRESS, DEVICE, ID, NETNS, MachineTest


class ConfigTest(MachineTest):
    def refused(self, content, *words):
        """One error line in the log, which says `words`; nothing changed, nothing left."""
        self.forget_log()
        self.config = self.configure(content) if content is not None else self.config
        failed = self.create(check=False)
        self.assertEqual(failed.returncode, 1, failed.stderr)
        (line,) = self.errors()
        self.assertLess(len(line), 600)
        for word in words:
            self.assertIn(word, line)
        self.assertEqual(self.leftovers(), [])
        if content is not None:
            with open(f"{self.bundle}/config.json", "rb") as f:
                self.assertEqual(f.read(), content)

    def test_broken_text(self):
        good = self.config
        for content, *words in ((b"", "not valid JSON"), (good[:-20], "not valid JSON"), (good + b"}", "not valid JSON"), (b"[]", "not a JSON object"),
                                (b"null", "not a JSON object"), (good[:-1] + b', "a": 1, "a": 2}', "is there twice"),
                                (good[:-1] + b', "a": "\xff\xfe"}', "UTF-8"), (good[:-1] + b', "a": ' + b"[" * 100000 + b"]" * 100000 + b"}", "nested deeper"),
                                (b"{" + b'"a":{' * 100000, "nested deeper"), (b'{"a": "' + b"x" * 100000, "not valid JSON"),
                                (good[:-1] + b', "LINUX": {}}', "runc takes this for")):
            with self.subTest(content=content[-40:]):
                self.refused(content, "config.json", *words)

    def test_wrong_types(self):
        spec = json.loads(self.config)
        for path in ("linux", "linux.namespaces", "linux.seccomp", "linux.seccomp.defaultAction", "linux.seccomp.syscalls", "linux.seccomp.architectures",
                     "linux.namespaces.0", "linux.namespaces.0.type", "process", "process.args", "process.env", "root", "root.path", "mounts", "hostname",
                     "linux.resources", "linux.maskedPaths", "hooks", "annotations", "ociVersion"):
            for value in (7, "text", [7], {"a": 7}, [[]]):
                config = copy.deepcopy(spec)
                config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [], "architectures": ["SCMP_ARCH_X86_64"]}
                *parents, last = path.split(".")
                place = config
                for name in parents:
                    place = place[int(name) if isinstance(place, list) else name]
                last = int(last) if isinstance(place, list) else last
                if isinstance(place.get(last) if isinstance(place, dict) else place[last], type(value)) and value != [7]:
                    continue
                place[last] = value
                if last in ("ociVersion", "hostname") or (last in ("root", "process", "hooks") and isinstance(value, dict)):
                    continue  # members of no meaning to us or runc
                with self.subTest(path=path, value=value):
                    self.refused(json.dumps(config).encode())

    def test_files_that_are_no_config(self):
        path = f"{self.bundle}/config.json"
        os.unlink(path)
        self.refused(None, "config.json not found")
        os.mkfifo(path)
        self.refused(None, "not a regular file")
        os.unlink(path)
        with open(path, "wb") as f:
            f.truncate(100 << 20)
        self.refused(None, "longer than 16 MiB")

    def test_a_symbolic_link_stays_one(self):
        path = f"{self.bundle}/config.json"
        real = f"{self.machine.directory}/elsewhere.json"
        os.rename(path, real)
        os.symlink(real, path)
        self.create()
        self.assertEqual(self.status(), "created")
        self.assertTrue(os.path.islink(path))
        self.recover()
        os.unlink(path)
        os.unlink(real)


class RuncTest(MachineTest):
    """Something else stands on the path in runc's place."""

    def fake(self, script):
        folder = f"{self.machine.directory}/bin"
        os.makedirs(folder, exist_ok=True)
        with open(f"{folder}/runc", "w", encoding="utf-8") as f:
            f.write(f"#!/bin/sh\n{script}\n")
        os.chmod(f"{folder}/runc", 0o755)
        return dict(os.environ, PATH=f"{folder}:{os.environ['PATH']}")

    # A runc that waits before it begins (`before`) or when it is through (`after`), until the file `go` is there.
    def slow(self, when):
        real = next(f"{p}/runc" for p in os.environ["PATH"].split(":") if os.access(f"{p}/runc", os.X_OK))
        wait = f"touch {self.machine.directory}/waits; while [ ! -e {self.machine.directory}/go ]; do sleep 0.02; done"
        for name in ("waits", "go"):
            if os.path.exists(f"{self.machine.directory}/{name}"):
                os.unlink(f"{self.machine.directory}/{name}")
        create = f'{wait}; exec {real} "$@"' if when == "before" else f'{real} "$@"; code=$?; {wait}; exit $code'
        return self.fake(f'case " $* " in *" create "*) {create};; *) exec {real} "$@";; esac')

    def create_slowly(self, when):
        p = self.machine.popen(*self.argv("create", "--bundle", self.bundle, ID), env=self.slow(when))
        self.addCleanup(p.wait, 60)
        self.addCleanup(p.kill)
        wait_for(lambda: os.path.exists(f"{self.machine.directory}/waits"), "runc does not begin")
        return p

    def go(self):
        open(f"{self.machine.directory}/go", "w", encoding="utf-8").close()

    def test_no_runc(self):
        env = dict(os.environ, PATH="/nonexistent")
        failed = self.create(check=False, env=env)
        self.assertEqual(failed.returncode, 1)
        (line,) = self.errors()
        self.assertIn("install runc 1.1 or later", line)
        self.assert_clean()

    def test_a_container_outlives_a_runc_that_is_away(self):
        self.create()
        self.sluice("start", ID)
        env = dict(os.environ, PATH="/nonexistent")
        for command in (["delete", ID], ["delete", "--force", ID], ["create", "--bundle", self.bundle, ID], ["state", ID]):
            self.assertNotEqual(self.sluice(*command, check=False, env=env, timeout=20).returncode, 0)
        self.assertEqual(self.status(), "running")
        self.assertEqual(self.sluice("exec", ID, "ip", "route").returncode, 0)
        self.recover()

    def test_an_old_runc(self):
        env = self.fake('case "$*" in *--version*) printf "runc version 1.0.3\\nspec: 1.0.2\\n";; *) exit 1;; esac')
        self.assertEqual(self.create(check=False, env=env).returncode, 1)
        (line,) = self.errors()
        self.assertEqual(line, "runc 1.0 is too old: install runc 1.1 or later, which hands over seccomp descriptors")
        self.assert_clean()

    def test_a_config_that_changes_before_runc_reads_it(self):
        p = self.create_slowly("before")
        self.assertIn("listenerPath", open(f"{self.bundle}/config.json", encoding="utf-8").read())
        os.unlink(f"{self.bundle}/config.json")
        self.config = self.configure()
        self.go()
        self.assertEqual(p.wait(60), 1)
        (line,) = self.errors()
        self.assertIn("without handing over its seccomp descriptor", line)
        self.assertEqual(self.status(), "unknown")
        self.assert_clean()

    def test_one_id_twice(self):
        self.create()
        again = self.create(check=False)
        self.assertEqual(again.returncode, 1)
        self.assertIn("already exists", self.errors()[0])
        self.sluice("start", ID)
        self.assertEqual(self.sluice("exec", ID, "ip", "route").returncode, 0)
        self.recover()

    def test_one_id_twice_at_once(self):
        first = self.create_slowly("before")
        other = f"{self.machine.directory}/other"
        os.makedirs(other, exist_ok=True)
        with open(f"{other}/config.json", "wb") as f:
            f.write(self.config.replace(b'"rootfs"', json.dumps(f"{self.bundle}/rootfs").encode()))
        again = self.sluice("create", "--bundle", other, ID, check=False)
        self.assertEqual(again.returncode, 1)
        self.assertIn("already exists", self.errors()[0])
        self.go()
        self.assertEqual(first.wait(60), 0)
        self.sluice("start", ID)
        self.assertEqual(self.sluice("exec", ID, "ip", "route").returncode, 0)
        self.recover()

    def test_two_ids_of_one_bundle_at_once(self):
        config = json.loads(self.config)
        for one in config["linux"]["namespaces"]:
            one.pop("path", None)  # a network namespace each
        self.config = self.configure(json.dumps(config).encode())
        first = self.create_slowly("before")
        second = self.machine.popen(*self.argv("create", "--bundle", self.bundle, "second"))
        self.go()
        self.assertEqual(first.wait(60), 0)
        self.assertEqual(second.wait(60), 0)
        self.sluice("delete", "--force", "second")
        self.recover()

    def test_front_end_killed_while_the_container_is_made(self):
        for when in ("before", "after"):
            with self.subTest(when=when):
                p = self.create_slowly(when)
                os.kill(self.child(p.pid), signal.SIGKILL)
                p.wait(60)
                self.go()
                if when == "after":
                    self.assertEqual(self.status(), "created")
                self.recover()
                # And the id is free again.
                self.create()
                self.recover()

    @staticmethod
    def child(pid):
        """nsenter --pid forks."""
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
            return int(f.read().split()[0])

    def test_front_end_killed_at_any_moment(self):
        begin = time.monotonic()
        self.create()
        whole = time.monotonic() - begin
        self.recover()
        for i in range(12):
            p = self.machine.popen(*self.argv("create", "--bundle", self.bundle, ID))
            time.sleep(whole * i / 12)
            if p.poll() is None:
                try:
                    os.kill(self.child(p.pid), signal.SIGKILL)
                except (ProcessLookupError, IndexError):
                    pass
            p.wait(60)
            self.recover()


class PartTest(MachineTest):
    def kill(self, *names):
        pids = [str(pid) for name in names for pid, _ in self.machine.processes(name)]
        self.assertEqual(len(pids), len(names))
        self.machine.run("kill", "-9", *pids)

    def test_a_part_that_dies_before_start(self):
        for parts in (["sentry"], ["broker"], ["keeper"], ["guard"], ["guard", "broker"]):
            with self.subTest(parts=parts):
                self.forget_log()
                self.create()
                self.kill(*parts)
                wait_for(lambda: not self.machine.processes("guard"), "the guard ends")
                failed = self.sluice("start", ID, check=False)
                self.assertNotEqual(failed.returncode, 0)
                self.assertIn("ended", self.errors()[-1])
                self.recover()

    def test_a_part_that_dies_after_start(self):
        for parts in (["sentry"], ["broker"], ["keeper"], ["guard"], ["guard", "broker"]):
            with self.subTest(parts=parts):
                self.forget_log()
                self.create()
                self.sluice("start", ID)
                self.kill(*parts)
                if parts != ["guard", "broker"]:  # nobody is left who would
                    wait_for(lambda: self.status() == "stopped", "the container is killed")
                if "guard" not in parts:
                    self.assertIn(f"the sandbox was ended: the {parts[0]} died", self.errors())
                failed = self.sluice("exec", ID, "true", check=False)
                self.assertNotEqual(failed.returncode, 0)
                self.recover()

    def qdiscs(self, device=DEVICE):
        return self.machine.run("tc", "-n", NETNS, "qdisc", "show", "dev", device).stdout

    def create_by(self, tcx):
        self.sluice(f"--tcx={str(tcx).lower()}", "create", "--bundle", self.bundle, ID)

    def test_silence_is_lifted_when_nobody_is_left_to(self):
        for tcx, started in itertools.product((False, True), (False, True)):
            with self.subTest(tcx=tcx, started=started):
                self.create_by(tcx)
                if started:
                    self.sluice("start", ID)
                self.assertEqual("clsact" in self.qdiscs(), not tcx)
                self.kill("guard", "broker")
                self.recover()
                self.assertNotIn("clsact", self.qdiscs())

    def add_device(self):
        self.machine.run("sh", "-ec", f"ip link add v1 type veth peer name eth1 netns {NETNS}; ip addr add 10.215.0.1/24 dev v1; ip link set v1 up; "
                                      f"ip -n {NETNS} addr add 10.215.0.2/24 dev eth1; ip -n {NETNS} link set eth1 up")

    def remove_device(self):
        self.machine.run("ip", "link", "del", "v1", check=False)

    def answers(self):
        return self.machine.run("ping", "-c1", "-W1", "10.215.0.2", check=False).returncode == 0

    def echoes_of_the_kernel(self):
        return self.machine.run("ip", "netns", "exec", NETNS, "nstat", "-asz", "IcmpInEchos").stdout

    def test_a_device_that_came_later_is_given_back(self):
        self.addCleanup(self.remove_device)
        for tcx in (False, True):
            with self.subTest(tcx=tcx):
                self.create_by(tcx)
                self.sluice("start", ID)
                self.add_device()

                def is_ours():  # the kernel may answer until our stack has it
                    before = self.echoes_of_the_kernel()
                    return self.answers() and self.echoes_of_the_kernel() == before
                wait_for(is_ours, "our stack answers on it")
                self.assertEqual("clsact" in self.qdiscs("eth1"), not tcx)
                self.recover()
                self.assertNotIn("clsact", self.qdiscs("eth1"))
                wait_for(self.answers, "the kernel answers on it")
                self.remove_device()

    def test_a_device_that_was_moved_out_is_as_it_was(self):
        self.addCleanup(self.remove_device)
        self.addCleanup(self.machine.run, "ip", "netns", "del", "away", check=False)
        for tcx in (False, True):
            with self.subTest(tcx=tcx):
                self.machine.run("ip", "netns", "add", "away")
                self.add_device()
                self.create_by(tcx)
                self.sluice("start", ID)
                self.machine.run("sh", "-ec", f"ip -n {NETNS} link set eth1 netns away; ip -n away addr add 10.215.0.2/24 dev eth1; ip -n away link set eth1 up")
                wait_for(self.answers, "the kernel answers on it")
                self.assertEqual(self.status(), "running")
                self.machine.run("ping", "-c1", "-W5", ADDRESS)
                self.machine.run("sh", "-ec", "ip link del v1; ip netns del away")
                self.recover()

    def test_many_created_at_once_in_a_new_namespace(self):
        # Each with its own bundle, as the containers of a pod: one makes the sandbox, the others join it.
        ids = [f"many{i}" for i in range(8)]
        bundles = {}
        for name in ids:
            bundles[name] = f"{self.machine.directory}/{name}"
            os.makedirs(bundles[name])
            config = json.loads(self.config)
            config["root"]["path"] = f"{self.bundle}/rootfs"
            config["linux"]["cgroupsPath"] += name
            with open(f"{bundles[name]}/config.json", "w", encoding="utf-8") as f:
                json.dump(config, f)
        for _ in range(3):
            self.forget_log()
            making = [self.machine.popen(*self.argv("create", "--bundle", bundles[name], name)) for name in ids]
            self.assertEqual([p.wait(60) for p in making], [0] * len(ids), self.errors())
            self.assertEqual(len(self.machine.processes("guard")), 1)
            for name in ids:
                self.sluice("start", name)
            self.machine.run("ping", "-c1", "-W5", ADDRESS)
            leaving = [self.machine.popen(*self.argv("delete", "--force", name)) for name in ids]
            self.assertEqual([p.wait(60) for p in leaving], [0] * len(ids), self.errors())
            self.assert_clean()

    def test_who_joins_a_sandbox_must_agree_in_its_flags(self):
        side = f"{self.machine.directory}/side"
        os.makedirs(side)
        config = json.loads(self.config)
        config["root"]["path"] = f"{self.bundle}/rootfs"
        config["linux"]["cgroupsPath"] += "side"
        with open(f"{side}/config.json", "w", encoding="utf-8") as f:
            json.dump(config, f)
        self.addCleanup(self.sluice, "delete", "--force", "side", check=False)
        self.create()
        self.sluice("start", ID)
        for flags in (["--gso=false"], ["--num-network-channels=2"], ["--qdisc=fq"], ["--qdisc=tbf", "--qdisc-tbf-rate=100mbit", "--qdisc-tbf-burst=64k"]):
            with self.subTest(flags=flags):
                self.forget_log()
                refused = self.sluice(*flags, "create", "--bundle", side, "side", check=False)
                self.assertEqual(refused.returncode, 1, refused.stderr)
                self.assertIn("they must agree", self.errors()[-1])
        self.sluice("create", "--bundle", side, "side")
        self.sluice("delete", "--force", "side")
        self.recover()

    def test_engine_gone_between_create_and_start(self):
        self.create()
        self.recover()

    def test_a_listener_that_vanished(self):
        self.create()
        self.sluice("start", ID)
        (folder,) = self.machine.run("sh", "-c", "ls -d /run/sluice/oci/*").stdout.split()
        self.machine.run("rm", f"{folder}/listener")
        failed = self.sluice("exec", ID, "true", check=False)
        self.assertNotEqual(failed.returncode, 0)
        self.assertIn("listener", self.errors()[-1])
        self.machine.run("ping", "-c1", "-W5", ADDRESS)
        self.assertEqual(self.status(), "running")
        self.recover()


class StateTest(MachineTest):
    def test_disk_full_in_root(self):
        os.makedirs(self.root, exist_ok=True)
        for inodes in (1, 2):
            self.machine.run("mount", "-t", "tmpfs", "-o", f"nr_inodes={inodes}", "tmpfs", self.root)
            try:
                self.forget_log()
                self.assertEqual(self.create(check=False).returncode, 1)
                self.assertIn("no space left on device", self.errors()[-1])
                self.sluice("delete", "--force", ID, check=False)
                self.assertEqual(self.leftovers(), [])
            finally:
                self.machine.run("umount", self.root)
        self.assert_clean()

    def test_disk_full_where_our_state_is(self):
        for inodes in range(1, 12):
            self.machine.run("sh", "-ec", f"mkdir -p /run/sluice; mount -t tmpfs -o nr_inodes={inodes} tmpfs /run/sluice")
            try:
                self.forget_log()
                done = self.create(check=False)
                if done.returncode != 0:
                    (line,) = self.errors()
                    self.assertIn("No space left on device", line)
                self.sluice("delete", "--force", ID)
                self.assert_nothing_left()
            finally:
                self.machine.run("sh", "-ec", "while umount /run/sluice/bpf 2>/dev/null; do :; done; umount /run/sluice")
        self.assert_clean()

    def test_devices_that_cannot_be_silenced(self):
        # The broker finds out while the guard goes on. Neither pins of TCX nor filters on egress can be.
        self.machine.run("sh", "-ec", "mkdir -p /run/sluice; rm -rf /run/sluice/bpf; touch /run/sluice/bpf")
        self.machine.run("tc", "-n", NETNS, "qdisc", "add", "dev", DEVICE, "ingress")
        try:
            for _ in range(5):
                self.forget_log()
                self.assertEqual(self.create(check=False).returncode, 1)
                (line,) = self.errors()
                self.assertIn("cannot be silenced", line)
                self.sluice("delete", "--force", ID)
                wait_for(lambda: self.leftovers() in ([], ["/run/sluice/bpf"]), "nothing is left", 30)
        finally:
            self.machine.run("rm", "/run/sluice/bpf")
            self.machine.run("tc", "-n", NETNS, "qdisc", "del", "dev", DEVICE, "ingress")
        self.assert_clean()

    def test_root_that_is_not_writable(self):
        os.makedirs(self.root, exist_ok=True)
        self.machine.run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", self.root)
        try:
            self.assertEqual(self.create(check=False).returncode, 1)
            self.assertIn("read-only file system", self.errors()[-1].lower())
            self.assertEqual(self.leftovers(), [])
        finally:
            self.machine.run("umount", self.root)
        self.assert_clean()

    def test_our_state_broken(self):
        for content in ("", "{", "[]", '{"id": 7}', '{"id": "box", "root": {}, "inode": "x"}', None):
            with self.subTest(content=content):
                self.forget_log()
                self.create()
                (folder,) = self.machine.run("sh", "-c", "ls -d /run/sluice/oci/*").stdout.split()
                self.machine.run("rm", f"{folder}/state.json")
                if content is not None:
                    self.machine.run("sh", "-c", 'printf %s "$1" >"$2"', "sh", content, f"{folder}/state.json")
                failed = self.sluice("start", ID, check=False)
                self.assertEqual(failed.returncode, 1)
                self.assertIn("delete --force", self.errors()[-1])
                self.assertEqual(self.status(), "created")
                self.recover()

    def test_runcs_state_broken(self):
        self.create()
        self.sluice("start", ID)
        with open(f"{self.root}/{ID}/state.json", "r+", encoding="utf-8") as f:
            f.truncate(10)
        # runc does not know what to do with it, and we kill what is ours.
        self.assertNotEqual(self.sluice("delete", "--force", ID, check=False, timeout=30).returncode, 0)
        wait_for(lambda: not self.machine.processes(), "the sandbox ends")
        wait_for(self.kernel_answers, "the kernel answers again")
        self.machine.run("rm", "-r", f"{self.root}/{ID}")
        for folder, _, _ in list(os.walk("/sys/fs/cgroup", topdown=False)):
            if os.path.basename(self.specification()["linux"]["cgroupsPath"]) in folder:
                os.rmdir(folder)
        self.configure(self.config)
        self.assert_clean()


if __name__ == "__main__":
    unittest.main()
