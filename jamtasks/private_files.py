"""Small files that no one else reads, and that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os

from worker_payload import layout


def publish(path: str, data: bytes) -> None:
    """Put a file there, in place of any other. Raises OSError."""
    aside = layout.aside(path)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(aside, flags, 0o600), "wb") as handle:
            handle.write(data)
        os.replace(aside, path)
    finally:
        remove(aside)


def remove(path: str) -> None:
    """If it is there, and can be removed."""
    with contextlib.suppress(OSError):
        os.unlink(path)
