"""One authenticated connection to one sshd: its ciphers, its packets, what went wrong."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jamtasks.errors import HostError
from jamtasks.settings import Settings
from jamtasks.transport import authentication, host_keys, libraries
from jamtasks.transport.base import Attempt, Crowded, gate, say
from jamtasks.transport.dialing import Line, dial
from jamtasks.transport.lending import packetizer
from jamtasks.transport.ssh_config import Hop, by_hand

if TYPE_CHECKING:
    import paramiko

WINDOW = 8 << 20  # what a host may send before we have read it; small ones throttle long distances
PACKET = 256 << 10  # the largest that OpenSSH sends; Paramiko's default is slower by a third
TUNNEL = (2 << 20, 32 << 10)  # Paramiko reads a tunnel in small bits, each at the buffer's cost
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")  # the quickest: see `sealing`


class Login:
    """One authenticated connection. Raises HostError of the kind that fits.

    through: the one at the jump host before it.
    with_session: open a session too while others wait at the door: only when sshd has answered
    that, it surely counts us among those who are in."""

    def __init__(
        self,
        hop: Hop,
        settings: Settings,
        attempt: Attempt,
        through: Login | None,
        *,
        with_session: bool = False,
    ):
        self.hop = hop
        self.session: paramiko.Channel | None = None
        self._attempt = attempt
        door = gate(hop.host, hop.port)
        attempt.enter(door)
        try:
            began = time.monotonic()
            line_to = through.tunnel if through else dial
            self.line = line_to(hop, settings, attempt)
            try:
                with attempt.during(self.cut):
                    self._log_in(settings, began)
                    if with_session:
                        attempt.waits.set()
                        self._open_first_session()
                attempt.check()
            except BaseException:
                self.close()
                attempt.check()
                raise
        finally:
            door.release()

    def _log_in(self, settings: Settings, began: float) -> None:
        libraries.load()
        import fabric
        import paramiko

        hop, timeout = self.hop, settings.connect_timeout
        self._connection = fabric.Connection(
            hop.host,
            user=hop.user,
            port=hop.port,
            config=fabric.Config(lazy=True, overrides={"load_ssh_configs": False}),
            connect_timeout=max(1, round(timeout)),
            connect_kwargs={
                "sock": self.line.sock,
                "banner_timeout": timeout,
                "auth_timeout": 2 * timeout,
                "transport_factory": lambda sock, **options: _transport(hop, sock, **options),
                "auth_strategy": authentication.strategy(hop, self._attempt),
            },
        )
        policy = host_keys.policy(hop, settings.accept_new)
        self._connection.client.set_missing_host_key_policy(policy)
        try:
            self._connection.open()
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise _explain(hop, error, time.monotonic() - began, timeout) from None
        self.transport: paramiko.Transport = self._connection.transport

    def _open_first_session(self) -> None:
        import paramiko

        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            self.session = self.open_session()  # else exec() will say why not

    def open_session(self) -> paramiko.Channel:
        return self.transport.open_session(WINDOW, PACKET, timeout=30)

    def tunnel(self, hop: Hop, settings: Settings, attempt: Attempt) -> Line:
        """A line to the next hop, as this host reaches it. Raises HostError."""
        import paramiko

        timeout = settings.connect_timeout

        def ask() -> paramiko.Channel:
            return self.transport.open_channel(
                "direct-tcpip", (hop.host, hop.port), ("", 0), *TUNNEL, timeout=timeout
            )

        try:
            tunnel = attempt.aside(ask, lambda tunnel: tunnel.close())
        except (paramiko.SSHException, EOFError, OSError) as error:
            gateway = f"{self.hop.host} port {self.hop.port}"
            reason = f"gateway {gateway} does not reach {hop.host} port {hop.port}: {say(error)}"
            raise HostError(hop.spec.label, reason, retry=True) from None
        close = tunnel.close

        def quietly() -> None:  # Paramiko's thread would print what it meets in here
            with contextlib.suppress(Exception):
                close()

        tunnel.close = quietly
        return Line(tunnel)

    def cut(self) -> None:
        self.line.cut()

    def close(self) -> None:
        self.line.cut()  # first: Paramiko's thread looks only ten times a second whether to end
        with contextlib.suppress(Exception):
            self._connection.client.close()
        self.line.close()


def _explain(hop: Hop, error: Exception, seconds: float, timeout: float) -> HostError:
    import paramiko

    label, reason = hop.spec.label, say(error)
    where = f"{hop.host} port {hop.port}"
    if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
        hint = "transport: openssh may know what it wants"
        return HostError(label, f"no common algorithms: {reason}", hint)
    if seconds >= timeout * 0.95:
        return HostError(label, f"{where} answers, but not within {timeout:g} s", retry=True)
    if isinstance(error, (EOFError, ConnectionError)) or "banner" in reason or "EOF" in reason:
        hint = "sshd may be full (MaxStartups), or bans this address (PerSourcePenalties)"
        return Crowded(label, f"{where} hung up before saying who it is", hint)
    return HostError(label, reason, by_hand(hop), retry=True)


def _transport(hop: Hop, sock: Any, **options: Any) -> paramiko.Transport:
    import paramiko

    transport = paramiko.Transport(sock, packetizer_class=packetizer(), **options)
    # its timer is a thread that outlives a handshake that fails, and keeps the program from ending;
    # connect_timeout bounds the handshake, too
    transport.packetizer.start_handshake = lambda timeout: None
    security = transport.get_security_options()
    security.ciphers = _first(CIPHERS, security.ciphers)
    security.key_types = _first(host_keys.recorded_kinds(hop), security.key_types)
    return transport


def _first(wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    """All of the names; those that are wanted come first."""
    first = [name for name in wanted if name in names]
    return [*first, *(name for name in names if name not in first)]
