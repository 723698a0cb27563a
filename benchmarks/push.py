"""256 MB of float64 to 4 workers of one host, in 8 slices; their sum. Then the same call again.

The limits in the same run: a bare Paramiko channel with AES-GCM, and `ssh host cat >/dev/null`; for
the second call local processes behind plain pipes that hold the data; for data that is not given as
a DataSet, which has to be digested anew, SHA-256 of it all alone. Then: the memory of all workers.
"""

from __future__ import annotations

import functools
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy

from jamtasks import DataSet, Master

from . import common, peers, summing

MEGABYTES = 256
WORKERS, SLICES = 4, 8
REPEAT, AGAIN = 4, 40
SECONDS = 6.0  # that one contender may take of a race, if it is to run more than once
LINGER = 0.5  # seconds that data is held, so that memory can be looked at


def ssh_cat(host: common.Host, matrix: numpy.ndarray, stack: ExitStack) -> common.Go:
    def go() -> common.Seconds:
        process = subprocess.Popen(
            host.ssh("cat >/dev/null; echo done"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(b"first ")  # there when the clock starts, as everybody is
            process.stdin.flush()
            time.sleep(0.5)
            began = time.perf_counter()
            process.stdin.write(memoryview(matrix).cast("B"))
            process.stdin.close()
            process.stdout.read()
            return common.Seconds(time.perf_counter() - began)
        finally:
            common.end(process)

    return go


def paramiko(host: common.Host, matrix: numpy.ndarray, stack: ExitStack) -> common.Go:
    """Into `cat >/dev/null` over one channel, AES-GCM first."""
    data = memoryview(matrix).cast("B")

    def go() -> common.Seconds:
        with common.paramiko_channel(host) as channel:
            channel.exec_command("cat >/dev/null; echo done")
            began = time.perf_counter()
            for start in range(0, len(data), 1 << 18):
                channel.sendall(data[start : start + (1 << 18)])
            channel.shutdown_write()
            while channel.recv(100):
                pass
            return common.Seconds(time.perf_counter() - began)

    return go


def jam(transport: str) -> Callable[..., common.Go]:
    def start(host: common.Host, matrix: numpy.ndarray, stack: ExitStack) -> common.Go:
        """Connected before the clock starts; a host that has nothing."""

        def go() -> common.Seconds:
            with Master([host.spec(transport, WORKERS)], "push") as master:
                master.run(summing, None, numpy.zeros((WORKERS, 4)))
                data = DataSet(matrix.view())
                began = time.perf_counter()
                total = master.run(summing, None, data, slice_size=len(matrix) // SLICES)
                took = time.perf_counter() - began
                assert numpy.isclose(total, matrix.sum())
                assert master.last_run.bytes_sent >= matrix.nbytes, "the data was there already"
            host.forget_everything()
            return common.Seconds(took)

        return go

    return start


def peer(name: str, share: int = 1) -> Callable[..., common.Go]:
    """share: it gets only one row in so many, or it would take a minute; the time is scaled."""

    def start(host: common.Host, matrix: numpy.ndarray, stack: ExitStack) -> common.Go:
        workers = peers.PEERS[name](stack, host.where, WORKERS)
        some = matrix[: len(matrix) // share]
        parts, total = numpy.array_split(some, SLICES), some.sum()
        assert workers.ready("plus_one")(1) == [2] * WORKERS

        def go() -> common.Seconds:
            began = time.perf_counter()
            workers.hold(parts)
            assert numpy.isclose(sum(workers.ready("total")(None)), total)
            return common.Seconds((time.perf_counter() - began) * share)

        return go

    return start


COLD: dict[str, Callable[..., common.Go]] = {
    "`ssh host cat >/dev/null` (limit)": ssh_cat,
    "bare Paramiko channel, AES-GCM (limit)": paramiko,
    "jam, openssh": jam("openssh"),
    "jam, fabric": jam("fabric"),
    "execnet": peer("execnet", 4),
    "execnet, without its `ssh -C`": peer("execnet-uncompressed"),
    "mitogen": peer("mitogen", 8),
    "mitogen, compression off": peer("mitogen-uncompressed"),
    "dask, bare TCP, not encrypted": peer("dask"),
}


def cold(host: common.Host, matrix: numpy.ndarray) -> None:
    with common.Race() as race:
        for name, start in COLD.items():
            race.enter(name, functools.partial(start, host, matrix))
        medians = race.run(REPEAT, seconds=SECONDS)
    limits = [medians[name] for name in list(COLD)[:2]]
    rows = []
    for name in COLD:
        if name in race.reasons:
            rows.append([name, race.reasons[name], "", ""])
            continue
        ratios = [f"{limit / medians[name]:.2f}" for limit in limits]
        rows.append([name, f"{matrix.nbytes / 1e6 / medians[name]:.0f}", *ratios])
    common.table(
        f"{MEGABYTES} MiB of float64 to {WORKERS} workers on one host, {SLICES} slices, sum",
        ["", "MB/s cold", "ratio to `ssh host cat`", "ratio to bare Paramiko"],
        rows,
    )


# --- the second call ---------------------------------------------------------------------------


def jam_again(transport: str, frozen: bool) -> Callable[..., common.Go]:
    def start(host: common.Host, matrix: numpy.ndarray, stack: ExitStack) -> common.Go:
        master = stack.enter_context(Master([host.spec(transport, WORKERS)], "again"))
        data = DataSet(matrix.view()) if frozen else matrix
        size = len(matrix) // SLICES
        master.run(summing, None, data, slice_size=size)

        def go() -> Any:
            total = master.run(summing, None, data, slice_size=size)
            assert not master.last_run.bytes_sent, "the second call sent data"
            return total

        return go

    return start


def peer_again(name: str) -> Callable[..., common.Go]:
    def start(host: common.Host, matrix: numpy.ndarray, stack: ExitStack) -> common.Go:
        workers = peers.PEERS[name](stack, host.where, WORKERS)
        workers.hold(numpy.array_split(matrix, SLICES))
        call = workers.ready("total")
        return lambda: sum(call(None))

    return start


def hashing(host: common.Host, matrix: numpy.ndarray, stack: ExitStack) -> common.Go:
    """SHA-256 of the slices, as many at a time as there are CPUs."""
    threads = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
    parts = [memoryview(part).cast("B") for part in numpy.array_split(matrix, SLICES)]

    def go() -> Any:
        list(threads.map(lambda part: hashlib.sha256(part).digest(), parts))
        return matrix.sum()

    return go


PIPES = "plain pipes to local processes (limit)"
SECOND: dict[str, Callable[..., common.Go]] = {
    PIPES: peer_again("pipes"),
    "SHA-256 and sum, here (limit)": hashing,
    "jam, openssh, `DataSet`": jam_again("openssh", True),
    "jam, fabric, `DataSet`": jam_again("fabric", True),
    "jam, fabric, raw array": jam_again("fabric", False),
    "execnet": peer_again("execnet-uncompressed"),
    "mitogen": peer_again("mitogen-uncompressed"),
    "dask, bare TCP": peer_again("dask"),
    "ipyparallel, bare TCP": peer_again("ipyparallel"),
}
RESTLESS = ("dask, bare TCP", "ipyparallel, bare TCP")  # see rounds.py


def again(host: common.Host, matrix: numpy.ndarray) -> None:
    quiet = tuple(name for name in SECOND if name not in RESTLESS)
    total = matrix.sum()
    rows: dict[str, list[str]] = {}
    for names in (quiet, *((name, PIPES) for name in RESTLESS)):
        with common.Race() as race:
            for name in names:
                start = functools.partial(SECOND[name], host, matrix)
                race.enter(name, start, lambda value: numpy.isclose(value, total))
            medians = race.run(AGAIN, 4, SECONDS / 2)
        for name in names:
            cells = [race.reasons.get(name, ""), ""]
            if name in medians:
                ratio = medians[name] / medians[PIPES]
                cells = [f"{medians[name] * 1e3:.1f}", f"{ratio:.2f}"]
            rows.setdefault(name, [name, *cells])
    common.table(
        "The same call again, the data is there", ["", "ms", "ratio to plain pipes"],
        list(rows.values()),
    )  # fmt: skip


# --- memory ------------------------------------------------------------------------------------


def jam_memory(host: common.Host, matrix: numpy.ndarray, workers: int) -> tuple[float, float]:
    """Bytes of all workers together: before they had data, and while they hold all of it."""
    with Master([host.spec("openssh", workers)], f"memory{workers}") as master:
        master.run(summing, None, numpy.zeros((workers, 4)), slice_size=1)  # numpy is loaded
        pids = master.run(summing)
        before = common.memory(pids)
        data, size = DataSet(matrix.view()), len(matrix) // workers
        master.run(summing, None, data, slice_size=size)
        return before, _during(lambda: master.run(summing, LINGER, data, slice_size=size), pids)


def peer_memory(
    name: str, host: common.Host, matrix: numpy.ndarray, workers: int
) -> tuple[float, float]:
    with ExitStack() as stack:
        peer = peers.PEERS[name](stack, host.where, workers)
        pids = peer.ready("pid")(None)
        peer.hold([numpy.zeros((1, 4))] * workers)
        peer.ready("total")(None)
        before = common.memory(pids)
        peer.hold(numpy.array_split(matrix, workers))
        call = peer.ready("linger")
        return before, _during(lambda: call(LINGER), pids)


FORKS = """
import gc, os, sys
import numpy
data, workers = numpy.load(sys.argv[1], mmap_mode="r"), int(sys.argv[2])
gc.collect()
gc.freeze()
for number in range(workers):
    if not os.fork():
        numpy.array_split(data, workers)[number].sum()
        os.write(1, b"%d\\n" % os.getpid())
        os.read(0, 1)
        os._exit(0)
os.read(0, 1)
"""


def forks_memory(host: common.Host, matrix: numpy.ndarray, workers: int) -> tuple[float, float]:
    """Of Pythons forked from one that has imported numpy, which map the data, add it up, and do
    nothing else."""
    seen = []
    for data in (numpy.zeros((workers, 4)), matrix):
        with (
            tempfile.NamedTemporaryFile(dir="/dev/shm", suffix=".npy") as file,
            ExitStack() as stack,
        ):
            numpy.save(file, data)
            file.flush()
            process = subprocess.Popen(
                [sys.executable, "-c", FORKS, file.name, str(workers)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            stack.callback(common.end, process)
            assert process.stdin is not None and process.stdout is not None
            stack.callback(process.stdin.close)
            seen.append(common.memory([int(process.stdout.readline()) for _ in range(workers)]))
    return seen[0], seen[1]


def _during(go: Callable[[], object], pids: list[int]) -> float:
    """The memory these processes take while go() runs: the median, as one look takes its time."""
    thread = threading.Thread(target=go)
    thread.start()
    seen = [0.0]
    while thread.is_alive():
        seen.append(common.memory(pids))
        time.sleep(0.02)
    thread.join()
    return statistics.median(seen)


def memory(host: common.Host, matrix: numpy.ndarray) -> None:
    contenders = {
        "jam": jam_memory,
        "bare forks of a Python with numpy (limit)": forks_memory,
        "plain pipes to local processes": functools.partial(peer_memory, "pipes"),
        "execnet": functools.partial(peer_memory, "execnet-uncompressed"),
    }
    rows = []
    for name, measure in contenders.items():
        cells = []
        for workers in (WORKERS, 16):
            try:
                with common.within(60):
                    before, during = measure(host, matrix, workers)
            except Exception as error:
                if name == "jam":
                    raise
                cells += [f"{type(error).__name__}: {error}"[:80], "", ""]
                continue
            size = matrix.nbytes
            cells += [
                f"{before / size:.2f}", f"{during / size:.2f}", f"{(during - before) / size:.2f}"
            ]  # fmt: skip
        rows.append([name, *cells])
    common.table(
        "Memory of all workers together (PSS), in multiples of the data",
        ["", "4 workers, before", "with it", "more", "16 workers, before", "with it", "more"],
        rows,
    )


def main() -> None:
    matrix = numpy.random.default_rng().random((MEGABYTES * 128, 1024))
    with common.host() as host:
        cold(host, matrix)
        again(host, matrix)
        memory(host, matrix)


if __name__ == "__main__":
    main()
