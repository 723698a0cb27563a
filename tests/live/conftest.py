"""Hosts for the live tests, and the proof that a test leaves nothing behind.

`lab` makes hosts. By which transport they are reached, a test need not know: with `transport` among
its fixtures it runs once for each of the three, with `ssh` for each that goes over SSH, and
`lab.host`, `lab.spec` and `lab.hosts_yaml` make what is reached so. `host` is one host over each
transport, `hosts` are two.
"""

from __future__ import annotations

import gc
import json
import os
import shlex
import shutil
import stat
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from place import Place
from sshd import Host, forget_ram, free_port, keygen, kill, marked, wait_until

from jamtasks.settings import HostSpec, Settings
from worker_payload import procs

SSH = ("fabric", "openssh")
TRANSPORTS = ("local", *SSH)
_ENDING = 10.0  # seconds that processes, threads and descriptors get to end by themselves


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys made once: id (ours), other (of nobody), host1 … host3 (of hosts)."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("id", "other", "host1", "host2", "host3"):
        keygen(folder / name)
    return folder


class Lab:
    """Hosts of one test, with an ssh_config and a known_hosts of its own.

    transport: how they are reached where a test does not say it; "" until a fixture chooses."""

    def __init__(self, folder: Path, keys: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder = folder
        self.keys = keys
        self.known_hosts = folder / "known_hosts"
        self.ssh_config = folder / "ssh_config"
        self.hosts: dict[str, Host] = {}
        self.environment = monkeypatch
        self.transport = ""
        self.known_hosts.touch()
        self.ssh_config.touch()
        self.write_ssh_config()
        home = self.private("here")
        for name in [name for name in os.environ if name.startswith(("JAM_", "QJAM_"))]:
            monkeypatch.delenv(name)
        for name in ("SSH_AUTH_SOCK", "SSH_ASKPASS", "DISPLAY"):
            monkeypatch.delenv(name, raising=False)
        self.here = self._directories(home, "here")
        for name, value in self.here.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("JAM_SSH_CONFIG", str(self.ssh_config))

    def reached_over(self, transport: str) -> None:
        """Hosts and commands of this test take this transport, unless it says another."""
        self.transport = transport
        if transport != "local":
            self.environment.setenv("JAM_TRANSPORT", transport)

    def private(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def _directories(self, folder: Path, name: str) -> dict[str, str]:
        found = {}
        for variable, part in (
            ("HOME", "home"),
            ("JAM_RUN_DIR", "run"),
            ("JAM_CACHE_DIR", "cache"),
            ("SCREENDIR", "screens"),
        ):
            path = folder / part
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found[variable] = str(path)
        return {**found, "JAM_IDLE": "20", "JAM_TEST": f"{self.folder}/{name}"}

    def host(
        self,
        name: str = "lab1",
        *options: str,
        env: dict[str, str] | None = None,
        key: str = "host1",
        known: bool = True,
        start: bool = True,
    ) -> Host:
        """A new host. known: its key stands in known_hosts. options: lines of sshd_config.

        Where hosts are local, it has no sshd: only directories and an environment of its own."""
        folder = self.private(name)
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        host = Host(
            name=name,
            folder=folder,
            client_key=self.keys / "id",
            host_key=self.keys / key,
            options=options,
            env={**self._directories(folder, name), **(env or {})},
        )
        self.hosts[name] = host
        if self.transport == "local":
            return host
        if start:
            host.start()
        else:
            host.port = free_port()
        if known:
            with self.known_hosts.open("a") as handle:
                handle.write(host.known_hosts_line())
        self.write_ssh_config()
        return host

    def write_ssh_config(self, extra: str = "", last: str = "") -> None:
        """extra stands before the hosts' entries, and wins; last behind them."""
        blocks = [extra]
        for host in self.hosts.values():
            if host.port:  # it has an sshd, or may have one later
                blocks.append(f"Host {host.name}\n  HostName 127.0.0.1\n  Port {host.port}\n")
        blocks.append(
            f"Host *\n  IdentityFile {self.keys / 'id'}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile none\n"
            f"  ControlPath none\n{last}"
        )
        self.ssh_config.write_text("\n".join(blocks))

    def spec(self, host: Host | str, transport: str = "", **settings: Any) -> HostSpec:
        """A host of this lab by its name, as the lab's ssh_config knows it, or localhost."""
        transport = transport or self.transport
        assert transport, "say by which transport, or have `transport` or `ssh` among the fixtures"
        name = host if isinstance(host, str) else host.name
        if transport != "local":
            given = {"ssh_config": str(self.ssh_config), "python": sys.executable, **settings}
            return HostSpec(name, transport=transport, **given)
        if name not in self.hosts:
            return HostSpec("localhost", transport="local", **settings)
        # it finds the directories as sshd would set them, and stays as the agents of others do
        env = self.hosts[name].env.items()
        exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in env)
        given = {"keep": True, **settings, "prepare": exports + settings.get("prepare", "")}
        return HostSpec(name, transport="local", **given)

    def settings(self, **changes: Any) -> Settings:
        return Settings(**{"connect_timeout": 10.0, **changes})

    def hosts_yaml(self, text: str) -> Path:
        path = self.folder / "hosts.yaml"
        path.write_text(text)
        self.environment.setenv("JAM_HOSTS_FILE", str(path))
        return path

    def hosts_yaml_of(self, *specs: HostSpec) -> Path:
        """A hosts file that says what these specs say."""
        keys = ("transport", "python", "workers", "prepare", "keep", "ssh_config")
        hosts = {
            spec.label: {key: found for key in keys if (found := getattr(spec, key))}
            for spec in specs
        }
        return self.hosts_yaml(json.dumps({"connect_timeout": 10, "hosts": hosts}))

    def left_behind(self) -> dict[int, str]:
        """Processes of this test's hosts: {pid: command line}."""
        return marked(f"JAM_TEST={self.folder}/")

    def clear(self) -> list[str]:
        """End everything; say what had not ended by itself."""
        left = self._waited(self.left_behind)
        for pid in left:
            kill(pid)
        for host in self.hosts.values():
            host.stop()
        if left:
            wait_until(lambda: not self.left_behind(), "killed processes end")
        return [f"process {pid}: {line}" for pid, line in left.items()]

    def _waited(self, look: Callable[[], Any]) -> Any:
        """What look() still finds after a while."""
        deadline = time.monotonic() + _ENDING
        while (found := look()) and time.monotonic() < deadline:
            for pid in found:
                if " serve " in found[pid] and "SCREEN" not in found[pid]:
                    kill(pid, 15)  # agents stay for a while on purpose; they are asked to go
            time.sleep(0.1)
        return found


@pytest.fixture
def lab(
    request: pytest.FixtureRequest, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lab]:
    """Hosts on demand. The test fails if a process of theirs is left at its end."""
    # short: the path of a Unix socket has 103 bytes at most
    folder = Path(tempfile.mkdtemp(prefix="jam-test-", dir="/tmp"))
    lab = Lab(folder, keys, monkeypatch)
    try:
        yield lab
        left = lab.clear()
        left += [f"file {path}" for path in _strangers(folder)]
    finally:
        lab.clear()
        for run in folder.glob("*/run"):
            forget_ram(run)
        shutil.rmtree(folder, ignore_errors=True)
    assert not left, "left behind:\n  " + "\n  ".join(left)


def _strangers(folder: Path) -> list[Path]:
    """Half-made files, and sockets to which nobody listens."""
    found = []
    # what is being unpacked for a Master that did not wait for it may go while we look
    paths = [Path(at, name) for at, dirs, files in os.walk(folder) for name in dirs + files]
    for path in paths:
        try:
            mode = path.lstat().st_mode
        except OSError:
            continue
        if path.name.endswith(".tmp") or (stat.S_ISSOCK(mode) and "screens" not in path.parts):
            found.append(path)
    return found


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest, lab: Lab) -> str:
    """The name of each transport in turn; the lab's hosts are reached over it."""
    lab.reached_over(request.param)
    return request.param


@pytest.fixture(params=SSH)
def ssh(request: pytest.FixtureRequest, lab: Lab) -> str:
    """The name of each transport that goes over SSH; the lab's hosts are reached over it."""
    lab.reached_over(request.param)
    return request.param


@pytest.fixture
def host(transport: str, lab: Lab) -> HostSpec:
    """One host, over each transport in turn; local, it is localhost as anybody has it."""
    if transport == "local":
        return lab.spec("localhost")
    return lab.spec(lab.host("lab1"))


@pytest.fixture
def hosts(transport: str, lab: Lab) -> tuple[HostSpec, HostSpec]:
    """Two hosts, over each transport in turn."""
    return lab.spec(lab.host("lab1")), lab.spec(lab.host("lab2", key="host2"))


@pytest.fixture
def neighbour(transport: str, lab: Lab) -> HostSpec:
    """One host with this machine's home, over each transport in turn; commands take it, unless they
    are told which."""
    if transport == "local":
        spec = lab.spec("localhost")
    else:
        spec = lab.spec(lab.host("lab1", env={"HOME": os.environ["HOME"]}))
    lab.hosts_yaml_of(spec)
    return spec


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    here = Place(tmp_path)
    yield here
    for client in here.clients:
        client.sock.close()
    if here.run.is_dir():
        here.verb("fire", "default")
    for client in here.clients:
        client.close()
    try:
        wait_until(lambda: not here.processes(), "the processes of the test end", 5)
    finally:
        left = here.processes()
        procs.kill(left)
        assert not left, (left, here.log())


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """module(source) writes a module and returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def write(source: str, name: str = "") -> str:
        name = name or f"jam_test_{tmp_path.name.replace('-', '_')}_{len(made)}"
        made.append(name)
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.is_alive()}


def _descriptors() -> dict[str, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
    return {
        number: target
        for number, target in found.items()
        if target.startswith(("socket:", "pipe:")) or "jam-test-" in target
    }


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    """The test fails if a thread, socket or pipe of ours is left at its end."""
    threads, descriptors = _threads(), _descriptors()
    yield
    deadline = time.monotonic() + _ENDING
    while True:
        more_threads = _threads() - threads
        now = _descriptors()
        more = {n: t for n, t in now.items() if t not in descriptors.values()}
        if not more_threads and not more:
            return
        if time.monotonic() > deadline:
            break
        gc.collect()  # an exception and what its frames hold may be a cycle
        time.sleep(0.02)
    names = [f"thread {thread.name}" for thread in more_threads]
    pytest.fail("left open: " + ", ".join(names + [f"{n} {t}" for n, t in more.items()]))
