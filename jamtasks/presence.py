"""Masters that run on this machine: what each waits for, and what they are told by other commands.

A master at work keeps a file in the run directory, locked for its life: `inv status` reads it.
`inv bootstrap` and `inv fire` append a line to the project's news, which masters read: a host that
was fired leaves their calls, one that was bootstrapped joins them. Neither is needed for a run: an
error here is nobody's error.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worker_payload import layout

NEWS_MAX = 64 << 10  # bytes, after which the news begin anew


@dataclass(frozen=True)
class News:
    """verb: "fire" or "bootstrap". hosts: labels."""

    verb: str
    hosts: tuple[str, ...]


class Presence:
    """This master, for others on this machine to see."""

    def __init__(self, project: str):
        self._project = project
        self._fd: int | None = None
        self._path = ""
        self._run: layout.RunDir | None = None
        self._read = 0
        with contextlib.suppress(OSError, layout.LayoutError):
            self._run = layout.run_dir()
            self._read = os.stat(self._news()).st_size

    def _news(self) -> str:
        assert self._run is not None
        return self._run.file(layout.news_name(self._project))

    def show(self, value: Any) -> None:
        """What `running` is to return of this master from now on."""
        if self._run is None:
            return
        with contextlib.suppress(OSError):
            if self._fd is None:
                self._path = self._run.file(layout.master_name(self._project))
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
                self._fd = os.open(self._path, flags, 0o600)
                fcntl.flock(self._fd, fcntl.LOCK_EX)
            data = json.dumps(value).encode("ascii")
            os.pwrite(self._fd, data.ljust(os.fstat(self._fd).st_size), 0)  # blanks: no torn read

    def hide(self) -> None:
        """There is nothing to see any more."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            os.close(self._fd)
            self._fd = None

    def close(self) -> None:
        self.hide()
        if self._run is not None:
            os.close(self._run.fd)
            self._run = None

    def news(self) -> list[News]:
        """What happened since the last time, or since this was made."""
        if self._run is None:
            return []
        try:
            with open(self._news(), "rb") as handle:
                size = os.fstat(handle.fileno()).st_size
                handle.seek(self._read if self._read <= size else 0)
                data = handle.read(NEWS_MAX)
                self._read = handle.tell()
        except OSError:
            return []
        found = []
        for line in data.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                value = json.loads(line)
                found.append(News(str(value["verb"]), tuple(map(str, value["hosts"]))))
        return found


def tell(project: str, verb: str, hosts: Sequence[str]) -> None:
    """Let the masters of this project on this machine know."""
    with contextlib.suppress(OSError, layout.LayoutError):
        run = layout.run_dir()
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(run.file(layout.news_name(project)), flags, 0o600)
            try:
                if os.fstat(fd).st_size > NEWS_MAX:
                    os.ftruncate(fd, 0)
                line = {"when": time.time(), "verb": verb, "hosts": list(hosts)}
                os.write(fd, json.dumps(line).encode("ascii") + b"\n")
            finally:
                os.close(fd)
        finally:
            os.close(run.fd)


def running(project: str) -> list[dict[str, Any]]:
    """What the masters of this project on this machine show of themselves."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, layout.LayoutError):
        run = layout.run_dir()
        try:
            for name in layout.master_names(run, project):
                value = _look(run.file(name))
                if value is not None:
                    found.append(value)
        finally:
            os.close(run.fd)
    return found


def _look(path: str) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError), open(path, "rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            value = json.loads(handle.read())
            return value if isinstance(value, dict) else None
        os.unlink(path)  # of a master that was killed
    return None
