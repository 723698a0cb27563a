"""How long is a round: tiny params to W warm workers on one SSH host, and W answers back?

Peers in the same run, interleaved: execnet over the same sshd, multiprocessing.Pool without any
network. The limit: `ssh host cat`, one connection per worker, one line there and back.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack

from jamtasks import Master

from . import common, trivial

ROUNDS, BURST = 400, 20
WORKERS = (1, 4, 16)


def cat(stack: ExitStack, host: common.Host, workers: int) -> Callable[[], None]:
    """A line to W `ssh host cat`, and W lines back."""
    pipes = []
    for _ in range(workers):
        process = subprocess.Popen(
            host.ssh("cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        stack.callback(common.end, process)
        assert process.stdin is not None and process.stdout is not None
        pipes.append((process.stdin.fileno(), process.stdout.fileno()))

    def go() -> None:
        for out, _ in pipes:
            os.write(out, b"1\n")
        for _, back in pipes:
            os.read(back, 100)

    return go


def pool(stack: ExitStack, host: common.Host, workers: int) -> Callable[[], None]:
    import multiprocessing

    processes = stack.enter_context(multiprocessing.get_context("fork").Pool(workers))

    def go() -> None:
        processes.map(trivial.reduce_one, range(workers), chunksize=1)

    return go


def execnet(stack: ExitStack, host: common.Host, workers: int) -> Callable[[], None]:
    import execnet as library

    group = library.Group()
    stack.callback(group.terminate, 5.0)
    channels = []
    for _ in range(workers):
        gateway = group.makegateway(f"ssh=-F {host.config} {host.name}//python={host.python}")
        channels.append(gateway.remote_exec("for item in channel:\n    channel.send(item + 1)"))

    def go() -> None:
        for channel in channels:
            channel.send(1)
        for channel in channels:
            channel.receive()

    return go


def jam(transport: str) -> Callable[[ExitStack, common.Host, int], Callable[[], None]]:
    def start(stack: ExitStack, host: common.Host, workers: int) -> Callable[[], None]:
        master = stack.enter_context(Master([host.spec(transport, workers)], f"rounds{workers}"))
        assert master.run(trivial, 1) == 2 * workers
        return lambda: master.run(trivial, 1)

    return start


CONTENDERS = {
    "ssh cat (limit)": cat,
    "jam, openssh": jam("openssh"),
    "jam, fabric": jam("fabric"),
    "execnet": execnet,
    "multiprocessing.Pool": pool,
}


def main() -> None:
    rows = {name: [name] for name in CONTENDERS}
    medians: dict[tuple[str, int], float] = {}
    with common.host() as host:
        for workers in WORKERS:
            with ExitStack() as stack:
                goes = {name: start(stack, host, workers) for name, start in CONTENDERS.items()}
                for name, seconds in common.interleaved(goes, ROUNDS, BURST).items():
                    medians[name, workers] = seconds
    for workers in WORKERS:
        base = medians["execnet", workers]
        for name in CONTENDERS:
            seconds = medians[name, workers]
            rows[name].append(f"{seconds * 1e6:.0f} ({seconds / base:.2f})")
    common.table(
        "A round, microseconds (ratio to execnet in this run)",
        ["", *(f"{workers} workers" for workers in WORKERS)],
        list(rows.values()),
    )


if __name__ == "__main__":
    main()
