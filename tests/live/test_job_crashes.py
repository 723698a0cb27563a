"""Job projects under fire: kill -9 on a random worker, keeper, job or dispatcher every 200 ms, and
a host that is lost as a whole. Every job is recorded exactly once, as what it was.

What ran is told by the jobs themselves, in a file of the test. JAM_CRASH_SEED repeats a run, as far
as the dice decide it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import job_host
import pytest
from sshd import Host, descendants, kill, marked, wait_until

from jamtasks.job_report import JobRecord
from jamtasks.project import Project
from worker_payload.jobs import lines, names

SEED = int(os.environ.get("JAM_CRASH_SEED") or random.randrange(1_000_000))
EVERY = 0.2  # seconds between kills
# Of jobs more than of others: a job that loses its worker three times is failed, which is right,
# but not what is asked here. Few dispatchers, for only one that lives a while hires anew.
KINDS = {"job": 50, "worker": 25, "keeper": 15, "dispatcher": 10}
LEASE = 8.0
LONG = 60.0  # much longer than anything here takes on a quiet machine
PROJECT = "p"
DISPATCH = """
from jamtasks import sweep
from jamtasks.project import Project
sweep._MISSING, sweep._PAUSES = 1.0, (1.0, 4.0)  # seconds until it hires anew, and between tries
report = Project("p").dispatch(say=lambda text: print(text, flush=True))
print("ended", report.done, report.failed, flush=True)
"""
# a line per run; what it prints says which run was recorded
RUN = 'echo $$; echo "$JAM_SUBMISSION $JAM_JOB $$" >> {}; exec sleep "$1"'
WAIT = "while ! test -e {}; do sleep 0.05; done"

Key = tuple[str, str]  # of a job: its submission, "" if it was dropped; its number or name


class Seen(NamedTuple):
    """A process of this test. job: whose it is; None of what is no job."""

    pid: int
    parent: int
    group: int
    started: str
    state: str
    job: Key | None


def look(pid: int, mark: str) -> Seen | None:
    """The process, if it lives and was started with this mark in its environment."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        if mark.encode() not in environ:
            return None
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if stat[0] in "ZX":
        return None
    variables = dict(item.partition("=")[::2] for item in os.fsdecode(environ).split("\0"))
    job = None
    if "JAM_JOB" in variables:
        job = key_of(variables.get("JAM_SUBMISSION", ""), variables["JAM_JOB"])
    return Seen(pid, int(stat[1]), int(stat[2]), stat[19], stat[0], job)


def everyone(mark: str) -> dict[int, Seen]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return {pid: seen for pid in pids if (seen := look(pid, mark)) is not None}


def key_of(submission: str, job: str) -> Key:
    return ("", job) if not job.isdigit() else (submission, job)


class Fire:
    """A project, its dispatcher, and who kills. runs: the run directories of its hosts."""

    def __init__(self, lab, here: Path, runs: list[Path]):
        self.here = here
        self.face = Project(PROJECT)
        self.folder = job_host.Project(here, PROJECT)
        self.dice = random.Random(SEED)
        self.expected: set[Key] = set()
        self.killed: Counter[str] = Counter()
        self.killed_jobs: set[tuple[Key, str]] = set()  # and their pids
        self.process: subprocess.Popen[bytes] | None = None
        self.ran = here / "ran"
        self.said = here / "said"
        self.told = ""
        self._lab = lab
        self._mark = f"JAM_TEST={lab.folder}/"
        self._runs = runs
        self._spared: set[str] = set()  # submissions

    # --- jobs ------------------------------------------------------------------------------------

    def submit(self, count: int, size: int, most: float) -> None:
        """size: jobs in a pod. most: seconds that a job takes, at most."""
        rows = [[f"{self.dice.uniform(0, most):.3f}"] for _ in range(count)]
        words = ["/bin/sh", "-c", RUN.format(self.ran), "sh", "{}"]
        ticket = self.folder.submit(words, rows, size)
        self.expected |= {(ticket, str(number)) for number in range(1, count + 1)}

    def drop(self, count: int, most: float) -> None:
        for number in range(1, count + 1):
            script = RUN.format(self.ran).replace('"$1"', f"{self.dice.uniform(0, most):.3f}")
            self.folder.drop(f"dropped {number}", f"#!/bin/sh\n{script}\n", 0o755)
            self.expected.add(("", f"dropped {number}"))

    def submit_gates(self, count: int) -> str:
        """Jobs that come last, and wait for a file `go`; nobody kills them. Returns the ticket."""
        words = ["/bin/sh", "-c", f"echo $$; {WAIT.format(self.here / 'go')}"]
        ticket = self.folder.submit(words, [[] for _ in range(count)], 1, priority=-1)
        self._spared.add(ticket)
        return ticket

    def waiting_workers(self, ticket: str) -> set[int]:
        """The workers that run such jobs now."""
        return {
            seen.parent
            for seen in everyone(self._mark).values()
            if seen.job is not None and seen.job[0] == ticket and seen.group == seen.pid
        }

    def ended(self) -> int:
        found = 0
        for folder in (names.DONE, names.PAST):
            pods = map(names.read_pod, os.listdir(self.folder.root / folder))
            found += sum(pod.jobs for pod in pods if pod is not None)
        return found

    # --- dispatchers -----------------------------------------------------------------------------

    def dispatch(self) -> bool:
        """Whether a dispatcher runs, which is started again if it was killed. False: it ended."""
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                return True
            if code != -signal.SIGKILL:
                assert code == 0, self.said.read_text()
                return False
        with open(self.said, "ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DISPATCH],
                env={**os.environ, "PYTHONPATH": str(job_host.ROOT)},
                stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            )  # fmt: skip
        return True

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.folder.close()
        for folder in (self.folder.root, *self._runs):  # nobody reads them, nobody misses them
            for half in folder.rglob("*.tmp"):
                half.unlink()

    # --- who kills -------------------------------------------------------------------------------

    def storm(self, until: Callable[[], bool], seconds: float = LONG) -> None:
        """Kills somebody every 200 ms until then."""
        deadline = time.monotonic() + seconds
        following = time.monotonic()
        while not until():
            assert time.monotonic() < deadline, f"not in {seconds:g} s\n{self.story()}"
            time.sleep(max(0.0, following - time.monotonic()))
            following = max(time.monotonic(), following + EVERY)
            self.strike()

    def strike(self) -> None:
        (kind,) = self.dice.choices(list(KINDS), list(KINDS.values()))
        pick = self.dice.random()
        found = self._targets(kind)
        if found:
            self.killed[kind] += self._kill(found[int(pick * len(found))])

    def _targets(self, kind: str) -> list[Seen]:
        if kind == "dispatcher":
            seen = look(self.process.pid, self._mark) if self.process else None
            return [seen] if seen else []
        among = everyone(self._mark)
        keepers = {
            pid
            for run in self._runs
            for path in run.glob(f"worker.{PROJECT}.*.lock")
            if (pid := _holder(path)) in among and among[pid].job is None
        }
        if kind == "keeper":
            return [among[pid] for pid in sorted(keepers)]
        if kind == "worker":
            return [
                seen
                for pid, seen in sorted(among.items())
                if seen.parent in keepers and seen.job is None
            ]
        return [
            seen
            for pid, seen in sorted(among.items())
            if seen.job is not None and seen.group == pid and seen.job[0] not in self._spared
        ]

    def _kill(self, seen: Seen) -> bool:
        """Whether the process died of it, and of nothing else. Never hits one that came to its
        number later."""
        try:
            fd = os.pidfd_open(seen.pid)
        except OSError:
            return False
        try:
            if not self._is_same(seen):
                return False
            if seen.job is not None:  # one that is stopped is not about to end by itself
                signal.pidfd_send_signal(fd, signal.SIGSTOP)
                state = wait_until(lambda: _state(seen.pid).strip("RSD"), "it stops")
                if state != "T" or not self._is_same(seen):
                    signal.pidfd_send_signal(fd, signal.SIGCONT)
                    return False
                self.killed_jobs.add((seen.job, str(seen.pid)))
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)

    def _is_same(self, seen: Seen) -> bool:
        now = look(seen.pid, self._mark)
        return now is not None and (now.started, now.job) == (seen.started, seen.job)

    # --- what has to be so ------------------------------------------------------------------------

    def check(self, gates: int = 0, zombies: bool = False) -> list[JobRecord]:
        """The records, once all has ended. zombies: there were workers who went on after their jobs
        had been given to others."""
        for folder in (names.QUEUE, names.CLAIMED, names.TAILS, names.SUBMITTED):
            assert _listed(self.folder.root / folder) == [], self.story()
        records = {}
        for record in self.face.results():
            key = key_of(record.submission, record.name or str(record.number))
            assert key not in records, f"{record} is recorded again: {records[key]}"
            records[key] = record
        spared = {key for key in records if key[0] in self._spared}
        assert len(spared) == gates
        assert records.keys() - spared == self.expected, self.story()
        runs = self._runs_told()
        begun = self._begun(zombies)
        killed = {key for key, _ in self.killed_jobs}
        for key in self.expected:
            record = records[key]
            pid = self.face.output(record).decode().strip()
            if record.reason == "lost":
                assert begun[key] >= lines.LOSSES, (record, self.story())
            elif record.signal == signal.SIGKILL:
                assert key in killed and (not pid or (key, pid) in self.killed_jobs), record
            else:
                assert not record.failed, record
                assert (key, pid) in runs, record
                assert (key, pid) not in self.killed_jobs, record
        again = {key: count for key, count in Counter(key for key, _ in runs).items() if count > 1}
        assert all(begun[key] >= count for key, count in again.items())
        found = Counter(records[key].ending for key in self.expected)
        kills = ", ".join(f"{count} of {kind}" for kind, count in sorted(self.killed.items()))
        self.told = (
            f"{kills or 'none'} killed; {dict(found)}; {sum(again.values()) - len(again)} runs more"
        )
        return [records[key] for key in self.expected]

    def _runs_told(self) -> set[tuple[Key, str]]:
        found = set()
        for line in self.ran.read_text().splitlines():
            submission, _, rest = line.partition(" ")
            job, _, pid = rest.rpartition(" ")
            found.add((key_of(submission, job), pid))
        return found

    def _begun(self, zombies: bool) -> Counter[Key]:
        """How often each job was begun, as workers wrote. The end of a worker costs one run at
        most, and what has ended and was written down does not run again, unless by zombies."""
        root = self.folder.root
        plans = {}
        for folder in (names.DONE, names.PAST):
            for name in os.listdir(root / folder):
                pod = names.read_pod(name)
                assert pod is not None and pod.pod not in plans, name
                plans[pod.pod] = lines.read_pod((root / folder / name).read_bytes())[0]
        begun: Counter[Key] = Counter()
        ended: set[Key] = set()
        for path in sorted((root / names.RESULTS).glob("*.jsonl")):
            vain = 0
            for value in lines.read_lines(path.read_bytes()):
                plan = plans[value["p"]]
                label = os.fsdecode(bytes.fromhex(plan.name)) or str(plan.first + value["i"])
                key = key_of(plan.submission, label)
                if "begin" in value:
                    begun[key] += 1
                    vain += 1
                elif "x" in value and value.get("why") != "lost":
                    assert zombies or key not in ended, f"{key} ended, and was run again"
                    ended.add(key)
                    vain -= 1
            assert vain in (0, 1), f"{path.name}: {vain} runs in vain"
        return begun

    def nothing_left(self) -> None:
        wait_until(lambda: not self._lab.left_behind(), "no process is left", 10.0)

    def logs(self) -> str:
        """Of all workers."""
        found = sorted((self.folder.root / names.LOGS).glob("*-w*.log"))
        return "".join(path.read_text() for path in found)

    def story(self) -> str:
        said = self.said.read_text() if self.said.exists() else ""
        listed = {
            folder: _listed(self.folder.root / folder)[:20]
            for folder in (names.QUEUE, names.CLAIMED, names.TAILS, names.SUBMITTED, names.OWNERS)
        }
        return (
            f"JAM_CRASH_SEED={SEED}: killed {dict(self.killed)}; {self.ended()} jobs ended\n"
            f"{json.dumps(listed, indent=1)}\n{said[-3000:]}"
        )


def _listed(folder: Path) -> list[str]:
    """What stands in it; without what somebody was writing when he was killed."""
    return sorted(name for name in os.listdir(folder) if not name.startswith(".new."))


def _holder(lock: Path) -> int:
    try:
        return int(json.loads(lock.read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return 0


def _state(pid: int) -> str:
    """One letter; "gone" of what is no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


@pytest.fixture
def fire(lab, tmp_path, monkeypatch, capsys) -> Iterator[Callable[..., Fire]]:
    """Makes a Fire, of hosts that share this machine's home, or of this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAM_LEASE", f"{LEASE:g}")
    began = time.monotonic()
    made: list[Fire] = []
    with capsys.disabled():
        print(f" [JAM_CRASH_SEED={SEED}] ", end="", flush=True)

    def make(*hosts: Host) -> Fire:
        runs = [host.run_dir for host in hosts] or [Path(os.environ["JAM_RUN_DIR"])]
        made.append(Fire(lab, tmp_path, runs))
        return made[0]

    yield make
    with contextlib.ExitStack() as stack:
        for one in made:
            stack.callback(one.close)
            stack.callback(one.face.fire)
    with capsys.disabled():
        for one in made:
            print(f"[{one.told}; {time.monotonic() - began:.0f} s] ", end="")


@pytest.fixture
def two(lab, transport) -> tuple[Host, Host]:
    """Two hosts that share this machine's home."""
    env = {"HOME": os.environ["HOME"], "JAM_LEASE": f"{LEASE:g}"}
    hosts = lab.host("lab1", env=env), lab.host("lab2", key="host2", env=env)
    lab.hosts_yaml_of(*(lab.spec(host, workers=4) for host in hosts))
    return hosts


# --- the tests ----------------------------------------------------------------------------------


@pytest.mark.timeout(5 * LONG)
def test_2000_jobs_and_somebody_killed_every_200_ms(fire):
    one = fire()
    one.submit(900, 1, 0.08)
    one.submit(1000, 20, 0.08)
    one.drop(100, 0.08)
    gate = one.submit_gates(10)
    assert one.face.hire(8).hired == 8
    one.storm(lambda: not one.dispatch() or one.ended() >= 2000)
    # they wait in ten pods, so that eight have to be there at once to run eight of them
    wait_until(lambda: one.dispatch() and len(one.waiting_workers(gate)) == 8,
               "eight workers are there again", LONG)  # fmt: skip
    (one.here / "go").touch()
    wait_until(lambda: not one.dispatch(), "the dispatcher ends", LONG)
    one.nothing_left()
    records = one.check(gates=10)
    assert len(records) == 2000
    done, failed = one.said.read_text().split()[-2:]
    assert int(done) + int(failed) == 2010
    assert not os.listdir(one.folder.root / names.OWNERS)
    logs = one.logs()
    assert one.killed["worker"] and "its child was ended by signal 9" in logs
    assert "another starts in" in logs
    assert one.killed["keeper"] and "Hired anew on localhost" in one.said.read_text()


@pytest.mark.timeout(5 * LONG)
def test_two_hosts_with_one_home(fire, two):
    """To the very end: also while workers are fired, and jobs moved to the past."""
    one = fire(*two)
    one.submit(300, 1, 0.08)
    one.submit(260, 20, 0.08)
    one.drop(40, 0.08)
    assert one.face.hire(4).hired == 8
    one.storm(lambda: not one.dispatch(), 2 * LONG)
    one.nothing_left()
    records = one.check()
    assert len(records) == 600
    assert {record.host for record in records} == {"lab1", "lab2"}


# what the transport carries here, hiring and firing, the test above does over each of them
@pytest.mark.parametrize("transport", ["fabric"], indirect=True)
@pytest.mark.timeout(5 * LONG)
def test_a_host_that_is_gone_for_good(fire, two, lab):
    """All of it in one moment, so that nobody there could say anything."""
    one = fire(*two)
    at_work(one, 320)
    for pid in stop_at_work(one, two[1], f"{lab.folder}/lab2"):
        kill(pid)
    lost = held(one, "lab2")
    wait_until(lambda: not one.dispatch(), "all jobs end", LONG)
    one.nothing_left()
    records = one.check()
    assert not any(record.failed for record in records)
    past = map(names.read_pod, os.listdir(one.folder.root / names.PAST))
    ended = {pod.pod: pod for pod in past if pod is not None}
    assert all(ended[pod.pod].owner.startswith("lab1-") for pod in lost)
    assert all(ended[pod.pod].attempt == pod.attempt + 1 for pod in lost)
    assert taken_from_lab2(one), (lost, one.said.read_text(), one.logs())


@pytest.mark.parametrize("transport", ["openssh"], indirect=True)
@pytest.mark.timeout(5 * LONG)
def test_a_host_that_was_away_for_longer_than_the_lease(fire, two, lab):
    """It comes back in the middle of jobs that others have run meanwhile."""
    one = fire(*two)
    at_work(one, 200)
    gate = one.submit_gates(1)
    stopped = stop_at_work(one, two[1], f"{lab.folder}/lab2")
    try:
        wait_until(lambda: one.dispatch() and not held(one, "lab2"), "its jobs are taken", LONG)
        wait_until(lambda: one.ended() >= 200 and one.waiting_workers(gate), "they end", LONG)
    finally:
        for pid in stopped:
            kill(pid, signal.SIGCONT)
    wait_until(lambda: "was given to others" in one.logs() or "another starts" in one.logs(),
               "its workers notice", LONG)  # fmt: skip
    (one.here / "go").touch()
    wait_until(lambda: not one.dispatch(), "the dispatcher ends", LONG)
    one.nothing_left()
    records = one.check(gates=1, zombies=True)
    assert not any(record.failed for record in records)
    assert taken_from_lab2(one)


def at_work(one: Fire, count: int) -> None:
    """Submits so many jobs, and returns when both hosts run some, and most of them wait."""
    one.submit(count // 3, 1, 0.3)
    one.submit(count - count // 3 - 20, 10, 0.3)
    one.drop(20, 0.3)
    assert one.face.hire(4).hired == 8
    assert one.dispatch()
    enough = one.dice.randrange(10, count // 4)
    wait_until(lambda: one.ended() >= enough and held(one, "lab2"), "both hosts work", LONG)


def held(one: Fire, host: str) -> list[names.Pod]:
    """What workers of the host have claimed; without dropped files that have not arrived."""
    pods = map(names.read_pod, one.folder.claimed())
    return [pod for pod in pods if pod and pod.jobs and pod.owner.startswith(host + "-")]


def taken_from_lab2(one: Fire) -> bool:
    """By the dispatcher, or by workers who had nothing to do."""
    return "on lab2 is gone" in one.said.read_text() or "no sign of life of lab2" in one.logs()


def stop_at_work(one: Fire, host: Host, mark: str) -> set[int]:
    """What `stop` does, while its workers hold jobs: now and then all of them are between two."""
    for _ in range(100):
        stopped = stop(host, mark)
        if held(one, host.name):
            return stopped
        for pid in stopped:
            kill(pid, signal.SIGCONT)
        wait_until(lambda: held(one, host.name), "it has work again", LONG)
    raise AssertionError("it was never stopped at work")


def stop(host: Host, mark: str) -> set[int]:
    """Everything of the host, before anything of it could see anything else of it stop."""
    assert host.process is not None
    for _ in range(1000):
        found = {host.process.pid, *descendants(host.process.pid), *marked(f"JAM_TEST={mark}")}
        running = {pid for pid in found if _state(pid) not in ("T", "Z", "gone")}
        if not running:
            return found
        for pid in running:  # more than once: screen lets go on what was stopped before it
            kill(pid, signal.SIGSTOP)
    raise AssertionError(f"not stopped: {running}")
