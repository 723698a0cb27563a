"""What the tests of faults share: a run in the background, and the processes of a host to harm."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sshd import Host, command_line, descendants, kill, marked, parents, wait_until

from jamtasks import Master


class Running:
    """A function at work in a thread; `result` waits for what it returns or raises."""

    def __init__(self, function: Callable[..., Any], *args: Any, **settings: Any):
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function, args, settings))
        self._thread.start()

    def _run(self, function: Callable[..., Any], args: Any, settings: Any) -> None:
        try:
            self._value = function(*args, **settings)
        except BaseException as error:
            self._error = error

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def result(self, seconds: float = 40.0) -> Any:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"still running after {seconds:g} s"
        if self._error is not None:
            raise self._error
        return self._value


def states(master: Master) -> dict[str, str]:
    return {one.name: one.state for one in master.hosts()}


def wait_state(master: Master, host: str, state: str, seconds: float = 20.0) -> None:
    wait_until(lambda: states(master)[host] == state, f"{host} is {state}", seconds)


def agents(run_dir: str | Path) -> list[dict[str, Any]]:
    """What the agents of a run directory say about themselves: pid, keeper, …; newest first."""
    found = []
    for path in Path(run_dir).glob("agent.*.lock"):
        try:
            said = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if is_alive(said["pid"]):
            found.append(said)
    return sorted(found, key=lambda one: -one["started"])


def agent(run_dir: str | Path) -> dict[str, Any]:
    return wait_until(lambda: agents(run_dir), f"an agent in {run_dir}")[0]


def screen_of(run_dir: str | Path) -> int:
    """The screen that an agent runs in."""
    pid, table = agent(run_dir)["keeper"], parents()
    while "SCREEN" not in command_line(pid):
        pid = table[pid]
        assert pid > 1, "it runs under no screen"
    return pid


def sessions(host: Host) -> list[int]:
    """The processes that carry its connections. sshd's: `sshd: …`, from OpenSSH 9.8 on
    `sshd-session: …`. Where the host has no sshd, those that attach to its agent."""
    if host.process is None:
        lines = marked(f"JAM_TEST={host.env['JAM_TEST']}")
        return [pid for pid, line in lines.items() if " attach " in line]
    return [
        pid
        for pid in descendants(host.process.pid)
        if command_line(pid).startswith(("sshd:", "sshd-session:"))
    ]


def cut_off(host: Host) -> list[int]:
    """sshd's listener and connections stand still, as if packets vanished; their pids."""
    assert host.process is not None
    stopped = [host.process.pid, *sessions(host)]
    for pid in stopped:
        kill(pid, signal.SIGSTOP)
    return stopped


def go_on(pids: list[int]) -> None:
    for pid in pids:
        kill(pid, signal.SIGCONT)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def stored(run_dir: str | Path, cache_dir: str | Path) -> list[Path]:
    """The files of a host's store, in memory and on disk."""
    import hashlib

    mark = hashlib.sha256(os.path.realpath(run_dir).encode()).hexdigest()[:8]
    folders = [Path(f"/dev/shm/jam-{os.getuid()}-{mark}"), Path(run_dir), Path(cache_dir)]
    return [
        path
        for folder in folders
        if folder.is_dir()
        for path in folder.rglob("*")
        if len(path.name) == 64 and path.is_file()
    ]


def resident(pid: int, what: str = "VmRSS") -> int:
    """Bytes of memory that a process uses, or with VmHWM has used at most."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) << 10
