"""Closing a Master ends logins that are under way, wherever they are stuck."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import paramiko
import pytest
from sshd import kill, wait_until

from jamtasks import Master, transport
from jamtasks.errors import HostError
from jamtasks.transport import Attempt
from jamtasks.transport.base import CONNECTS_AT_ONCE, Ended

SOON = 20.0  # seconds; nothing here would end by itself before
LONG = 300.0


class Listener:
    """Takes connections, and does no more than `greet` does."""

    def __init__(self, greet: Callable[[socket.socket], object] = lambda sock: None):
        self.taken: list[socket.socket] = []
        self._greet = greet
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listening.accept()
                self._greet(sock)
                self.taken.append(sock)

    def stop(self) -> None:
        """Take no more."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def close(self) -> None:
        self.stop()
        for sock in self.taken:
            sock.close()


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    made = []

    def start(*args) -> Listener:
        made.append(Listener(*args))
        return made[-1]

    yield start
    for listener in made:
        listener.close()


@pytest.fixture
def full() -> Iterator[int]:
    """A port of which the system answers nobody: who connects waits, as for a host that is off."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        while True:  # until its queue is full
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0.5)
            try:
                waiting.connect(listening.getsockname())
            except TimeoutError:
                waiting.close()
                break
        yield listening.getsockname()[1]


class SlowServer(paramiko.ServerInterface):
    """An sshd that lets nobody in, and does not say so."""

    def __init__(self) -> None:
        self.asked, self.over = threading.Event(), threading.Event()

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.asked.set()
        self.over.wait(LONG)
        return paramiko.AUTH_FAILED


def point_to(lab, name: str, port: int, extra: str = "") -> None:
    lab.write_ssh_config(f"Host {name}\n  HostName 127.0.0.1\n  Port {port}\n{extra}")


def connecting(port: int) -> bool:
    """Whether somebody waits for an answer of this port (SYN_SENT)."""
    with open("/proc/net/tcp") as handle:
        rows = [line.split() for line in handle]
    return any(row[2].endswith(f":{port:04X}") and row[3] == "02" for row in rows)


def connectors() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("jam ")]


def check_close(lab, *names: str, stuck: Callable[[], object], stays: str = "") -> None:
    """A Master whose logins are stuck is closed; nothing is left of it. stays: a command line that
    is not ours to end."""
    specs = [lab.spec(name) for name in names]
    master = Master(specs, settings=lab.settings(connect_timeout=LONG))
    try:
        wait_until(stuck, "its login is under way")
    finally:
        began = time.monotonic()
        master.close()
    assert time.monotonic() - began < SOON
    wait_until(lambda: not connectors(), "threads that connect end")
    wait_until(lambda: set(lab.left_behind().values()) <= {stays}, "what they started ends")


def test_no_banner(ssh, lab, listen):
    silent = listen()
    point_to(lab, "mute", silent.port)
    check_close(lab, "mute", stuck=lambda: silent.taken)


def test_nothing_behind_the_banner(ssh, lab, listen):
    half = listen(lambda sock: sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"))
    point_to(lab, "mute", half.port)
    check_close(lab, "mute", stuck=lambda: half.taken and half.taken[0].recv(1))


def test_no_answer_to_a_connect(ssh, lab, full):
    point_to(lab, "off", full)
    check_close(lab, "off", stuck=lambda: connecting(full))


def test_no_verdict_on_the_key(ssh, lab, listen):
    server, transports = SlowServer(), []

    def serve(sock: socket.socket) -> None:
        transports.append(paramiko.Transport(sock))
        transports[-1].add_server_key(paramiko.PKey.from_path(lab.keys / "host1"))
        transports[-1].start_server(threading.Event(), server)

    listener = listen(serve)
    public = (lab.keys / "host1.pub").read_text().split()
    lab.known_hosts.write_text(f"[127.0.0.1]:{listener.port} {public[0]} {public[1]}\n")
    point_to(lab, "slow", listener.port)
    try:
        check_close(lab, "slow", stuck=server.asked.is_set)
    finally:
        server.over.set()
        for sock in transports:
            sock.close()


def test_no_name_server(lab, monkeypatch):
    asked, answered, real = threading.Event(), threading.Event(), socket.getaddrinfo

    def look_up(host, *args, **options):
        if host == "far.example" and not (len(args) > 4 and args[4] & socket.AI_NUMERICHOST):
            asked.set()
            answered.wait(LONG)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    lab.write_ssh_config("Host far\n  HostName far.example\n")
    master = Master([lab.spec("far", "fabric")], settings=lab.settings(connect_timeout=LONG))
    assert asked.wait(SOON)
    master.close()
    try:  # only the look-up itself cannot be ended
        wait_until(lambda: connectors() == ["jam far aside"], "the login ends")
    finally:
        answered.set()


def test_ssh_config_that_takes_for_ever(ssh, lab):
    def asks() -> list[int]:
        return [pid for pid, line in lab.left_behind().items() if line == "sleep 301"]

    lab.write_ssh_config('Match exec "exec sleep 301"\n')
    check_close(lab, "lab1", stuck=asks, stays="sleep 301")
    for pid in asks():
        kill(pid)


def test_proxy_command_that_says_nothing(ssh, lab):
    lab.write_ssh_config("Host lab1\n  ProxyCommand sed -n d\n")
    check_close(lab, "lab1", stuck=lambda: "sed -n d" in lab.left_behind().values())


def test_behind_a_jump_host(ssh, lab, listen):
    silent = listen()
    lab.host("gate")
    point_to(lab, "mute", silent.port, "  ProxyJump gate\n")
    check_close(lab, "mute", stuck=lambda: silent.taken)


def test_a_jump_host_that_gets_no_answer(ssh, lab, full):
    lab.host("gate")
    point_to(lab, "off", full, "  ProxyJump gate\n")
    check_close(lab, "off", stuck=lambda: connecting(full))


def test_a_jump_host_without_a_banner(ssh, lab, listen):
    """Several hosts wait for one login there."""
    silent = listen()
    point_to(lab, "gate", silent.port, "Host lab*\n  ProxyJump gate\n")
    check_close(lab, "lab1", "lab2", "lab3", stuck=lambda: silent.taken)


def test_a_crowd_at_a_door(ssh, lab, listen):
    silent = listen()
    names = [f"mute{number}" for number in range(CONNECTS_AT_ONCE + 4)]
    point_to(lab, "mute*", silent.port)
    check_close(lab, *names, stuck=lambda: len(silent.taken) == CONNECTS_AT_ONCE)


def test_others_keep_their_way_through_a_jump_host(lab, listen):
    """Whose attempt made the login there does not matter; nor does what he waits for."""
    silent = listen()
    target = lab.host()
    lab.host("gate", key="host2")
    point_to(lab, "mute", silent.port, "Host mute lab1\n  ProxyJump gate\n")
    stuck, outcome = Attempt("mute"), []

    def log_in() -> None:
        try:
            transport.connect(lab.spec("mute", "fabric"), lab.settings(connect_timeout=LONG), stuck)
        except HostError as error:
            outcome.append(error)

    waiting = threading.Thread(target=log_in)
    waiting.start()
    wait_until(lambda: silent.taken)
    connection = transport.connect(lab.spec(target, "fabric"), lab.settings())
    try:
        stuck.end()
        waiting.join(SOON)
        assert [type(error) for error in outcome] == [Ended]
        channel = connection.exec("echo still here")
        assert channel.read(100) == b"still here\n"
        channel.close()
    finally:
        connection.close()


def test_whose_login_at_a_jump_host_was_ended_by_another_makes_his_own(lab, listen):
    silent = listen()
    lab.host()
    gate = lab.host("gate", key="host2", start=False, known=False)
    gate.port = silent.port
    with lab.known_hosts.open("a") as handle:
        handle.write(gate.known_hosts_line())
    lab.write_ssh_config("Host lab1\n  ProxyJump gate\n")
    settings = lab.settings(connect_timeout=LONG)
    outcome: list[object] = []

    class Second(Attempt):
        waits = threading.Event()

        def wait(self, future):
            self.waits.set()
            return super().wait(future)

    def log_in(attempt: Attempt) -> None:
        try:
            outcome.append(transport.connect(lab.spec("lab1", "fabric"), settings, attempt))
        except HostError as error:
            outcome.append(error)

    first, second = Attempt("lab1"), Second("lab1")
    threads = [threading.Thread(target=log_in, args=(attempt,)) for attempt in (first, second)]
    threads[0].start()
    wait_until(lambda: silent.taken)
    threads[1].start()
    assert second.waits.wait(SOON)
    silent.stop()
    gate.start()
    first.end()
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()
    assert sorted(type(one).__name__ for one in outcome) == ["Ended", "FabricConnection"]
    for one in outcome:
        if not isinstance(one, HostError):
            one.close()
