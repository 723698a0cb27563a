"""End a project's agents on this host, of every build, and prove that nothing of them is left."""

import os
import signal
import time
from typing import Any, Dict, List, Set

from worker_payload import gate, layout, procs, serve

_TERM_WITHIN = 3.0
_KILL_WITHIN = 5.0


def agents(run, project=None):
    # type: (layout.RunDir, Any) -> List[Dict[str, Any]]
    """What the agents that run here wrote about themselves."""
    found = []
    for name, build, lock in layout.agent_locks(run):
        if project is not None and name != project:
            continue
        path = run.file(lock)
        if not gate.is_locked(path):
            continue
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found.append(dict(serve.read_lock(fd), project=name, build=build, lock=lock))
        finally:
            os.close(fd)
    return found


def fire(run, project):
    # type: (layout.RunDir, str) -> Dict[str, Any]
    """ended: agents that are no more. left: processes that are still there. names: of the ended."""
    running = agents(run, project)
    family = _family(run, project)
    keepers = [item["keeper"] for item in running if "keeper" in item]
    procs.kill([pid for pid in keepers if pid in family], signal.SIGTERM)
    procs.kill([item["pid"] for item in running if item.get("pid") in family], signal.SIGTERM)
    deadline = time.monotonic() + _TERM_WITHIN
    while time.monotonic() < deadline and any(map(procs.is_alive, family)):
        time.sleep(0.02)
    deadline = time.monotonic() + _KILL_WITHIN
    while time.monotonic() < deadline:
        family |= _family(run, project)
        alive = set(pid for pid in family if procs.is_alive(pid))
        if not alive:
            break
        procs.kill(alive)
        time.sleep(0.02)
    left = [pid for pid in family if procs.is_alive(pid)]
    still = agents(run, project)
    ended = [item for item in running if not any(item["build"] == s["build"] for s in still)]
    return {
        "ended": len(ended),
        "left": max(len(left), len(still)),
        "names": ["%s (build %s)" % (layout.screen_name(project), item["build"]) for item in ended],
    }


def _family(run, project):
    # type: (layout.RunDir, str) -> Set[int]
    """All processes of the project's agents of this run directory: by mark, lock and descent."""
    prefix = layout.owner_prefix(run, project)
    found = procs.marked(lambda marks: marks.get(procs.OWNER, "").startswith(prefix))
    for agent in agents(run, project):
        # one that was started by hand bears no mark that others see
        if _holds(agent.get("pid", 0), run.file(agent["lock"])):
            found.add(agent["pid"])
            if procs.look(agent["pid"]).parent == agent.get("keeper"):
                found.add(agent["keeper"])
    return (found | procs.descendants(found)) - _above()


def _holds(pid, path):
    # type: (int, str) -> bool
    """Whether the process has this file open: what a file says of its holder may be outdated."""
    folder = "/proc/%d/fd" % pid
    try:
        wanted = os.stat(path)
        for name in os.listdir(folder):
            try:
                if os.path.samestat(os.stat(os.path.join(folder, name)), wanted):
                    return True
            except OSError:
                pass
    except OSError:
        pass
    return False


def _above():
    # type: () -> Set[int]
    """This process and those it came from, which may itself run below an agent."""
    found = set()
    pid = os.getpid()
    while pid > 1 and pid not in found:
        found.add(pid)
        try:
            pid = procs.look(pid).parent
        except OSError:
            break
    return found
