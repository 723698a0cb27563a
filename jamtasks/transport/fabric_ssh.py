"""Connections by Fabric, and raw channels to commands over them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jamtasks.errors import HostError
from jamtasks.settings import HostSpec, Settings
from jamtasks.transport.base import Attempt, Channel, Connection, Tail, say
from jamtasks.transport.gateways import reach
from jamtasks.transport.lending import Lending
from jamtasks.transport.login import PACKET
from jamtasks.transport.sealing import send
from jamtasks.transport.ssh_config import route

if TYPE_CHECKING:
    import paramiko

    from worker_payload.wire import Buffer

CLOSE_SECONDS = 1.0  # that a host gets to take our goodbye


class FabricConnection(Connection):
    """A Fabric Connection and those to its jump hosts, which others may share."""

    def __init__(self, spec: HostSpec, settings: Settings, attempt: Attempt):
        super().__init__(spec.label)
        if not logging.getLogger("paramiko").handlers:  # it logs tracebacks of what we handle
            logging.getLogger("paramiko").addHandler(logging.NullHandler())
        hops = route(spec, settings, attempt)
        self._way = reach(hops, settings, attempt, with_session=True)

    def exec(self, command: str | Sequence[str]) -> Channel:
        import paramiko

        line = command if isinstance(command, str) else " ".join(command)
        login = self._way.login
        try:
            channel, login.session = login.session or login.open_session(), None
            channel.exec_command(line)
        except (paramiko.SSHException, EOFError, OSError) as error:
            message = f"logged in, but sshd runs no command for us: {say(error)}"
            raise HostError(self.host, message, retry=True) from None
        return _FabricChannel(self.host, channel)

    def close(self) -> None:
        self._way.close()

    def cut(self) -> None:
        self._way.login.cut()


class _FabricChannel(Channel):
    def __init__(self, host: str, channel: paramiko.Channel):
        super().__init__(host)
        self._channel = channel
        self._ready = threading.Event()
        channel.in_buffer.set_event(self._ready)
        self._packets: Lending = channel.get_transport().packetizer
        self._lent = False
        self._tail = Tail()
        self._write_lock = threading.Lock()
        # it shares the window with stdout: undrained, a talkative command would hang
        name = f"{host} stderr"
        self._drain = threading.Thread(target=self._drain_stderr, name=name, daemon=True)
        self._drain.start()

    def _drain_stderr(self) -> None:
        with contextlib.suppress(Exception):
            while data := self._channel.recv_stderr(PACKET):
                self._tail.add(data)

    def read(self, size: int) -> bytes:
        try:
            return self._channel.recv(size)
        except (OSError, EOFError):
            return b""

    def poll(self, seconds: float) -> bool:
        packets, ready = self._packets, self._ready
        while self._lent and not ready.is_set() and packets.borrow():
            if not packets.wait(seconds):
                return ready.is_set()
            packets.read_for(self._channel)
        return ready.wait(seconds)

    def lend(self, lent: bool) -> None:
        self._lent = lent
        if not lent:
            self._packets.end_lending()

    def write(self, buffers: Sequence[Buffer]) -> None:
        import paramiko

        began = time.perf_counter()
        try:
            with self._write_lock:
                send(self._channel, buffers)
                self._packets.asked(began)
        except (OSError, EOFError, paramiko.SSHException) as error:
            lost = HostError(self.host, f"the connection is broken ({say(error)})", retry=True)
            raise self.cause() or lost from None

    def stderr_tail(self) -> str:
        return self._tail.text()

    def cause(self) -> HostError | None:
        transport = self._channel.get_transport()
        self._drain.join(0.5)
        if self._channel.exit_status != -1:
            return None
        transport.join(0.5)  # its thread ends when the connection does, after the channels
        if transport.is_active():
            return None
        error = getattr(transport, "saved_exception", None)
        reason = say(error) if error is not None else "closed by the other end"
        return HostError(self.host, f"the connection broke: {reason}", retry=True)

    def exit_status(self, timeout: float = 2.0) -> int | None:
        if not self._channel.status_event.wait(timeout):
            return None
        status = self._channel.exit_status
        return None if status == -1 else status

    def close(self) -> None:
        # a write that a host which stands still does not take keeps ours from going out, too
        rescue = threading.Timer(CLOSE_SECONDS, self._cut)
        rescue.daemon = True
        rescue.start()
        with contextlib.suppress(Exception):
            self._channel.close()
        rescue.cancel()
        if self.owned is not None:
            self.owned.close()
        self._drain.join(1.0)

    def _cut(self) -> None:
        if isinstance(self.owned, FabricConnection):
            self.owned.cut()
