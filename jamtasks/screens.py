"""screen's command lines and its list of sessions; strings only.

Sessions are addressed by their full `pid.name`: screen matches names by prefix, so that ending
`jam.a.agent` could end another one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_PROJECT = re.compile(r"[A-Za-z0-9_-]{1,40}")
_SESSION = re.compile(r"^\s+(?P<pid>[0-9]+)\.(?P<name>\S+)\s.*\((?P<state>[^()]*)\)\s*$")


@dataclass(frozen=True)
class Session:
    """A line of `screen -ls`. state: as screen says it, `Detached`, `Dead ???`, …"""

    pid: int
    name: str
    state: str

    @property
    def full_name(self) -> str:
        return f"{self.pid}.{self.name}"

    @property
    def alive(self) -> bool:
        return not self.state.startswith(("Dead", "Remote or dead", "Removed"))


def name(project: str, worker: int | None = None) -> str:
    """The name of a project's agent, or of one of its job workers. Raises ValueError."""
    if not _PROJECT.fullmatch(project):
        raise ValueError(f"{project!r} is no project name")
    return f"jam.{project}.agent" if worker is None else f"jam.{project}.w{worker}"


def start(session: str, command: Sequence[str], *, log: str | None = None) -> list[str]:
    """Start a detached session that runs command; it ends with it."""
    argv = ["screen", "-d", "-m", "-S", session]
    if log is not None:
        argv += ["-L", "-Logfile", log]
    return [*argv, *command]


def listing() -> list[str]:
    """Its exit code says nothing: it differs between versions of screen."""
    return ["screen", "-ls"]


def quit(session: Session) -> list[str]:
    return ["screen", "-S", session.full_name, "-X", "quit"]


def parse(text: str) -> tuple[Session, ...]:
    """The sessions in the output of `screen -ls`, in any of its languages."""
    found = (_SESSION.match(line) for line in text.splitlines())
    return tuple(
        Session(int(match["pid"]), match["name"], match["state"]) for match in found if match
    )


def of_project(sessions: Sequence[Session], project: str) -> tuple[Session, ...]:
    """Those of exactly this project: firing `a` leaves `ab` alone."""
    own = re.compile(rf"jam\.{re.escape(project)}\.(agent|w[0-9]+)")
    return tuple(session for session in sessions if own.fullmatch(session.name))
