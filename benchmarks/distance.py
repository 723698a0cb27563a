"""50 ms away: streaming, a warm `inv map`, and a steady stream of short tasks.

A relay delays every byte by 25 ms each way (delay.py). The limits take the same way: `ssh host cat`
and a bare Paramiko channel with AES-GCM; `ssh host true`.
"""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy

from jamtasks import Master

from . import answers, common, push, startup, steady

ROUND_TRIP = 0.05
MEGABYTES, REPEAT, SECONDS = 64, 2, 8.0
WARM_REPEAT = 5
WORKERS, WATCHED, BEFORE = 2, 4.0, 1.5  # seconds of the stream that count, and before them
BOTH = ("openssh", "fabric")


@contextmanager
def far(host: common.Host) -> Iterator[common.Host]:
    """The same host, through the relay."""
    words = [sys.executable, "-m", "benchmarks.delay", str(host.port), str(ROUND_TRIP / 2)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield host.through(int(process.stdout.readline()))
    finally:
        common.end(process)


def rates(title: str, size: int, starts: dict[str, Callable[[ExitStack], common.Go]]) -> None:
    with common.Race() as race:
        for name, start in starts.items():
            race.enter(name, start)
        medians = race.run(REPEAT, seconds=SECONDS)
    limits = [medians[name] for name in list(starts)[:2]]
    common.table(
        title,
        ["", "MB/s", "ratio to `ssh host cat`", "ratio to bare Paramiko"],
        [
            [name, f"{size / 1e6 / seconds:.1f}", *(f"{limit / seconds:.2f}" for limit in limits)]
            for name, seconds in medians.items()
        ],
    )


def streaming(host: common.Host) -> None:
    matrix = numpy.random.default_rng().random((MEGABYTES * 128, 1024))
    there = (
        "`ssh host cat` (limit)", "bare Paramiko channel, AES-GCM (limit)",
        *(f"jam, {how}" for how in BOTH),
    )  # fmt: skip
    to = (push.ssh_cat, push.paramiko, *(push.jam(how) for how in BOTH))
    rates(
        f"{MEGABYTES} MiB to a host {ROUND_TRIP * 1e3:.0f} ms away",
        matrix.nbytes,
        {
            name: functools.partial(start, host, matrix)
            for name, start in zip(there, to, strict=True)
        },
    )
    back = (answers.ssh_cat, answers.paramiko, *(answers.jam(how) for how in BOTH))
    rates(
        f"{answers.WORKERS * answers.ANSWER >> 20} MiB of answers from there",
        answers.WORKERS * answers.ANSWER,
        {name: functools.partial(start, host) for name, start in zip(there, back, strict=True)},
    )


def warm(host: common.Host) -> None:
    words = [sys.executable, "-m", "invoke", "map", "benchmarks.trivial", "--params", "1"]
    words += ["--quiet", "--hosts", f"{host.name}*{WORKERS}"]
    base = "`ssh host true` (limit)"
    goes: dict[str, Callable[[], object]] = {
        base: lambda: startup.run(host.ssh("true")),
        startup.BARE: lambda: startup.run(startup.bare(host)),
    }
    for how in BOTH:
        goes[f"jam: inv map warm, {how}"] = functools.partial(
            startup.run, words, host.environment(how)
        )
    medians, _ = startup.race(goes, WARM_REPEAT)
    common.table(
        f"From nothing to the first result, {ROUND_TRIP * 1e3:.0f} ms away",
        ["", "seconds", "round trips more than `ssh host true`"],
        [
            [name, f"{seconds:.3f}", f"{(seconds - medians[base]) / ROUND_TRIP:.1f}"]
            for name, seconds in medians.items()
        ],
    )


def busy(host: common.Host, transport: str) -> float:
    """The share of their time that workers spend in tasks of 5 ms, in an endless stream of them."""
    with Master([host.spec(transport, WORKERS)], "steady") as master:
        results = master.map(steady.work, itertools.count())
        next(results)
        began = time.monotonic() + BEFORE
        counted = 0.0
        for seconds in results:
            now = time.monotonic()
            if now > began + WATCHED:
                break
            if now > began:
                counted += seconds
        results.close()  # type: ignore[attr-defined]
    return counted / (WORKERS * WATCHED)


def main() -> None:
    with common.host() as near, far(near) as host:
        streaming(host)
        warm(host)
        common.table(
            f"A steady stream of 5 ms tasks, {WORKERS} workers: how busy they are",
            ["", "here", f"{ROUND_TRIP * 1e3:.0f} ms away"],
            [
                [f"jam, {how}, `Master.map`", f"{busy(near, how):.1%}", f"{busy(host, how):.1%}"]
                for how in BOTH
            ],
        )


if __name__ == "__main__":
    main()
