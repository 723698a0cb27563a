"""The user's own `ssh`: Kerberos, FIDO, 2FA, ControlMaster and all that ssh_config can say."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import threading
from collections.abc import Sequence

from jamtasks.errors import AuthenticationError, HostError, HostKeyError
from jamtasks.settings import HostSpec, Settings
from jamtasks.transport.base import Attempt, Channel, Connection, Crowded, ProcessChannel, gate
from jamtasks.transport.ssh_config import Hop, by_hand, program, route

_ASKPASS = """\
#!/bin/sh
printf '%s\\n' "$JAM_ASKPASS"
"""


class OpensshConnection(Connection):
    """One `ssh` process per command; it logs in when the command is run."""

    def __init__(self, spec: HostSpec, settings: Settings, attempt: Attempt):
        super().__init__(spec.label)
        ssh = program()
        if ssh is None:
            raise HostError(self.host, "there is no ssh on this machine", "use transport: fabric")
        self._ssh = ssh
        self._settings = settings
        self._password = spec.password
        self._attempt = attempt
        self._hops = route(spec, settings, attempt)
        self._channels: list[Channel] = []

    def exec(self, command: str | Sequence[str]) -> Channel:
        """The channel's first read waits for the login; its cause() says why there was none."""
        line = command if isinstance(command, str) else shlex.join(command)
        argv = [*self._argv(self._hops), "--", self._hops[-1].spec.name, line]
        channel = _OpensshChannel(self._hops, argv, self._password, self._attempt)
        self._channels.append(channel)
        return channel

    def terminal(self, command: str) -> list[str]:
        """The words that run a command there on the terminal of whoever executes them."""
        argv = ["-t" if word == "-T" else word for word in self._argv(self._hops)]
        return [*argv, "--", self._hops[-1].spec.name, command]

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def _argv(self, hops: tuple[Hop, ...], log_level: str = "ERROR") -> list[str]:
        """ssh with the options to reach the last hop through the others."""
        hop = hops[-1]
        batch = self._password is None and not _can_ask()
        options = {
            "BatchMode": "yes" if batch else "no",
            "StrictHostKeyChecking": "accept-new" if self._settings.accept_new else "yes",
            "ConnectTimeout": str(max(1, round(self._settings.connect_timeout))),
            "LogLevel": log_level,  # the user's may be QUIET, and then nobody would know why
            "ClearAllForwardings": "yes",
            "RemoteCommand": "none",
        }
        if hop.ciphers is not None:
            options["Ciphers"] = hop.ciphers
        if self._password is not None:
            options["NumberOfPasswordPrompts"] = "1"
        if hop.spec.key:
            options["IdentitiesOnly"] = "yes"
        if hops[:-1]:  # not -J: the ssh that it starts would take none of these options
            # at ERROR it would not say that the gateway does not reach the host
            words = [*self._argv(hops[:-1], "INFO"), "-W", "[%h]:%p", "--", hops[-2].spec.name]
            command = " ".join(
                shlex.quote(word if word == "[%h]:%p" else word.replace("%", "%%"))
                for word in words
            )
            options["ProxyCommand"] = command
        argv = [self._ssh, "-T"]
        if hop.spec.ssh_config:
            argv += ["-F", hop.spec.ssh_config]
        for name, value in options.items():
            argv += ["-o", f"{name}={value}"]
        for flag, given in (("-l", hop.spec.user), ("-p", hop.spec.port), ("-i", hop.spec.key)):
            if given is not None:
                argv += [flag, str(given)]
        return argv


def _can_ask() -> bool:
    """Whether somebody could answer a question of ssh."""
    if os.environ.get("SSH_ASKPASS") and (
        os.environ.get("DISPLAY") or os.environ.get("SSH_ASKPASS_REQUIRE") in ("force", "prefer")
    ):
        return True
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


class _OpensshChannel(ProcessChannel):
    def __init__(
        self, hops: tuple[Hop, ...], argv: Sequence[str], password: str | None, attempt: Attempt
    ):
        first, last = hops[0], hops[-1]
        self._hop = last
        self._folder: str | None = None
        self._gate: threading.BoundedSemaphore | None = gate(first.host, first.port)
        self._gate_lock = threading.Lock()
        attempt.enter(self._gate)
        try:
            super().__init__(last.spec.label, argv, self._environment(password))
            attempt.waits.set()
        except BaseException:
            self._entered()
            self._forget()
            raise

    def _environment(self, password: str | None) -> dict[str, str] | None:
        if password is None:
            return None
        import tempfile

        self._folder = tempfile.mkdtemp(prefix="jam-askpass-")
        script = os.path.join(self._folder, "askpass")
        with open(script, "w") as handle:
            handle.write(_ASKPASS)
        os.chmod(script, 0o700)
        return {
            **os.environ,
            "SSH_ASKPASS": script,
            "SSH_ASKPASS_REQUIRE": "force",
            "DISPLAY": os.environ.get("DISPLAY") or ":0",  # OpenSSH before 8.4 asks only with one
            "JAM_ASKPASS": password,
        }

    def _entered(self) -> None:
        """Logged in, or never will be: let the next one to the door."""
        with self._gate_lock:
            held, self._gate = self._gate, None
        if held is not None:
            held.release()

    def _forget(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            with contextlib.suppress(OSError):
                import shutil

                shutil.rmtree(folder)

    def read(self, size: int) -> bytes:
        data = super().read(size)
        if self._gate is not None:
            self._entered()
        return data

    def close(self) -> None:
        if self._gate is not None:
            # an ssh on which this one waits, as its ProxyCommand, would wait on by itself
            for pid in _descendants(self.process.pid):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGTERM)
        super().close()
        self._entered()
        self._forget()

    def cause(self) -> HostError | None:
        status = self.exit_status(2.0)
        if status is not None:
            self.settle()
        if status == 255:  # of ssh itself; a command that exits so has nothing of ours on stderr
            return explain(self._hop, self.stderr_tail())
        if status is not None and status < 0:
            return HostError(self.host, f"ssh was ended by signal {-status}", retry=True)
        return None


def _descendants(pid: int) -> list[int]:
    """Where the system says so (Linux)."""
    found, pending = [], [pid]
    while pending:
        parent = pending.pop()
        with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{parent}/children") as file:
            children = [int(child) for child in file.read().split()]
            found += children
            pending += children
    return found


_CROWDED = re.compile(
    r"^(kex_exchange_identification|ssh_exchange_identification): .*(closed|reset)"
    r"|^Connection (closed|reset) by .* port \d+$"
)
_LATER = re.compile(r"timed out|refused|No route|unreachable|reset|closed|Broken pipe|Timeout")


def explain(hop: Hop, stderr: str) -> HostError:
    """The error that ssh means with what it wrote."""
    host = hop.spec.label
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    telling = [line for line in lines if not _CROWDED.search(line)]
    hint = by_hand(hop)
    if not lines:  # at our LogLevel it does not say that its session was refused
        message = "ssh ended without a word; perhaps it logged in, and sshd runs no command for us"
        return HostError(host, message, hint, retry=True)
    said = (telling or lines)[-1].removeprefix("ssh: ").rstrip(".")
    text = "\n".join(lines)
    if "IDENTIFICATION HAS CHANGED" in text or "REVOKED HOST KEY" in text:
        found = re.search(r"(?:Offending|revoked).* key in (\S+):(\d+)", text)
        where = f" (line {found[2]} of {found[1]})" if found else ""
        message = f"the host key differs from the recorded one{where}: somebody may be listening in"
        hint = "if the host was set up anew: `ssh-keygen -R NAME`, then --accept-new"
        return HostKeyError(host, message, hint)
    if "Host key verification failed" in text or "host key is known" in text:
        name = re.search(r"No \S+ host key is known for (\S+)", text)
        message = f"its host key is unknown{f' ({name[1]})' if name else ''}"
        hint = "compare it and record it: ssh to it once by hand, or use --accept-new"
        return HostKeyError(host, message, hint)
    if "Permission denied" in text or "Too many authentication failures" in text:
        denied = next(line for line in reversed(lines) if "denied" in line or "Too many" in line)
        return AuthenticationError(host, denied.rstrip("."), hint)
    if not telling:
        return Crowded(host, said, "sshd may be full (MaxStartups), or bans this address")
    return HostError(host, said, hint, retry=bool(_LATER.search(text)))
