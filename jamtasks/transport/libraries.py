"""Fabric and Paramiko: loaded when a host first needs them, by one thread for all."""

from __future__ import annotations

import threading

_lock = threading.Lock()


def load() -> None:
    """Import Fabric, and Paramiko with it; whoever comes meanwhile waits until they are whole.

    To be called before the first import of either in a thread. Two threads that begin one with
    Paramiko and one with Fabric lock each other out, and Python ends that by handing out a module
    that is half made."""
    with _lock:
        import fabric  # noqa: F401
