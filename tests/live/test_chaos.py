"""Chaos: a map call on three hosts, each over another transport, a fault of some kind every second,
the same answer to the bit.

JAM_CHAOS_SEED repeats a schedule of faults, JAM_CHAOS_SECONDS says for how long (default: 40,
or 60 where JAM_LONG_TESTS is set).
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import pytest
from faults import (
    Running,
    agents,
    cut_off,
    go_on,
    is_alive,
    screen_of,
    sessions,
    stored,
    wait_state,
)
from sshd import Host, command_line, descendants, kill

from jamtasks import DataSet, Master

SECONDS = float(
    os.environ.get("JAM_CHAOS_SECONDS") or (60 if "JAM_LONG_TESTS" in os.environ else 40)
)
SEED = int(os.environ.get("JAM_CHAOS_SEED") or random.randrange(1_000_000))
EVERY = 1.0  # seconds between faults
WORKERS = 2  # on each host
PAUSE = 0.08  # seconds that a slice takes at most; 0.035 on average
ROW = 2100  # numbers in a slice: large enough for a file in the store

MODULE = """
import time
import numpy
def mapfunc(pause, rows):
    time.sleep(pause * (int(rows[0, 0] * 1e6) % 8) / 8)
    return numpy.concatenate([[len(rows)], (rows * 1.1).reshape(-1, 21).sum(axis=0)])
"""


class Fault(NamedTuple):
    """after: seconds from the beginning. pick: chooses among equals. seconds: how long it lasts."""

    after: float
    kind: str
    host: int
    pick: int
    seconds: float


def schedule(seed: int, seconds: float, hosts: int) -> list[Fault]:
    """All that will go wrong; nothing else is left to chance."""
    dice = random.Random(seed)
    kinds = list(KINDS)
    return [
        Fault(
            after=EVERY * number,
            kind=dice.choice(kinds),
            host=dice.randrange(hosts),
            pick=dice.randrange(1 << 30),
            seconds=dice.uniform(1.0, 5.0),
        )
        for number in range(1, int(seconds / EVERY))
    ]


# --- the kinds of faults: each says what it did, and may name processes that go on later ---------

Done = tuple[str, Callable[[], Any] | None]  # what was done, and what ends it


def kill_worker(host: Host, fault: Fault) -> Done:
    """Or another process of the agent: its templates are met too."""
    return _kill(_family(host), fault)


def kill_agent(host: Host, fault: Fault) -> Done:
    return _kill([one["pid"] for one in agents(host.run_dir)], fault)


def kill_keeper(host: Host, fault: Fault) -> Done:
    return _kill([one["keeper"] for one in agents(host.run_dir)], fault)


def kill_screen(host: Host, fault: Fault) -> Done:
    return _kill([screen_of(host.run_dir)] if agents(host.run_dir) else [], fault)


def kill_connection(host: Host, fault: Fault) -> Done:
    return _kill(sessions(host), fault)


def stop_worker(host: Host, fault: Fault) -> Done:
    return _stop(_family(host), fault)


def stop_agent(host: Host, fault: Fault) -> Done:
    return _stop([one["pid"] for one in agents(host.run_dir)], fault)


def stop_ssh(host: Host, fault: Fault) -> Done:
    """The client's end of a connection."""
    ours = [pid for pid in descendants(os.getpid()) if host.name in command_line(pid).split()]
    return _stop(ours, fault)


def silence(host: Host, fault: Fault) -> Done:
    """No byte comes, and none is refused."""
    if not host.process:
        return "nothing is on its way", None
    stopped = cut_off(host)
    return f"stopped {stopped}", lambda: go_on(stopped)


def refuse(host: Host, fault: Fault) -> Done:
    """All connections end, and new ones are refused."""
    if not host.process:
        return "nobody listens", None
    host.stop()
    return "", host.start


def damage(host: Host, fault: Fault) -> Done:
    """The files that are there from now on are not what they were; who maps the old ones has them.

    (Bytes that change under a map function, no digest can find.)"""
    harmed = _some_blobs(host, fault)
    for path in harmed:
        other = path.with_name("other")
        data = bytearray(path.read_bytes())
        data[fault.pick % len(data)] ^= 1
        other.write_bytes(data)
        other.replace(path)
    return f"{len(harmed)} blobs", None


def delete(host: Host, fault: Fault) -> Done:
    gone = _some_blobs(host, fault)
    for path in gone:
        path.unlink(missing_ok=True)
    return f"{len(gone)} blobs", None


KINDS: dict[str, Callable[[Host, Fault], Done]] = {
    made.__name__: made
    for made in (
        kill_worker, kill_agent, kill_keeper, kill_screen, kill_connection, stop_worker,
        stop_agent, stop_ssh, silence, refuse, damage, delete,
    )
}  # fmt: skip


def _family(host: Host) -> list[int]:
    return [pid for one in agents(host.run_dir) for pid in sorted(descendants(one["pid"]))]


def _kill(pids: list[int], fault: Fault) -> Done:
    if not pids:
        return "nobody there", None
    pid = pids[fault.pick % len(pids)]
    kill(pid)
    return f"{pid}", None


def _stop(pids: list[int], fault: Fault) -> Done:
    if not pids:
        return "nobody there", None
    pid = pids[fault.pick % len(pids)]
    kill(pid, signal.SIGSTOP)
    return f"{pid}", lambda: kill(pid, signal.SIGCONT) if is_alive(pid) else None


def _some_blobs(host: Host, fault: Fault) -> list[Any]:
    blobs = sorted(stored(host.run_dir, host.env["JAM_CACHE_DIR"]))
    return random.Random(fault.pick).sample(blobs, min(len(blobs), 20))


class Chaos(threading.Thread):
    """Does what is scheduled, until `end`, which undoes what lasts."""

    def __init__(self, hosts: list[Host], faults: list[Fault]):
        super().__init__(name="chaos")
        self.log: list[str] = []
        self._hosts = hosts
        self._faults = faults
        self._over = threading.Event()
        self._lasting: list[tuple[float, Host, Callable[[], Any]]] = []

    def run(self) -> None:
        began = time.monotonic()
        for fault in self._faults:
            while not self._over.wait(0.05) and time.monotonic() - began < fault.after:
                self._heal(time.monotonic() - began)
            if self._over.is_set():
                break
            host = self._hosts[fault.host]
            if any(hurt is host for _, hurt, _ in self._lasting):
                self._note(fault, host, "is not over another one yet")
                continue
            try:
                said, cure = KINDS[fault.kind](host, fault)
            except (OSError, AssertionError, KeyError) as error:  # it went away under our hands
                said, cure = f"{type(error).__name__}: {error}", None
            if cure is not None:
                self._lasting.append((fault.after + fault.seconds, host, cure))
                said += f" for {fault.seconds:.1f} s"
            self._note(fault, host, said)
        while not self._over.wait(0.05):
            self._heal(time.monotonic() - began)
        self._heal(float("inf"))

    def _note(self, fault: Fault, host: Host, said: str) -> None:
        self.log.append(f"{fault.after:5.1f} s  {fault.kind:15} {host.name}  {said}")

    def _heal(self, now: float) -> None:
        for item in [item for item in self._lasting if item[0] <= now]:
            self._lasting.remove(item)
            item[2]()

    def end(self) -> None:
        self._over.set()
        self.join(30)


def test_the_schedule_is_the_seeds():
    assert schedule(7, 30, 3) == schedule(7, 30, 3) != schedule(8, 30, 3)
    assert {fault.kind for fault in schedule(1, 1000, 3)} == set(KINDS)


@pytest.mark.timeout(SECONDS * 5 + 60)
@pytest.mark.parametrize("combine, seconds", [(None, SECONDS), ("host", SECONDS / 4)])
def test_the_same_answer_whatever_breaks(lab, module, monkeypatch, capsys, combine, seconds):
    """Hosts that combine lose all that they kept: only when it is quiet do they get far."""
    with capsys.disabled():
        print(f" [JAM_CHAOS_SEED={SEED} JAM_CHAOS_SECONDS={SECONDS:g}] ", end="", flush=True)
    monkeypatch.setattr("jamtasks.link.RETRY_MAX", 2.0)  # a fault every second wears hosts out
    env = {"JAM_MASTER_GONE_AFTER": "6"}
    hosts, specs = [], []
    for n, transport in enumerate(("fabric", "openssh", "local"), 1):
        lab.reached_over(transport)
        hosts.append(lab.host(f"lab{n}", key=f"host{n}", env=env))
        specs.append(lab.spec(hosts[-1], workers=WORKERS))
    # somewhat more than half of what these workers could do in that time: faults cost the rest
    count = int(1.25 * seconds * len(hosts) * WORKERS / PAUSE)
    data = DataSet(numpy.random.default_rng(SEED).random((count, ROW)))
    name = module(MODULE)
    settings = lab.settings(dead_after=3.0, connect_timeout=4.0)
    with Master(specs, settings=settings, on_notice=lambda text: None) as master:
        master.wait(60)
        expected = master.run(name, 0.0, data, slice_size=1, combine=combine)
        assert expected[0] == count
        chaos = Chaos(hosts, schedule(SEED, 2 * seconds, len(hosts)))
        began = time.monotonic()
        chaos.start()
        try:
            run = Running(master.run, name, PAUSE, data, slice_size=1, combine=combine)
            answer = run.result(4 * SECONDS + 30)
        finally:
            took = time.monotonic() - began
            chaos.end()
            print(*chaos.log, sep="\n")
        report = master.last_run
        for host in hosts:
            wait_state(master, host.name, "up", 40)
        print(f"{count} slices in {took:.1f} s, {report.retried} again", *report.notes, sep="\n")
    assert answer.tobytes() == expected.tobytes()
    assert report.retried > 0
    assert sum(one.tasks for one in report.hosts) == count
    with capsys.disabled():
        print(f"[{count} slices, {len(chaos.log)} faults, {took:.0f} s, {report.retried} again] ",
              end="", flush=True)  # fmt: skip
