"""Large answers, one after the other: faults while they wait for their turn and on their way."""

from __future__ import annotations

import reprlib
import signal
import socket
from pathlib import Path

import pytest
from agent_client import Client
from faults import Running, agent, sessions
from place import Place
from sshd import descendants, kill, parents, wait_until

from jamtasks import Master
from worker_payload import codec, wire

SIZE = 40 << 20  # more than may be unsent when the next one goes

NOTED = """
import os
def mapfunc(folder, item):
    with open(folder + "/%d" % item[0], "a") as file:
        file.write("%d\\n" % os.getpid())
    return [os.getpid(), item[0], bytes([item[0]]) * item[1]]
"""


def begin(place: Place, folder: Path, workers: int) -> tuple[Client, int]:
    """A call of which the agent has all it needs, so that nobody need read what it says."""
    client = place.attach(workers=workers, timeout=60)
    assert client.run(NOTED, [[99, 1]], str(folder))[0][1:] == [99, b"c"]
    return client, client.begin(NOTED, str(folder))


def give(client: Client, call: int, items: dict[int, list[int]]) -> None:
    """Tasks, with their slices."""
    slices = [b"".join(codec.blob_parts(codec.encode(item))) for item in items.values()]
    client.send(wire.Task(call, [[task, i, None] for i, task in enumerate(items)], slices))


def pids(folder: Path, item: int) -> list[int]:
    """Of the workers that began with it."""
    path = folder / str(item)
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def peeked(sock: socket.socket) -> int:
    try:
        return len(sock.recv(1 << 20, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return 0


def waits(pid: int) -> bool:
    """Whether it reads from a socket, as far as the system says that, or has ended."""
    try:
        where = Path(f"/proc/{pid}/wchan").read_text()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return "unix_stream" in where if where.strip("0") else state == "S"


def three_that_answer(place: Place, tmp_path: Path) -> tuple[Client, int, list[int]]:
    """One large answer is on its way, two wait for their turn. The workers come last."""
    client, call = begin(place, tmp_path, 3)
    give(client, call, {item: [item, SIZE] for item in range(3)})
    wait_until(lambda: all(pids(tmp_path, item) for item in range(3)), "all have begun")
    wait_until(lambda: peeked(client.sock) > 100_000, "an answer is on its way")
    first = [pids(tmp_path, item)[0] for item in range(3)]
    wait_until(lambda: all(map(waits, first)), "the others wait for their turn")
    return client, call, first


def test_workers_that_die_while_one_answer_is_on_its_way(place: Place, tmp_path: Path) -> None:
    client, call, first = three_that_answer(place, tmp_path)
    for pid in first:
        kill(pid, signal.SIGKILL)
    found = client.collect(call, 3)
    for item in range(3):
        same = found[item][1:] == [item, bytes([item]) * SIZE]  # too long to be shown
        assert same, f"the answer of {item} is another: {reprlib.repr(found[item])}"
    kept = [item for item in range(3) if found[item][0] == first[item]]
    assert len(kept) == 1, "what was handed over is not lost with its worker, and no other was"
    for item in set(range(3)) - set(kept):
        assert found[item][0] == pids(tmp_path, item)[1], "it was begun once more"


def test_they_come_in_order_and_small_ones_are_not_held_up(place: Place, tmp_path: Path) -> None:
    """As long as a large answer is on its way, the next one is the lowest of those that wait."""
    client, call = begin(place, tmp_path, 4)
    give(client, call, {9: [9, SIZE]})
    wait_until(lambda: peeked(client.sock) > 100_000, "an answer is on its way")
    give(client, call, {item: [item, SIZE] for item in (8, 7, 6)})
    wait_until(lambda: all(pids(tmp_path, item) for item in (6, 7, 8)), "all have begun")
    began = [pids(tmp_path, item)[0] for item in (6, 7, 8)]
    wait_until(lambda: all(map(waits, began)), "they wait for their turn")
    give(client, call, {20: [1, 5]})
    wait_until(lambda: pids(tmp_path, 1), "the worker whose answer is on its way goes on")
    found = client.collect(call, 5)
    assert list(found) == [9, 20, 6, 7, 8]
    assert [len(found[task][2]) for task in found] == [SIZE, 5, SIZE, SIZE, SIZE]


def test_a_call_that_ends_lets_go_of_what_waits(place: Place, tmp_path: Path) -> None:
    client, call, _ = three_that_answer(place, tmp_path)
    client.send(wire.End(call))
    (tmp_path / "next").mkdir()
    call = client.begin(NOTED, str(tmp_path / "next"))
    give(client, call, {item: [item, 2 << 20] for item in range(6)})
    found = client.collect(call, 6)
    for item in range(6):
        same = found[item][1:] == [item, bytes([item]) * (2 << 20)]  # too long to be shown
        assert same, f"the answer of {item} is another: {reprlib.repr(found[item])}"


SUMMED = """
import numpy
def mapfunc(size, items):
    return numpy.full(size // 8, 2.0 ** items[0])
def reduce(a, b):
    a += b
    return a
"""


@pytest.mark.parametrize("victim", ["workers", "connection", "agent"])
def test_faults_in_the_middle_of_a_large_answer(lab, transport, module, victim):
    host = lab.host("lab1")
    with Master([lab.spec(host, workers=3)]) as master:
        name = module(SUMMED)
        assert master.run(name, 8, [0]).tolist() == [1.0]
        run = Running(master.run, name, SIZE, list(range(6)), slice_size=1)
        for _ in range(2):
            wait_until(lambda: coming(master) or run.is_over, "a large answer is coming")
            assert not run.is_over, "there was not one in whose middle something could happen"
            pid = agent(host.run_dir)["pid"]
            if victim == "workers":
                busy = set(parents().values())
                victims = [one for one in descendants(pid) if one not in busy]
            else:
                victims = [pid] if victim == "agent" else sessions(host)
            for one in victims:
                kill(one, signal.SIGKILL)
            if victim != "workers":
                wait_until(lambda: not coming(master), "that is noticed")
        result = run.result()
    assert result.nbytes == SIZE and (result == 63.0).all()


def coming(master: Master) -> bool:
    """Whether the host has sent the beginning of a large answer, and not its end."""
    session = master._engine.links["lab1"].session
    if session is None:
        return False
    decoder = session._decoder
    return decoder._frame is not None and decoder._have > 1 << 20


def test_a_repeated_call_whose_answers_become_large(host, module):
    with Master([host]) as master:
        name = module("def mapfunc(size, item):\n    return b'x' * size\n")
        workers = len(master.run(name, 1))
        for size in (1, 1, 1, 1, 2 << 20, 1, 1, 1, 3 << 20, 2 << 20, 1):
            assert master.run(name, size) == b"x" * size * workers
