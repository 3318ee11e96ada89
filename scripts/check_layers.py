#!/usr/bin/env python3
"""Checks the direction of includes between the layers.

  base < netstack < dataplane (with xdp) < sentry < control

A folder includes itself and what lies below. netstack/ is pure: no operating-system header, no clock, thread, lock or randomness of
its own. DPDK headers are allowed in dataplane/dpdk/ only. bench/ and tests/ may include everything.
Prints one line per violation and exits 1 where there is any. --self-test checks the checker.
"""
import os
import re
import sys
import tempfile

ALLOWED = {
    "base": {"base"},
    "netstack": {"base", "netstack"},
    "xdp": {"base", "xdp"},
    "dataplane": {"base", "netstack", "xdp", "dataplane"},
    "sentry": {"base", "netstack", "xdp", "dataplane", "sentry"},
    "control": {"base", "netstack", "xdp", "dataplane", "sentry", "control"},
}
FOLDERS = set(ALLOWED) | {"bench", "tests", "examples"}
DPDK_FOLDER = "dataplane/dpdk/"
# What the stack itself may take from the C++ library: value types and algorithms, nothing that reads the world or waits.
PURE_HEADERS = set("""algorithm any array bit bitset cassert cctype cerrno charconv cinttypes climits cmath compare concepts cstdarg
cstddef cstdint cstdio cstdlib cstring deque exception forward_list functional initializer_list iosfwd iterator limits list map memory
memory_resource new numbers numeric optional ostream queue ranges set span sstream stack stdexcept string string_view tuple type_traits
typeinfo unordered_map unordered_set utility variant vector version immintrin.h emmintrin.h smmintrin.h tmmintrin.h x86intrin.h
arm_neon.h sanitizer/asan_interface.h absl/container/flat_hash_map.h absl/container/flat_hash_set.h stdint.h stddef.h string.h limits.h""".split())
BARRED_CALLS = re.compile(r"\b(?:clock_gettime|gettimeofday|getrandom|std::random_device|std::mutex|std::thread|std::chrono|pthread_\w+)\b")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def is_test(path):
    """Test programs and the test library of a folder use GoogleTest and print; only the direction is checked there."""
    return re.search(r"_(test|fuzz|bench)\.(cc|h)$", path) is not None or "/testing/" in path


def strip_comments(text):
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), text, flags=re.S)
    return re.sub(r"//[^\n]*", "", text)


def check_file(root, path):
    """Yields 'path:line: what' for one source file, path relative to root."""
    folder = path.split("/")[0]
    with open(os.path.join(root, path), encoding="utf-8", errors="replace") as f:
        text = f.read()
    for number, line in enumerate(strip_comments(text).split("\n"), 1):
        where = f"{path}:{number}"
        if folder == "netstack" and not is_test(path):
            m = BARRED_CALLS.search(line)
            if m:
                yield f"{where}: netstack must not use {m.group()}: time and randomness are passed in, threads are the caller's"
        m = INCLUDE.match(line)
        if not m:
            continue
        kind, header = m.groups()
        if header.startswith("rte_") and not path.startswith(DPDK_FOLDER):
            yield f"{where}: {header}: DPDK headers belong in {DPDK_FOLDER} only"
        target = header.split("/")[0] if "/" in header else None
        if kind == '"' and target in FOLDERS:
            if folder in ALLOWED and target not in ALLOWED[folder]:
                yield f"{where}: {folder} must not include {header}: {target} lies above it"
            continue
        if kind == '"' and os.path.exists(os.path.join(root, os.path.dirname(path), header)) and folder in ALLOWED:
            yield f"{where}: include \"{header}\" by its path from the project's root"
            continue
        if folder == "netstack" and not is_test(path) and header not in PURE_HEADERS:
            yield f"{where}: netstack must not include <{header}>: not one of the pure headers"


def check(root):
    found = []
    for folder in sorted(FOLDERS):
        for directory, _, files in os.walk(os.path.join(root, folder)):
            for name in sorted(files):
                if name.endswith((".cc", ".h", ".inc", ".c")):
                    found += check_file(root, os.path.relpath(os.path.join(directory, name), root))
    return found


def self_test():
    cases = [  # path, text, violations wanted
        ("base/a.h", '#include "base/b.h"\n#include <vector>\n', 0),
        ("base/a.h", '#include "netstack/b.h"\n', 1),
        ("netstack/a.cc", '#include "netstack/a.h"\n#include <cstdint>\n', 0),
        ("netstack/a.cc", "#include <sys/socket.h>\n", 1),
        ("netstack/a.cc", "#include <mutex>\n#include <thread>\n#include <chrono>\n#include <random>\n", 4),
        ("netstack/a.cc", '// #include <mutex>\n/* #include "control/x.h"\n*/\n', 0),
        ("netstack/a.cc", "auto t = std::chrono::steady_clock::now();\n", 1),
        ("netstack/a_test.cc", "#include <gtest/gtest.h>\n", 0),
        ("netstack/a_test.cc", '#include "control/x.h"\n', 1),
        ("netstack/tcp/a.cc", '#include "dataplane/port.h"\n', 1),
        ("dataplane/a.cc", '#include "xdp/x.h"\n#include <poll.h>\n', 0),
        ("dataplane/a.cc", '  #  include "sentry/x.h"\n', 1),
        ("xdp/a.cc", '#include "netstack/packet.h"\n', 1),
        ("sentry/a.cc", '#include "control/x.h"\n', 1),
        ("control/a.cc", '#include "sentry/x.h"\n', 0),
        ("control/a.cc", "#include <rte_ethdev.h>\n", 1),
        ("dataplane/dpdk/a.cc", "#include <rte_ethdev.h>\n", 0),
        ("bench/a.cc", '#include "control/x.h"\n', 0),
    ]
    bad = 0
    for path, text, wanted in cases:
        with tempfile.TemporaryDirectory() as root:
            os.makedirs(os.path.join(root, os.path.dirname(path)))
            with open(os.path.join(root, path), "w", encoding="utf-8") as f:
                f.write(text)
            got = check(root)
            if len(got) != wanted:
                bad += 1
                print(f"self-test: {path} with {text!r}: wanted {wanted} violations, got {got}")
    print(f"layers self-test: {len(cases) - bad} cases right, {bad} wrong")
    return bad


def main():
    if sys.argv[1:] == ["--self-test"]:
        sys.exit(1 if self_test() else 0)
    if sys.argv[1:]:
        sys.exit("usage: check_layers.py [--self-test]")
    found = check(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for line in found:
        print(line)
    print(f"layers: {len(found)} violations")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
