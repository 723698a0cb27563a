"""Reaching an address, before any SSH is spoken: sockets, names, a ProxyCommand."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import socket
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from jamtasks.errors import HostError
from jamtasks.settings import Settings
from jamtasks.transport.base import LOOK_SECONDS, Attempt, say
from jamtasks.transport.ssh_config import Hop

CLOSE_SECONDS = 1.0  # that a ProxyCommand gets to end


@dataclass(frozen=True)
class Line:
    """Bytes to an sshd and back."""

    sock: Any  # a socket, or what Paramiko takes for one
    process: subprocess.Popen[bytes] | None = None  # the ProxyCommand behind it

    def cut(self) -> None:
        """End what reads or writes there; `close` is still to come."""
        with contextlib.suppress(Exception):
            if isinstance(self.sock, socket.socket):
                self.sock.shutdown(socket.SHUT_RDWR)
            else:
                self.sock.close()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.sock.close()
        if self.process is not None:
            with contextlib.suppress(OSError):
                self.process.terminate()
            try:
                self.process.wait(CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def dial(hop: Hop, settings: Settings, attempt: Attempt) -> Line:
    """A line to the hop's sshd. Raises HostError."""
    if hop.proxy_command:
        return _proxied(hop)
    label, where = hop.spec.label, f"{hop.host} port {hop.port}"
    try:
        found = _look_up(hop, attempt)
    except (OSError, UnicodeError) as error:
        hint = "is it spelled right, and in DNS, /etc/hosts or ssh_config?"
        # by the settings or ssh_config; a jump host's label ends with what the user wrote
        other = "" if hop.host in re.split("[ @/:]", label) else f"{hop.host}: "
        raise HostError(label, f"{other}{say(error)}", hint, retry=True) from None
    failures = []
    timeout = settings.connect_timeout
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            if hop.bind:
                sock.bind((hop.bind, 0))
            _connect(sock, address, timeout, attempt)
        except OSError as error:
            sock.close()
            failures.append(f"no answer in {timeout:g} s" if isinstance(error, TimeoutError)
                            else say(error))  # fmt: skip
            continue
        except BaseException:
            sock.close()
            raise
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # a dead peer ends our writes, not only our reads
            milliseconds = int(1000 * settings.dead_after)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        return Line(sock)
    raise HostError(label, f"{where}: {'; '.join(dict.fromkeys(failures))}", retry=True)


def _look_up(hop: Hop, attempt: Attempt) -> list[Any]:
    """Its addresses; raises OSError or UnicodeError. A resolver may be silent for long, too."""
    flags = socket.AI_NUMERICHOST
    with contextlib.suppress(OSError):
        return socket.getaddrinfo(hop.host, hop.port, hop.family, socket.SOCK_STREAM, 0, flags)
    return attempt.aside(
        lambda: socket.getaddrinfo(hop.host, hop.port, hop.family, socket.SOCK_STREAM)
    )


def _connect(sock: socket.socket, address: Any, timeout: float, attempt: Attempt) -> None:
    """Raises OSError."""
    deadline = time.monotonic() + timeout
    sock.setblocking(False)
    error = sock.connect_ex(address)
    if error == errno.EINPROGRESS:
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        while not poll.poll(1000 * LOOK_SECONDS):
            attempt.check()
            if time.monotonic() > deadline:
                raise TimeoutError
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))
    sock.settimeout(timeout)


def _proxied(hop: Hop) -> Line:
    """A ProxyCommand's stdin and stdout as a socket, which Paramiko's own is not."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {hop.proxy_command}"],
            stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.DEVNULL,
        )  # fmt: skip
    return Line(ours, process)
