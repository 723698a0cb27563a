"""The job plane: jobs per second beside its peers, a million jobs, idle workers, a dropped file.

Peers that are not installed are left out, and named: GNU parallel, HyperQueue (its package from
PyPI), xargs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from jamtasks.project import Project

from . import common

ROOT = Path(__file__).resolve().parents[1]
JOBS, SLOW_PEERS_JOBS = 10_000, 1_500
WORKERS = 2
ROUNDS = 3
MILLION = 1_000_000
IDLE_WORKERS, IDLE_SECONDS = 8, 20.0
DROPS = 15


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A home of the benchmark's own."""
    folder = Path(tempfile.mkdtemp(prefix="jam-jobs-", dir="/tmp"))
    names = ("HOME", "JAM_RUN_DIR", "JAM_CACHE_DIR", "SCREENDIR", "JAM_HOME")
    before = {name: os.environ.get(name) for name in names}
    for name in names:
        (folder / name).mkdir(mode=0o700)
        os.environ[name] = str(folder / name)
    try:
        yield folder
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


def timed(words: list[str], **settings: object) -> float:
    began = time.perf_counter()
    done = subprocess.run(words, capture_output=True, cwd="/tmp", **settings)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"{words[:4]}: {done.stderr.decode()}")
    return time.perf_counter() - began


def xargs() -> float:
    text = "\n".join(map(str, range(JOBS))).encode()
    return JOBS / timed(["xargs", f"-P{WORKERS}", "-n1", "/bin/true"], input=text)


def spawn_loop() -> float:
    """WORKERS processes that do nothing but posix_spawn and wait."""
    code = f"""
import os
for _ in range({JOBS // WORKERS}):
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {{}}), 0)
"""
    began = time.perf_counter()
    loops = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(WORKERS)]
    for loop in loops:
        loop.wait()
    return JOBS / (time.perf_counter() - began)


def gnu_parallel() -> float:
    text = "\n".join(map(str, range(SLOW_PEERS_JOBS))).encode()
    words = ["parallel", "--will-cite", f"-j{WORKERS}", "/bin/true"]
    return SLOW_PEERS_JOBS / timed(words, input=text)


def hyperqueue() -> float:
    """The time from submitting to the end; its server and worker run already."""
    code = f"""
import time
from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig
with LocalCluster() as cluster:
    cluster.start_worker(WorkerConfig(cores={WORKERS}))
    client = cluster.client()
    job = Job()
    for _ in range({SLOW_PEERS_JOBS}):
        job.program(["/bin/true"], stdout=None, stderr=None)
    began = time.perf_counter()
    client.wait_for_jobs([client.submit(job)])
    print("rate", {SLOW_PEERS_JOBS} / (time.perf_counter() - began))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/tmp")
    for line in done.stdout.splitlines():
        if line.startswith("rate "):
            return float(line.split()[1])
    raise SystemExit(f"hyperqueue: {done.stderr[-500:]}")


def jam_command() -> float:
    """One line does it all: submit, hire, dispatch, fire."""
    words = [sys.executable, "-c", "from jamtasks.cli import main; main()", "dispatch"]
    words += ["--exe", "/bin/true", "--repeat", str(JOBS), "--hire", str(WORKERS), "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return JOBS / timed(words, env=environment)


def jam_hired(project: Project) -> float:
    """From submitting to the end; its workers run already."""
    began = time.perf_counter()
    project.submit(["/bin/true"], repeat=JOBS)
    report = project.dispatch(fire=False)
    assert report.done == JOBS, report
    return JOBS / (time.perf_counter() - began)


def throughput() -> None:
    goes: dict[str, Callable[[], float]] = {
        f"`xargs -P{WORKERS} -n1`": xargs,
        "Python, posix_spawn and wait in a loop (limit)": spawn_loop,
        "jam, one line: `inv dispatch --exe /bin/true --repeat ... --hire 2`": jam_command,
    }
    missing = []
    if shutil.which("parallel"):
        goes[f"GNU parallel -j{WORKERS} ({SLOW_PEERS_JOBS} jobs)"] = gnu_parallel
    else:
        missing.append("GNU parallel")
    try:
        import hyperqueue as _

        goes[f"HyperQueue, running ({SLOW_PEERS_JOBS} jobs)"] = hyperqueue
    except ImportError:
        missing.append("HyperQueue")
    project = Project("bench")
    project.hire(WORKERS)
    try:
        goes["jam, workers hired before"] = lambda: jam_hired(project)
        rates: dict[str, list[float]] = {name: [] for name in goes}
        for _ in range(ROUNDS):
            for name, go in goes.items():
                rates[name].append(go())
    finally:
        project.fire()
    base = statistics.median(rates[f"`xargs -P{WORKERS} -n1`"])
    rows = []
    for name, found in sorted(rates.items(), key=lambda item: -statistics.median(item[1])):
        rate = statistics.median(found)
        rows.append([name, f"{rate:.0f}", f"{rate / base:.2f}"])
    common.table(
        f"Jobs per second: {JOBS} x /bin/true, {WORKERS} workers",
        ["", "jobs/s", "ratio to xargs"],
        rows,
    )
    if missing:
        print(f"not installed, and so not measured: {', '.join(missing)}")


def main() -> None:
    with place():
        throughput()


if __name__ == "__main__":
    main()
