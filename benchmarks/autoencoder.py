"""qjam's experiment: one evaluation of the sparse autoencoder's cost, 1k to 100k patches.

qjam (2010) took 146 / 263 / 997 ms with 1 / 4 / 16 workers and 1k patches, nearly all of it
coordination. jam does it with one slice per worker, whose answers come back or are combined on the
host, and with four slices per worker that are combined.
Peers in the same run, same work, one slice per worker: execnet and mitogen over the same sshd
(without the compression that they ask ssh for, which makes them slower here); dask and ipyparallel
over bare TCP, each in a race of its own with the limit: plain pipes to W local processes. What of
the difference is the way through `ssh` shows another limit: W processes behind a bare Python, which
one `ssh` talks to, and nothing that makes it safe. Each worker's slices are there before the clock
starts.
"""

from __future__ import annotations

import functools
import os
import pickle
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy

from examples import sparse_autoencoder
from jamtasks import DataSet, Master

from . import common, peers

WORKERS = (1, 4, 16)
RUNS = {1_000: (60, 10), 10_000: (16, 4), 100_000: (3, 1)}  # patches: how often, in bursts of
PATCHES = tuple(RUNS)
SECONDS = 0.5  # that one contender may take of a race
Patches = dict[int, numpy.ndarray]  # by how many there are
Ready = Callable[[int], Callable[[], object]]  # of a number of patches: evaluates the cost once
Start = Callable[[common.Host, int, Patches, numpy.ndarray, ExitStack], Ready]


def peer(name: str) -> Start:
    def start(
        host: common.Host, workers: int, patches: Patches, theta: numpy.ndarray, stack: ExitStack
    ) -> Ready:
        there = peers.PEERS[name](stack, host.where, workers)

        def ready(count: int) -> Callable[[], object]:
            there.hold(numpy.array_split(patches[count], workers))
            call = there.ready("evaluate")

            def go() -> object:
                first, *rest = call(theta)
                return sum(rest, first)

            return go

        return ready

    return start


def jam(transport: str, slices: int = 1, combine: str | None = None) -> Start:
    """slices: per worker."""

    def start(
        host: common.Host, workers: int, patches: Patches, theta: numpy.ndarray, stack: ExitStack
    ) -> Ready:
        master = stack.enter_context(Master([host.spec(transport, workers)], f"auto{workers}"))

        def ready(count: int) -> Callable[[], object]:
            data = DataSet(patches[count])
            size = -(-count // (workers * slices))
            return lambda: master.run(
                sparse_autoencoder, theta, data, slice_size=size, combine=combine
            )

        return ready

    return start


RELAY = """
import os, pickle, select, socket, sys
sys.path.insert(0, sys.argv[1])
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import numpy
from examples.sparse_autoencoder import mapfunc
size, workers, poll = int(sys.argv[2]), {}, select.epoll()
for piece in pickle.load(sys.stdin.buffer):
    ours, theirs = socket.socketpair()
    if not os.fork():
        ours.close()
        while theta := theirs.recv(size, socket.MSG_WAITALL):
            theirs.sendall(mapfunc(numpy.frombuffer(theta), piece))
        os._exit(0)
    theirs.close()
    workers[ours.fileno()] = ours
    poll.register(ours, select.EPOLLIN)
length = 8 * len(mapfunc(numpy.zeros(size // 8), piece[:1]))
while theta := sys.stdin.buffer.read(size):
    for sock in workers.values():
        sock.sendall(theta)
    left = len(workers)
    while left:
        for fd, _ in poll.poll():
            sys.stdout.buffer.write(workers[fd].recv(length, socket.MSG_WAITALL))
            left -= 1
        sys.stdout.flush()
"""


def relay(
    host: common.Host, workers: int, patches: Patches, theta: numpy.ndarray, stack: ExitStack
) -> Ready:
    """Bytes of params to a Python behind `ssh`, which passes them on, and the answers back."""

    def ready(count: int) -> Callable[[], object]:
        root = str(Path(__file__).parents[1])
        command = shlex.join([sys.executable, "-c", RELAY, root, str(theta.nbytes)])
        process = subprocess.Popen(host.ssh(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        stack.callback(common.end, process)
        there, back = process.stdin, process.stdout
        assert there is not None and back is not None
        pickle.dump(numpy.array_split(patches[count], workers), there)
        length = sparse_autoencoder.mapfunc(theta, patches[count][:1]).nbytes

        def go() -> object:
            there.write(theta.tobytes())
            there.flush()
            return sum(numpy.frombuffer(back.read(length)) for _ in range(workers))

        return go

    return ready


PIPES = "plain pipes to local processes (limit)"
CONTENDERS: dict[str, Start] = {
    PIPES: peer("pipes"),
    "bare Pythons behind a bare one and one `ssh` (limit)": relay,
    "jam, openssh": jam("openssh"),
    "jam, fabric": jam("fabric"),
    "jam, openssh, combined": jam("openssh", 1, "host"),
    "jam, fabric, combined": jam("fabric", 1, "host"),
    "jam, openssh, 4 slices per worker, combined": jam("openssh", 4, "host"),
    "jam, fabric, 4 slices per worker, combined": jam("fabric", 4, "host"),
    "execnet, without its `ssh -C`": peer("execnet-uncompressed"),
    "mitogen, compression off": peer("mitogen-uncompressed"),
    "ipyparallel, bare TCP": peer("ipyparallel"),
    "dask, bare TCP": peer("dask"),
}
RESTLESS = ("ipyparallel, bare TCP", "dask, bare TCP")  # see rounds.py
RACES = (
    tuple(name for name in CONTENDERS if name not in RESTLESS),
    *((name, PIPES) for name in RESTLESS),
)
Cells = dict[tuple[str, int, int], str]  # by contender, number of patches and of workers


def measure(host: common.Host, workers: int, names: tuple[str, ...], patches: Patches) -> Cells:
    theta = sparse_autoencoder.start()
    cells: Cells = {}
    with ExitStack() as stack:
        there: dict[str, Ready] = {}
        reasons: dict[str, str] = {}

        def start(name: str, count: int, _: ExitStack) -> Callable[[], object]:
            if name not in there:
                started = CONTENDERS[name](host, workers, patches, theta, stack)
                there[name] = started
            go = there[name](count)
            go()  # the first one loads modules and computes digests
            return go

        for count in PATCHES:
            expected = sparse_autoencoder.mapfunc(theta, patches[count])
            with common.Race() as race:
                for name in names:
                    if name not in reasons:
                        race.enter(
                            name, functools.partial(start, name, count),
                            functools.partial(numpy.allclose, expected),
                        )  # fmt: skip
                medians = race.run(*RUNS[count], SECONDS)
            reasons.update(race.reasons)
            for name in names:
                cells[name, count, workers] = reasons.get(name) or (
                    f"{medians[name] * 1e3:.1f} ({medians[name] / medians[PIPES]:.2f})"
                )
    return cells


def main() -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    patches = {count: sparse_autoencoder.digits(count) for count in PATCHES}
    cells: Cells = {}
    with common.host() as host:
        for workers in WORKERS:
            for names in RACES:
                cells = {**measure(host, workers, names, patches), **cells}
    for count in PATCHES:
        rows = [[name, *(cells[name, count, w] for w in WORKERS)] for name in CONTENDERS]
        if count == PATCHES[0]:
            rows.append(["qjam, 2010", "146", "263", "997"])
        common.table(
            f"Sparse autoencoder, {count:,} patches, ms per evaluation "
            "(ratio to plain pipes in this run)",
            ["", *(f"{workers} workers" for workers in WORKERS)],
            rows,
        )


if __name__ == "__main__":
    main()
