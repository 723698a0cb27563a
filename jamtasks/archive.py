"""worker_payload/ as a zipapp: the same files give the same bytes, and their digest is the build.

Hosts keep a payload under its build, so a host that has one is not sent it again.
"""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "worker_payload"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest a zip can say: the time of a checkout is no content
_MAIN = b"""\
import sys

from worker_payload.cli import main

sys.exit(main())
"""


@dataclass(frozen=True)
class Payload:
    """build: 16 hex digits, the digest of the contents. data: a zip that `python` can run.

    It is stored, not deflated: zlib's output depends on its version, and a host's Python may lack
    zlib altogether."""

    build: str
    data: bytes


@functools.lru_cache(maxsize=1)
def payload() -> Payload:
    """The payload of this installation, read once per process."""
    return pack(Path(__file__).resolve().parent.parent / PACKAGE)


def pack(folder: Path) -> Payload:
    """The zipapp of the modules in folder, which is a package `worker_payload`."""
    members = {"__main__.py": _MAIN}
    for path in folder.rglob("*.py"):  # in the order of the file system: sorted below
        members[f"{PACKAGE}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    members.pop(f"{PACKAGE}/_build.py", None)
    build = _digest(members)
    members[f"{PACKAGE}/_build.py"] = f'BUILD = "{build}"\n'.encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(members.items()):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3  # Unix; the default is the system we run on
            info.external_attr = 0o100644 << 16
            archive.writestr(info, data)
    return Payload(build, out.getvalue())


def _digest(members: dict[str, bytes]) -> str:
    sha = hashlib.sha256()
    for name, data in sorted(members.items()):
        sha.update(f"{name}\0{len(data)}\0".encode())
        sha.update(data)
    return sha.hexdigest()[:16]
