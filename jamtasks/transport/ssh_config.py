"""The way to a host: ssh_config, asked through `ssh -G`, and the jump hosts before it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import getpass
import os
import shlex
import socket
import subprocess
import time

from jamtasks.errors import HostError, SettingsError
from jamtasks.settings import HostSpec, Settings, parse_host, split
from jamtasks.transport import libraries
from jamtasks.transport.base import LOOK_SECONDS, Attempt

MAX_HOPS = 8
ASK_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Hop:
    """One SSH server on the way. The last is the host itself."""

    spec: HostSpec  # what we were told; the rest is what ssh_config makes of it
    host: str
    port: int
    user: str
    identities: tuple[str, ...]  # private key files, in the order to try
    identities_only: bool
    agent: str | None  # path of the authentication agent's socket
    known_hosts: tuple[str, ...]  # the user's, the first of them takes new keys; then the system's
    recorded_in: str | None
    key_alias: str | None
    hash_names: bool
    proxy_command: str | None
    family: int
    bind: str | None
    ciphers: str | None = None  # to be asked for instead of those of ssh, where nobody chose any


def by_hand(hop: Hop) -> str:
    """A hint: the ssh command that a person would type."""
    words = ["ssh"]
    if hop.spec.ssh_config:
        words += ["-F", hop.spec.ssh_config]
    for flag, given in (("-p", hop.spec.port), ("-i", hop.spec.key), ("-J", hop.spec.gateway)):
        if given is not None:
            words += [flag, str(given)]
    user = f"{hop.spec.user}@" if hop.spec.user else ""
    return "try it by hand: " + shlex.join([*words, user + hop.spec.name])


def program() -> str | None:
    """Where the user's `ssh` is."""
    for folder in os.get_exec_path():  # shutil.which, which takes longer to import than this to run
        path = os.path.join(folder, "ssh")
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def route(spec: HostSpec, settings: Settings, attempt: Attempt) -> tuple[Hop, ...]:
    """The servers to log in to, one through the other. Raises HostError."""
    return _route(spec, settings, attempt, spec.gateway, ())


def _route(
    spec: HostSpec,
    settings: Settings,
    attempt: Attempt,
    gateway: str | None,
    behind: tuple[HostSpec, ...],
) -> tuple[Hop, ...]:
    """behind: the servers that this one is on the way to, the host itself first."""
    way = (*behind, spec)
    if len(behind) > MAX_HOPS or _server(spec) in map(_server, behind):
        circle = " behind ".join(each.name for each in way)
        raise HostError(way[0].label, f"its jump hosts lead in a circle: {circle}")
    options = _resolve(spec, attempt)
    if gateway is None and "proxycommand" not in options:
        gateway = options.get("proxyjump")
    before: tuple[Hop, ...] = ()
    if gateway and gateway.lower() != "none":
        *earlier, last = split(gateway)
        jump = _jump(last, spec, settings)
        # a chain says all of the way; a single jump host may have its own way in ssh_config
        before = _route(jump, settings, attempt, ",".join(earlier) or jump.gateway, way)
        options.pop("proxycommand", None)
    return (*before, _hop(spec, options))


def _jump(word: str, spec: HostSpec, settings: Settings) -> HostSpec:
    try:
        jump, known = _named(word, settings)
        gateway = known and known.gateway
        if known and _server(jump) != _server(known):
            # another sshd of that name: perhaps the very one that the known one is behind
            words = split(known.gateway or "")
            servers = [_server(_named(each, settings)[0]) for each in words]
            if _server(jump) in servers:
                gateway = ",".join(words[: servers.index(_server(jump))])
    except SettingsError as error:
        raise HostError(spec.label, f"its gateway: {error.message}", error.hint) from None
    return dataclasses.replace(
        jump,
        gateway=gateway or None,
        password=spec.password,
        ssh_config=spec.ssh_config,
        transport=spec.transport,
        label=f"{spec.label}: gateway {word}",
    )


def _named(word: str, settings: Settings) -> tuple[HostSpec, HostSpec | None]:
    """The server that a word of a gateway means, and the host of the settings that lends it what
    the word leaves out. Raises SettingsError."""
    user, name, port, _ = parse_host(word.removeprefix("ssh://"))
    known = next((host for host in settings.hosts if host.label == name), None)
    if known is None:
        return HostSpec(name, user, port), None
    return HostSpec(known.name, user or known.user, port or known.port, known.key), known


def _server(spec: HostSpec) -> tuple[str | None, str, int | None]:
    """What tells one login from another, as ssh compares jump hosts."""
    return spec.user, spec.name, spec.port


def _resolve(spec: HostSpec, attempt: Attempt) -> dict[str, str]:
    """ssh_config's settings for a host, in lower case; several values of a key on lines."""
    if spec.ssh_config and not os.path.isfile(spec.ssh_config):
        raise HostError(spec.label, f"there is no ssh_config {spec.ssh_config}")
    ssh = program()
    if ssh is None:
        return _resolve_without_ssh(spec)
    argv = [ssh, "-G"]
    if spec.ssh_config:
        argv += ["-F", spec.ssh_config]
    if spec.user:
        argv += ["-l", spec.user]
    if spec.port:
        argv += ["-p", str(spec.port)]
    try:
        status, told, complaints = _ask([*argv, "--", spec.name], attempt)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(spec.label, f"ssh -G {spec.name}: {error}") from None
    if status:
        reason = complaints.strip().replace("\r", "").splitlines() or ["no reason given"]
        raise HostError(spec.label, f"ssh -G {spec.name}: {reason[0]}", "\n  ".join(reason[1:]))
    options: dict[str, str] = {}
    for line in told.splitlines():
        key, _, value = line.partition(" ")
        options[key] = f"{options[key]}\n{value}" if key in options else value
    return options


def _ask(argv: list[str], attempt: Attempt) -> tuple[int, str, str]:
    """Exit status, output and errors. It takes milliseconds, but for what `Match exec` runs."""
    deadline = time.monotonic() + ASK_SECONDS
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        encoding="utf-8", errors="replace",
    ) as process:  # fmt: skip
        while True:
            try:
                told, complaints = process.communicate(timeout=LOOK_SECONDS)
                return process.returncode, told, complaints
            except subprocess.TimeoutExpired as error:
                try:
                    attempt.check()
                    if time.monotonic() > deadline:
                        raise subprocess.TimeoutExpired(argv, ASK_SECONDS) from error
                except BaseException:
                    process.kill()
                    raise


def _resolve_without_ssh(spec: HostSpec) -> dict[str, str]:
    """As Paramiko reads the files: without `Include`."""
    libraries.load()
    import paramiko

    config = paramiko.SSHConfig()
    files = [spec.ssh_config] if spec.ssh_config else ["~/.ssh/config", "/etc/ssh/ssh_config"]
    for name in files:
        with contextlib.suppress(FileNotFoundError), open(os.path.expanduser(name)) as handle:
            config.parse(handle)
    found = config.lookup(spec.name)
    return {
        key.lower(): "\n".join(value) if isinstance(value, list) else str(value)
        for key, value in found.items()
    }


_DEFAULT_KEYS = "\n".join(f"~/.ssh/id_{kind}" for kind in ("ed25519", "ecdsa", "rsa"))
_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


def _hop(spec: HostSpec, options: dict[str, str]) -> Hop:
    host = options.get("hostname", spec.name)
    port = spec.port or int(options.get("port", "22"))
    user = spec.user or options.get("user") or getpass.getuser()
    alias = options.get("hostkeyalias", "none")
    tokens = {
        "%": "%", "d": os.path.expanduser("~"), "h": host, "n": spec.name, "p": str(port),
        "r": user, "u": getpass.getuser(), "l": socket.gethostname(),
        "L": socket.gethostname().split(".")[0],
        "i": str(os.getuid()), "k": alias if alias != "none" else host,
    }  # fmt: skip

    def files(text: str) -> tuple[str, ...]:
        names = (os.path.expanduser(_expanded(word, tokens)) for word in shlex.split(text))
        return tuple(name for name in names if name != "none")

    def lines(text: str) -> tuple[str, ...]:
        names = (os.path.expanduser(_expanded(line, tokens)) for line in text.splitlines())
        return tuple(name for name in names if name != "none")

    agent = options.get("identityagent", "SSH_AUTH_SOCK")
    if agent == "SSH_AUTH_SOCK" or agent.startswith("$"):
        agent = os.environ.get(agent.lstrip("$"), "none")
    yours = files(options.get("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2"))
    system = files(options.get("globalknownhostsfile", "/etc/ssh/ssh_known_hosts"))
    command = options.get("proxycommand", "none")
    return Hop(
        spec=spec,
        host=host,
        port=port,
        user=user,
        identities=(spec.key,) if spec.key else lines(options.get("identityfile", _DEFAULT_KEYS)),
        identities_only=bool(spec.key) or options.get("identitiesonly") == "yes",
        agent=None if agent == "none" else os.path.expanduser(_expanded(agent, tokens)),
        known_hosts=(*yours, *system),
        recorded_in=yours[0] if yours else None,
        key_alias=None if alias == "none" else alias,
        hash_names=options.get("hashknownhosts") == "yes",
        proxy_command=None if command == "none" else _expanded(command, tokens),
        family=_FAMILIES.get(options.get("addressfamily", "any"), socket.AF_UNSPEC),
        bind=options.get("bindaddress"),
        ciphers=quicker(options.get("ciphers", "")),
    )


_CTR = "aes128-ctr,aes192-ctr,aes256-ctr"
_GCM = "aes128-gcm@openssh.com,aes256-gcm@openssh.com"
_CHACHA = "chacha20-poly1305@openssh.com"
_OF_SSH = (  # what OpenSSH asks for by itself: up to 7.5, to 9.9, from 10.0 on
    f"{_CHACHA},{_CTR},{_GCM},aes128-cbc,aes192-cbc,aes256-cbc",
    f"{_CHACHA},{_CTR},{_GCM}",
    f"{_CHACHA},{_GCM},{_CTR}",
)


def quicker(ciphers: str) -> str | None:
    """The same ciphers with AES-GCM first, which processors do twice as fast as ChaCha20, if these
    are ssh's own and this processor does AES. None where somebody chose them."""
    if ciphers not in _OF_SSH or not _does_aes():
        return None
    rest = [name for name in ciphers.split(",") if name not in _GCM.split(",")]
    return ",".join([_GCM, *rest])


@functools.cache
def _does_aes() -> bool:
    try:
        with open("/proc/cpuinfo") as file:
            return any(
                " aes" in line for line in file if line.lower().startswith(("flags", "features"))
            )
    except OSError:
        return True  # not Linux: what is not old has it


def _expanded(text: str, tokens: dict[str, str]) -> str:
    parts = text.split("%")
    out = [parts.pop(0)]
    while parts:
        part = parts.pop(0)
        if not part:  # "%%": the next part is plain text
            out += ["%", parts.pop(0) if parts else ""]
        elif part[0] in tokens:
            out += [tokens[part[0]], part[1:]]
        else:
            out += ["%", part]
    return "".join(out)
