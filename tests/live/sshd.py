"""Real sshd processes on loopback, as the hosts of the live tests.

Every host has a home, a run directory, a cache and a screen directory of its own, which sshd sets
in the environment of its sessions (`SetEnv`); so one machine can be several hosts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jamtasks.settings import HostSpec

SECONDS = 20.0


def wait_until(condition: Callable[[], Any], what: str = "", seconds: float = SECONDS) -> Any:
    """The first true value of condition(); fails with what (or the condition's name) otherwise."""
    deadline = time.monotonic() + seconds
    pause = 0.002
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or condition!r}")
        time.sleep(pause)
        pause = min(0.1, pause * 1.5)
    return value


def keygen(path: Path, kind: str = "ed25519", comment: str = "test") -> Path:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", comment, "-f", path],
        check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return path


# to try another OpenSSH than this machine's
_PROGRAM = os.environ.get("JAM_TEST_SSHD")


def sshd_program() -> str:
    return _PROGRAM or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin") or "sshd"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@dataclass
class Host:
    """One sshd. `options` are lines of sshd_config, `env` is what its sessions get."""

    name: str
    folder: Path
    client_key: Path
    host_key: Path
    options: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        return Path(self.env["HOME"])

    @property
    def run_dir(self) -> Path:
        return Path(self.env["JAM_RUN_DIR"])

    @property
    def log(self) -> str:
        return (self.folder / "sshd.log").read_text(errors="replace")

    def known_hosts_line(self, name: str | None = None) -> str:
        public = self.host_key.with_suffix(".pub").read_text().split()
        return f"{name or f'[127.0.0.1]:{self.port}'} {public[0]} {public[1]}\n"

    def start(self) -> Host:
        """Start, or start again on the same port, and wait until it listens."""
        for _ in range(5):  # somebody may take the port between our look and sshd's bind
            self.port = self.port or free_port()
            config = self.folder / "sshd_config"
            config.write_text("\n".join(self._config()) + "\n")
            with open(self.folder / "sshd.log", "ab") as log:
                self.process = subprocess.Popen(
                    [sshd_program(), "-D", "-e", "-f", config],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
            wait_until(self._answers_or_ended, f"sshd of {self.name}")
            if self.process.poll() is None:
                return self
            self.port = 0
        raise AssertionError(f"sshd does not start: {self.log[-2000:]}")

    def _config(self) -> Iterable[str]:
        authorized = self.folder / "authorized_keys"
        if not authorized.exists():
            authorized.write_text(self.client_key.with_suffix(".pub").read_text())
        yield from (
            *self.options,  # sshd takes the first value of each
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.host_key}",
            f"AuthorizedKeysFile {authorized}",
            "StrictModes no",
            "PidFile none",
            "UsePAM no",
            "PrintMotd no",
            "PermitRootLogin yes",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "LogLevel VERBOSE",
            "SetEnv " + " ".join(f'{key}="{value}"' for key, value in self.env.items()),
        )

    def _answers_or_ended(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            return True
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End the listener and the sessions it has forked."""
        process, self.process = self.process, None
        if process is None:
            return
        for child in descendants(process.pid):
            kill(child)
        process.terminate()
        process.wait(10)

    def spec(self, **settings: Any) -> HostSpec:
        """How to reach it, all said explicitly."""
        given = {"port": self.port, "key": str(self.client_key), **settings}
        return HostSpec("127.0.0.1", label=self.name, **given)


# --- processes ---------------------------------------------------------------------------------


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def parents() -> dict[int, int]:
    """pid -> parent's pid, of all processes."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            found[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    return found


def descendants(pid: int) -> list[int]:
    """The processes below one, parents first."""
    table = parents()
    found, queue = [], [pid]
    while queue:
        children = [child for child, parent in table.items() if parent == queue[0]]
        found += children
        queue = queue[1:] + children
    return found


def command_line(pid: int) -> str:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def marked(mark: str) -> dict[int, str]:
    """{pid: command line} of the processes that were started with mark in their environment."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
            state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if mark.encode() in environment and state != "Z":
            found[int(entry)] = command_line(int(entry))
    return found


def forget_ram(run_dir: Path) -> None:
    """Delete what agents that were killed left in memory for this run directory."""
    mark = hashlib.sha256(os.path.realpath(run_dir).encode()).hexdigest()[:8]
    shutil.rmtree(f"/dev/shm/jam-{os.getuid()}-{mark}", ignore_errors=True)
