"""Connections to hosts: local, fabric, openssh behind one small interface.

Nothing else in jam knows how a host is reached, or imports Fabric.
"""

from __future__ import annotations

from collections.abc import Collection

from jamtasks.errors import HostError
from jamtasks.settings import HostSpec, Settings
from jamtasks.transport.base import Attempt, Channel, Connection

__all__ = ["Attempt", "Channel", "Connection", "connect", "load"]


def load(kinds: Collection[str]) -> None:
    """Import now what connections of these kinds need: for Fabric that takes longer than logging in
    to a host nearby."""
    if "fabric" in kinds:
        from jamtasks.transport import fabric_ssh, libraries  # noqa: F401

        libraries.load()


def connect(spec: HostSpec, settings: Settings, attempt: Attempt | None = None) -> Connection:
    """A connection to the host. openssh and local say at the first read what went wrong.

    attempt: by which another thread can end this, and `exec`; then Ended is raised. Raises
    HostError, HostKeyError or AuthenticationError with the true reason."""
    attempt = attempt or Attempt(spec.label)
    attempt.check()
    if spec.transport == "local":
        from jamtasks.transport.local import LocalConnection

        return LocalConnection(spec.label)
    if spec.transport == "openssh":
        from jamtasks.transport.openssh import OpensshConnection

        return OpensshConnection(spec, settings, attempt)
    if spec.transport == "fabric":
        from jamtasks.transport.fabric_ssh import FabricConnection

        return FabricConnection(spec, settings, attempt)
    raise HostError(spec.label, f"{spec.transport!r} is no transport")
