"""What the benchmarks share: a host of their own (a real sshd on loopback), timing, tables."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jamtasks import HostSpec, remembered
from tests.live import sshd

from . import peers

Go = Callable[[], object]  # what is timed


class Host:
    """An sshd on loopback, with a home, a store and agents of its own."""

    address = "127.0.0.1"
    python = sys.executable

    def __init__(self, folder: Path, name: str):
        self.folder = folder
        self.name = name
        directories = {}
        for variable in ("HOME", "JAM_RUN_DIR", "JAM_CACHE_DIR", "SCREENDIR"):
            path = folder / variable.lower()
            path.mkdir(mode=0o700)
            directories[variable] = str(path)
        self._env = {**directories, "JAM_TEST": str(folder)}
        self.key = str(sshd.keygen(folder / "id"))
        self._sshd = sshd.Host(
            name=self.name, folder=folder, client_key=folder / "id",
            host_key=sshd.keygen(folder / "host"), env=self._env,
            options=("MaxStartups 100:30:200", "Subsystem sftp internal-sftp"),
        )  # fmt: skip
        os.makedirs("/run/sshd", exist_ok=True)
        self._sshd.start()
        self.port, self.user = self._sshd.port, os.environ.get("USER", "root")
        self.known_hosts = str(folder / "known_hosts")
        Path(self.known_hosts).write_text(self._sshd.known_hosts_line())
        self.config = str(folder / "ssh_config")
        self._write_config()

    def _write_config(self) -> None:
        Path(self.config).write_text(
            f"Host {self.name}\n  HostName {self.address}\n  Port {self.port}\n"
            f"  IdentityFile {self.key}\n  IdentitiesOnly yes\n  Compression no\n"
            f"  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile none\n"
            "  ControlPath none\n"
        )

    def through(self, port: int) -> Host:
        """The same host at another port, which leads to it."""
        other = copy.copy(self)
        other.port, other.config = port, f"{self.config}.{port}"
        with open(self.known_hosts, "a") as known:
            known.write(self._sshd.known_hosts_line(f"[{self.address}]:{port}"))
        other._write_config()
        return other

    def ssh(self, command: str) -> list[str]:
        return ["ssh", "-F", self.config, self.name, command]

    def spec(self, transport: str, workers: int) -> HostSpec:
        return HostSpec(
            self.name, transport=transport, workers=workers, ssh_config=self.config,
            python=self.python,
        )  # fmt: skip

    @property
    def mark(self) -> str:
        """In the environment of every process that a session here started."""
        return f"JAM_TEST={self.folder}"

    @property
    def sshd_pid(self) -> int:
        assert self._sshd.process is not None
        return self._sshd.process.pid

    @property
    def where(self) -> peers.Address:
        """For the peers."""
        return peers.Address(
            self.config, self.name, self.python, self.port, self.key, self.known_hosts
        )

    def environment(self, transport: str) -> dict[str, str]:
        return {"JAM_SSH_CONFIG": self.config, "JAM_TRANSPORT": transport}

    def forget_everything(self) -> None:
        """As if jam had never been here."""
        self._end_agents()
        for variable in ("JAM_RUN_DIR", "JAM_CACHE_DIR"):
            for path in Path(self._env[variable]).iterdir():
                shutil.rmtree(path, ignore_errors=True)
                path.unlink(missing_ok=True)
        sshd.forget_ram(Path(self._env["JAM_RUN_DIR"]))

    def _end_agents(self) -> None:
        def agents() -> list[int]:  # the peers' processes are not ours to end
            ours = self._env["JAM_CACHE_DIR"]
            marked = sshd.marked(self.mark)
            return [pid for pid, command in marked.items() if ours in command]

        for pid in agents():
            sshd.kill(pid)
        sshd.wait_until(lambda: not agents(), "agents end")

    def stop(self) -> None:
        self._end_agents()
        sshd.forget_ram(Path(self._env["JAM_RUN_DIR"]))
        self._sshd.stop()


@contextlib.contextmanager
def host(name: str = "bench") -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="jam-bench-", dir="/tmp"))
    before = {name: os.environ.get(name) for name in ("JAM_SSH_CONFIG", "JAM_HOSTS_FILE")}
    made = Host(folder, name)
    try:
        os.environ["JAM_SSH_CONFIG"] = made.config
        yield made
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        made.stop()
        remembered.forget("default", [made.name], time.time())
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def paramiko_channel(host: Host) -> Iterator[Any]:
    """A channel over a new bare Paramiko connection, AES-GCM first.

    For half a gigabyte at most: then Paramiko changes keys, and a channel that ends just then
    blocks it."""
    import paramiko

    client = paramiko.SSHClient()
    client.load_host_keys(host.known_hosts)
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    prefer = paramiko.Transport._preferred_ciphers  # type: ignore[attr-defined]
    others = [name for name in prefer if "gcm" not in name]
    client.connect(
        host.address, port=host.port, username=host.user, key_filename=host.key,
        disabled_algorithms={"ciphers": others}, allow_agent=False, look_for_keys=False,
    )  # fmt: skip
    try:
        transport = client.get_transport()
        assert transport is not None
        yield transport.open_session(window_size=1 << 24, max_packet_size=1 << 15)
    finally:
        client.close()


def end(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.2)
        return
    process.kill()
    process.wait(10)


class Seconds(float):
    """What a contender returns that times itself, because it has to prepare something first."""


class Race:
    """Contenders that take turns, so that the moods of the machine hit all alike.

    A peer that cannot start, fails or does not answer for `limit` seconds drops out; why, is what
    the table shows for it. jam and the limits, though, have to work: their errors are raised. As a
    context manager it ends all that its contenders have started."""

    def __init__(self, limit: float = 90.0):
        self.reasons: dict[str, str] = {}
        self._limit = limit
        self._goes: dict[str, Callable[[], object]] = {}
        self._stacks: dict[str, ExitStack] = {}
        self._first: dict[str, float] = {}

    def __enter__(self) -> Race:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._stacks):
            self._end(name)

    def enter(
        self,
        name: str,
        start: Callable[[ExitStack], Callable[[], object]],
        check: Callable[[Any], bool] = lambda value: True,
    ) -> None:
        """start(stack) makes what is timed, a function; check(what it returns) must be true."""
        self._stacks[name] = ExitStack()

        def begin() -> None:
            go = start(self._stacks[name])
            took, value = _timed(go)
            if not check(value):
                raise ValueError(f"{name} computes something else")
            self._goes[name], self._first[name] = go, took

        self._attempt(name, begin)

    def run(self, times: int, burst: int = 1, seconds: float = 20.0) -> dict[str, float]:
        """Median seconds of each that still runs: of `times` runs, fewer if they take `seconds`.

        The run that each has behind it when it has entered counts only if it took that long by
        itself. burst: runs of one before the turn of the next, as in a loop; the first of them,
        which finds the caches full of the others' things, is not counted then."""
        taken: dict[str, list[float]] = {name: [] for name in self._goes}
        spent = dict(self._first)

        def turn(name: str) -> None:
            for inner in range(burst):
                took, _ = _timed(self._goes[name])
                spent[name] += took
                if inner or burst == 1:
                    taken[name].append(took)

        for _ in range(max(1, times // burst)):
            for name in [name for name in self._goes if spent[name] < seconds]:
                self._attempt(name, functools.partial(turn, name))
        return {name: statistics.median(taken[name] or [self._first[name]]) for name in self._goes}

    def _attempt(self, name: str, action: Callable[[], object]) -> None:
        try:
            with within(self._limit):
                action()
        except Exception as error:
            if name.startswith("jam") or "(limit" in name:
                raise
            last = str(error).strip().splitlines()
            self.reasons[name] = f"{type(error).__name__}: {last[0][:80] if last else ''}"
            self._goes.pop(name, None)
            self._end(name)

    def _end(self, name: str) -> None:
        stack = self._stacks.pop(name)
        if name.startswith("jam"):
            stack.close()
            return
        with contextlib.suppress(Exception), within(self._limit):
            stack.close()


def _timed(go: Callable[[], object]) -> tuple[float, object]:
    began = time.perf_counter()
    value = go()
    took = time.perf_counter() - began
    return float(value) if isinstance(value, Seconds) else took, value


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in here when it takes longer. For the main thread."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no answer within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def memory(pids: Iterable[int]) -> float:
    """Bytes of memory of these processes together; what they share with others counts in part."""
    found = 0
    for pid in pids:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found += int(rollup.partition("Pss:")[2].split()[0]) << 10
    return float(found)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table on stdout, for RESULTS.md."""
    print(f"\n### {title}\n")
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |", flush=True)
