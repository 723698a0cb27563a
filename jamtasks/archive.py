"""worker_payload/ as one run of bytes: the same files give the same, and their digest is the build.

Hosts keep a payload under its build, so a host that has one is not sent it again.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

PACKAGE = "worker_payload"
_MAIN = b"""\
import sys

from worker_payload.cli import main

sys.exit(main())
"""


@dataclass(frozen=True)
class Payload:
    """data: for each file its name, a NUL, its size in decimal, a NUL, and what it holds; sorted by
    name. build: the first 16 hex digits of data's SHA-256. `loader.unpacked` reads it."""

    build: str
    data: bytes


_lock = threading.Lock()
_found: list[Payload] = []


def payload() -> Payload:
    """The payload of this installation, read once per process."""
    with _lock:  # threads that log in want it all at once
        if not _found:
            here = os.path.dirname(os.path.abspath(__file__))
            _found.append(pack(os.path.join(os.path.dirname(here), PACKAGE)))
        return _found[0]


def pack(folder: str | os.PathLike[str]) -> Payload:
    """The modules in folder, which is a package `worker_payload`, and what starts them."""
    members = {"__main__.py": _MAIN, **dict(_modules(os.fspath(folder), PACKAGE))}
    members.pop(f"{PACKAGE}/_build.py", None)  # a host that unpacks it writes its own
    data = b"".join(
        b"%s\0%d\0%s" % (name.encode(), len(text), text) for name, text in sorted(members.items())
    )
    return Payload(hashlib.sha256(data).hexdigest()[:16], data)


def _modules(folder: str, name: str) -> Iterator[tuple[str, bytes]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                with open(entry.path, "rb", buffering=0) as file:
                    yield f"{name}/{entry.name}", file.readall()
            elif entry.is_dir() and entry.name != "__pycache__":
                yield from _modules(entry.path, f"{name}/{entry.name}")
