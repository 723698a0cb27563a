"""What does it cost to do nothing? 16 idle workers of one SSH host, and a master that is attached.

Each contender is a process of its own with an sshd of its own; all of them do nothing at the same
time. Counted is the CPU time of every process that belongs to one: master, ssh, sshd, workers.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from jamtasks import HostSpec, Master
from tests.live import sshd

from . import common, peers, trivial

WORKERS, SECONDS, SETTLE = 16, 20.0, 5.0
CONTENDERS = {
    "jam, openssh": "openssh",
    "jam, fabric": "fabric",
    "execnet": "execnet",
    "mitogen": "mitogen",
    "ipyparallel, engines by SSH": "ipyparallel-ssh",
    "dask SSHCluster": "dask-ssh",
}
OURS = ("openssh", "fabric")


def attend(what: str, *where: str) -> None:
    """The master: has its workers answer once, says so, and does nothing until its stdin ends."""
    config, name, python, port, key, known_hosts = where
    address = peers.Address(config, name, python, int(port), key, known_hosts)
    with ExitStack() as stack:
        if what in OURS:
            spec = HostSpec(name, transport=what, workers=WORKERS, ssh_config=config, python=python)
            answer = stack.enter_context(Master([spec], "idle")).run(trivial, 1)
        else:
            peer = peers.PEERS[what](stack, address, WORKERS)
            answer = sum(peer.ready("plus_one")(1))
        print(answer, flush=True)
        sys.stdin.read()


def processes(master: int, host: common.Host) -> set[int]:
    """Those of one contender: below the master, below the sshd, and what left a session of it."""
    return {
        master, *sshd.descendants(master), *sshd.descendants(host.sshd_pid),
        *sshd.marked(host.mark),
    }  # fmt: skip


def used(pids: set[int]) -> dict[str, int]:
    """Nanoseconds of CPU that each of their threads has taken so far."""
    found = {}
    for pid in pids:
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # it has ended
                found[path.parent.name] = int(path.read_text().split()[0])
    return found


def begin(what: str, host: common.Host, stack: ExitStack) -> subprocess.Popen[str]:
    code = "import sys; from benchmarks import idle; idle.attend(*sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, what, *map(str, host.where)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=None if what in OURS else subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(host.folder)},  # what it leaves there goes with the host
    )  # fmt: skip
    stack.callback(_end, process)
    return process


def wait(process: subprocess.Popen[str]) -> None:
    """Until its workers have answered. Raises OSError if it ends before."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == str(2 * WORKERS):
            return
    raise ChildProcessError("it has not come up")


def main() -> None:
    reasons: dict[str, str] = {}
    with ExitStack() as stack:
        there = {}
        for name, what in CONTENDERS.items():
            host = stack.enter_context(common.host())
            there[name] = begin(what, host, stack), host
        for name, (process, _) in list(there.items()):
            try:
                with common.within(100):
                    wait(process)
            except OSError as error:
                if CONTENDERS[name] in OURS:
                    raise
                del there[name]
                reasons[name] = f"{type(error).__name__}: {error}"
        time.sleep(SETTLE)
        pids = {name: processes(process.pid, host) for name, (process, host) in there.items()}
        before = {name: used(pids[name]) for name in there}
        began = time.monotonic()
        time.sleep(SECONDS)
        share = 100 / (time.monotonic() - began)
        rows = []
        for name in CONTENDERS:
            if name in reasons:
                rows.append([name, reasons[name], ""])
                continue
            after = used(pids[name])
            spent = sum(after[one] - before[name].get(one, 0) for one in after) / 1e9
            rows.append([name, f"{spent * share:.2f} %", str(len(pids[name]))])
    common.table(
        f"Nothing to do: {WORKERS} workers of one SSH host and their master",
        ["", "CPU, share of one core", "processes"],
        rows,
    )


def _end(process: subprocess.Popen[str]) -> None:
    """By the end of its stdin; what does not heed it is killed, with all below it."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        for pid in sshd.descendants(process.pid):
            sshd.kill(pid)
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
