"""Logins that begin before everything else is ready, for they take longest."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from types import TracebackType

from . import bootstrap
from .bootstrap import Attached, Opened
from .settings import HostSpec, Settings, check_project, load
from .transport import Channel

HEAD_START = 32  # hosts: of more, the first to begin are as late as all others


class Logins:
    """How a Master attaches to its hosts: the first attachment to each has begun already.

    settings, specs, project: those of the Master. A context manager, which ends what nobody has
    asked for."""

    def __init__(self, settings: Settings, specs: Sequence[HostSpec], project: str):
        self.settings = settings
        self.specs = specs
        self.project = project
        self._begun = {spec.label: _Login(spec, settings, project) for spec in specs[:HEAD_START]}

    @classmethod
    def begin(
        cls,
        hosts: str | Iterable[str | HostSpec] | None,
        project: str,
        *,
        settings: Settings | None = None,
        hosts_file: str | None = None,
        accept_new: bool = False,
    ) -> Logins:
        """Raises SettingsError or UsageError for names that mean nothing."""
        if settings is None:
            settings = load(hosts_file, accept_new=accept_new)
        names = hosts if hosts is None or isinstance(hosts, str) else list(hosts)
        return cls(settings, settings.select(names), check_project(project))

    def attach(self, spec: HostSpec, opened: Opened) -> Attached:
        """As bootstrap.attach."""
        login = self._begun.pop(spec.label, None)
        if login is None or login.spec != spec:
            return bootstrap.attach(spec, self.settings, self.project, opened)
        return login.join(opened)

    def close(self) -> None:
        while self._begun:
            self._begun.popitem()[1].end()

    def __enter__(self) -> Logins:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Login:
    """One attachment, under way in a thread."""

    def __init__(self, spec: HostSpec, settings: Settings, project: str):
        self.spec = spec
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._opened: Opened | None = None
        self._found: Attached | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(settings, project), name=f"jam {spec.label} login", daemon=True
        )
        self._thread.start()

    def _run(self, settings: Settings, project: str) -> None:
        try:
            self._found = bootstrap.attach(self.spec, settings, project, self._tell)
        except BaseException as error:  # for who joins
            self._error = error

    def _tell(self, channel: Channel) -> None:
        with self._lock:
            self._channel, opened = channel, self._opened
        if opened is not None:
            opened(channel)

    def join(self, opened: Opened) -> Attached:
        """What came of it. opened: told of channels from now on, and of the last one."""
        with self._lock:
            self._opened, channel = opened, self._channel
        if channel is not None:
            opened(channel)
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._found is not None
        return self._found

    def end(self) -> None:
        """Nobody wants it: whatever channel there is or will be is closed."""
        with self._lock:
            self._opened, channel = Channel.close, self._channel
        if channel is not None:
            channel.close()
