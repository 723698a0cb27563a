"""Proving to an sshd who we are: keys from ssh-agent and from files, then the password."""

from __future__ import annotations

import base64
import contextlib
import functools
import os
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from jamtasks.errors import AuthenticationError
from jamtasks.transport.base import Attempt, say
from jamtasks.transport.ssh_config import Hop, by_hand

if TYPE_CHECKING:
    import paramiko

MAX_KEYS = 5  # sshd hangs up at the sixth failure, and a password may come after the keys
_NOT_BY_PARAMIKO = {"gssapi-with-mic", "gssapi-keyex", "hostbased"}


def strategy(hop: Hop, attempt: Attempt) -> Any:
    """`authenticate` as Paramiko takes it."""
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
    hint = by_hand(hop)
    if skipped or _NOT_BY_PARAMIKO & set(allowed) or "keyboard-interactive" in allowed:
        hint += "; if that works, set transport: openssh for it"
    if hop.spec.password is None and {"password", "keyboard-interactive"} & set(allowed):
        hint += "; a password can be given in JAM_PASSWORD"
    return AuthenticationError(hop.spec.label, message, hint)


def _keys(hop: Hop, skipped: list[str], attempt: Attempt) -> Iterator[tuple[str, Any]]:
    """(name, key) in OpenSSH's order: the agent's that we have files of, other ones, files."""
    import paramiko

    files = [name for name in hop.identities if os.path.isfile(name)]
    if hop.spec.key and not files:
        skipped.append(f"{hop.spec.key} (no such file)")
    public = {_public(name): name for name in hop.identities}
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
            why = "encrypted: ssh-add it" if locked else f"unreadable: {say(error)}"
            skipped.append(f"{name} ({why})")
            continue
        yield name, key


def _public(name: str) -> bytes | None:
    """The public key that lies beside a private one."""
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
