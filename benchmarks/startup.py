"""From nothing to the first result, and what our imports cost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from . import common

ROOT = Path(__file__).resolve().parents[1]
REPEAT = 9


def run(words: list[str], environment: dict[str, str] | None = None) -> None:
    there = {**os.environ, **(environment or {})}
    there.pop("PYTHONDONTWRITEBYTECODE", None)  # pip compiles what it installs
    done = subprocess.run(words, cwd=ROOT, env=there, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{words}: {done.stderr.decode()}")


def main() -> None:
    python = sys.executable
    invoke = [python, "-m", "invoke"]
    bare = [python, "-c", "import invoke, fabric"]
    contenders = {
        "python -c 'import invoke'": lambda: run([python, "-c", "import invoke"]),
        "python -c 'import invoke, fabric'": lambda: run(bare),
        "python -c 'import jamtasks'": lambda: run([python, "-c", "import jamtasks"]),
        "inv --list": lambda: run([*invoke, "--list"]),
    }
    medians = common.interleaved(contenders, REPEAT)
    base = medians["python -c 'import invoke, fabric'"]
    common.table(
        "Imports",
        ["", "ms", "ms more than import invoke, fabric"],
        [[name, f"{s * 1e3:.0f}", f"{(s - base) * 1e3:+.0f}"] for name, s in medians.items()],
    )
    with common.host() as host:
        map_ = [*invoke, "map", "benchmarks.trivial", "--params", "1", "--quiet"]

        def warm(transport: str):
            def go() -> None:
                run([*map_, "--hosts", f"{host.name}*2"], host.environment(transport))

            return go

        def cold(transport: str):
            def go() -> None:
                host.forget_everything()
                run([*map_, "--hosts", f"{host.name}*2"], host.environment(transport))

            return go

        contenders = {
            "ssh host true": lambda: run(host.ssh("true")),
            "inv map warm, openssh": warm("openssh"),
            "inv map warm, fabric": warm("fabric"),
            "inv map cold, openssh": cold("openssh"),
            "inv map cold, fabric": cold("fabric"),
            "inv map on localhost, warm": lambda: run([*map_, "--hosts", "localhost*2"]),
        }
        medians = common.interleaved(contenders, REPEAT)
    base = medians["ssh host true"]
    common.table(
        "Nothing to first result, 2 workers, 1 SSH host",
        ["", "seconds", "ratio to ssh host true"],
        [[name, f"{s:.3f}", f"{s / base:.2f}"] for name, s in medians.items()],
    )


if __name__ == "__main__":
    main()
