"""How long is a round: tiny params to W warm workers on one SSH host, and W answers back?

Peers in the same run, in turns: execnet and mitogen over the same sshd, multiprocessing.Pool
without any network, dask and ipyparallel over bare TCP. The limits: `ssh host cat`, one connection
per worker, one line there and back; W Python processes of five lines behind sockets of this
process, which is what waking W Pythons takes; and the same W behind one more Python of a dozen
lines, which one `ssh` talks to: what jam does, with nothing that makes it safe.

Each contender has a master process of its own, as anybody uses it: threads of one would take the
interpreter from another. How fast processes are to each other differs by a tenth or two from one
start to the next, execnet's as well as jam's; so the contenders are started several times, and what
counts is the median of the ratios. Workers of dask and ipyparallel are busy while they have nothing
to do, which would slow the others down, and mitogen takes long to start; so each of these has a
race of its own with execnet, started once, with fewer bursts.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from jamtasks import Master

from . import common, peers, trivial

STARTS = 5
BURSTS, BURST = 8, 20  # per start; rounds per burst, the first of which does not count
APART = ("mitogen", "ipyparallel, bare TCP", "dask, bare TCP")
BURSTS_APART = 4
WORKERS = (1, 4, 16)
FORK = multiprocessing.get_context("fork")
Start = Callable[[common.Host, int, ExitStack], Callable[[], object]]


def cat(host: common.Host, workers: int, stack: ExitStack) -> Callable[[], object]:
    """A line to W `ssh host cat`, and W lines back."""
    pipes = []
    for _ in range(workers):
        process = subprocess.Popen(
            host.ssh("cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        stack.callback(common.end, process)
        assert process.stdin is not None and process.stdout is not None
        pipes.append((process.stdin.fileno(), process.stdout.fileno()))

    def go() -> int:
        for out, _ in pipes:
            os.write(out, b"2\n")
        return sum(int(os.read(back, 100)) for _, back in pipes)

    return go


BARE = """
import socket
sock = socket.socket(fileno=0)
while line := sock.recv(100):
    sock.send(b"%d" % (int(line) + 1))
"""


def bare(host: common.Host, workers: int, stack: ExitStack) -> Callable[[], object]:
    """A number to W Pythons on this machine, and W numbers back."""
    sockets = []
    for _ in range(workers):
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen([sys.executable, "-c", BARE], stdin=theirs.fileno())
        stack.callback(common.end, process)
        sockets.append(stack.enter_context(ours))

    def go() -> int:
        for sock in sockets:
            sock.send(b"1")
        return sum(int(sock.recv(100)) for sock in sockets)

    return go


RELAY = """
import os, select, socket, sys
workers, poll, answers = {}, select.epoll(), []
for _ in range(int(sys.argv[1])):
    ours, theirs = socket.socketpair()
    if not os.fork():
        ours.close()
        while line := theirs.recv(100):
            theirs.send(b"%d" % (int(line) + 1))
        os._exit(0)
    workers[ours.fileno()] = ours
    theirs.close()
for fd in (0, *workers):
    poll.register(fd, select.EPOLLIN)
while True:
    for fd, _ in poll.poll():
        if fd:
            answers.append(workers[fd].recv(100))
            if len(answers) == len(workers):
                os.write(1, b" ".join(answers))
                answers = []
        elif line := os.read(0, 100):
            for sock in workers.values():
                sock.send(line)
        else:
            sys.exit()
"""


def relay(host: common.Host, workers: int, stack: ExitStack) -> Callable[[], object]:
    """A number to a Python behind `ssh`, which passes it to W Pythons, and their answers back."""
    command = shlex.join([sys.executable, "-c", RELAY, str(workers)])
    process = subprocess.Popen(
        host.ssh(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    stack.callback(common.end, process)
    assert process.stdin is not None and process.stdout is not None
    there, back = process.stdin.fileno(), process.stdout.fileno()

    def go() -> int:
        os.write(there, b"1")
        return sum(map(int, os.read(back, 1000).split()))

    return go


def peer(name: str) -> Start:
    def start(host: common.Host, workers: int, stack: ExitStack) -> Callable[[], object]:
        call = peers.PEERS[name](stack, host.where, workers).ready("plus_one")
        return lambda: sum(call(1))

    return start


def jam(transport: str) -> Start:
    def start(host: common.Host, workers: int, stack: ExitStack) -> Callable[[], object]:
        master = stack.enter_context(Master([host.spec(transport, workers)], f"rounds{workers}"))
        return lambda: master.run(trivial, 1)

    return start


BASE = "execnet"
CONTENDERS: dict[str, Start] = {
    "`ssh host cat` (limit)": cat,
    "bare Pythons, no SSH, no agent (limit)": bare,
    "bare Pythons behind a bare one and one `ssh` (limit)": relay,
    "jam, openssh": jam("openssh"),
    "jam, fabric": jam("fabric"),
    BASE: peer("execnet"),
    "multiprocessing.Pool, no SSH": peer("pool"),
    "mitogen": peer("mitogen"),
    "ipyparallel, bare TCP": peer("ipyparallel"),
    "dask, bare TCP": peer("dask"),
}
RACES = (
    (tuple(name for name in CONTENDERS if name not in APART), STARTS, BURSTS),
    *(((name, BASE), 1, BURSTS_APART) for name in APART),
)


def main() -> None:
    cells: dict[str, list[str]] = {name: [] for name in CONTENDERS}
    with common.host() as host:
        for workers in WORKERS:
            for names, starts, bursts in RACES:
                found = [race(host, workers, names, bursts) for _ in range(starts)]
                for name in names:
                    if len(cells[name]) <= WORKERS.index(workers):
                        cells[name].append(cell(name, found))
    common.table(
        "A round, microseconds (ratio to execnet in this run)",
        ["", *(f"{workers} workers" for workers in WORKERS)],
        [[name, *row] for name, row in cells.items()],
    )


def race(
    host: common.Host, workers: int, names: tuple[str, ...], bursts: int
) -> dict[str, float | str]:
    """Seconds, or why there are none."""
    with common.Race() as run:
        for name in names:
            run.enter(name, functools.partial(apart, CONTENDERS[name], host, workers))
        medians = run.run(bursts)
    return {name: run.reasons.get(name) or medians[name] for name in names}


def apart(
    start: Start, host: common.Host, workers: int, stack: ExitStack
) -> Callable[[], common.Seconds]:
    """A contender in a process of its own; the median of a burst of rounds."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=contend, args=(start, host, workers, theirs))
    process.start()
    stack.callback(process.join, 20.0)
    stack.callback(ours.send, False)  # others that were forked since hold this end, too

    def go() -> common.Seconds:
        ours.send(True)
        found = ours.recv()
        if isinstance(found, str):
            raise RuntimeError(found)
        return common.Seconds(found)

    return go


def contend(start: Start, host: common.Host, workers: int, line: Any) -> None:
    """Bursts, as long as they are asked for."""
    with ExitStack() as stack:
        try:
            go = start(host, workers, stack)
            while line.recv():
                line.send(statistics.median([timed(go, 2 * workers) for _ in range(BURST)][1:]))
        except Exception as error:
            line.send(f"{type(error).__name__}: {error}")


def timed(go: Callable[[], object], expected: int) -> float:
    began = time.perf_counter()
    answer = go()
    seconds = time.perf_counter() - began
    if answer != expected:
        raise ValueError(f"{answer} is not {expected}")
    return seconds


def cell(name: str, races: list[dict[str, float | str]]) -> str:
    taken = []
    for found in races:
        seconds, base = found[name], found[BASE]
        if isinstance(seconds, str) or isinstance(base, str):
            return str(seconds)
        taken.append((seconds, seconds / base))
    seconds, ratio = map(statistics.median, zip(*taken, strict=True))
    return f"{seconds * 1e6:.0f} ({ratio:.2f})"


if __name__ == "__main__":
    main()
