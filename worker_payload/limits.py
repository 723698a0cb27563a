"""How much of this machine is ours: CPUs and memory, as affinity and control groups leave them.

Everything is read anew at each call, because a batch system may change a limit under a running
agent. What cannot be read counts as no limit. `root` is for tests: a tree with /proc and /sys.
"""

import math
import os
from typing import Dict, Iterator, List, Optional, Tuple

_NO_LIMIT = 1 << 60  # version 1 says "none" by a number near 2**63


def cpus(root="/"):
    # type: (str) -> int
    """CPUs that we may keep busy, at least 1: affinity, and the CPU quota rounded up."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        count = os.cpu_count() or 1
    for directory in _groups("cpu", root):
        quota = _quota(directory)
        if quota:
            count = min(count, int(math.ceil(quota)))
    return max(count, 1)


def memory_limit(root="/"):
    # type: (str) -> int
    """Bytes that all our processes together may use: the machine's, or less by a control group."""
    limits = [size for size, _ in _memory_groups(root)]
    physical = _meminfo("MemTotal", root) or _sysconf("SC_PHYS_PAGES")
    return min(limits + [physical or _NO_LIMIT])


def memory_free(root="/"):
    # type: (str) -> int
    """Bytes that can still be had without swapping, page cache that can be given up included."""
    free = [max(size - used, 0) for size, used in _memory_groups(root)]
    machine = _meminfo("MemAvailable", root)
    if machine is None:
        machine = _sysconf("SC_AVPHYS_PAGES")
    return min(free + [memory_limit(root) if machine is None else machine])


def _sysconf(name):
    # type: (str) -> Optional[int]
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _meminfo(field, root):
    # type: (str, str) -> Optional[int]
    for line in _read(os.path.join(root, "proc/meminfo")).splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    return None


# --- control groups ----------------------------------------------------------------------------


def _memory_groups(root):
    # type: (str) -> Iterator[Tuple[int, int]]
    """(limit, in use) of every group above us that has a limit."""
    for directory in _groups("memory", root):
        for limit_name, used_name, cache_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _number(_read(os.path.join(directory, limit_name)))
            if limit is None or limit >= _NO_LIMIT:
                continue
            used = _number(_read(os.path.join(directory, used_name))) or 0
            for line in _read(os.path.join(directory, "memory.stat")).splitlines():
                name, _, value = line.partition(" ")
                if name == cache_name:
                    used -= _number(value) or 0
            yield limit, used


def _quota(directory):
    # type: (str) -> Optional[float]
    """CPUs' worth of time that a group may use, or None."""
    both = _read(os.path.join(directory, "cpu.max")).split()  # version 2: "quota period"
    if not both:
        both = [_read(os.path.join(directory, "cpu.cfs_" + name)) for name in
                ("quota_us", "period_us")]  # fmt: skip
    quota, period = [_number(text) for text in (both + ["", ""])[:2]]
    return float(quota) / period if quota and period and quota > 0 else None


def _groups(controller, root):
    # type: (str, str) -> Iterator[str]
    """Directories of the groups that we are in, innermost first, as far as they are mounted."""
    paths = {}  # type: Dict[str, str]  # our group by version 1 controller; version 2 under ""
    for line in _read(os.path.join(root, "proc/self/cgroup")).splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        for name in controllers.split(","):
            paths[name] = path
    for mounted, point, names in _mounts(root):
        name = "" if "" in names else controller
        if name not in names or name not in paths:
            continue
        path = paths[name]
        if mounted != "/":  # a container's view: its mount begins below the real root
            path = path[len(mounted) :] if (path + "/").startswith(mounted + "/") else "/"
        top = os.path.normpath(os.path.join(root, point.lstrip("/")))
        directory = os.path.normpath(os.path.join(top, path.lstrip("/")))
        while directory.startswith(top + "/"):
            yield directory
            directory = os.path.dirname(directory)
        yield top


def _mounts(root):
    # type: (str) -> List[Tuple[str, str, List[str]]]
    """(path within the hierarchy, mount point, controllers; [""] for version 2) of each mount."""
    found = []
    for line in _read(os.path.join(root, "proc/self/mountinfo")).splitlines():
        front, _, back = line.partition(" - ")
        fields, more = front.split(), back.split()
        if len(fields) < 5 or len(more) < 3:
            continue
        if more[0] == "cgroup2":
            found.append((fields[3], fields[4], [""]))
        elif more[0] == "cgroup":
            found.append((fields[3], fields[4], more[2].split(",")))
    return found


def _number(text):
    # type: (str) -> Optional[int]
    try:
        return int(text)
    except ValueError:  # "max", or nothing
        return None


def _read(path):
    # type: (str) -> str
    try:
        with open(path) as handle:
            return handle.read()
    except (OSError, ValueError):
        return ""
