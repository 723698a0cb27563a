"""known_hosts files as OpenSSH reads them: patterns, hashed names, ports, @revoked."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_record_lock = threading.Lock()


@dataclass(frozen=True)
class Known:
    """What the files say of one host. keys: (type, key as in the file, decoded)."""

    keys: tuple[tuple[str, bytes], ...] = ()
    revoked: frozenset[bytes] = field(default=frozenset())
    authority: bool = False  # a @cert-authority may vouch for this host; only OpenSSH asks it

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(kind for kind, _ in self.keys))

    def verdict(self, key: bytes) -> str:
        """ok, unknown, changed or revoked."""
        if key in self.revoked:
            return "revoked"
        if not self.keys:
            return "unknown"
        return "ok" if any(known == key for _, known in self.keys) else "changed"


def name_of(host: str, port: int) -> str:
    return host if port == 22 else f"[{host}]:{port}"


def look_up(files: Iterable[str], host: str, port: int, alias: str | None = None) -> Known:
    """All that the files say of a host. With an alias, the port does not count, as in OpenSSH."""
    lines = [line for path in files for line in _lines(path)]
    found = _matching(lines, alias or name_of(host.lower(), port))
    if not found.keys and alias is None and port != 22:
        plain = _matching(lines, host.lower())
        return Known(plain.keys, found.revoked | plain.revoked, found.authority or plain.authority)
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _matching(lines: Iterable[str], name: str) -> Known:
    keys: list[tuple[str, bytes]] = []
    revoked: set[bytes] = set()
    authority = False
    for line in lines:
        fields = line.split()
        marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
        if len(fields) < 3 or fields[0].startswith("#") or not _names(fields[0], name):
            continue
        try:
            key = base64.b64decode(fields[2], validate=True)
        except binascii.Error:
            continue
        if marker == "@revoked":
            revoked.add(key)
        elif marker == "@cert-authority":
            authority = True
        elif not marker:
            keys.append((fields[1], key))
    return Known(tuple(keys), frozenset(revoked), authority)


def _names(patterns: str, name: str) -> bool:
    if patterns.startswith("|1|"):
        try:
            _, _, salt, digest = patterns.split("|")
            return hmac.compare_digest(_hashed(name, base64.b64decode(salt)), digest)
        except (ValueError, binascii.Error):
            return False
    matched = False
    for pattern in patterns.lower().split(","):
        if pattern.startswith("!"):
            if _like(pattern[1:], name):
                return False
        elif _like(pattern, name):
            matched = True
    return matched


def _like(pattern: str, name: str) -> bool:
    if "*" not in pattern and "?" not in pattern:
        return pattern == name
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, name) is not None


def _hashed(name: str, salt: bytes) -> str:
    return base64.b64encode(hmac.new(salt, name.encode(), hashlib.sha1).digest()).decode()


def fingerprint(key: bytes) -> str:
    """As `ssh-keygen -l` shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def record(path: str, name: str, kind: str, key: bytes, hashed: bool = False) -> None:
    """Add a key to a known_hosts file, which need not exist. Raises OSError."""
    if hashed:
        salt = os.urandom(20)
        name = f"|1|{base64.b64encode(salt).decode()}|{_hashed(name, salt)}"
    line = f"{name} {kind} {base64.b64encode(key).decode()}\n".encode()
    file = Path(path)
    with _record_lock:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "r+b") as handle:
            if handle.seek(0, os.SEEK_END) and os.pread(descriptor, 1, handle.tell() - 1) != b"\n":
                line = b"\n" + line
            handle.write(line)
