"""An OCI bundle of busybox, for tests that call the runtime themselves."""
import json
import os
import shutil
import subprocess
import tempfile
import unittest

from docker_host import RUN, busybox


class BundleTest(unittest.TestCase):
    def setUp(self):
        if shutil.which("runc") is None:
            raise unittest.SkipTest("runc is not installed")
        self.directory = tempfile.mkdtemp(prefix=f"{RUN}-bundle-", dir="/var/tmp")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.bundle = f"{self.directory}/b"
        os.makedirs(f"{self.bundle}/rootfs")
        busybox().write(f"{self.directory}/tar")
        subprocess.run(["tar", "-C", f"{self.bundle}/rootfs", "-xf", f"{self.directory}/tar"], check=True)
        subprocess.run(["runc", "spec"], cwd=self.bundle, check=True)

    def configure(self, *args, **members):
        """Writes config.json for the program `args`, with these members; returns its text."""
        with open(f"{self.bundle}/config.json", encoding="utf-8") as f:
            config = json.load(f)
        config["process"].update(terminal=False, args=list(args))
        for kind in ("bounding", "effective", "permitted"):
            config["process"]["capabilities"][kind] = ["CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW"]
        config.update(members)
        text = json.dumps(config)
        with open(f"{self.bundle}/config.json", "w", encoding="utf-8") as f:
            f.write(text)
        return text
