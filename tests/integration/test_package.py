"""The Debian packages: what is in them, that the program runs from where they put it, and that an upgrade leaves running sandboxes alone."""
import os
import shutil
import subprocess
import unittest

from harness import INSIDE, PATIENCE, ROOT, SLUICE, Program, SluiceTest, sandbox_only, sh

BUILD = os.path.join(ROOT, "build/release")
ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('%s', 7))
print('ready', flush=True)
while True:
    data, peer = s.recvfrom(65536)
    s.sendto(data, peer)
""" % INSIDE


@sandbox_only
class PackageTest(SluiceTest):
    @classmethod
    def setUpClass(cls):
        if os.path.realpath(SLUICE) != os.path.join(BUILD, "sluice"):
            raise unittest.SkipTest("only of the release build")
        cls.packages = os.path.join("/var/tmp", f"{os.environ['SLUICE_TEST_RUN']}-packages")
        cls.addClassCleanup(shutil.rmtree, cls.packages, ignore_errors=True)
        for argv in (["cmake", "--build", BUILD, "--target", "package_files"], ["cpack", "-G", "DEB", "-B", cls.packages]):
            sh(*argv, cwd=BUILD, timeout=300)
        cls.package = cls.find("sluice_")
        cls.root = os.path.join(cls.packages, "root")
        sh("dpkg", "-x", cls.package, cls.root)
        cls.program = os.path.join(cls.root, "usr/bin/sluice")

    @classmethod
    def find(cls, prefix):
        (name,) = [n for n in os.listdir(cls.packages) if n.startswith(prefix) and n.endswith("_amd64.deb")]
        return os.path.join(cls.packages, name)

    def test_control_and_contents(self):
        fields = dict(line.split(": ", 1) for line in sh("dpkg-deb", "-f", self.package).stdout.splitlines() if ": " in line and line[0] != " ")
        version = subprocess.run([SLUICE, "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
        self.assertEqual((fields["Package"], fields["Version"], fields["Architecture"], fields["Recommends"]), ("sluice", version, "amd64", "runc"))
        for library in ("libc6", "libbpf1", "libseccomp2", "libnl-3-200", "libprometheus-cpp-core1.0"):
            self.assertIn(library, fields["Depends"])
        self.assertNotIn("librte", fields["Depends"])
        entries = [line.split(None, 5) for line in sh("dpkg-deb", "-c", self.package).stdout.splitlines()]
        paths = {e[5].removeprefix("./usr/"): e for e in entries}
        for path in ("bin/sluice", "share/man/man1/sluice.1.gz", "share/bash-completion/completions/sluice", "share/doc/sluice/copyright",
                     "share/doc/sluice/changelog.gz", "share/doc/sluice/docs/limits.md", "share/sluice/grafana/sluice.json"):
            self.assertIn(path, paths)
            self.assertEqual(paths[path][1], "root/root")
        script = "share/sluice/kubernetes/installer/install-on-node"
        self.assertEqual({e[0] for p, e in paths.items() if p.startswith("share/") and not p.endswith("/") and p != script}, {"-rw-r--r--"})
        self.assertEqual(paths[script][0], "-rwxr-xr-x")
        self.assertNotIn("conffiles", sh("dpkg-deb", "-I", self.package).stdout)
        if os.path.exists(os.path.join(BUILD, "libsluice_dpdk.so")):
            module = self.find("sluice-dpdk_")
            self.assertIn("./usr/lib/sluice/libsluice_dpdk.so", sh("dpkg-deb", "-c", module).stdout)
            self.assertIn(f"sluice (= {version})", sh("dpkg-deb", "-f", module, "Depends").stdout)

    @unittest.skipIf(shutil.which("lintian") is None, "lintian is not installed")
    def test_lintian_finds_no_error(self):
        found = sh("lintian", "--allow-root", "--fail-on=error", self.package, check=False, timeout=120)
        self.assertEqual(found.returncode, 0, found.stdout + found.stderr)

    def test_runs_from_its_place(self):
        run = lambda *argv: subprocess.run([self.program, *argv], capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
        self.assertTrue(run("--version").startswith("sluice version "))
        help_text = run("--help")
        man = os.path.join(self.root, "usr/share/man/man1/sluice.1.gz")
        troff = subprocess.run(["gunzip", "-c", man], capture_output=True, text=True, check=True).stdout
        for line in run("flags").splitlines():
            flag = line.split()[0]
            self.assertIn(f".B {flag}".replace("-", "\\-") + "\n", troff)
            self.assertIn(flag, help_text)
        if shutil.which("groff"):
            shown = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-Wbreak", "-"], input=troff, capture_output=True, text=True, check=True, timeout=PATIENCE)
            self.assertEqual(shown.stderr, "")

    def complete(self, *words):
        script = os.path.join(self.root, "usr/share/bash-completion/completions/sluice")
        body = f'. {script}; compopt() {{ :; }}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _sluice; printf "%s\\n" "${{COMPREPLY[@]}}"'
        out = subprocess.run(["bash", "-c", body, "bash", "sluice", *words], capture_output=True, text=True, check=True, timeout=PATIENCE,
                             env={**os.environ, "PATH": os.path.dirname(self.program) + ":" + os.environ["PATH"]})
        self.assertEqual(out.stderr, "")
        return out.stdout.split()

    def test_completion(self):
        self.assertEqual(self.complete("cap"), ["capture"])
        self.assertEqual(self.complete("--netw"), ["--network="])
        self.assertEqual(self.complete("--network", "=", "no"), ["none"])
        self.assertEqual(self.complete("capture", "--sn"), ["--snaplen="])
        self.assertEqual(self.complete("--gso", "=", "false", "unin"), ["uninstall"])
        self.assertEqual(self.complete("do", "--", "--he"), [])

    def test_upgrade_leaves_running_sandboxes_alone(self):
        installed = os.path.join(self.directory, "sluice")
        shutil.copy2(self.program, installed)
        p = Program([installed, "do", f"--netns={self.net.inside.name}", "--", "/usr/bin/python3", "-u", "-c", ECHO], self.directory)
        self.programs.append(p)
        p.sandbox = True
        p.wait_log("ready")
        before = os.stat(installed).st_ino
        # As dpkg replaces a file: a new one takes its name.
        shutil.copy2(self.program, installed + ".dpkg-new")
        os.rename(installed + ".dpkg-new", installed)
        self.assertNotEqual(os.stat(installed).st_ino, before)
        self.assertIn("(deleted)", os.readlink(f"/proc/{p.pid}/exe"))
        s = self.net.peer.socket(kind=2)
        s.settimeout(PATIENCE)
        with s:
            for i in range(10):
                s.sendto(b"%d" % i, (INSIDE, 7))
                self.assertEqual(s.recv(100), b"%d" % i)
        for command, text in (("stats", "UdpInDatagrams"), ("sockets", f"{INSIDE}:7"), ("routes", "default"), ("neigh", "eth0"), ("drops", "")):
            out = subprocess.run([installed, command, self.net.inside.name], capture_output=True, text=True, check=True, timeout=PATIENCE)
            self.assertIn(text, out.stdout)
