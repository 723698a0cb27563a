"""Fabric, with what it leaves out: checked host keys, ssh_config as ssh reads it, raw channels."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jamtasks.errors import AuthenticationError, HostError, HostKeyError
from jamtasks.settings import HostSpec, Settings
from jamtasks.transport import known_hosts
from jamtasks.transport.base import (
    LOOK_SECONDS,
    Attempt,
    Channel,
    Connection,
    Crowded,
    Ended,
    Tail,
    gate,
    patiently,
)
from jamtasks.transport.lending import Lending, packetizer
from jamtasks.transport.openssh import by_hand
from jamtasks.transport.sealing import send
from jamtasks.transport.ssh_config import Hop, route

if TYPE_CHECKING:
    import paramiko

    from worker_payload.wire import Buffer

WINDOW = 8 << 20  # what a host may send before we have read it; small ones throttle long distances
PACKET = 256 << 10  # the largest that OpenSSH sends; Paramiko's default is slower by a third
TUNNEL = (2 << 20, 32 << 10)  # Paramiko reads a tunnel in small bits, each at the buffer's cost
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
CLOSE_SECONDS = 1.0  # that a host gets to take our goodbye
MAX_KEYS = 5  # sshd hangs up at the sixth failure, and a password may come after the keys
_NOT_BY_PARAMIKO = {"gssapi-with-mic", "gssapi-keyex", "hostbased"}


def load() -> None:
    """Import what logging in takes, which takes longer than logging in to a host nearby."""
    import fabric  # noqa: F401


class FabricConnection(Connection):
    """A Fabric Connection and those to its jump hosts, which others may share."""

    def __init__(self, spec: HostSpec, settings: Settings, attempt: Attempt):
        super().__init__(spec.label)
        if not logging.getLogger("paramiko").handlers:  # it logs tracebacks of what we handle
            logging.getLogger("paramiko").addHandler(logging.NullHandler())
        hops = route(spec, settings, attempt)
        self._gateway = _borrow(hops[:-1], settings, attempt) if hops[:-1] else None
        try:
            self._login = patiently(
                lambda: _Login(hops[-1], settings, attempt, self._gateway, with_session=True),
                settings.connect_timeout,
                attempt,
            )
        except BaseException:
            self._release()
            raise

    def exec(self, command: str | Sequence[str]) -> Channel:
        import paramiko

        line = command if isinstance(command, str) else " ".join(command)
        try:
            channel, self._login.session = self._login.session, None
            channel = channel or self._login.open_session()
            channel.exec_command(line)
        except (paramiko.SSHException, EOFError, OSError) as error:
            message = f"logged in, but sshd runs no command for us: {_say(error)}"
            raise HostError(self.host, message, retry=True) from None
        return _FabricChannel(self.host, channel)

    def close(self) -> None:
        self._login.close()
        self._release()

    def cut(self) -> None:
        self._login.cut()

    def _release(self) -> None:
        gateway, self._gateway = self._gateway, None
        if gateway is not None:
            _give_back(gateway)


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
            lost = HostError(self.host, f"the connection is broken ({_say(error)})", retry=True)
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
        reason = _say(error) if error is not None else "closed by the other end"
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


# --- logging in --------------------------------------------------------------------------------


class _Login:
    """One authenticated connection. Raises HostError of the kind that fits.

    with_session: open a session too while others wait at the door: only when sshd has answered
    that, it surely counts us among those who are in."""

    def __init__(
        self,
        hop: Hop,
        settings: Settings,
        attempt: Attempt,
        gateway: _Gateway | None,
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
            self._socket, self._process = _dial(hop, settings, attempt, gateway)
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
                "sock": self._socket,
                "banner_timeout": timeout,
                "auth_timeout": 2 * timeout,
                "transport_factory": lambda sock, **options: _transport(hop, sock, **options),
                "auth_strategy": _strategy(hop, self._attempt),
            },
        )
        self._connection.client.set_missing_host_key_policy(_policy(hop, settings.accept_new))
        try:
            self._connection.open()
        except HostError:
            raise
        except paramiko.ssh_exception.IncompatiblePeer as error:
            hint = "transport: openssh may know what it wants"
            reason = f"no common algorithms: {_say(error)}"
            raise HostError(hop.spec.label, reason, hint) from None
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise _explain(hop, error, time.monotonic() - began, timeout) from None
        self.transport: paramiko.Transport = self._connection.transport

    def _open_first_session(self) -> None:
        import paramiko

        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            self.session = self.open_session()  # else exec() will say why not

    def open_session(self) -> paramiko.Channel:
        return self.transport.open_session(WINDOW, PACKET, timeout=30)

    def cut(self) -> None:
        with contextlib.suppress(Exception):
            if isinstance(self._socket, socket.socket):
                self._socket.shutdown(socket.SHUT_RDWR)
            else:
                self._socket.close()

    def close(self) -> None:
        # first the socket: Paramiko's thread looks only ten times a second whether it shall end
        with contextlib.suppress(Exception):
            if isinstance(self._socket, socket.socket):
                self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(Exception):
            self._connection.client.close()
        with contextlib.suppress(Exception):
            self._socket.close()
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.terminate()
            try:
                self._process.wait(CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _explain(hop: Hop, error: Exception, seconds: float, timeout: float) -> HostError:
    import paramiko

    label, reason = hop.spec.label, _say(error)
    where = f"{hop.host} port {hop.port}"
    if isinstance(error, paramiko.AuthenticationException):
        return AuthenticationError(label, reason, "try it by hand: " + by_hand(hop))
    if seconds >= timeout * 0.95:
        return HostError(label, f"{where} answers, but not within {timeout:g} s", retry=True)
    if isinstance(error, (EOFError, ConnectionError)) or "banner" in reason or "EOF" in reason:
        hint = "sshd may be full (MaxStartups), or bans this address (PerSourcePenalties)"
        return Crowded(label, f"{where} hung up before saying who it is", hint)
    return HostError(label, reason, "try it by hand: " + by_hand(hop), retry=True)


def _say(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().rstrip(".") or type(error).__name__


def _transport(hop: Hop, sock: Any, **options: Any) -> paramiko.Transport:
    import paramiko

    transport = paramiko.Transport(sock, packetizer_class=packetizer(), **options)
    # its timer is a thread that outlives a handshake that fails, and keeps the program from ending;
    # connect_timeout bounds the handshake, too
    transport.packetizer.start_handshake = lambda timeout: None
    security = transport.get_security_options()
    fast = [name for name in CIPHERS if name in security.ciphers]
    security.ciphers = [*fast, *(name for name in security.ciphers if name not in fast)]
    # what is recorded first, else the host might show a key that we cannot compare
    known = _known(hop).types
    kinds = ["rsa-sha2-512", "rsa-sha2-256"] if "ssh-rsa" in known else []
    first = [kind for kind in (*known, *kinds) if kind in security.key_types]
    security.key_types = [*first, *(kind for kind in security.key_types if kind not in first)]
    return transport


def _known(hop: Hop) -> known_hosts.Known:
    return known_hosts.look_up(hop.known_hosts, hop.host, hop.port, hop.key_alias)


def _policy(hop: Hop, accept_new: bool) -> Any:
    """Fabric accepts any key. The client's own tables stay empty, so this sees every key."""
    import paramiko

    class Checked(paramiko.MissingHostKeyPolicy):
        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            check_host_key(hop, key.get_name(), key.asbytes(), accept_new)

    return Checked()


def check_host_key(hop: Hop, kind: str, key: bytes, accept_new: bool) -> None:
    """Return if the key is the recorded one, or was recorded now. Raises HostKeyError."""
    label = hop.spec.label
    name = hop.key_alias or known_hosts.name_of(hop.host, hop.port)
    shown = f"{kind} {known_hosts.fingerprint(key)}"
    known = _known(hop)
    verdict = known.verdict(key)
    if verdict == "ok":
        return
    if verdict == "revoked":
        raise HostKeyError(label, f"its host key {shown} is marked as revoked for {name}")
    if verdict == "changed":
        message = f"the host key of {name} is {shown}, not the recorded one"
        hint = f"somebody may be listening in; if it was set up anew: ssh-keygen -R '{name}'"
        raise HostKeyError(label, message, hint)
    if accept_new and hop.recorded_in:
        try:
            known_hosts.record(hop.recorded_in, name, kind, key, hop.hash_names)
        except OSError as error:
            message = f"cannot record its host key in {hop.recorded_in}: {error.strerror}"
            raise HostKeyError(label, message) from None
        return
    hint = "compare it and record it: ssh to it once by hand, or use --accept-new"
    if known.authority:
        hint = "a @cert-authority may vouch for it, which takes transport: openssh"
    raise HostKeyError(label, f"its host key is unknown ({name}: {shown})", hint)


def _strategy(hop: Hop, attempt: Attempt) -> Any:
    from paramiko.auth_strategy import AuthStrategy

    class Strategy(AuthStrategy):
        def authenticate(self, transport: Any) -> None:
            authenticate(transport, hop, attempt)

    return Strategy(ssh_config=None)


def authenticate(transport: paramiko.Transport, hop: Hop, attempt: Attempt) -> None:
    """Keys, then the password; each once. Raises AuthenticationError saying what was tried."""
    import paramiko

    tried: list[str] = []
    skipped: list[str] = []
    allowed: list[str] = []  # what the server offers; after a first success, what it still wants

    def one(what: str, login: Callable[[], Any]) -> bool:
        """Whether the server goes along: it lets us in, or wants a second proof."""
        try:
            more = login()
        except paramiko.BadAuthenticationType as error:
            allowed[:] = error.allowed_types
            return False
        except paramiko.AuthenticationException:
            tried.append(what)
            return False
        except paramiko.SSHException:
            if not transport.is_active():
                raise
            skipped.append(what)
            return False
        if more:
            allowed[:] = more
        return True

    password = hop.spec.password
    # asking for the methods costs a round trip, and using the wrong one counts as a failure
    if password is not None and one("nothing", lambda: transport.auth_none(hop.user)):
        return
    for what, key in _keys(hop, skipped, attempt):
        if len(tried) >= MAX_KEYS or (allowed and "publickey" not in allowed):
            break
        if one(what, functools.partial(transport.auth_publickey, hop.user, key)):
            break
    if not transport.is_authenticated() and password is not None:
        if "password" in allowed:
            one("the password", lambda: transport.auth_password(hop.user, password, fallback=False))
        elif "keyboard-interactive" in allowed:
            one("the password", lambda: transport.auth_interactive(hop.user, _typing(password)))
    if transport.is_authenticated():
        return
    if not transport.is_active():
        raise EOFError
    if not allowed:
        with contextlib.suppress(paramiko.SSHException, EOFError):
            one("nothing", lambda: transport.auth_none(hop.user))
    raise _refused(hop, tried, skipped, allowed)


def _typing(password: str) -> Callable[[str, str, list[tuple[str, bool]]], list[str]]:
    """Answers the first hidden question, and nothing else: a one-time code is not the password."""
    left = [password]

    def answer(title: str, instructions: str, prompts: list[tuple[str, bool]]) -> list[str]:
        return [left.pop() if left and not echoed else "" for _, echoed in prompts]

    return answer


def _refused(
    hop: Hop, tried: list[str], skipped: list[str], allowed: list[str]
) -> AuthenticationError:
    tries = [what for what in tried if what != "nothing"]
    message = f"{hop.user}@{hop.host} lets us in by none of: {', '.join(tries) or 'no key found'}"
    if skipped:
        message += f"; not tried: {', '.join(skipped)}"
    if allowed:
        message += f"; the host takes {', '.join(allowed)}"
    hint = "try it by hand: " + by_hand(hop)
    if skipped or _NOT_BY_PARAMIKO & set(allowed) or "keyboard-interactive" in allowed:
        hint += "; if that works, set transport: openssh for it"
    if hop.spec.password is None and {"password", "keyboard-interactive"} & set(allowed):
        hint += "; a password can be given in JAM_PASSWORD"
    return AuthenticationError(hop.spec.label, message, hint)


def _keys(hop: Hop, skipped: list[str], attempt: Attempt) -> Any:
    """(name, key) in OpenSSH's order: the agent's that we have files of, other ones, files."""
    import paramiko

    files = [name for name in hop.identities if os.path.isfile(name)]
    if hop.spec.key and not files:
        skipped.append(f"{hop.spec.key} (no such file)")
    public = {_public(name): name for name in (*hop.identities, *files)}
    held: list[Any] = []
    agent = _agent(hop.agent, attempt)
    try:
        held = list(agent.get_keys()) if agent else []
        ours = [key for key in held if key.asbytes() in public]
        others = [] if hop.identities_only else [key for key in held if key not in ours]
        for key in (*ours, *others):
            name = public.get(key.asbytes()) or getattr(key, "comment", "") or "a key"
            yield f"{name} from the agent", key
    finally:
        if agent:
            agent.close()
    blobs = {key.asbytes() for key in held}
    for name in files:
        if _public(name) in blobs:
            continue
        try:
            key = paramiko.PKey.from_path(name)
            certificate = f"{name}-cert.pub"
            if os.path.isfile(certificate):
                key.load_certificate(certificate)
        except Exception as error:  # a key file may hold anything
            locked = isinstance(error, (TypeError, paramiko.PasswordRequiredException))
            why = "encrypted: ssh-add it" if locked else f"unreadable: {_say(error)}"
            skipped.append(f"{name} ({why})")
            continue
        yield name, key


def _public(name: str) -> bytes | None:
    """The public key that lies beside a private one."""
    import base64

    try:
        with open(f"{name}.pub", "rb") as handle:
            return base64.b64decode(handle.read(1 << 16).split()[1])
    except (OSError, IndexError, ValueError):
        return None


def _agent(path: str | None, attempt: Attempt) -> Any:
    from paramiko.agent import AgentSSH

    if path is None:
        return None
    agent = AgentSSH()
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(5)
    attempt.ends_with(lambda: connection.shutdown(socket.SHUT_RDWR))
    try:
        connection.connect(path)
        agent._connect(connection)
    except Exception:  # none there, or not one
        connection.close()
        return None
    agent.close = agent._close
    return agent


# --- the bytes below SSH -----------------------------------------------------------------------


def _dial(
    hop: Hop, settings: Settings, attempt: Attempt, gateway: _Gateway | None
) -> tuple[Any, subprocess.Popen[bytes] | None]:
    """Something like a socket that leads to the hop's sshd, and the process behind it, if any."""
    if gateway is not None:
        return gateway.forward(hop, settings.connect_timeout, attempt), None
    if hop.proxy_command:
        return _proxied(hop)
    label, where = hop.spec.label, f"{hop.host} port {hop.port}"
    try:
        found = _look_up(hop, attempt)
    except (OSError, UnicodeError) as error:
        hint = "is it spelled right, and in DNS, /etc/hosts or ssh_config?"
        other = "" if hop.host == hop.spec.name else f"{hop.host}: "  # by ssh_config
        raise HostError(label, f"{other}{_say(error)}", hint, retry=True) from None
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
                            else _say(error))  # fmt: skip
            continue
        except BaseException:
            sock.close()
            raise
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # a dead peer ends our writes, not only our reads
            milliseconds = int(1000 * settings.dead_after)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        return sock, None
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


def _proxied(hop: Hop) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """A ProxyCommand's stdin and stdout as a socket, which Paramiko's own is not."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {hop.proxy_command}"],
            stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.DEVNULL,
        )  # fmt: skip
    return ours, process


@dataclass(eq=False)
class _Gateway:
    """A login at a jump host, shared by all that go through it."""

    key: Any
    login: _Login
    before: _Gateway | None
    users: int = 0

    def forward(self, hop: Hop, timeout: float, attempt: Attempt) -> Any:
        import paramiko

        def ask() -> paramiko.Channel:
            return self.login.transport.open_channel(
                "direct-tcpip", (hop.host, hop.port), ("", 0), *TUNNEL, timeout=timeout
            )

        try:
            tunnel = attempt.aside(ask, lambda tunnel: tunnel.close())
        except (paramiko.SSHException, EOFError, OSError) as error:
            through = f"{self.login.hop.host} port {self.login.hop.port}"
            reason = f"gateway {through} does not reach {hop.host} port {hop.port}: {_say(error)}"
            raise HostError(hop.spec.label, reason, retry=True) from None
        close = tunnel.close

        def quietly() -> None:  # Paramiko's thread would print what it meets in here
            with contextlib.suppress(Exception):
                close()

        tunnel.close = quietly
        return tunnel

    def close(self) -> None:
        self.login.close()
        if self.before is not None:
            _give_back(self.before)


_gateways: dict[Any, Future[_Gateway]] = {}
_gateways_lock = threading.Lock()


def _borrow(hops: tuple[Hop, ...], settings: Settings, attempt: Attempt) -> _Gateway:
    """The one login at the last of these jump hosts. Whoever waits for it shares its failure."""
    key = tuple((hop.user, hop.host, hop.port, hop.spec.key) for hop in hops)
    while True:
        with _gateways_lock:
            future = _gateways.get(key)
            mine = future is None
            if future is None:
                future = _gateways[key] = Future()
        if mine:
            before: _Gateway | None = None
            try:
                before = _borrow(hops[:-1], settings, attempt) if hops[:-1] else None
                login = patiently(
                    lambda: _Login(hops[-1], settings, attempt, before),  # noqa: B023
                    settings.connect_timeout,
                    attempt,
                )
            except BaseException as error:
                if before is not None:
                    _give_back(before)
                with _gateways_lock:
                    del _gateways[key]
                future.set_exception(error)
                raise
            future.set_result(_Gateway(key, login, before))
        try:
            gateway = attempt.wait(future)
        except Ended:
            attempt.check()  # else it was somebody else's attempt: now it is ours
            continue
        with _gateways_lock:
            if _gateways.get(key) is future:
                if gateway.login.transport.is_active():
                    gateway.users += 1
                    return gateway
                del _gateways[key]  # it has died meanwhile; those who use it will notice


def _give_back(gateway: _Gateway) -> None:
    with _gateways_lock:
        gateway.users -= 1
        if gateway.users > 0:
            return
        future = _gateways.get(gateway.key)
        if future is not None and future.done() and future.result() is gateway:
            del _gateways[gateway.key]
    gateway.close()
