"""Hosts on which a project was given an agent from this machine, itself included: so that
`inv fire` asks them too, whichever file or command line named them.

One file per host and way to it, in the run directory, named by what is in it; its time says when
the host was last used. No run needs them: an error here is nobody's error, and what cannot be read
is as if it had never been.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import operator
import os
from collections.abc import Collection, Iterator

from worker_payload import layout

from .private_files import publish, remove
from .settings import HostSpec

KEPT = 86_400.0  # seconds after its last use, in which a host that cannot be reached is kept
# What it takes to reach a host and start a verb there. No password: that comes anew each time.
_FIELDS = (
    "name", "label", "user", "port", "key", "gateway", "transport", "python", "prepare",
    "ssh_config",
)  # fmt: skip
_PATHS = ("key", "ssh_config")
_USED = operator.itemgetter(1)
_NEVER_MIND = (OSError, layout.LayoutError)


def remember(project: str, spec: HostSpec) -> None:
    """It has an agent of the project now."""
    with contextlib.suppress(*_NEVER_MIND, TypeError), _directory() as run:
        data = _told(spec)
        path = run.file(layout.reached_name(project, _digest(data)))
        try:
            os.utime(path)
        except FileNotFoundError:
            publish(path, data)


def hosts(project: str) -> list[tuple[HostSpec, float]]:
    """(host, when it was given an agent last, as time.time() says), in the order of their labels.

    Each host once, as it was reached last, and without its password."""
    found: dict[str, tuple[HostSpec, float]] = {}
    with contextlib.suppress(*_NEVER_MIND), _directory() as run:
        for path in _paths(run, project):
            one = _read(path)
            if one is not None:
                label = one[0].label
                found[label] = max(found.get(label, one), one, key=_USED)
    return [found[label] for label in sorted(found)]


def forget(project: str, labels: Collection[str], when: float) -> None:
    """Of these hosts, those that were not given an agent after `when`, as time.time() says."""
    with contextlib.suppress(*_NEVER_MIND), _directory() as run:
        for path in _paths(run, project) if labels else ():
            one = _read(path)
            if one is not None and one[0].label in labels and one[1] <= when:
                remove(path)


# --- files -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _directory() -> Iterator[layout.RunDir]:
    run = layout.run_dir()
    try:
        yield run
    finally:
        os.close(run.fd)


def _paths(run: layout.RunDir, project: str) -> list[str]:
    return [run.file(name) for name in layout.reached_names(run, project)]


def _told(spec: HostSpec) -> bytes:
    values = {name: getattr(spec, name) for name in _FIELDS}
    for name in _PATHS:  # the next command may be given in another folder
        if values[name]:
            values[name] = os.path.abspath(os.path.expanduser(values[name]))
    return json.dumps(values).encode("ascii")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _read(path: str) -> tuple[HostSpec, float] | None:
    """None if it is gone, or of another version, or not as it was written; then it is taken away,
    or it would never be written again."""
    with contextlib.suppress(OSError, ValueError, TypeError), open(path, "rb") as handle:
        data = handle.read()
        if layout.reached_digest(path) == _digest(data):
            return HostSpec(**json.loads(data)), os.fstat(handle.fileno()).st_mtime
        remove(path)
    return None
