"""30 hosts, each an sshd of its own, 2 workers each: a round over all of them, and connecting.

The limits: a line to each of 30 `ssh host cat` and 30 lines back; 30 times `ssh host true`, 8 at a
time. *cold*: hosts without payload and agent; *warm*: both are there. All hosts are this machine:
what 30 hosts would do at the same time, a few CPUs do one after the other. So a round of 60 workers
that answer a line in Python, without an agent and without jam, is shown as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from jamtasks import Master

from . import common, trivial

HOSTS, WORKERS, AT_ONCE = 30, 2, 8
ROUNDS, BURST = 200, 20
REPEAT, SECONDS = 2, 25.0
Start = Callable[[list[common.Host], ExitStack], common.Go]


# --- a round -----------------------------------------------------------------------------------


def echoes(command: str, each: int) -> Start:
    """So many connections to each host, with a command that sends back what it gets."""

    def start(hosts: list[common.Host], stack: ExitStack) -> common.Go:
        pipes = []
        for host in [host for host in hosts for _ in range(each)]:
            process = subprocess.Popen(
                host.ssh(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
            stack.callback(common.end, process)
            assert process.stdin is not None and process.stdout is not None
            pipes.append((process.stdin.fileno(), process.stdout.fileno()))
        line = b"%d\n" % (2 * WORKERS // each)

        def go() -> int:
            for out, _ in pipes:
                os.write(out, line)
            return sum(int(os.read(back, 100)) for _, back in pipes)

        return go

    return start


def jam(transport: str) -> Start:
    def start(hosts: list[common.Host], stack: ExitStack) -> common.Go:
        master = stack.enter_context(_master(hosts, transport))
        _wait(master)
        return lambda: master.run(trivial, 1)

    return start


def _master(hosts: list[common.Host], transport: str) -> Master:
    return Master([host.spec(transport, WORKERS) for host in hosts], "crowd")


def _wait(master: Master) -> None:
    missing = [host for host in master.wait() if host.state != "up"]
    assert not missing, missing[0]


# --- connecting --------------------------------------------------------------------------------


def trues(hosts: list[common.Host], stack: ExitStack) -> common.Go:
    threads = stack.enter_context(ThreadPoolExecutor(AT_ONCE))

    def go() -> None:
        codes = list(threads.map(lambda host: subprocess.call(host.ssh("true")), hosts))
        assert not any(codes)

    return go


def connecting(transport: str, cold: bool) -> Start:
    def start(hosts: list[common.Host], stack: ExitStack) -> common.Go:
        def go() -> common.Seconds:
            if cold:
                for host in hosts:
                    host.forget_everything()
            began = time.perf_counter()
            with _master(hosts, transport) as master:
                _wait(master)
                return common.Seconds(time.perf_counter() - began)

        return go

    return start


def race(
    title: str, unit: str, scale: float, hosts: list[common.Host], starts: dict[str, Start],
    times: int, burst: int, check: Callable[[object], bool] = lambda value: True,
) -> None:  # fmt: skip
    """The first of starts is what the ratios are to."""

    def begin(start: Start) -> Callable[[ExitStack], common.Go]:
        return lambda stack: start(hosts, stack)

    with common.Race(170) as turns:
        for name, start in starts.items():
            turns.enter(name, begin(start), check)
        medians = turns.run(times, burst, SECONDS)
    base = medians[next(iter(starts))]
    common.table(
        title, ["", unit, "ratio"],
        [[name, f"{s * scale:.2f}", f"{s / base:.2f}"] for name, s in medians.items()],
    )  # fmt: skip


def main() -> None:
    with ExitStack() as stack:
        hosts = [stack.enter_context(common.host(f"bench{n}")) for n in range(HOSTS)]
        limit: dict[str, Start] = {f"{HOSTS} × `ssh host true`, {AT_ONCE} at a time (limit)": trues}
        both = ("openssh", "fabric")
        race(
            f"From nothing until {HOSTS} hosts are connected", "seconds", 1.0, hosts,
            limit
            | {f"jam, {how}, cold hosts": connecting(how, True) for how in both}
            | {f"jam, {how}, warm hosts": connecting(how, False) for how in both},
            REPEAT, 1,
        )  # fmt: skip
        lines = f"exec {sys.executable} -c 'import os\nwhile os.write(1, os.read(0, 100)): pass'"
        limits: dict[str, Start] = {
            f"{HOSTS} × `ssh host cat` (limit)": echoes("exec cat", 1),
            f"{HOSTS * WORKERS} × `ssh host python`, no jam (limit)": echoes(lines, WORKERS),
        }
        race(
            f"A round over {HOSTS} hosts of {WORKERS} workers", "ms", 1e3, hosts,
            limits | {f"jam, {how}": jam(how) for how in both},
            ROUNDS, BURST, lambda value: value == 4 * HOSTS,
        )  # fmt: skip


if __name__ == "__main__":
    main()
