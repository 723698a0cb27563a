"""The verb `hire`: see to it that this host runs so many job workers of a project."""

import fcntl
import json
import os
import time
from typing import Any, Dict, List, Optional

from worker_payload import gate, launch, layout, limits
from worker_payload.jobs import files, names, steps, work

_LOCK_WITHIN = 30.0
_LOCAL = ("localhost", "127.0.0.1", "::1")


class HireError(Exception):
    def __init__(self, message, hint=None):
        # type: (str, Optional[str]) -> None
        super(HireError, self).__init__(message)
        self.hint = hint


def hire(run, project, request):
    # type: (layout.RunDir, str, Dict[str, Any]) -> Dict[str, Any]
    """request: count (None: the CPUs that are ours less one, at least 1), cwd, idle, label, env,
    nice, threads, home (of the project folders; None: the host's own), id (of the project's folder;
    None: this may be its first host). Adds what is missing, and never ends a worker.

    Answers hired (started now), total (that run), names, notes. Raises HireError, OSError,
    files.Trouble."""
    environ = dict(os.environ)
    if request.get("home"):
        environ["JAM_HOME"] = os.path.expanduser(str(request["home"]))
    # later, because a host may see the shared folder elsewhere
    environ.update((str(key), str(value)) for key, value in (request.get("env") or {}).items())
    if request.get("threads"):
        from worker_payload import template  # which is large

        environ.update((name, str(request["threads"])) for name in template.THREADS)
    root = names.home(project, environ)
    _check_home(root, request.get("id"))
    notes = []  # type: List[str]
    cwd = str(request.get("cwd") or "")
    if not os.path.isdir(cwd):
        home = environ.get("HOME") or "/"
        if cwd:
            notes.append("there is no %s here: jobs run in %s" % (cwd, home))
        cwd = home
    label = str(request.get("label") or "")
    told = {
        "cwd": cwd,
        "idle": request.get("idle"),
        "label": label,
        "nice": request.get("nice"),
        "host": "" if label in _LOCAL else label,
    }
    environ[work.HIRED] = json.dumps(told)
    count = request.get("count")
    wanted = int(count) if count is not None else max(limits.cpus() - 1, 1)
    lock = _alone(run, project)
    try:
        running = workers(run, project)
        for item in running:
            if item.get("root") and os.path.realpath(item["root"]) != os.path.realpath(root):
                raise HireError(
                    "worker %d of this project runs here for %s" % (item["number"], item["root"]),
                    "fire it first, or choose another project name",
                )
        missing = _free(running, wanted - len(running))
        started = [_start(run, project, number, environ) for number in missing]
        hired = [number for number, wait in zip(missing, started) if wait()]
    finally:
        os.close(lock)
    for number in missing:
        if number not in hired:
            log = run.file(layout.worker_log_name(project, number))
            notes.append("worker %d did not start: see %s" % (number, log))
    total = workers(run, project)
    return {
        "hired": len(hired),
        "total": len(total),
        "names": [layout.screen_name(project, "w%d" % item["number"]) for item in total],
        "notes": notes,
    }


def workers(run, project):
    # type: (layout.RunDir, str) -> List[Dict[str, Any]]
    """The job workers of a project that run here: what their locks say, with number and lock."""
    found = []
    for number, name in layout.worker_locks(run, project):
        if gate.is_locked(run.file(name)):
            found.append(dict(said(run, name), number=number, lock=name))
    return found


def said(run, name):
    # type: (layout.RunDir, str) -> Dict[str, Any]
    """What the lock of this name says."""
    try:
        fd = os.open(run.file(name), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        return work.read_lock(fd)
    finally:
        os.close(fd)


def _check_home(root, identity):
    # type: (str, Optional[str]) -> None
    try:
        if identity is None:
            files.prepare(root)
            return
        here = files.Files(root).do(steps.Read(names.IDENTITY))
    except OSError as error:
        raise HireError("cannot use %s: %s" % (root, error.strerror))
    hint = "workers have to see the same folder: set JAM_HOME, here and there, to one that both see"
    if here is None:
        raise HireError("its home is not shared: there is no %s" % root, hint)
    if here.decode("ascii", "replace").strip() != str(identity).strip():
        raise HireError("its home is not shared: %s is another folder there" % root, hint)


def _alone(run, project):
    # type: (layout.RunDir, str) -> int
    """A lock against others who hire for this project here."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(run.file(layout.hire_lock_name(project)), flags, 0o600)
    deadline = time.monotonic() + _LOCK_WITHIN
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except OSError:
            if time.monotonic() > deadline:
                os.close(fd)
                raise HireError("another has been hiring here for %.0f s" % _LOCK_WITHIN)
            time.sleep(0.05)


def _free(running, count):
    # type: (List[Dict[str, Any]], int) -> List[int]
    taken = set(item["number"] for item in running)
    found = []  # type: List[int]
    number = 1
    while len(found) < count:
        if number not in taken:
            found.append(number)
        number += 1
    return found


def _start(run, project, number, environ):
    # type: (layout.RunDir, str, int, Dict[str, str]) -> Any
    """Begins to start a worker; returns what waits until it runs and says whether it does."""
    mark = layout.worker_mark(run, project, number)
    name = layout.worker_lock_name(project, number)
    started = launch.Started(
        layout.screen_name(project, "w%d" % number),
        ["work", project, str(number)],
        mark,
        run.file(layout.worker_log_name(project, number)),
        environ,
    )

    def runs():
        # type: () -> bool
        return said(run, name).get("mark") == mark and gate.is_locked(run.file(name))

    return lambda: started.wait(runs)
