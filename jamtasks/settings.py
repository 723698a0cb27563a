"""hosts.yaml, remote.conf and the environment -> frozen records; the only reader of any of them.

A setting of a host comes from the first of these that has it: the command line (`user@host:port`),
its entry in the hosts file, the environment, the file's `defaults`. What none of them says is left
to ssh_config.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jamtasks.errors import SettingsError

TRANSPORTS = ("fabric", "openssh", "local")
MAX_WORKERS = 4096
FILE_NAMES = ("hosts.yaml", "~/.config/jam/hosts.yaml")
_HERE = "localhost"
_SSH_ONLY = ("user", "port", "key", "gateway", "ssh_config")


@dataclass(frozen=True)
class HostSpec:
    """One host and how to reach it. None leaves a setting to ssh_config or to the host."""

    name: str  # as ssh knows it; aliases of ssh_config are fine
    user: str | None = None
    port: int | None = None
    key: str | None = None  # a private key file
    gateway: str | None = None  # jump hosts as in `ssh -J`: `[user@]host[:port],…`
    transport: str = ""  # fabric | openssh | local; made so when empty
    python: str | None = None  # its interpreter; None: the newest with numpy
    workers: int | None = None  # None: all CPUs it may use
    prepare: str = ""  # for sh, before Python is looked for
    nice: int = 0
    env: tuple[tuple[str, str], ...] = ()  # of the workers
    threads: int | None = None  # of BLAS and OpenMP in each worker; None: 1
    keep: bool = False  # the agent outlives the last master here, on localhost too
    password: str | None = field(default=None, repr=False)
    ssh_config: str | None = None  # read instead of ~/.ssh/config
    label: str = ""  # what the user called it; unique in a run

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)
        if not self.transport:
            object.__setattr__(self, "transport", "fabric" if self._over_ssh() else "local")

    def is_other_python(self, version: str) -> bool:
        """Whether this is surely not the interpreter that `python` names: that ends with another
        version. An agent that runs keeps its own."""
        wanted = re.search(r"[0-9]+\.[0-9]+(?:\.[0-9]+)?\Z", self.python or "")
        return wanted is not None and not f"{version}.".startswith(f"{wanted.group()}.")

    def _over_ssh(self) -> bool:
        return self.name != _HERE or any(getattr(self, key) is not None for key in _SSH_ONLY)


@dataclass(frozen=True)
class Settings:
    """All that a run needs to know about hosts. path: the file it was read from, or None."""

    hosts: tuple[HostSpec, ...] = ()
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    path: Path | None = None
    accept_new: bool = False  # record host keys never seen before
    connect_timeout: float = 15.0
    dead_after: float = 10.0  # seconds of silence after which a host is lost
    give_up_after: float = 60.0  # seconds without any host after which a run fails
    fallback: HostSpec = HostSpec("")  # what a host that no file names starts from

    def select(
        self, names: str | HostSpec | Iterable[str | HostSpec] | None = None
    ) -> tuple[HostSpec, ...]:
        """The hosts that these names mean, each once, in the order named.

        names: `[user@]host[:port][*workers]` with commas or as a list, groups, or HostSpecs; None
        means all of the hosts file, or localhost. A host named n >= 2 times gets n workers, a
        `*n` among them counts n. Raises SettingsError."""
        if names is None:
            return self.hosts or (self.named(_HERE),)
        if isinstance(names, (str, HostSpec)):
            names = [names]
        elif not isinstance(names, Iterable):
            raise _no_host(names)
        chosen: dict[str, HostSpec] = {}
        counts: dict[str, list[int | None]] = {}
        for item in names:
            if isinstance(item, HostSpec):
                found: list[tuple[HostSpec, int | None]] = [(item, None)]
            elif not isinstance(item, str):
                raise _no_host(item)
            else:
                found = [pair for word in split(item) for pair in self._expand(word, ())]
            for spec, count in found:
                if chosen.setdefault(spec.label, spec) != spec:
                    raise SettingsError(f"{spec.label} is named twice with different settings")
                counts.setdefault(spec.label, []).append(count)
        if not chosen:
            raise SettingsError("no host is named", "name one, or leave hosts out for all")
        return tuple(_with_workers(spec, counts[label]) for label, spec in chosen.items())

    def named(self, name: str) -> HostSpec:
        """The host of that name: from the hosts file, else one that ssh alone knows."""
        for spec in self.hosts:
            if spec.label == name:
                return spec
        spec = dataclasses.replace(self.fallback, name=name, label=name)
        if name == _HERE:  # what is said of hosts in general does not put SSH before this machine
            nothing: dict[str, Any] = dict.fromkeys(_SSH_ONLY)
            return dataclasses.replace(spec, **nothing, transport="")
        return spec

    def _expand(self, word: str, inside: tuple[str, ...]) -> list[tuple[HostSpec, int | None]]:
        user, name, port, workers = parse_host(word)
        members = dict(self.groups).get(name) if port is None else None
        if members is None:
            return [(self._reached_as(self.named(name), user, port), workers)]
        if name in inside:
            raise SettingsError(f"group {name} contains itself ({' > '.join((*inside, name))})")
        found = [pair for member in members for pair in self._expand(member, (*inside, name))]
        return [
            (self._reached_as(spec, user, None), workers if workers is not None else count)
            for spec, count in found
        ]

    def _reached_as(self, spec: HostSpec, user: str | None, port: int | None) -> HostSpec:
        """spec with what was written before and behind its name; that puts SSH before localhost."""
        if user is None and port is None:
            return spec
        place = f"[{spec.label}]" if ":" in spec.label else spec.label
        label = (f"{user}@" if user else "") + place + (f":{port}" if port else "")
        changes: dict[str, Any] = {"label": label}
        if user is not None:
            changes["user"] = user
        if port is not None:
            changes["port"] = port
        if spec.transport == "local":
            changes["transport"] = self.fallback.transport
        return dataclasses.replace(spec, **changes)


def _no_host(given: object) -> SettingsError:
    return SettingsError(
        f"{given!r:.80} is no host", 'give names, as in "lab1,lab2*4", or HostSpecs'
    )


def _with_workers(spec: HostSpec, counts: list[int | None]) -> HostSpec:
    if counts == [None]:
        return spec
    total = sum(1 if count is None else count for count in counts)
    if total > MAX_WORKERS:
        raise SettingsError(f"{spec.label}: {total} workers are more than {MAX_WORKERS}")
    return dataclasses.replace(spec, workers=total)


# --- the way hosts are written -----------------------------------------------------------------

_HOST = re.compile(
    r"(?:(?P<user>[^@\s\[\]]+)@)?"
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<name>[^\s:*@\[\],]+))"
    r"(?::(?P<port>[0-9]+))?(?:\*(?P<workers>[0-9]+))?"
)


def split(text: str) -> list[str]:
    """The words of a comma list."""
    return [word for word in (part.strip() for part in text.split(",")) if word]


def parse_host(text: str) -> tuple[str | None, str, int | None, int | None]:
    """`[user@]name[:port][*workers]` -> (user, name, port, workers). Raises SettingsError."""
    match = _HOST.fullmatch(text.strip())
    if match is None:
        hint = "write [user@]name[:port][*workers], for example me@lab1:2222*4"
        if text.count(":") > 1:
            hint = "write IPv6 addresses in brackets: [2001:db8::1]:22"
        raise SettingsError(f"{text!r} is not a host", hint)
    name = match["v6"] or match["name"]
    if name.startswith("-") or (match["user"] or "").startswith("-"):
        raise SettingsError(f"{text!r} is not a host", "names do not begin with a dash")
    port = _ranged(match["port"], 65535, f"{text}: port")
    return match["user"], name, port, _ranged(match["workers"], MAX_WORKERS, f"{text}: workers")


def _ranged(digits: str | None, largest: int, what: str) -> int | None:
    if digits is None:
        return None
    if len(digits) > 9 or not 1 <= int(digits) <= largest:
        raise SettingsError(f"{what} must be 1 to {largest}, not {digits}")
    return int(digits)


# --- where settings come from ------------------------------------------------------------------


def load(
    hosts_file: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    accept_new: bool = False,
) -> Settings:
    """Settings from hosts_file, else $JAM_HOSTS_FILE, ./hosts.yaml, ~/.config/jam/hosts.yaml.

    Where none of these is, localhost. A file that is named must exist. Raises SettingsError."""
    environ = os.environ if environ is None else environ
    folder = Path(cwd) if cwd is not None else Path.cwd()
    environment = _from_environment(environ)
    path = _find(hosts_file, environ, folder)
    if path is None:
        return Settings(accept_new=accept_new, fallback=HostSpec("", **environment))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"{path}: {reason}") from None
    read = _remote_conf if path.suffix in (".conf", ".ini", ".cfg") else _yaml
    settings = read(text, path, environment)
    return dataclasses.replace(settings, path=path, accept_new=accept_new)


def _find(
    given: str | os.PathLike[str] | None, environ: Mapping[str, str], folder: Path
) -> Path | None:
    named = os.fspath(given) if given is not None else environ.get("JAM_HOSTS_FILE") or None
    home = environ.get("HOME")
    if named is not None:
        path = folder / _at_home(named, home)
        if not path.is_file():
            source = "--hosts-file" if given is not None else "JAM_HOSTS_FILE"
            raise SettingsError(f"{path}: no such file", f"it is named by {source}")
        return path
    for name in FILE_NAMES:
        path = folder / _at_home(name, home)
        if path.is_file():
            return path
    return None


def _at_home(path: str, home: str | None) -> str:
    return home + path[1:] if home and path.startswith("~/") else os.path.expanduser(path)


_VARIABLES = {
    "user": ("JAM_USER", "QJAM_USER"),
    "password": ("JAM_PASSWORD", "QJAM_PASSWD"),
    "python": ("JAM_REMOTE_PYTHON", "QJAM_REMOTE_PYTHON"),
    "ssh_config": ("JAM_SSH_CONFIG",),
    "transport": ("JAM_TRANSPORT",),
}


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, names in _VARIABLES.items():
        for name in names:
            if environ.get(name):
                values.setdefault(key, environ[name])
    if "ssh_config" in values:
        values["ssh_config"] = _at_home(values["ssh_config"], environ.get("HOME"))
    if values.get("transport", "fabric") not in ("fabric", "openssh"):
        raise SettingsError(f"JAM_TRANSPORT is {values['transport']!r}; write fabric or openssh")
    return values


def _host(
    name: str, own: Mapping[str, Any], environment: Mapping[str, Any], defaults: Mapping[str, Any]
) -> HostSpec:
    values = {"name": name, **defaults, **environment, **own, "label": name}
    values["env"] = tuple(sorted({**defaults.get("env", {}), **own.get("env", {})}.items()))
    if values["name"] == _HERE and not own.keys() & {*_SSH_ONLY, "transport"}:
        for key in (*_SSH_ONLY, "transport"):  # see Settings.named
            values.pop(key, None)
    return HostSpec(**values)


# --- hosts.yaml --------------------------------------------------------------------------------


class _File:
    """Reads YAML nodes, and complains with file and line."""

    def __init__(self, path: Path):
        self.path = path

    def error(self, node: Any, message: str, hint: str | None = None) -> SettingsError:
        return SettingsError(f"{self.path}:{node.start_mark.line + 1}: {message}", hint)

    def items(self, node: Any, what: str) -> list[tuple[str, Any, Any]]:
        """[key, its node, value's node] of a mapping; no key twice. Nothing is an empty one."""
        import yaml

        if self.is_null(node):
            return []
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, f"{what} must be a mapping")
        items = []
        seen: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.error(key, f"{what}: a key must be a word")
            name = key.value
            if name in seen:
                raise self.error(key, f"{name} stands twice in {what}, first on line {seen[name]}")
            seen[name] = key.start_mark.line + 1
            items.append((name, key, value))
        return items

    @staticmethod
    def is_null(node: Any) -> bool:
        return node is None or node.tag == "tag:yaml.org,2002:null"

    def words(self, node: Any, what: str) -> list[tuple[str, Any]]:
        """The words of a list, or of a comma list, with their nodes."""
        import yaml

        if isinstance(node, yaml.ScalarNode):
            return [(word, node) for word in split(node.value)]
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, f"{what} must be a list of hosts")
        return [(self.text(item, what), item) for item in node.value]

    def text(self, node: Any, what: str) -> str:
        import yaml

        if not isinstance(node, yaml.ScalarNode):
            raise self.error(node, f"{what} must be text")
        return str(node.value)

    def number(self, node: Any, what: str, smallest: float, largest: float, kind: type) -> Any:
        try:
            value = kind(self.text(node, what))
        except ValueError:
            value = None
        if value is None or not smallest <= value <= largest:
            span = f"{smallest} to {largest}"
            raise self.error(node, f"{what} must be a number, {span}, not {node.value!r}")
        return value

    def flag(self, node: Any, what: str) -> bool:
        word = self.text(node, what).lower()
        if word not in ("true", "yes", "on", "false", "no", "off"):
            raise self.error(node, f"{what} must be true or false, not {node.value!r}")
        return word in ("true", "yes", "on")

    def path_text(self, node: Any, what: str) -> str:
        """A file of this machine: relative to the hosts file."""
        return str(self.path.parent / os.path.expanduser(self.text(node, what)))


def _env(file: _File, node: Any, what: str) -> dict[str, str]:
    return {name: file.text(value, f"{what}.{name}") for name, _, value in file.items(node, what)}


def _transport(file: _File, node: Any, what: str) -> str:
    word = file.text(node, what)
    if word not in TRANSPORTS:
        raise file.error(node, f"{what} must be one of {', '.join(TRANSPORTS)}, not {word!r}")
    return word


def _integer(smallest: int, largest: int) -> Callable[[_File, Any, str], int]:
    return lambda file, node, what: file.number(node, what, smallest, largest, int)


def _seconds(file: _File, node: Any, what: str) -> float:
    return file.number(node, what, 0.1, 1e6, float)


def _threads(file: _File, node: Any, what: str) -> int:
    return file.number(node, what, 1, 1024, int)


_KEYS: dict[str, Callable[[_File, Any, str], Any]] = {
    "name": _File.text,
    "user": _File.text,
    "port": _integer(1, 65535),
    "key": _File.path_text,
    "gateway": _File.text,
    "transport": _transport,
    "python": _File.text,
    "workers": _integer(1, MAX_WORKERS),
    "prepare": _File.text,
    "nice": _integer(0, 19),
    "env": _env,
    "threads": _threads,
    "keep": _File.flag,
    "ssh_config": _File.path_text,
}
_TIMES = ("connect_timeout", "dead_after", "give_up_after")
_TOP = ("defaults", "hosts", "groups", *_TIMES)


def _yaml(text: str, path: Path, environment: Mapping[str, Any]) -> Settings:
    import yaml

    file = _File(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SettingsError(f"{where}: not YAML: {problem}") from None
    sections: dict[str, Any] = {}
    for name, key, value in file.items(root, path.name):
        if name not in _TOP:
            below = "a host" if name == "name" else "`defaults:` or a host"
            hint = f"it goes below {below}" if name in _KEYS else _similar(name, _TOP)
            raise file.error(key, f"unknown key {name!r} at the top", hint)
        sections[name] = value
    defaults = _settings_of(file, sections.get("defaults"), "defaults", without=("name",))
    hosts: list[HostSpec] = []
    lines: dict[str, int] = {}
    for word, node, value in _host_items(file, sections.get("hosts")):
        own, name = _host_entry(file, word, node, value)
        if name in lines:
            first = lines[name]
            raise file.error(
                node,
                f"host {name} stands twice, first on line {first}",
                "for more workers write `workers:`, or *n behind its name",
            )
        lines[name] = node.start_mark.line + 1
        hosts.append(_host(name, own, environment, defaults))
    groups = []
    for name, key, value in file.items(sections.get("groups"), "groups"):
        if name in lines:
            raise file.error(key, f"{name} is a host and a group")
        members = file.words(value, f"groups.{name}")
        for word, node in members:
            try:
                parse_host(word)
            except SettingsError as error:
                raise file.error(node, error.message, error.hint) from None
        groups.append((name, tuple(word for word, _ in members)))
    times: dict[str, Any] = {
        key: _seconds(file, sections[key], key) for key in _TIMES if key in sections
    }
    values = {**defaults, **environment}
    values["env"] = tuple(sorted(values.get("env", {}).items()))
    return Settings(tuple(hosts), tuple(groups), fallback=HostSpec("", **values), **times)


def _host_items(file: _File, node: Any) -> list[tuple[str, Any, Any]]:
    """Hosts as a mapping from name to settings, or as a list of names."""
    import yaml

    if isinstance(node, (yaml.SequenceNode, yaml.ScalarNode)) and not file.is_null(node):
        return [(word, item, None) for word, item in file.words(node, "hosts")]
    return file.items(node, "hosts")


def _host_entry(file: _File, word: str, node: Any, value: Any) -> tuple[dict[str, Any], str]:
    try:
        user, name, port, workers = parse_host(word)
    except SettingsError as error:
        raise file.error(node, error.message, error.hint) from None
    own = _settings_of(file, value, name)
    for key, said in (("user", user), ("port", port), ("workers", workers)):
        if said is not None and own.setdefault(key, said) != said:
            raise file.error(node, f"{word}: {key} is {own[key]} below and {said} in its name")
    return own, name


def _settings_of(
    file: _File, node: Any, what: str, without: tuple[str, ...] = ()
) -> dict[str, Any]:
    values = {}
    for name, key, value in file.items(node, what):
        read = _KEYS.get(name) if name not in without else None
        if name == "password":
            hint = "passwords do not belong into files: set JAM_PASSWORD in the environment"
            raise file.error(key, f"{what}: no password here", hint)
        if read is None:
            known = [key for key in _KEYS if key not in without]
            raise file.error(key, f"unknown key {name!r} in {what}", _similar(name, known))
        if not file.is_null(value):
            values[name] = read(file, value, f"{what}.{name}")
    return values


def _similar(name: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


# --- fjd's remote.conf -------------------------------------------------------------------------


def _remote_conf(text: str, path: Path, environment: Mapping[str, Any]) -> Settings:
    """Sections `[host1]`, `[host2]`, … with `name` and `workers`."""
    import configparser

    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text, str(path))
    except configparser.Error as error:
        raise SettingsError(f"{path}: {' '.join(str(error).split())}") from None
    hosts: dict[str, HostSpec] = {}
    for section in parser.sections():
        where = f"{path}: [{section}]"
        values = dict(parser[section])
        unknown = sorted(values.keys() - {"name", "workers"})
        if unknown:
            raise SettingsError(f"{where}: unknown key {unknown[0]!r}", "known are name, workers")
        if "name" not in values:
            raise SettingsError(f"{where}: no name")
        user, name, port, workers = parse_host(values["name"])
        count = values.get("workers", "1").strip()
        if not count.isdigit():
            raise SettingsError(f"{where}: workers must be a number, not {count!r}")
        if name in hosts:
            raise SettingsError(f"{where}: host {name} stands twice", "raise its `workers`")
        if "workers" in values:
            workers = _ranged(count, MAX_WORKERS, f"{where}: workers")
        own = {"user": user, "port": port, "workers": workers}
        own = {key: value for key, value in own.items() if value is not None}
        hosts[name] = _host(name, own, environment, {})
    return Settings(tuple(hosts.values()), fallback=HostSpec("", **environment))


def check_project(name: str) -> str:
    """The name, if a project may be called so: it becomes part of file and screen names."""
    from worker_payload import layout

    if not layout.is_project(name):
        raise SettingsError(
            f"a project cannot be called {name!r}", "use 1 to 40 letters, digits, _ and -"
        )
    return name
