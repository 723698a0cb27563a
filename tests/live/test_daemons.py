"""Processes that did all they can to get away from the map function that started them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from place import Place
from pythons import Python, pythons
from sshd import wait_until

from worker_payload import procs, wire

# daemonise: a process without a terminal, parent, session or environment; its number in a file.
SOURCE = """
import os, time
def daemonise(path, script):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execve("/bin/sh", ["sh", "-c", "echo $$ > %s.new; mv %s.new %s; %s"
                                  % (path, path, path, script)], {})
        os._exit(0)
    os.wait()
def mapfunc(params, what):
    if what == "pid":
        return os.getpid()
    if what == "die":
        os._exit(3)
    how, path = what.split()
    daemonise(path, "exec sleep 305")
    while not os.path.exists(path):
        time.sleep(0.005)
    if how == "hang":
        time.sleep(300)
    if how == "crash":
        os.abort()
    return os.getpid()
"""


@pytest.fixture
def away(tmp_path: Path):
    """The file in which a daemon says who it is. None may be left at the end."""
    path = tmp_path / "daemon"
    yield path
    if path.exists():
        procs.kill([pid_in(path)])


def pid_in(path: Path) -> int:
    return int(path.read_text())


def ends(pid: int) -> None:
    wait_until(lambda: not procs.is_alive(pid), "the daemon ends with its worker")


@pytest.mark.parametrize("python", pythons(), ids=str)
def test_it_ends_with_a_task_that_is_cancelled(place: Place, python: Python, away: Path) -> None:
    client = place.attach(workers=1, python=python.executable)
    call = client.begin(SOURCE)
    client.task(call, [f"hang {away}"])
    client.wait(wire.Started)
    wait_until(away.exists)
    daemon = pid_in(away)
    assert b"JAM_" not in Path(f"/proc/{daemon}/environ").read_bytes()
    assert procs.look(daemon).session != procs.look(procs.look(daemon).parent).session
    client.send(wire.Cancel(call, []))
    ends(daemon)
    assert client.run(SOURCE, ["pid"])[0] > 0


@pytest.mark.parametrize("python", pythons(), ids=str)
def test_it_ends_with_a_worker_that_dies(place: Place, python: Python, away: Path) -> None:
    client = place.attach(workers=1, python=python.executable)
    (lost,) = client.run(SOURCE, [f"crash {away}"])
    assert lost.signal == signal.SIGABRT
    ends(pid_in(away))
    assert client.run(SOURCE, ["pid"])[0] > 0


def test_it_ends_with_its_template(place: Place, away: Path) -> None:
    client = place.attach(workers=1)
    (worker,) = client.run(SOURCE, [f"return {away}"])
    os.kill(procs.look(worker).parent, signal.SIGKILL)
    ends(pid_in(away))


def test_it_lives_as_long_as_its_worker_whatever_others_do(place: Place, away: Path) -> None:
    client = place.attach(workers=2)
    call = client.begin(SOURCE)
    client.task(call, [f"return {away}", "pid"], pin=True)
    worker, other = (pid for _, pid in sorted(client.collect(call, 2).items()))
    client.send(wire.End(call))
    call = client.begin(SOURCE)
    client.task(call, ["pid", "die"], pin=True)
    assert client.collect(call, 2)[0] == worker
    wait_until(lambda: not procs.is_alive(other))
    assert client.run(SOURCE, ["pid"] * 9)
    daemon = pid_in(away)
    assert procs.look(daemon).parent == worker
    os.kill(worker, signal.SIGKILL)
    ends(daemon)


def test_those_that_end_by_themselves_leave_no_zombies(place: Place) -> None:
    client = place.attach(workers=1)
    source = SOURCE + (
        "def mapfunc(params, x):\n"
        "    for _ in range(x):\n"
        "        daemonise('/dev/null', 'exit 0')\n"
        "    return os.getpid()\n"
    ).replace("/dev/null", str(place.run / "one"))
    (worker,) = client.run(source, [100])
    wait_until(lambda: not procs.children(worker), "they are collected when the worker is idle")


def test_children_are_those_of_all_threads() -> None:
    import subprocess
    import threading

    found = []

    def begin() -> None:
        found.append(subprocess.Popen(["sleep", "306"]))
        stop.wait(20)

    stop = threading.Event()
    thread = threading.Thread(target=begin)
    thread.start()
    wait_until(lambda: found)
    try:
        assert procs.children(os.getpid()) >= {found[0].pid}
    finally:
        stop.set()
        thread.join()
        found[0].kill()
        found[0].wait()
    assert found[0].pid not in procs.children(os.getpid())
