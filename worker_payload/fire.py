"""End a project's agents on this host, of every build, and its job workers, and prove that nothing
of them is left."""

import os
import signal
import time
from typing import Any, Callable, Dict, List, Set

from worker_payload import gate, keeper, layout, procs, serve

_TERM_WITHIN = 3.0
_KILL_WITHIN = 5.0
_DRAIN_WITHIN = 20.0


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


def fire(run, project, agents=True, workers=True, drain=False):
    # type: (layout.RunDir, str, bool, bool, bool) -> Dict[str, Any]
    """ended: agents and job workers that are no more; workers: how many of them were job workers.
    left: processes that are still there. names: of the ended. draining: job workers that were told
    to end with the jobs that they run, and still run them: to be asked for again.

    drain is waited for, but not for long, because a connection may not last as long as a job."""
    answer = {"ended": 0, "left": 0, "names": [], "workers": 0, "draining": 0}  # type: Dict[str, Any]
    if workers:
        _fire_workers(run, project, drain, answer)
    if agents:
        _fire_agents(run, project, answer)
    answer["ended"] += answer["workers"]
    return answer


def _fire_agents(run, project, answer):
    # type: (layout.RunDir, str, Dict[str, Any]) -> None
    running = agents(run, project)
    family = _family(run, project)
    keepers = [item["keeper"] for item in running if "keeper" in item]
    procs.kill([pid for pid in keepers if pid in family], signal.SIGTERM)
    procs.kill([item["pid"] for item in running if item.get("pid") in family], signal.SIGTERM)
    left = _end(family, lambda: _family(run, project))
    still = agents(run, project)
    ended = [item for item in running if not any(item["build"] == s["build"] for s in still)]
    answer["ended"] += len(ended)
    answer["left"] += max(len(left), len(still))
    answer["names"] += [
        "%s (build %s)" % (layout.screen_name(project), item["build"]) for item in ended
    ]


def _fire_workers(run, project, drain, answer):
    # type: (layout.RunDir, str, bool, Dict[str, Any]) -> None
    from worker_payload.jobs import hire, work

    running = hire.workers(run, project)
    family = _worker_family(run, project)
    keepers = [item["pid"] for item in running if item.get("pid") in family]
    if drain:
        procs.kill(keepers, keeper.DRAIN)
        deadline = time.monotonic() + _DRAIN_WITHIN
        while time.monotonic() < deadline and hire.workers(run, project):
            time.sleep(0.05)
        answer["draining"] = len(hire.workers(run, project))
    if not answer["draining"]:
        procs.kill(keepers, signal.SIGTERM)
        left = _end(family, lambda: _worker_family(run, project))
        answer["left"] += len(left)
    still = [item["number"] for item in hire.workers(run, project)]
    ended = [item for item in running if item["number"] not in still]
    answer["workers"] = len(ended)
    if not answer["draining"]:
        answer["left"] = max(answer["left"], len(still))
    answer["names"] += [layout.screen_name(project, "w%d" % item["number"]) for item in ended]
    for number, name in layout.worker_locks(run, project):
        # held by whoever cleans up, so that a worker that is hired now waits for it
        lock = work.take_slot(run, project, number, 0.0)
        if lock is not None:
            work.clean_up(work.read_lock(lock), lambda text: None)
            os.unlink(run.file(name))
            os.close(lock)


def _end(family, look):
    # type: (Set[int], Callable[[], Set[int]]) -> List[int]
    """Waits for those who were asked to end, then kills them and whom look() finds besides. Returns
    who is left."""
    deadline = time.monotonic() + _TERM_WITHIN
    while time.monotonic() < deadline and any(map(procs.is_alive, family)):
        time.sleep(0.02)
    deadline = time.monotonic() + _KILL_WITHIN
    while time.monotonic() < deadline:
        family |= look()
        alive = set(pid for pid in family if procs.is_alive(pid))
        if not alive:
            break
        procs.kill(alive)
        time.sleep(0.02)
    return [pid for pid in family if procs.is_alive(pid)]


def _family(run, project):
    # type: (layout.RunDir, str) -> Set[int]
    """All processes of the project's agents of this run directory: by mark, lock and descent."""
    prefix = layout.owner_prefix(run, project)
    others = layout.worker_mark_prefix(run, project)
    found = _marked(lambda mark: mark.startswith(prefix) and not mark.startswith(others))
    for agent in agents(run, project):
        # one that was started by hand bears no mark that others see
        if _holds(agent.get("pid", 0), run.file(agent["lock"])):
            found.add(agent["pid"])
            if procs.look(agent["pid"]).parent == agent.get("keeper"):
                found.add(agent["keeper"])
    return (found | procs.descendants(found)) - _above()


def _worker_family(run, project):
    # type: (layout.RunDir, str) -> Set[int]
    """The same of its job workers."""
    from worker_payload.jobs import hire

    prefix = layout.worker_mark_prefix(run, project)
    found = _marked(lambda mark: mark.startswith(prefix))
    for worker in hire.workers(run, project):
        if _holds(worker.get("pid", 0), run.file(worker["lock"])):
            found.add(worker["pid"])
    return (found | procs.descendants(found)) - _above()


def _marked(accept):
    # type: (Callable[[str], bool]) -> Set[int]
    return procs.marked(lambda marks: accept(marks.get(procs.OWNER, "")))


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
