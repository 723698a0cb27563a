"""Around a Master at work: hosts that come and go by other commands and by hosts.yaml, and what
others on this machine may see of its call."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from . import presence
from .errors import JamError

if TYPE_CHECKING:
    from .calls import Call
    from .engine import Engine
    from .settings import HostSpec, Settings

SHOWN_AFTER = 1.0  # seconds; a shorter call shows nothing to `inv status`
SHOWN_SLICES = 200


class Fold(Protocol):
    """What puts answers into order."""

    next: int  # the slice that it waits for

    @property
    def ahead(self) -> int: ...


class Lookout:
    """hosts_file: of these settings the file is followed. notice: is told what a person who waits
    should know."""

    def __init__(
        self, project: str, settings: Settings, *, hosts_file: bool, notice: Callable[[str], None]
    ):
        self._file = _HostsFile(settings) if hosts_file and settings.path else None
        self._notice = notice
        self._presence = presence.Presence(project)
        self._looking = threading.Lock()
        self._shown: tuple[Call, Fold, float] | None = None  # and since when
        self._closed = False

    def show(self, call: Call, fold: Fold) -> None:
        """This call is under way."""
        self._shown = call, fold, time.time()

    def hide(self) -> None:
        """None is."""
        with self._looking:
            self._shown = None
            self._presence.hide()

    def close(self) -> None:
        with self._looking:
            self._closed = True
            self._presence.close()

    def look(self, engine: Engine) -> None:
        """Hear of hosts that come and go, and let others see how far we are."""
        with self._looking:
            if self._closed:
                return
            for news in self._presence.news():
                for host in news.hosts:
                    if news.verb == "fire":
                        engine.leave(host, "it was ended by `inv fire`")
                    elif host in engine.links:
                        engine.join(engine.links[host].spec)
            if self._file is not None:
                self._reread(self._file, engine)
            if self._shown is not None:
                with engine.lock:
                    told = snapshot(*self._shown, time.time(), engine)
                if told is not None:
                    self._presence.show(told)

    def _reread(self, file: _HostsFile, engine: Engine) -> None:
        try:
            specs = file.changed()
        except JamError as error:
            self._notice(f"{error.message}; the hosts stay as they were")
            return
        if specs is None:
            return
        wanted = {spec.label: spec for spec in specs}
        for label, link in list(engine.links.items()):
            if label not in wanted:
                engine.leave(label, f"it is no longer in {file.path}")
            elif wanted[label] != link.spec:
                self._notice(f"{label}: its new settings in {file.path} count from the next run")
        for label, spec in wanted.items():
            known = engine.links.get(label)
            if known is None or known.state == "left" or known.leaving:
                self._notice(f"{label} is in {file.path} now, and may join")
                engine.join(spec)


def snapshot(
    call: Call, fold: Fold, began: float, now: float, engine: Engine
) -> dict[str, Any] | None:
    """What `inv status` shows of this call; None while it is young. Under the engine's lock."""
    if now - began < SHOWN_AFTER or call.settled:
        return None
    clock = time.monotonic()
    held = sorted(call.scheduler.held(), key=lambda item: item[3])
    queued = call.scheduler.queued()
    waiting = [
        {
            "slice": call.slice_at(task),
            "host": str(host),
            "seconds": round(clock - since, 1),
            "for": "its map function" if runs else "its data, or a free worker",
        }
        for task, host, runs, since in held[:SHOWN_SLICES]
    ]
    behind = next((item for item in waiting if item["slice"] == fold.next), None)
    return {
        "pid": os.getpid(),
        "command": " ".join(sys.argv),
        "module": call.begin.module,
        "began": began,
        "slices": call.slices,
        "done": call.done,
        "failed": len(call.failures),
        "retried": call.retried,
        "fold": behind if fold.ahead else None,
        "waiting": waiting,
        "more": max(0, len(held) - SHOWN_SLICES),
        "queued": {str(host): n for host, n in queued.items() if host is not None and n},
        "homeless": queued[None],
        "hosts": [
            {
                "name": link.label,
                "state": link.state,
                "workers": link.workers,
                "tasks": call.finished_by.get(link.label, 0),
                "note": link.error.reason if link.error else "",
            }
            for link in engine.links.values()
        ],
    }


class _HostsFile:
    """The file that says which hosts there are, while a Master uses all of them."""

    def __init__(self, settings: Settings):
        assert settings.path is not None
        self.path = settings.path
        self._accept_new = settings.accept_new
        self._seen = self._stamp()

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size

    def changed(self) -> tuple[HostSpec, ...] | None:
        """The hosts in it, if it was written to since the last time. Raises SettingsError."""
        from . import settings as settings_module

        stamp = self._stamp()
        if stamp is None or stamp == self._seen:
            return None
        self._seen = stamp
        return settings_module.load(self.path, accept_new=self._accept_new).select()
