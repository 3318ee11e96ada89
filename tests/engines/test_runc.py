"""runc's own behaviour is the reference: the same bundle and the same commands, by runc and by sluice."""
import json
import re
import subprocess
import unittest

from bundle import BundleTest
from docker_host import RUN, SLUICE, wait_for

COMMANDS = [["create", "--bundle", ".", "--pid-file", "../pid", "ID"], ["create", "--bundle", ".", "ID"], ["state", "ID"], ["start", "ID"], ["start", "ID"],
            ["exec", "ID", "sh", "-c", "exit 5"], ["ps", "ID"], ["pause", "ID"], ["exec", "ID", "true"], ["resume", "ID"], ["delete", "ID"],
            ["kill", "ID", "KILL"], ["kill", "ID", "KILL"], ["delete", "ID"], ["delete", "ID"], ["delete", "--force", "ID"], ["state", "ID"],
            ["start", "ID"], ["exec", "ID", "true"], ["list"], ["features"]]

# Bad arguments, unknown ids and wrong states of every command, and what they print where all is well.
NAMES = "create start state kill delete run exec ps list spec features events update pause resume".split()
CASES = [[name] for name in NAMES if name not in ("spec", "features", "list")]
CASES += [[name, "nope", *(["true"] if name == "exec" else [])] for name in NAMES if name not in ("create", "run", "spec", "features", "list")]
CASES += [[name, "--nonsense", "nope"] for name in NAMES]
CASES += [["create", "--bundle", "/nonexistent", "x"], ["create", "bad/id"], ["create", "x", "y"], ["list"], ["create", "ID"], ["ps", "ID"], ["exec", "ID", "true"],
          ["pause", "ID"], ["resume", "ID"], ["resume", "ID"], ["kill", "ID", "NONSENSE"], ["update", "--memory", "nonsense", "ID"],
          ["update", "--memory", "64m", "ID"], ["events", "--stats", "ID"], ["start", "ID"], ["exec", "ID"], ["exec", "ID", "nonsense"],
          ["exec", "--cwd", "/nowhere", "ID", "true"], ["exec", "--process", "/nonexistent", "ID"], ["exec", "--user", "7", "ID", "id"], ["kill", "ID", "0"],
          ["list", "-q"], ["list", "--format", "json"], ["list", "--format", "nonsense"], ["ps", "--format", "json", "ID"], ["ps", "ID", "-o", "comm"],
          ["state", "ID", "x"], ["state", "ID"], ["events", "--stats", "ID"], ["pause", "ID"], ["pause", "ID"], ["state", "ID"], ["kill", "ID", "TERM"],
          ["resume", "ID"], ["spec"], ["spec", "--bundle", "/nonexistent"], ["features"], ["run", "ID"], ["kill", "--all", "ID", "KILL"], ["delete", "--force", "ID"],
          ["list", "-q"]]


def shape(value):
    """Numbers and times of a run are its own."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items() if key != "created"}
    if isinstance(value, list):
        return [shape(one) for one in value[:1]]
    return 0 if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def comparable(text):
    try:
        return shape(json.loads(text))
    except ValueError:
        return re.sub(r"[ \d:]+", " ", re.sub(r"\d{4}-\d\d-\d\dT\S+", "TIME", text))


class SameAsRunc(BundleTest):
    def setUp(self):
        super().setUp()
        self.config = self.configure("sleep", "1000", unknownToUs={"kept": True})

    def play(self, runtime, name):
        flags = ["--root", f"{self.directory}/{name}", "--log", f"{self.directory}/{name}.log", "--log-format", "json"]
        self.addCleanup(subprocess.run, [runtime, *flags[:2], "delete", "--force", RUN], capture_output=True, check=False)
        seen = []
        for command in COMMANDS:
            argv = [runtime, *flags, *(RUN if word == "ID" else word for word in command)]
            done = subprocess.run(argv, cwd=self.bundle, text=True, stdin=subprocess.DEVNULL, stdout=open(f"{self.directory}/out", "w+", encoding="utf-8"),
                                  stderr=open(f"{self.directory}/err", "w+", encoding="utf-8"), timeout=60, check=False)
            error = open(f"{self.directory}/err", encoding="utf-8").read()
            error = re.sub(r"^(sluice: |runc create failed: )", "", re.sub(r'time="[^"]*" ', "", error)).strip()
            state = []
            if command[0] == "state" and done.returncode == 0:
                shown = json.loads(open(f"{self.directory}/out", encoding="utf-8").read())
                state = [shown["status"], shown["bundle"], sorted(shown)]
            seen.append((command, done.returncode, error, state))
            if command[0] == "kill" and done.returncode == 0:
                wait_for(lambda: '"stopped"' in subprocess.run([runtime, *flags[:2], "state", RUN], text=True, capture_output=True, check=False).stdout, "it does not stop")
        with open(f"{self.bundle}/config.json", encoding="utf-8") as f:
            self.assertEqual(f.read(), self.config)
        with open(f"{self.directory}/{name}.log", encoding="utf-8") as f:
            lines = [json.loads(line) for line in f]
        return seen, [re.sub(r"^runc create failed: ", "", line["msg"]) for line in lines if line["level"] == "error"]

    def test_status_state_errors_and_log(self):
        reference, reference_log = self.play("runc", "runc")
        ours, our_log = self.play(SLUICE, "sluice")
        for expected, got in zip(reference, ours):
            self.assertEqual(got, expected)
        self.assertEqual(our_log, reference_log)

    def play_cases(self, runtime, name):
        flags = ["--root", f"{self.directory}/{name}", "--log", f"{self.directory}/{name}.log", "--log-format", "json"]
        self.addCleanup(subprocess.run, [runtime, *flags[:2], "delete", "--force", RUN], capture_output=True, check=False)
        seen = []
        for command in CASES:
            with open(f"{self.directory}/out", "w+", encoding="utf-8") as out, open(f"{self.directory}/err", "w+", encoding="utf-8") as err:
                done = subprocess.run([runtime, *flags, *(RUN if word == "ID" else word for word in command)], cwd=self.bundle, text=True,
                                      stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=60, check=False)
                out.seek(0)
                err.seek(0)
                printed = out.read()
                error = re.sub(r"(sluice|runc( \w+ failed)?): ", "", re.sub(r'time="[^"]*" ', "", err.read())).strip()
            # Its usage behind an error; the error itself is compared.
            printed = "" if printed.startswith("Incorrect Usage") else comparable(printed)
            seen.append((command, done.returncode, error, printed))
        with open(f"{self.directory}/{name}.log", encoding="utf-8") as f:
            lines = [json.loads(line) for line in f]
        return seen, [re.sub(r"^runc( \w+ failed)?: ", "", line["msg"]) for line in lines if line["level"] == "error"]

    def test_every_command_with_bad_arguments_and_in_wrong_states(self):
        reference, reference_log = self.play_cases("runc", "runc")
        ours, our_log = self.play_cases(SLUICE, "sluice")
        self.assertEqual({command[0] for command, *_ in ours}, set(NAMES))
        for expected, got in zip(reference, ours):
            with self.subTest(command=expected[0]):
                self.assertEqual(got, expected)
        self.assertEqual(our_log, reference_log)

    def test_run_in_the_foreground(self):
        self.configure("sh", "-c", "ls /sys/class/net; exit 5")
        seen = []
        for runtime in ("runc", SLUICE):
            done = subprocess.run([runtime, "--root", f"{self.directory}/run", "run", RUN], cwd=self.bundle, text=True, capture_output=True,
                                  stdin=subprocess.DEVNULL, timeout=60, check=False)
            seen.append((done.returncode, done.stdout, done.stderr))
        self.assertEqual(seen, [(5, "lo\n", "")] * 2)


if __name__ == "__main__":
    unittest.main()
