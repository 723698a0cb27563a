"""What the benchmarks share: a host of their own (a real sshd on loopback), timing, tables."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jamtasks import HostSpec
from tests.live import sshd


class Host:
    """An sshd on loopback, with a home, a store and agents of its own."""

    name = "bench"
    address = "127.0.0.1"
    python = sys.executable

    def __init__(self, folder: Path):
        self.folder = folder
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
            options=("MaxStartups 100:30:200",),
        )  # fmt: skip
        os.makedirs("/run/sshd", exist_ok=True)
        self._sshd.start()
        self.port, self.user = self._sshd.port, os.environ.get("USER", "root")
        self.known_hosts = str(folder / "known_hosts")
        Path(self.known_hosts).write_text(self._sshd.known_hosts_line())
        self.config = str(folder / "ssh_config")
        Path(self.config).write_text(
            f"Host {self.name}\n  HostName {self.address}\n  Port {self.port}\n"
            f"  IdentityFile {self.key}\n  IdentitiesOnly yes\n  Compression no\n"
            f"  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile none\n"
            "  ControlPath none\n"
        )

    def ssh(self, command: str) -> list[str]:
        return ["ssh", "-F", self.config, self.name, command]

    def spec(self, transport: str, workers: int) -> HostSpec:
        return HostSpec(
            self.name, transport=transport, workers=workers, ssh_config=self.config,
            python=self.python,
        )  # fmt: skip

    def environment(self, transport: str) -> dict[str, str]:
        return {"JAM_SSH_CONFIG": self.config, "JAM_TRANSPORT": transport}

    def forget_everything(self) -> None:
        """As if jam had never been here."""
        self._end_agents()
        for variable in ("JAM_RUN_DIR", "JAM_CACHE_DIR"):
            for path in Path(self._env[variable]).iterdir():
                shutil.rmtree(path, ignore_errors=True)
                path.unlink(missing_ok=True)

    def _end_agents(self) -> None:
        def agents() -> dict[int, str]:
            return sshd.marked(f"JAM_TEST={self.folder}")

        for pid in agents():
            sshd.kill(pid)
        sshd.wait_until(lambda: not agents(), "agents end")

    def stop(self) -> None:
        self._end_agents()
        sshd.forget_ram(Path(self._env["JAM_RUN_DIR"]))
        self._sshd.stop()


@contextlib.contextmanager
def host() -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="jam-bench-", dir="/tmp"))
    before = {name: os.environ.get(name) for name in ("JAM_SSH_CONFIG", "JAM_HOSTS_FILE")}
    made = Host(folder)
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
        shutil.rmtree(folder, ignore_errors=True)


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


def interleaved(
    goes: dict[str, Callable[[], object]], times: int, burst: int = 1
) -> dict[str, float]:
    """Median seconds of each, all run in turn so that the machine's moods hit all alike.

    burst: runs of one before the turn of the next, as in a loop; the first of them, which finds
    the caches full of the others' things, is not counted then."""
    taken: dict[str, list[float]] = {name: [] for name in goes}
    for number in range(times // burst + 1):
        for name, go in goes.items():
            for inner in range(burst):
                began = time.perf_counter()
                go()
                if number and (inner or burst == 1):  # the first turn warms up
                    taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in taken.items()}


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table on stdout, for RESULTS.md."""
    print(f"\n### {title}\n")
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |", flush=True)
