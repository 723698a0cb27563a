"""What a call has come to, as its report says it, from the hosts as they were seen at its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .errors import HostError, HostKeyError
from .report import FailedSlice, HostReport, RunReport

if TYPE_CHECKING:
    from .calls import Call
    from .link import Link

Seen = tuple["Link", str, "HostError | None", int]  # state, error, how many notes


def of_host(seen: Seen, call: Call | None) -> HostReport:
    link, state, error, count = seen
    welcome = link.welcome or link.last_welcome
    notes = link.notes[:count]
    if error is not None:
        notes.append(error.reason)
    elif state == "connecting":
        notes.append("no answer yet")
    named = call.named.get(link.label, 0) if call else 0
    sent = call.sent.get(link.label, 0) if call else 0
    return HostReport(
        name=link.label,
        state=state,
        workers=link.workers,
        python=welcome.python if welcome else "",
        numpy=welcome.numpy if welcome else "",
        tasks=call.finished_by.get(link.label, 0) if call else 0,
        bytes_sent=sent,
        bytes_cached=max(0, named - sent),
        note="; ".join(notes),
    )


def key_hints(hosts: Iterable[tuple[str, HostError | None]]) -> list[str]:
    """What to do about host keys that were refused, each hint once, after the names of its hosts.

    Only about these: no later attempt mends them, and their hints say what nobody can guess."""
    of: dict[str, list[str]] = {}
    for name, error in hosts:
        if isinstance(error, HostKeyError) and error.hint:
            of.setdefault(error.hint, []).append(name)
    return [f"{', '.join(names)}: {hint}" for hint, names in of.items()]


def of_run(call: Call, seen: Sequence[Seen], seconds: float) -> RunReport:
    hosts = tuple(of_host(one, call) for one in seen)
    notes = [*key_hints((link.label, error) for link, _, error, _ in seen), *call.notes]
    if call.moved:
        moved = ", ".join(map(str, sorted(call.moved)))
        notes.append(f"calls of a lost host ran elsewhere: {moved}")
    return RunReport(
        slices=call.slices,
        workers=sum(host.workers for host in hosts if host.state == "up" or host.tasks),
        hosts=hosts,
        seconds=seconds,
        bytes_sent=sum(host.bytes_sent for host in hosts),
        bytes_cached=sum(host.bytes_cached for host in hosts),
        retried=call.retried,
        notes=tuple(notes),
        failed=tuple(
            FailedSlice(error.slice, error.host, error.type, error.detail, error.traceback)
            for error in sorted(call.failures, key=lambda error: error.slice)
        ),
    )
