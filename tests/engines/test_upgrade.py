"""An upgrade of the Debian package by dpkg, on a copy of this machine's root: sandboxes that the old file made go on, and the new
file's commands reach them."""
import json
import os
import shutil
import subprocess
import unittest

from docker_host import RUN, SLUICE, wait_for
from machine import ADDRESS, ID, MachineTest

BUILD = os.path.dirname(SLUICE)
OLD, NEW = "0.0.1", "99.0.0"


@unittest.skipUnless(os.path.exists(f"{BUILD}/CPackConfig.cmake"), "only of a build")
class UpgradeTest(MachineTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.packages = f"/var/tmp/{RUN}-upgrade"
        cls.addClassCleanup(shutil.rmtree, cls.packages, ignore_errors=True)
        run = lambda *argv: subprocess.run(argv, cwd=BUILD, check=True, capture_output=True, timeout=600)
        run("cmake", "--build", ".", "--target", "package_files")
        for version in (OLD, NEW):
            run("cpack", "-G", "DEB", "-D", f"CPACK_PACKAGE_VERSION={version}", "-D", "CPACK_COMPONENTS_ALL=program", "-B", f"{cls.packages}/{version}")
        # What dpkg writes stays in memory; below it is the machine's own root, with its libraries and dpkg's records of them.
        cls.over = f"{cls.machine.directory}/over"
        os.mkdir(cls.over)
        cls.machine.run("sh", "-ec", f"""
            mount -t tmpfs tmpfs {cls.over}; mkdir {cls.over}/upper {cls.over}/work {cls.over}/root
            mount -t overlay overlay -o lowerdir=/,upperdir={cls.over}/upper,workdir={cls.over}/work {cls.over}/root
            for d in proc sys dev run var/tmp; do mount --rbind /$d {cls.over}/root/$d; done""")

    def inside(self, *argv, **kw):
        return self.machine.run("chroot", f"{self.over}/root", *argv, **kw)

    def install(self, version):
        self.inside("dpkg", "--force-unsafe-io", "-i", f"{self.packages}/{version}/sluice_{version}_amd64.deb")
        self.assertEqual(self.inside("dpkg-query", "-W", "-f", "${Version} ${Status}", "sluice").stdout, f"{version} install ok installed")
        return self.inside("stat", "-c", "%i", "/usr/bin/sluice").stdout.strip()

    def sluice(self, *command, **kw):
        return self.inside("/usr/bin/sluice", *self.argv(*command)[1:], **kw)

    def test_sandboxes_live_through_an_upgrade(self):
        first = self.install(OLD)
        config = json.loads(self.config)
        config["process"]["args"] = ["sh", "-c", "echo page >/tmp/index.html; exec httpd -f -p 80 -h /tmp"]
        config["root"]["readonly"] = False
        self.config = self.configure(json.dumps(config).encode())
        self.create()
        self.sluice("start", ID)
        page = lambda: self.machine.run("curl", "-sf", "--max-time", "10", f"http://{ADDRESS}/index.html", check=False).stdout == "page\n"
        wait_for(page, "the server answers")
        parts = sorted(self.machine.processes())
        self.assertEqual(len(parts), 4)

        self.assertNotEqual(self.install(NEW), first)
        self.assertEqual(sorted(self.machine.processes()), parts)
        for pid, _ in parts:
            self.assertIn("(deleted)", self.machine.run("readlink", f"/proc/{pid}/exe").stdout)
        self.assertTrue(page())
        stats = json.loads(self.inside("/usr/bin/sluice", "stats", ID, "--json").stdout)
        self.assertGreater(stats["counters"]["TcpPassiveOpens"], 0)
        self.assertIn(":80", self.inside("/usr/bin/sluice", "sockets", ID).stdout)
        self.assertIn(ADDRESS, self.sluice("exec", ID, "ip", "addr").stdout)
        self.assertEqual(self.status(), "running")
        self.sluice("kill", ID, "KILL")
        wait_for(lambda: self.status() == "stopped", "the container ends")
        self.sluice("delete", ID)
        self.assert_clean()
        # And what is made now is the new file's.
        self.create()
        self.sluice("start", ID)
        wait_for(page, "the server answers")
        (pid, _), *_ = self.machine.processes("guard")
        self.assertNotIn("(deleted)", self.machine.run("readlink", f"/proc/{pid}/exe").stdout)
        self.recover()
        self.inside("dpkg", "-P", "sluice")
        self.assertNotEqual(self.inside("test", "-e", "/usr/bin/sluice", check=False).returncode, 0)


if __name__ == "__main__":
    unittest.main()
