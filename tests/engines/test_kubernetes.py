"""deploy/kubernetes: the manifests agree with each other, and the installer's script puts sluice on a node (a directory) and takes it away."""
import os
import shutil
import subprocess
import tempfile
import unittest

from docker_host import SLUICE

try:
    import yaml
except ImportError:
    yaml = None

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "deploy/kubernetes")
SCRIPT = os.path.join(FOLDER, "installer/install-on-node")
BEFORE = 'version = 2\n# kept\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "pause"\n'


@unittest.skipIf(yaml is None, "python3-yaml is not installed")
class ManifestTest(unittest.TestCase):
    def load(self, name):
        with open(f"{FOLDER}/{name}", encoding="utf-8") as f:
            (one,) = yaml.safe_load_all(f)
        return one

    def test_names_agree(self):
        runtime, installer = self.load("runtimeclass.yaml"), self.load("installer.yaml")
        self.assertEqual((runtime["apiVersion"], runtime["kind"]), ("node.k8s.io/v1", "RuntimeClass"))
        self.assertEqual((installer["apiVersion"], installer["kind"]), ("apps/v1", "DaemonSet"))
        template = installer["spec"]["template"]
        self.assertEqual(installer["spec"]["selector"]["matchLabels"], template["metadata"]["labels"])
        self.assertEqual(template["spec"]["nodeSelector"], runtime["scheduling"]["nodeSelector"])
        (container,) = template["spec"]["containers"]
        env = {e["name"]: e["value"] for e in container["env"]}
        self.assertEqual(env["SLUICE_RUNTIME"], runtime["handler"])
        with open(SCRIPT, encoding="utf-8") as f:
            script = f.read()
        for name, value in env.items():
            self.assertIn(name, script)
            self.assertIsInstance(value, str)
        self.assertEqual([m["name"] for m in container["volumeMounts"]], [v["name"] for v in template["spec"]["volumes"]])
        self.assertIn(f"NODE:-{container['volumeMounts'][0]['mountPath']}}}", script)
        self.assertEqual(container["args"], ["run"])
        for name in ("pod-nginx.yaml", "pod-two-containers.yaml"):
            self.assertEqual(self.load(name)["spec"]["runtimeClassName"], runtime["metadata"]["name"])
        with open(os.path.join(FOLDER, "../../docs/kubernetes.md"), encoding="utf-8") as f:
            docs = f.read()
        (label,) = runtime["scheduling"]["nodeSelector"].items()
        self.assertIn(f"kubectl label node NODE {label[0]}={label[1]}", docs)
        for name in os.listdir(FOLDER):
            self.assertIn(name, docs)


class InstallerTest(unittest.TestCase):
    def setUp(self):
        self.node = tempfile.mkdtemp(prefix="slt-node-", dir="/var/tmp")
        self.addCleanup(shutil.rmtree, self.node)
        # What of a node's root the script uses: a shell, ldd, the program's libraries, an init that writes down what it is told.
        libraries = [line.split("=>")[-1].split()[0] for line in self.out("ldd", SLUICE).splitlines() if "/" in line]
        for path in {"/bin/sh", "/bin/bash", "/usr/bin/ldd", *libraries, *[line.split("=>")[-1].split()[0] for line in self.out("ldd", "/bin/bash").splitlines() if "/" in line]}:
            os.makedirs(self.node + os.path.dirname(path), exist_ok=True)
            shutil.copy2(path, self.node + path)
        os.makedirs(self.node + "/etc/containerd")
        os.makedirs(self.node + "/usr/bin", exist_ok=True)
        with open(self.node + "/usr/bin/systemctl", "w", encoding="ascii") as f:
            f.write('#!/bin/sh\necho "$@" >>/told\n')
        os.chmod(self.node + "/usr/bin/systemctl", 0o755)
        self.config = self.node + "/etc/containerd/config.toml"
        with open(self.config, "w", encoding="ascii") as f:
            f.write(BEFORE)

    @staticmethod
    def out(*argv):
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    def run_script(self, command, **env):
        done = subprocess.run([SCRIPT, command], env=dict(os.environ, NODE=self.node, SOURCE=SLUICE, **env), capture_output=True, text=True, timeout=120, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def read(self, path):
        with open(path, encoding="utf-8") as f:
            return f.read()

    def test_install_and_uninstall(self):
        said = self.run_script("install", SLUICE_FLAGS="--sentry-memory=512m\n--gso=false\n")
        self.assertIn("restart it on the node", said)
        self.assertFalse(os.path.exists(self.node + "/told"))
        config = self.read(self.config)
        self.assertIn("# kept", config)
        self.assertIn('runtimes."sluice"', config)
        self.assertIn('"/etc/sluice/sluice"', config)
        self.assertEqual(os.readlink(self.node + "/etc/sluice/sluice"), "/usr/local/bin/sluice")
        self.assertIn("--sentry-memory=512m\n--gso=false\n", self.read(self.node + "/etc/sluice/sluice.flags"))
        inode = os.stat(self.node + "/usr/local/bin/sluice").st_ino
        # Again: nothing changes, nothing is restarted.
        said = self.run_script("install", SLUICE_FLAGS="--sentry-memory=512m\n--gso=false\n", SLUICE_RESTART="true")
        self.assertNotIn("restart", said)
        self.assertEqual(self.read(self.config), config)
        self.assertEqual(os.stat(self.node + "/usr/local/bin/sluice").st_ino, inode)
        self.assertFalse(os.path.exists(self.node + "/told"))
        for _ in range(2):
            self.run_script("uninstall", SLUICE_RESTART="true")
            self.assertEqual(self.read(self.config).strip(), BEFORE.strip())
            self.assertFalse(os.path.lexists(self.node + "/etc/sluice/sluice"))
            self.assertFalse(os.path.exists(self.node + "/etc/sluice/sluice.flags"))
            self.assertFalse(os.path.exists(self.node + "/usr/local/bin/sluice"))
            self.assertEqual(self.read(self.node + "/told"), "restart containerd\n")

    def test_run_cleans_up_where_it_is_asked_to(self):
        for asked in ("false", "true"):
            p = subprocess.Popen([SCRIPT, "run"], env=dict(os.environ, NODE=self.node, SOURCE=SLUICE, SLUICE_UNINSTALL=asked), stdout=subprocess.PIPE, text=True)
            try:
                while (line := p.stdout.readline()).strip() != "ready":
                    self.assertNotEqual(line, "")
                p.terminate()
                p.stdout.read()
                self.assertEqual(p.wait(60), 0)
            finally:
                p.kill()
                p.wait()
                p.stdout.close()
            self.assertEqual('runtimes."sluice"' in self.read(self.config), asked == "false")


if __name__ == "__main__":
    unittest.main()
