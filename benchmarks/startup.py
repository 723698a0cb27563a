"""From nothing to the first result, and what our imports cost.

Every contender is a process that starts, connects to one SSH host, has two workers compute there,
prints, and ends. *warm*: jam was there before; *cold*: no payload and no agent.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from . import common

ROOT = Path(__file__).resolve().parents[1]
REPEAT = 9
SECONDS = 12.0  # that one contender may take of a race, if it is to run more than once
WORKERS = 2


def run(words: list[str], environment: dict[str, str] | None = None) -> str:
    there = {**os.environ, **(environment or {})}
    there.pop("PYTHONDONTWRITEBYTECODE", None)  # pip compiles what it installs
    done = subprocess.run(
        words, cwd=ROOT, env=there, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        last = done.stderr.strip().splitlines() or ["no word why"]
        raise ChildProcessError(f"{last[-1]}: {shlex.join(words)}")
    return done.stdout


def bare(host: common.Host) -> list[str]:
    """`ssh host true` by a task of Invoke."""
    words = [sys.executable, "-m", "invoke", "--search-root", "benchmarks", "--collection", "bare"]
    return [*words, "login", "--config", host.config, "--host", host.name]


BARE = "the same from a task of Invoke (limit of any `inv`)"


def race(
    goes: dict[str, Callable[[], object]], times: int = REPEAT
) -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds of each, and why some have none."""

    def start(go: Callable[[], object]) -> Callable[[ExitStack], Callable[[], object]]:
        return lambda stack: go

    with common.Race() as turns:
        for name, go in goes.items():
            turns.enter(name, start(go))
        return turns.run(times, seconds=SECONDS), turns.reasons


def imports() -> None:
    python = sys.executable
    base = "python -c 'import invoke, fabric' (limit)"
    medians, _ = race(
        {
            base: lambda: run([python, "-c", "import invoke, fabric"]),
            "jam: python -c 'import jamtasks'": lambda: run([python, "-c", "import jamtasks"]),
            "jam: inv --list": lambda: run([python, "-m", "invoke", "--list"]),
        }
    )
    common.table(
        "Imports",
        ["", "ms", "ms more than the first"],
        [
            [name, f"{seconds * 1e3:.0f}", f"{(seconds - medians[base]) * 1e3:+.0f}"]
            for name, seconds in medians.items()
        ],
    )


def first_result(host: common.Host) -> None:
    map_ = [sys.executable, "-m", "invoke", "map", "benchmarks.trivial", "--params", "1", "--quiet"]
    there = [*map_, "--hosts", f"{host.name}*{WORKERS}"]

    def warm(transport: str) -> Callable[[], object]:
        return lambda: run(there, host.environment(transport))

    def cold(transport: str) -> Callable[[], object]:
        def go() -> common.Seconds:
            host.forget_everything()
            began = time.perf_counter()
            run(there, host.environment(transport))
            return common.Seconds(time.perf_counter() - began)

        return go

    def peer(name: str) -> Callable[[], object]:
        code = "from benchmarks import peers; peers.main()"
        words = [sys.executable, "-c", code, name, str(WORKERS), *map(str, host.where)]

        def go() -> None:
            printed = run(words).split()
            assert printed[-1] == str(2 * WORKERS), printed

        return go

    parallel = f"{WORKERS}/ssh -F {host.config} {host.name}"
    base = "`ssh host true` (limit)"
    contenders: dict[str, Callable[[], object]] = {
        base: lambda: run(host.ssh("true")),
        BARE: lambda: run(bare(host)),
        "jam: inv map warm, openssh": warm("openssh"),
        "jam: inv map warm, fabric": warm("fabric"),
        "jam: inv map cold, openssh": cold("openssh"),
        "jam: inv map cold, fabric": cold("fabric"),
        "jam: inv map on localhost, warm": lambda: run([*map_, "--hosts", f"localhost*{WORKERS}"]),
        "GNU parallel": lambda: run(
            ["parallel", "--will-cite", "-S", parallel, "echo", ":::", "1", "2"]
        ),
        "execnet": peer("execnet"),
        "mitogen": peer("mitogen"),
        "dask SSHCluster": peer("dask-ssh"),
        "ipyparallel, engines by SSH": peer("ipyparallel-ssh"),
    }
    medians, reasons = race(contenders)
    common.table(
        f"Nothing to first result, {WORKERS} workers, 1 SSH host",
        ["", "seconds", "ratio to `ssh host true`"],
        [[name, f"{s:.3f}", f"{s / medians[base]:.2f}"] for name, s in medians.items()]
        + [[name, reason, ""] for name, reason in reasons.items()],
    )


def main() -> None:
    imports()
    with common.host() as host:
        first_result(host)


if __name__ == "__main__":
    main()
