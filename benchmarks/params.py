"""Params of 10 MB, new for each of 50 calls, to 16 workers on one host; every worker answers.

The limits: the same bytes once to the host, over a connection that is there: by `ssh host`, and
over a bare Paramiko channel with AES-GCM.
"""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from contextlib import ExitStack

import numpy

from jamtasks import Master

from . import common, last, peers

WORKERS, SIZE = 16, 10_000_000
CALLS, SECONDS = 50, 8.0
ANSWERING = f"""
import os
while True:
    missing = {SIZE}
    while missing:
        data = os.read(0, min(missing, 1 << 20))
        if not data:
            raise SystemExit
        missing -= len(data)
    os.write(1, b"k")
"""  # takes so many bytes, says that it has them


class Params:
    """Others in each call; each worker's answer is their last number."""

    def __init__(self) -> None:
        self._array = numpy.random.default_rng().random(SIZE // 8)
        self._number = 0

    def new(self) -> numpy.ndarray:
        self._number += 1
        self._array = self._array.copy()  # nobody may know it from the last time
        self._array[-1] = self._number
        return self._array


def ssh(host: common.Host, stack: ExitStack) -> common.Go:
    process = subprocess.Popen(
        host.ssh(f"exec {host.python} -c '{ANSWERING}'"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    stack.callback(common.end, process)
    params = Params()

    def go() -> None:
        assert process.stdin is not None and process.stdout is not None
        view = memoryview(params.new()).cast("B")
        while view:
            view = view[process.stdin.write(view) :]
        assert process.stdout.read(1)

    return go


def paramiko(host: common.Host, stack: ExitStack) -> common.Go:
    channel = stack.enter_context(common.paramiko_channel(host))
    channel.exec_command(f"exec {host.python} -c '{ANSWERING}'")
    params = Params()

    def go() -> None:
        channel.sendall(memoryview(params.new()).cast("B"))
        assert channel.recv(1)

    return go


def jam(transport: str) -> Callable[[common.Host, ExitStack], common.Go]:
    def start(host: common.Host, stack: ExitStack) -> common.Go:
        master = stack.enter_context(Master([host.spec(transport, WORKERS)], "params"))
        params = Params()

        def go() -> None:
            array = params.new()
            assert master.run(last, array) == WORKERS * array[-1]
            sent = master.last_run.bytes_sent
            assert sent < 1.1 * SIZE, f"{sent} bytes sent"

        return go

    return start


def peer(name: str) -> Callable[[common.Host, ExitStack], common.Go]:
    def start(host: common.Host, stack: ExitStack) -> common.Go:
        call = peers.PEERS[name](stack, host.where, WORKERS).ready("last")
        params = Params()

        def go() -> None:
            array = params.new()
            assert sum(call(array)) == WORKERS * array[-1]

        return go

    return start


BASE = "10 MB once, `ssh host` (limit)"
CONTENDERS: dict[str, Callable[[common.Host, ExitStack], common.Go]] = {
    BASE: ssh,
    "10 MB once, bare Paramiko channel, AES-GCM (limit)": paramiko,
    "jam, openssh": jam("openssh"),
    "jam, fabric": jam("fabric"),
    "execnet": peer("execnet"),
    "execnet, without its `ssh -C`": peer("execnet-uncompressed"),
    "mitogen, compression off": peer("mitogen-uncompressed"),
    "dask, bare TCP, scatter(broadcast=True)": peer("dask"),
    "ipyparallel, bare TCP": peer("ipyparallel"),
}
RESTLESS = tuple(name for name in CONTENDERS if "bare TCP" in name)  # see rounds.py
RACES = (
    tuple(name for name in CONTENDERS if name not in RESTLESS),
    *((name, BASE) for name in RESTLESS),
)


def main() -> None:
    rows: dict[str, list[str]] = {}
    limits: dict[str, float] = {}
    with common.host() as host:
        for names in RACES:
            with common.Race() as race:
                for name in names:
                    race.enter(name, functools.partial(CONTENDERS[name], host))
                medians = race.run(CALLS, seconds=SECONDS)
            limits = limits or {name: medians[name] for name in list(CONTENDERS)[:2]}
            for name in names:
                cells = [race.reasons.get(name, ""), "", ""]
                if name in medians:
                    base = medians[BASE] / limits[BASE]  # how fast the machine is in this race
                    ratios = [f"{medians[name] / (base * one):.2f}" for one in limits.values()]
                    cells = [f"{medians[name] * 1e3:.0f}", *ratios]
                rows.setdefault(name, [name, *cells])
    common.table(
        f"Params of {SIZE // 1_000_000} MB to {WORKERS} workers on one host, {CALLS} calls",
        ["", "ms per call", "ratio to `ssh host`", "ratio to bare Paramiko"],
        [rows[name] for name in CONTENDERS],
    )


if __name__ == "__main__":
    main()
