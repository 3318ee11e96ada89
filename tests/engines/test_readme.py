"""The lines of README.md and docs/docker.md that use Docker, run as they are printed; the images they name are made from the machine's programs."""
import os
import re
import shutil
import unittest

from docker_host import ROOT, SLUICE, DockerHost, busybox, nginx, wait_for


def printed(path, heading):
    """The commands of the first block of code after `heading`."""
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        block = re.search(r"```\n(.*?)```", f.read().split(heading, 1)[1], re.DOTALL)
    return [re.sub(r"^\$ |\s+#.*$", "", line) for line in block.group(1).splitlines()]


class AsPrinted(unittest.TestCase):
    def setUp(self):
        if shutil.which("dockerd") is None:
            raise unittest.SkipTest("dockerd is not installed (docker.io)")
        self.host = DockerHost(None)
        self.addCleanup(self.host.close)
        for name in ("busybox", "alpine"):
            self.host.import_image(name, busybox())
        self.host.import_image("nginx", nginx(), 'CMD ["nginx", "-g", "daemon off;"]')

    def play(self, lines):
        """Runs each; returns their output by line. Docker reads its file some time after the signal, as people type."""
        seen = {}
        for line in lines:
            seen[line] = self.host.host("bash", "-c", line).stdout
            if "kill -HUP" in line:
                wait_for(lambda: "sluice" in self.host.out("info", "-f", "{{json .Runtimes}}"), "dockerd does not read its file")
        return seen

    def assert_served(self):
        wait_for(lambda: "served by nginx" in self.host.host("curl", "-s", "-m5", "http://10.213.0.1:8080/", check=False).stdout, "the published port does not answer")
        self.assertEqual([s["network"] for s in self.host.sandboxes()], ["sandbox"])

    def test_readme(self):
        lines = printed("README.md", "With Docker")
        self.assertEqual(len(lines), 5)
        seen = self.play(lines)
        for line in lines:
            if line.endswith("ip addr"):
                self.assertRegex(seen[line], r"inet 10\.213\.0\.\d+/24 .*eth0")
        self.assertIn("default via 10.213.0.1 dev eth0", seen[next(line for line in lines if line.endswith("ip route"))])
        self.assert_served()
        self.host.docker("rm", "-f", "web")

    def test_docker_page(self):
        lines = printed("docs/docker.md", "# Docker")
        seen = self.play(lines[:-1])
        self.assert_served()
        wait_for(lambda: ":80 " in self.host.host("bash", "-c", lines[-1]).stdout, "sluice sockets does not show the server's")
        self.assertTrue(any("default via" in out for out in seen.values()))
        self.host.docker("rm", "-f", "web")


if __name__ == "__main__":
    unittest.main()
