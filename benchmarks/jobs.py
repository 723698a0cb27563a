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
    words = [sys.executable, "-c", "from jamtasks.start import main; main()", "dispatch"]
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


# --- very many jobs ----------------------------------------------------------------------------

TIMED = 4_000  # jobs, of which the cost per job is told
DISPATCHER = """
import resource, sys, threading
from jamtasks.project import Project
told = []
def progress(now):
    told.append(now)
    if now.done >= int(sys.argv[2]):
        print(now.queued, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, flush=True)
        raise KeyboardInterrupt
try:
    Project(sys.argv[1]).dispatch(progress=progress)
except KeyboardInterrupt:
    pass
"""


def very_many() -> None:
    """A million jobs: how fast they are submitted, what the dispatcher needs, and whether a job
    costs more while they wait."""
    rows = []
    for jobs in (TIMED, MILLION):
        project = Project(f"many-{jobs}")
        began = time.perf_counter()
        project.submit(["/bin/true"], parameters=map(str, range(jobs)))
        submitted = jobs / (time.perf_counter() - began)
        project.hire(WORKERS)
        began = time.perf_counter()
        try:
            words = [sys.executable, "-c", DISPATCHER, project.name, str(TIMED * 9 // 10)]
            done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
            seconds = time.perf_counter() - began
            left, megabytes = done.stdout.split()
        finally:
            project.fire()
        each = seconds / (TIMED * 0.9) * 1e3
        rows.append([f"{jobs:,}", f"{submitted:,.0f}", f"{each:.2f}", left, megabytes])
    common.table(
        f"Very many jobs: /bin/true, {WORKERS} workers; per job, of the first {TIMED * 9 // 10}",
        ["jobs", "submitted per second", "ms per job", "left in the queue", "dispatcher, MB"],
        rows,
    )


# --- nothing to do -----------------------------------------------------------------------------


def processes(folder: Path) -> list[int]:
    """All that belong to this benchmark's home."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                if str(folder).encode() in (path / "environ").read_bytes():
                    found.append(int(path.name))
    return [pid for pid in found if pid != os.getpid()]


def cpu(pids: list[int]) -> float:
    """Seconds that these were running, to the nanosecond: ticks are too coarse for so little."""
    spent = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            spent += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    return spent / 1e9


def file_calls(pids: list[int], seconds: float, root: str) -> float | None:
    """System calls per second that name something below root; None without strace."""
    if not shutil.which("strace"):
        return None
    log = tempfile.NamedTemporaryFile(suffix=".strace")  # noqa: SIM115
    words = ["strace", "-f", "-qq", "-y", "-e", "trace=%file,getdents64", "-o", log.name]
    tracer = subprocess.Popen([*words, *(f"-p{pid}" for pid in pids)], stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    tracer.terminate()
    tracer.wait()
    lines = Path(log.name).read_text(errors="replace").splitlines()
    return sum(root in line for line in lines) / seconds


def idle(folder: Path) -> None:
    """Hired workers and a waiting dispatcher."""
    project = Project("idle")
    project.hire(IDLE_WORKERS)
    code = "from jamtasks.project import Project; Project('idle').dispatch(keep=True)"
    dispatcher = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        time.sleep(5.0)  # until all have settled
        pids = processes(folder)
        before = cpu(pids)
        time.sleep(IDLE_SECONDS)
        share = (cpu(pids) - before) / IDLE_SECONDS
        calls = file_calls(pids, IDLE_SECONDS / 2, project.path)
        taken = [dropped(project, number) for number in range(DROPS)]
    finally:
        dispatcher.kill()
        dispatcher.wait()
        project.fire()
    common.table(
        f"Nothing to do: {IDLE_WORKERS} workers and a dispatcher that waits",
        ["", ""],
        [
            ["CPU, share of one core", f"{share * 100:.2f} %"],
            ["file operations on the project per second", "?" if calls is None else f"{calls:.1f}"],
            ["a dropped file starts after, median", f"{statistics.median(taken):.2f} s"],
            ["the slowest", f"{max(taken):.2f} s"],
        ],
    )


def dropped(project: Project, number: int) -> float:
    """Seconds from the moment a file is in the queue to the moment its job runs."""
    mark = Path(project.path, f"mark{number}")
    aside = Path(project.path, f"drop{number}.sh")
    aside.write_text(f"#!/bin/sh\ndate +%s.%N > {mark}.tmp && mv {mark}.tmp {mark}\n")
    aside.chmod(0o755)
    time.sleep(0.37)  # at no particular moment of anybody's second
    began = time.time()
    aside.rename(Path(project.path, "jobqueue", aside.name))
    deadline = time.monotonic() + 30
    while not mark.exists():
        if time.monotonic() > deadline:
            raise SystemExit(f"{aside.name} was not run in 30 s")
        time.sleep(0.01)
    return float(mark.read_text()) - began


def main() -> None:
    with place() as folder:
        throughput()
        very_many()
        idle(folder)


if __name__ == "__main__":
    main()
