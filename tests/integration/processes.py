"""Finding sluice's own processes of one sandbox."""
import os


def children(pid):
    """All descendants of a process, with their names."""
    parents, names = {}, {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as f:
                stat = f.read()
        except OSError:
            continue
        name, rest = stat[stat.index("(") + 1:stat.rindex(")")], stat[stat.rindex(")") + 2:].split()
        parents[int(entry)], names[int(entry)] = int(rest[1]), name
    found, queue = {}, [pid]
    while queue:
        parent = queue.pop()
        for child, p in parents.items():
            if p == parent:
                found[child] = names[child]
                queue.append(child)
    return found


def role(guard_pid, name):
    """The process of a sandbox whose name (comm or title) contains `name`: broker, sentry, keeper. None where there is none."""
    for pid, comm in children(guard_pid).items():
        if name in comm:
            return pid
    return None


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
            return f.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def pss_kib(pids):
    """Memory of the processes, shared pages counted once."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as f:
                total += next(int(line.split()[1]) for line in f if line.startswith("Pss:"))
        except OSError:
            pass
    return total


def cpu_seconds(pids):
    ticks = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
                rest = f.read().rpartition(")")[2].split()
            ticks += int(rest[11]) + int(rest[12])
        except OSError:
            pass
    return ticks / os.sysconf("SC_CLK_TCK")
