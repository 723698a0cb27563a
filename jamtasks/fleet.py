"""Things done to every host at once, outside of a map call: bootstrap, hire and fire.

A host that fails is a row that says why; it never keeps the others from being done.
"""

from __future__ import annotations

import dataclasses
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from worker_payload import wire

from . import presence, remembered
from .errors import HostError, JamError
from .job_report import HireReport, HireRow
from .report import BootstrapReport, BootstrapRow, FireReport, FireRow, duration
from .session import Session

if TYPE_CHECKING:
    from .bootstrap import Attached
    from .settings import HostSpec, Settings

T = TypeVar("T")

WELCOME_SECONDS = 60.0  # an agent greets in milliseconds, but in a slow home numpy takes longer
READ_SIZE = 64 << 10


def bootstrap(settings: Settings, specs: Sequence[HostSpec], project: str) -> BootstrapReport:
    """Leave a running agent of the project on every host; say what each host is.

    Rows in the order of specs. The agents end by themselves after their idle time."""
    from . import bootstrap as bootstrapping

    def one(spec: HostSpec) -> BootstrapRow:
        attached = bootstrapping.attach(spec, settings, project)
        try:
            welcome = greet(attached, spec, project)
        finally:
            attached.channel.close()
        return BootstrapRow(
            name=spec.label,
            state="up",
            python=welcome.python,
            implementation=welcome.implementation,
            numpy=welcome.numpy,
            cpus=welcome.cpus,
            workers=spec.workers or welcome.workers,
            payload=attached.payload,
            seconds=attached.seconds,
            note="; ".join(welcome.notes),
        )

    def failed(spec: HostSpec, error: Exception, seconds: float) -> BootstrapRow:
        return BootstrapRow(spec.label, "unreachable", seconds=seconds, note=reason(error))

    report = BootstrapReport(tuple(_everywhere(specs, one, failed)))
    presence.tell(project, "bootstrap", [row.name for row in report.hosts if row.state == "up"])
    return report


def hire(
    settings: Settings,
    specs: Sequence[HostSpec],
    project: str,
    count: int | None,
    request: Mapping[str, Any],
) -> HireReport:
    """See to it that each host runs so many job workers of the project.

    count: None: as the spec says, else what the host decides. request: the rest of what the verb
    is told. Rows in the order of specs."""
    from . import bootstrap as bootstrapping

    def one(spec: HostSpec) -> HireRow:
        wanted = spec.workers if count is None else count
        told = {
            **request,
            "count": wanted,
            "label": spec.label,
            "env": dict(spec.env),
            "nice": spec.nice,
            "threads": spec.threads,
        }
        if "JAM_HOME" in told["env"]:  # that host's own settings know better where its home is
            told["home"] = None
        answer: dict[str, Any] = bootstrapping.command(spec, settings, project, "hire", told)
        running = int(answer["total"])
        note = "; ".join(map(str, answer.get("notes", ())))
        return HireRow(
            spec.label, int(answer["hired"]), running, max(0, (wanted or 0) - running), note
        )

    def failed(spec: HostSpec, error: Exception, seconds: float) -> HireRow:
        return HireRow(spec.label, None, None, None, reason(error))

    return HireReport(project, tuple(_everywhere(specs, one, failed)))


def fire(
    settings: Settings,
    specs: Sequence[HostSpec],
    project: str,
    *,
    agents: bool = True,
    workers: bool = True,
    drain: bool = False,
) -> FireReport:
    """End the project's agents, of every build, and its job workers, with all that they started,
    on every host. drain: let workers end the jobs they run.

    The notes name what ended. Rows in the order of specs; a host that cannot be asked has None
    for its numbers."""
    from . import bootstrap as bootstrapping

    request = {"agents": agents, "workers": workers, "drain": drain}

    def one(spec: HostSpec) -> FireRow:
        names: list[str] = []
        ended = jobs = 0
        while True:
            answer: dict[str, Any] = bootstrapping.command(spec, settings, project, "fire", request)
            names += map(str, answer["names"])
            ended += int(answer["ended"])
            jobs += int(answer["workers"])
            if not answer["draining"]:  # those are asked for again: no connection waits for a job
                left = int(answer["left"])
                return FireRow(spec.label, ended, left, ", ".join(names), jobs)

    def failed(spec: HostSpec, error: Exception, seconds: float) -> FireRow:
        return FireRow(spec.label, None, None, reason(error), None)

    began = time.time()
    if agents:  # first, so that masters here take the ends of these agents for what they are
        presence.tell(project, "fire", [spec.label for spec in specs])
    rows = _everywhere(specs, one, failed)
    if agents:
        remembered.forget(project, [row.name for row in rows if row.clean], began)
    return FireReport(project, tuple(rows))


def missed(project: str, row: FireRow, used: float) -> FireRow:
    """The row of a host that could not be asked, and is merely remembered, with what becomes of it.

    used: when it was last. After a day it is forgotten, for agents end by themselves when nobody
    has been there for a quarter of an hour; until then it may be the network that is away."""
    now = time.time()
    said = f"used {duration(max(0.0, now - used))} ago; it is asked for a day"
    if now - used > remembered.KEPT:
        remembered.forget(project, [row.name], used)
        said = "not used for a day; it will not be asked again"
    return dataclasses.replace(row, note=f"{row.note} ({said})")


def greet(attached: Attached, spec: HostSpec, project: str) -> wire.Welcome:
    """Say Hello on a fresh channel and return the agent's Welcome. Raises HostError."""
    from . import archive

    environment = {"threads": spec.threads, "nice": spec.nice, "env": dict(spec.env)}
    name = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"
    session = Session(
        wire.Hello(
            wire.VERSION, archive.payload().build, project, name, spec.workers or 0, environment
        )
    )
    # closing the channel is what ends a read that would wait for ever
    alarm = threading.Timer(WELCOME_SECONDS, attached.channel.close)
    alarm.daemon = True
    alarm.start()
    try:
        attached.channel.write(session.pending())
        data = attached.head
        while session.welcome is None:
            if data:
                session.receive(data, time.monotonic())
                if session.welcome is not None:
                    break
            data = attached.channel.read(READ_SIZE)
            if not data:
                if not alarm.is_alive():
                    raise HostError(
                        spec.label, f"its agent said nothing in {WELCOME_SECONDS:.0f} s"
                    )
                tail = attached.channel.stderr_tail().strip().splitlines()[-1:]
                raise attached.channel.cause() or HostError(
                    spec.label, "the agent ended before it said anything", *tail
                )
    except wire.ProtocolError as error:
        raise HostError(spec.label, f"not an agent of ours: {error}") from None
    finally:
        alarm.cancel()
    return session.welcome


def reason(error: Exception) -> str:
    """Why a host could not be used, in one line and without its name, which the row has."""
    if isinstance(error, HostError):
        text = error.reason
    elif isinstance(error, JamError):
        text = error.message
    else:
        text = f"{type(error).__name__}: {error}"
    hint = error.hint if isinstance(error, JamError) else None
    return f"{text} ({hint})" if hint else text


def _everywhere(
    specs: Iterable[HostSpec],
    one: Callable[[HostSpec], T],
    failed: Callable[[HostSpec, Exception, float], T],
) -> list[T]:
    """one(spec) for all specs at the same time, failed(spec, error, seconds) where it raises.

    Threads are daemons and answers come by a queue, so that Ctrl-C waits for no host; how many
    connect at once is the transport's affair."""
    specs = list(specs)
    answers: queue.SimpleQueue[tuple[int, T]] = queue.SimpleQueue()

    def run(index: int, spec: HostSpec) -> None:
        began = time.monotonic()
        try:
            answer = one(spec)
        except Exception as error:  # of one host: the others go on
            answer = failed(spec, error, time.monotonic() - began)
        answers.put((index, answer))

    for index, spec in enumerate(specs):
        threading.Thread(target=run, args=(index, spec), daemon=True, name=spec.label).start()
    rows = dict(answers.get() for _ in specs)
    return [rows[index] for index in range(len(specs))]
