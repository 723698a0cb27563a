"""Many tiny tasks: 20,000 of one item each, 2 workers, results in order.

jam batches them by itself, as loky does. Peers as people use them, one task per message, and, as
rows of their own, with batches made by hand. dask and ipyparallel get a twentieth of the tasks, in
a race of their own with execnet, because their workers are never quite idle. The limit of one task
per message: a loop that writes lines to `ssh host python`, 64 ahead.
"""

from __future__ import annotations

import multiprocessing
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack

from jamtasks import Master

from . import common, peers, tiny

TASKS, WORKERS, WINDOW = 20_000, 2, 64
FEWER = 1_000  # for peers that take tens of seconds for all
CHUNK = 500
REPEAT, SECONDS = 5, 8.0
ITEMS = list(range(TASKS))


def jam(spec: object) -> Callable[[ExitStack], Callable[[], int]]:
    def start(stack: ExitStack) -> Callable[[], int]:
        master = stack.enter_context(Master([spec], "tasks"))  # type: ignore[list-item]
        return lambda: int(master.run(tiny, None, ITEMS, slice_size=1))

    return start


def jam_map(spec: object) -> Callable[[ExitStack], Callable[[], int]]:
    def start(stack: ExitStack) -> Callable[[], int]:
        master = stack.enter_context(Master([spec], "tasks"))  # type: ignore[list-item]
        return lambda: sum(master.map(tiny.double, ITEMS))

    return start


def pool(chunk: int) -> Callable[[ExitStack], Callable[[], int]]:
    def start(stack: ExitStack) -> Callable[[], int]:
        workers = stack.enter_context(multiprocessing.get_context("fork").Pool(WORKERS))
        return lambda: sum(workers.imap(tiny.double, ITEMS, chunksize=chunk))

    return start


def executor(chunk: int) -> Callable[[ExitStack], Callable[[], int]]:
    def start(stack: ExitStack) -> Callable[[], int]:
        workers = stack.enter_context(ProcessPoolExecutor(WORKERS))
        return lambda: sum(workers.map(tiny.double, ITEMS, chunksize=chunk))

    return start


def loky(stack: ExitStack) -> Callable[[], int]:
    from joblib import Parallel, delayed, externals

    stack.callback(lambda: externals.loky.get_reusable_executor().shutdown(wait=True))
    task = delayed(tiny.double)
    return lambda: sum(Parallel(n_jobs=WORKERS)(task(item) for item in ITEMS))


def mapped(name: str, host: common.Host) -> Callable[[ExitStack], Callable[[], int]]:
    def start(stack: ExitStack) -> Callable[[], int]:
        peer = peers.PEERS[name](stack, host.where, WORKERS)
        return lambda: sum(peer.map(tiny.double, ITEMS[:FEWER]))  # type: ignore[attr-defined]

    return start


def execnet(host: common.Host) -> Callable[[ExitStack], Callable[[], int]]:
    """A window of tasks under way at each worker, kept by hand."""

    def start(stack: ExitStack) -> Callable[[], int]:
        import execnet as library

        group = library.Group()
        stack.callback(group.terminate, 5.0)
        code = "for item in channel:\n    channel.send(item * 2)"
        channels = []
        for _ in range(WORKERS):
            where = f"ssh=-F {host.config} {host.name}//python={host.python}"
            channels.append(group.makegateway(where).remote_exec(code))

        def go() -> int:
            total, sent = 0, 0
            for _ in range(WINDOW):
                for channel in channels:
                    channel.send(ITEMS[sent])
                    sent += 1
            for number in range(TASKS):
                channel = channels[number % WORKERS]
                total += channel.receive()
                if sent < TASKS:
                    channel.send(ITEMS[sent])
                    sent += 1
            return total

        return go

    return start


def ssh_loop(host: common.Host) -> Callable[[ExitStack], Callable[[], int]]:
    """Lines to `ssh host python`, and lines back."""

    def start(stack: ExitStack) -> Callable[[], int]:
        code = "import sys\nfor line in sys.stdin:\n print(int(line)*2)\n sys.stdout.flush()"
        workers = []
        for _ in range(WORKERS):
            process = subprocess.Popen(
                host.ssh(f"{host.python} -c '{code}'"),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1 << 16,
            )  # fmt: skip
            stack.callback(common.end, process)
            workers.append(process)

        def go() -> int:
            total, sent = 0, 0
            while sent < TASKS:
                window = ITEMS[sent : sent + WINDOW * WORKERS]
                for index, process in enumerate(workers):
                    lines = b"".join(b"%d\n" % item for item in window[index::WORKERS])
                    assert process.stdin is not None
                    process.stdin.write(lines)
                    process.stdin.flush()
                for index, process in enumerate(workers):
                    assert process.stdout is not None
                    for _ in window[index::WORKERS]:
                        total += int(process.stdout.readline())
                sent += len(window)
            return total

        return go

    return start


BASE = f"execnet, a window of {WINDOW} by hand"


def main() -> None:
    rates: dict[str, tuple[float, float]] = {}  # tasks per second, ratio to execnet
    reasons: dict[str, str] = {}
    with common.host() as host:
        own = {  # name: tasks, how it starts
            "ipyparallel, bare TCP": (FEWER, mapped("ipyparallel", host)),
            "dask, bare TCP": (FEWER, mapped("dask", host)),
        }
        many = {
            "jam, openssh": jam(host.spec("openssh", WORKERS)),
            "jam, fabric": jam(host.spec("fabric", WORKERS)),
            "jam, fabric, `Master.map`": jam_map(host.spec("fabric", WORKERS)),
            f"`ssh host python`, {WINDOW} lines at a time (limit)": ssh_loop(host),
            BASE: execnet(host),
            "Pool.imap, no SSH": pool(1),
            f"Pool.imap, no SSH, chunks of {CHUNK} by hand": pool(CHUNK),
            "ProcessPoolExecutor.map, no SSH": executor(1),
            f"ProcessPoolExecutor.map, no SSH, chunks of {CHUNK} by hand": executor(CHUNK),
            "joblib with loky, no SSH, automatic batches": loky,
        }
        races = [{name: (TASKS, start) for name, start in many.items()}]
        races += [{name: one, BASE: (TASKS, many[BASE])} for name, one in own.items()]
        for contenders in races:
            with common.Race() as race:
                for name, (count, start) in contenders.items():
                    race.enter(name, start, sum(map(tiny.double, ITEMS[:count])).__eq__)
                medians = race.run(REPEAT, seconds=SECONDS)
            reasons.update(race.reasons)
            for name, seconds in medians.items():
                rate = contenders[name][0] / seconds
                rates.setdefault(name, (rate, rate / (TASKS / medians[BASE])))
    rows = sorted(rates.items(), key=lambda item: -item[1][0])
    common.table(
        f"{TASKS} tasks of one item each, {WORKERS} workers on one SSH host",
        ["", "tasks/s", "ratio to execnet"],
        [[name, f"{rate:,.0f}", f"{ratio:.3g}"] for name, (rate, ratio) in rows]
        + [[name, reason, ""] for name, reason in reasons.items()],
    )


if __name__ == "__main__":
    main()
