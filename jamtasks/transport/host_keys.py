"""The key that an sshd shows: which kinds we ask for, and whether it is the one we know."""

from __future__ import annotations

from typing import Any

from jamtasks.errors import HostKeyError
from jamtasks.transport import known_hosts
from jamtasks.transport.ssh_config import Hop


def policy(hop: Hop, accept_new: bool) -> Any:
    """Fabric accepts any key. The client's own tables stay empty, so this sees every key."""
    import paramiko

    class Checked(paramiko.MissingHostKeyPolicy):
        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            check(hop, key.get_name(), key.asbytes(), accept_new)

    return Checked()


def recorded_kinds(hop: Hop) -> list[str]:
    """What to ask it for first, else it might show a key that we cannot compare."""
    kinds = _known(hop).types
    return [*kinds, *(("rsa-sha2-512", "rsa-sha2-256") if "ssh-rsa" in kinds else ())]


def check(hop: Hop, kind: str, key: bytes, accept_new: bool) -> None:
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


def _known(hop: Hop) -> known_hosts.Known:
    return known_hosts.look_up(hop.known_hosts, hop.host, hop.port, hop.key_alias)
