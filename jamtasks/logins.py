"""Logins that begin before everything else is ready, for they take longest."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from types import TracebackType

from . import archive, bootstrap, transport
from .bootstrap import Attached
from .settings import HostSpec, Settings, check_project, load
from .transport import Attempt

HEAD_START = 32  # hosts: of more, the first to begin are as late as all others
SEND_OFF_SECONDS = 0.25


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
        return cls(settings, settings.select(hosts), check_project(project))

    def send_off(self) -> None:
        """Help with them until all of them wait for their hosts, or for a moment; what else there
        is to do before they are done takes no time from them then."""
        deadline = time.monotonic() + SEND_OFF_SECONDS
        archive.payload()
        transport.load({login.spec.transport for login in self._begun.values()})
        for login in self._begun.values():
            login.attempt.waits.wait(max(0.0, deadline - time.monotonic()))

    def attach(self, spec: HostSpec, attempt: Attempt) -> Attached:
        """As bootstrap.attach."""
        login = self._begun.pop(spec.label, None)
        if login is None or login.spec != spec:
            return bootstrap.attach(spec, self.settings, self.project, attempt)
        return login.join(attempt)

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
        self.attempt = Attempt(spec.label)
        self._found: Future[Attached] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(settings, project), name=f"jam {spec.label} login", daemon=True
        )
        self._thread.start()

    def _run(self, settings: Settings, project: str) -> None:
        try:
            self._found.set_result(bootstrap.attach(self.spec, settings, project, self.attempt))
        except BaseException as error:  # for who joins
            self._found.set_exception(error)
        finally:
            self.attempt.waits.set()

    def join(self, attempt: Attempt) -> Attached:
        """What came of it. attempt: ends it from now on."""
        attempt.ends_with(self.end)
        return attempt.wait(self._found)

    def end(self) -> None:
        """Nobody wants it: whatever channel there is or will be is closed."""
        self.attempt.end()
