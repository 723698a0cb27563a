"""What can go wrong, as kinds of JamError: each says what happened, where, and what to do.

The exit code of a command is the `exit_code` of the error that ended it.
"""

from __future__ import annotations


class JamError(Exception):
    """Base of all errors that jam raises on purpose.

    message: what happened and where, one line. hint: what to do about it, one line or None."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(JamError):
    """The call, the command line or the settings ask for something that cannot be done."""

    exit_code = 2


class SettingsError(UsageError):
    """hosts.yaml, remote.conf or the environment: names file, line and key."""


class ModuleError(UsageError):
    """The module to map: not found, no mapfunc, or it needs what a host lacks."""


class DataSetError(UsageError):
    """A dataset that cannot be read or cut."""


class EncodingError(UsageError):
    """Params or a slice that cannot travel."""


class NoHostsError(JamError):
    """No host could be reached; says of each why."""

    exit_code = 3


class HostError(JamError):
    """One host cannot be used: unreachable, key refused, no Python. `host` is its name."""

    def __init__(self, host: str, message: str, hint: str | None = None, *, retry: bool = False):
        super().__init__(f"{host}: {message}", hint)
        self.host = host
        self.reason = message
        self.retry = retry  # a later try may succeed (a reset banner), not so a refused key


class HostKeyError(HostError):
    """The host's key is unknown, or differs from the recorded one."""


class AuthenticationError(HostError):
    """The host let us in by none of the ways tried. Never tried again by itself."""


class TaskFailed(JamError):
    """The map function raised, or its answer cannot be used.

    host: where. slice: index of the slice (or of the call, without a dataset). type: name of the
    original exception. detail: its message. traceback: the remote traceback as text. joined: above
    1 if `reduce` raised, when it joined the answers of so many slices from this one on."""

    def __init__(
        self,
        *,
        host: str,
        slice: int,
        type: str,
        message: str,
        traceback: str = "",
        joined: int = 1,
    ):
        where = f"slice {slice} on {host}"
        if joined > 1:
            where = f"slices {slice} to {slice + joined - 1} on {host}, reduce"
        super().__init__(f"{where}: {type}: {message}" if message else f"{where}: {type}")
        self.host = host
        self.slice = slice
        self.joined = joined
        self.type = type
        self.detail = message
        self.traceback = traceback


class TaskLost(TaskFailed):
    """A slice whose workers died, each time it was tried."""


class ReduceError(JamError):
    """Results that cannot be added: names the first slice that does not fit."""
