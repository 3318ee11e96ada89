"""Tests on a dockerd of their own, one per class."""
import shutil
import unittest

from docker_host import SLUICE, DockerHost, busybox, servers, wait_for


class DockerCase(unittest.TestCase):
    runtimes = {"sluice": []}
    remapped = False

    @classmethod
    def setUpClass(cls):
        if shutil.which("dockerd") is None:
            raise unittest.SkipTest("dockerd is not installed (docker.io)")
        cls.host = DockerHost(cls.runtimes, remapped=cls.remapped)
        cls.addClassCleanup(cls.host.close)
        cls.host.import_image("bb", busybox())
        cls.host.import_image("servers", servers())

    def tearDown(self):
        names = self.host.out("ps", "-aq").split()
        if names:
            self.host.docker("rm", "-f", *names)
        try:
            wait_for(lambda: not self.host.leftovers(), "not all of it goes", 10)
        except AssertionError as e:
            raise AssertionError(self.host.leftovers()) from e

    def run_in(self, *command, options=(), runtime="sluice", image="bb", check=True):
        return self.host.docker("run", "--rm", f"--runtime={runtime}", *options, image, *command, check=check)

    def start(self, name, *command, options=(), runtime="sluice", image="bb"):
        self.host.docker("run", "-d", "--name", name, f"--runtime={runtime}", *options, image, *command)

    def query(self, what, name):
        return self.host.host(SLUICE, what, self.host.inspect(name, "{{.Id}}"), "--json", check=False).stdout

    def part(self, name):
        """Process id of a part of the only sandbox, as dockerd's namespace numbers it."""
        (pid,) = [line.split()[0] for line in self.host.host("ps", "-eo", "pid,comm").stdout.splitlines() if line.split()[1] == f"sluice-{name}"]
        return pid
