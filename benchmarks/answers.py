"""Large answers: 256 MB back from 4 workers of one host; 10,000 answers of 1 MB folded into one.

The limits: the same bytes out of a file there, by `ssh host cat`, and over a bare Paramiko channel
with AES-GCM. How much memory the master takes is measured in processes of its own.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy

from jamtasks import HostSpec, Master

from . import common, large, peers

MEGABYTE = 1 << 20
WORKERS, ANSWER = 4, 64 * MEGABYTE
MANY, FEWER, SLOW = 10_000, 3_000, 12.0  # answers; fewer where the first takes so many seconds
REPEAT, SECONDS = 4, 6.0


# --- how fast ----------------------------------------------------------------------------------


def ssh_cat(host: common.Host, stack: ExitStack) -> common.Go:
    """Another connection each time, whose cat waits for a line before it begins."""
    command = f"read line; exec cat {_file(host)}"

    def go() -> common.Seconds:
        process = subprocess.Popen(
            host.ssh(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            room = bytearray(MEGABYTE)  # the same all the time: memory that is new takes time
            time.sleep(0.5)
            began = time.perf_counter()
            process.stdin.write(b"go\n")
            _take(lambda missing: process.stdout.readinto(room))
            return common.Seconds(time.perf_counter() - began)
        finally:
            common.end(process)

    return go


def paramiko(host: common.Host, stack: ExitStack) -> common.Go:
    def go() -> common.Seconds:
        with common.paramiko_channel(host) as channel:
            began = time.perf_counter()
            channel.exec_command(f"exec cat {_file(host)}")
            _take(lambda missing: len(channel.recv(min(missing, MEGABYTE))))
            return common.Seconds(time.perf_counter() - began)

    return go


def _file(host: common.Host) -> Path:
    path = host.folder / "answers"
    if not path.exists():
        array = numpy.random.default_rng().random(WORKERS * ANSWER // 8)
        path.write_bytes(memoryview(array).cast("B"))
    return path


def _take(read: Callable[[int], int]) -> None:
    """read: reads some of so many bytes, and says how many."""
    missing = WORKERS * ANSWER
    while missing:
        missing -= read(missing)


def jam(transport: str) -> Callable[[common.Host, ExitStack], common.Go]:
    def start(host: common.Host, stack: ExitStack) -> common.Go:
        master = stack.enter_context(Master([host.spec(transport, WORKERS)], "answers"))
        return lambda: master.run(large, ANSWER)

    return start


def peer(name: str) -> Callable[[common.Host, ExitStack], common.Go]:
    def start(host: common.Host, stack: ExitStack) -> common.Go:
        there = peers.PEERS[name](stack, host.where, WORKERS)
        part = numpy.random.default_rng(ANSWER).random(ANSWER // 8)
        there.hold([part] * WORKERS)
        call = there.ready("answer")

        def go() -> object:
            first, *rest = call(None)
            total = first.copy()
            for one in rest:
                total += one
            return total

        return go

    return start


CONTENDERS: dict[str, Callable[[common.Host, ExitStack], common.Go]] = {
    "`ssh host cat` (limit)": ssh_cat,
    "bare Paramiko channel, AES-GCM (limit)": paramiko,
    "jam, openssh": jam("openssh"),
    "jam, fabric": jam("fabric"),
    "execnet, without its `ssh -C`": peer("execnet-uncompressed"),
    "mitogen, compression off": peer("mitogen-uncompressed"),
    "dask, bare TCP, not encrypted": peer("dask"),
}


def speed(host: common.Host) -> None:
    with common.Race() as race:
        for name, start in CONTENDERS.items():
            race.enter(name, functools.partial(start, host))
        medians = race.run(REPEAT, seconds=SECONDS)
    limits = [medians[name] for name in list(CONTENDERS)[:2]]
    rows = []
    for name in CONTENDERS:
        if name in race.reasons:
            rows.append([name, race.reasons[name], "", ""])
            continue
        ratios = [f"{limit / medians[name]:.2f}" for limit in limits]
        rows.append([name, f"{WORKERS * ANSWER / 1e6 / medians[name]:.0f}", *ratios])
    common.table(
        f"{WORKERS * ANSWER // MEGABYTE} MiB back from {WORKERS} workers on one host",
        ["", "MB/s", "ratio to `ssh host cat`", "ratio to bare Paramiko"],
        rows,
    )


# --- the master's memory -----------------------------------------------------------------------


def in_process(host: common.Host, transport: str, case: str) -> tuple[float, float, float]:
    """Bytes before, bytes at most, seconds: of a process that is a master and nothing else."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.answers", host.config, host.name, transport, case],
        stdout=subprocess.PIPE, check=True, timeout=170,
    )  # fmt: skip
    before, most, seconds = json.loads(done.stdout)
    return before, most, seconds


def master(config: str, name: str, transport: str, case: str) -> None:
    spec = HostSpec(
        name, transport=transport, workers=WORKERS, ssh_config=config, python=sys.executable
    )
    with Master([spec], "answers") as master:
        master.run(large, 8)  # connected, numpy is there
        before, began = _memory("VmRSS"), time.monotonic()
        if case == "large":
            master.run(large, ANSWER)
        else:
            waits = [0.0] * (MANY if case == "many" else FEWER)
            waits[0] = SLOW if case == "slow" else 0.0
            master.run(large, MEGABYTE, waits, slice_size=1)
        seconds = time.monotonic() - began
    print(json.dumps([before, _memory("VmHWM"), seconds]))


def _memory(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{key}:")[2].split()[0]) << 10


def memory(host: common.Host) -> None:
    needed = 2 * ANSWER
    rows = []
    for transport in ("openssh", "fabric"):
        before, most, _ = in_process(host, transport, "large")
        ratio = f"{(most - before) / needed:.2f}"
        sizes = [f"{size / 1e6:.0f}" for size in (before, most, most - before, needed)]
        rows.append([f"jam, {transport}", *sizes, ratio])
    common.table(
        f"Memory of the master, {WORKERS} answers of {ANSWER // MEGABYTE} MiB, MB",
        ["", "before", "at most", "more", "two answers", "ratio"],
        rows,
    )
    rows = []
    for what, count, transport, case in (
        (f"{MANY:,} answers of 1 MiB", MANY, "openssh", "many"),
        (f"{FEWER:,} answers of 1 MiB, the first after {SLOW:.0f} s", FEWER, "openssh", "slow"),
    ):
        before, most, seconds = in_process(host, transport, case)
        rows.append(
            [what, f"{before / 1e6:.0f}", f"{most / 1e6:.0f}", f"{seconds:.1f}",
             f"{count * MEGABYTE / 1e6 / seconds:.0f}"]
        )  # fmt: skip
    common.table(
        "Many answers folded into one: memory of the whole master, MB",
        ["", "before", "at most", "seconds", "MB/s"],
        rows,
    )


def main() -> None:
    with common.host() as host:
        speed(host)
        memory(host)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        master(*sys.argv[1:])
    else:
        main()
