"""Workers, sweepers, submitters and people at one project, with everything going wrong at random.

Larger worlds than test_jobs_model.py can look through, and the real files.py over a real folder,
below which the operating system answers wrongly, late or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import random
import shutil
import tempfile
from collections import Counter
from typing import Any

import hypothesis.strategies as st
import jobs_model
import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from jobs_model import FOLDER, PLAN, Choose, Tree, Violation

from worker_payload.jobs import files, lines, names, steps
from worker_payload.jobs.steps import Append, Rename, Sync

LATER = "later"  # not done yet, and told as failed
HIDDEN = "hidden"  # done, told as failed, and for the moment nobody sees it
DEAD = "dead"  # done later, and the process dies
FAULTS = [
    LATER, HIDDEN, DEAD, "lost ENOENT", "lost EIO", "ESTALE", "ESTALE ESTALE", "EIO", "EIO stays",
    "ESTALE stays", "ENOSPC", "EDQUOT", "short", "old listing", "no such cut",
]  # fmt: skip


SEEDS = st.integers(0, 2**32)
MOST_JOBS = 200  # in one run


class System:
    """Stands for the module os below Files; does one thing wrong at a time."""

    def __init__(self, disk: RealDisk) -> None:
        self._disk = disk
        self.fault: str | None = None
        self._tries = 0
        self._paths: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def begin(self, fault: str | None) -> None:
        self.fault, self._tries = fault, 0

    def _raise(self, path: str) -> None:
        """The faults of any call."""
        fault = self.fault
        self._tries += 1
        if fault in ("ENOSPC", "EDQUOT") or fault in ("EIO stays", "ESTALE stays"):
            raise OSError(getattr(errno, fault.split()[0]), fault, path)
        if (fault == "EIO" and self._tries == 1) or (fault == "ESTALE" and self._tries == 1):
            raise OSError(getattr(errno, fault), fault, path)
        if fault == "ESTALE ESTALE" and self._tries <= 2:
            raise OSError(errno.ESTALE, fault, path)

    def rename(self, source: str, target: str) -> None:
        fault = self.fault
        if fault in (LATER, DEAD) and os.path.exists(source):
            self._tries += 1
            if self._tries == 1:
                self._disk.late.append(self._disk.relative(source, target))
            raise OSError(errno.ENOENT if fault == LATER else errno.ENXIO, fault, source)
        self._raise(source)
        os.rename(source, target)
        if fault == HIDDEN or fault in ("lost ENOENT", "lost EIO"):
            number = errno.EIO if fault == "lost EIO" else errno.ENOENT
            raise OSError(number, fault, source)

    def stat(self, path: str) -> os.stat_result:
        if self.fault == HIDDEN:
            raise OSError(errno.ENOENT, HIDDEN, path)
        return os.stat(path)

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT or flags == os.O_RDONLY | os.O_CLOEXEC:
            if (
                self.fault == "no such cut"
                and os.path.basename(os.path.dirname(path)) == names.CUTS
            ):
                raise OSError(errno.ENOENT, self.fault, path)
            if self.fault not in ("ENOSPC", "EDQUOT"):
                self._raise(path)
        fd = os.open(path, flags, mode)
        self._paths[fd] = path
        return fd

    def listdir(self, path: str) -> list[str]:
        self._raise(path)
        found = os.listdir(path)
        older = self._disk.listings.get(path, found)
        self._disk.listings[path] = found
        return older if self.fault == "old listing" else found

    def unlink(self, path: str) -> None:
        if not path.endswith(".tmp"):
            self._raise(path)
        os.unlink(path)

    def mkdir(self, path: str, mode: int) -> None:
        self._raise(path)
        os.mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        self._raise(path)
        os.rmdir(path)

    def link(self, source: str, target: str) -> None:
        self._raise(target)
        os.link(source, target)
        if self.fault in ("lost EIO", "lost ENOENT"):
            fault, self.fault = self.fault, None
            raise OSError(getattr(errno, fault.split()[1]), fault, target)

    def write(self, fd: int, data: Any) -> int:
        if self.fault in ("ENOSPC", "EDQUOT", "short", "EIO"):
            self._tries += 1
            if self._tries == 1:
                return os.write(fd, data[: len(data) // 2])
            if self.fault != "short" and not (self.fault == "EIO" and self._tries > 2):
                raise OSError(getattr(errno, self.fault), self.fault)
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        """What was not on disk is lost when this fails."""
        path = self._paths[fd]
        try:
            self._raise(path)
        except OSError:
            if path.endswith(".jsonl"):
                size = self._disk.synced.get(path, 0)
                lost = os.fstat(fd).st_size - size
                os.ftruncate(fd, size)
                os.write(fd, bytes(lost))
            raise
        self._disk.synced[path] = os.fstat(fd).st_size


class RealDisk:
    """files.Files over a real folder."""

    def __init__(self) -> None:
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._top = tempfile.mkdtemp(prefix="jam-machine-", dir=memory)
        self.root = os.path.join(self._top, "project")
        files.prepare(self.root)
        self.late: list[Rename] = []
        self.listings: dict[str, list[str]] = {}
        self.synced: dict[str, int] = {}

    def close(self) -> None:
        shutil.rmtree(self._top)

    def relative(self, source: str, target: str) -> Rename:
        return Rename(os.path.relpath(source, self.root), os.path.relpath(target, self.root))

    def process(self) -> Any:
        system = System(self)
        return files.Files(self.root, system, lambda _seconds: None), system

    def perform(self, process: Any, op: Any, fault: str | None) -> Any:
        whole, system = process
        system.begin(fault)
        return whole.do(op)

    def end(self, process: Any, owner: str, power: bool) -> None:
        """The process dies. power: with its machine, so that what was not on disk is lost."""
        process[0].close()
        path = os.path.join(self.root, names.results(owner))
        if power and os.path.exists(path):
            with open(path, "r+b") as file:
                file.truncate(self.synced.get(path, 0))
                file.seek(0, os.SEEK_END)
                file.write(b'12345678 {"p":"p5000')

    def names(self, folder: str) -> list[str]:
        return os.listdir(os.path.join(self.root, folder))

    def put(self, path: str) -> None:
        with open(os.path.join(self.root, path), "xb") as file:
            file.write(b"echo")

    def land(self, op: Rename) -> None:
        with contextlib.suppress(OSError):
            os.rename(os.path.join(self.root, op.source), os.path.join(self.root, op.target))

    def tree(self) -> Tree:
        tree: Tree = {}
        for top, folders, found in os.walk(self.root):
            for name in found:
                path = os.path.join(top, name)
                with open(path, "rb") as file:
                    data = file.read()
                tree[os.path.relpath(path, self.root)] = data
            for name in folders:
                path = os.path.relpath(os.path.join(top, name), self.root)
                if path not in names.FOLDERS:
                    tree[path] = FOLDER
        for path in jobs_model.within(tree, names.RESULTS):
            tree[path] = (tree[path], len(tree[path]))
        return tree


class MemoryDisk:
    """The file system of the model."""

    def __init__(self) -> None:
        self._tree: Tree = {}
        self.late: list[Any] = []

    def close(self) -> None:
        pass

    def process(self) -> None:
        return None

    def perform(self, process: Any, op: Any, fault: str | None) -> Any:
        if fault in (LATER, DEAD) and op.__class__ is Rename:
            self.late.append(op)
            if fault == DEAD:
                raise files.Trouble(op.source, OSError(errno.EIO, fault))
            return False
        if fault in ("EIO stays", "ESTALE stays"):
            raise files.Trouble(op[0], OSError(errno.EIO, fault))
        if fault in ("ENOSPC", "EDQUOT") and op.__class__ in (Append, Sync, steps.Create):
            raise files.Full(op[0], OSError(errno.ENOSPC, fault))
        answer = jobs_model.do(self._tree, op)
        return False if fault == HIDDEN and op.__class__ is Rename else answer

    def end(self, process: Any, owner: str, power: bool) -> None:
        path = names.results(owner)
        if power and path in self._tree:
            data, synced = self._tree[path]
            self._tree[path] = (data[:synced], synced)

    def names(self, folder: str) -> list[str]:
        return [posixpath.basename(path) for path in jobs_model.within(self._tree, folder)]

    def put(self, path: str) -> None:
        self._tree[path] = b"echo"

    def land(self, op: Any) -> None:
        jobs_model.do(self._tree, op)

    def tree(self) -> Tree:
        return dict(self._tree)


class Process:
    """One program at work on a disk, an operation at a time."""

    def __init__(self, disk: Any, program: Any, owner: str, finished: Any = None) -> None:
        self._disk = disk
        self._finished = finished
        self._program = program
        self.name = program.__name__ + owner[-3:]
        self.owner = owner
        self.files = disk.process()
        self.dead = False
        self.op: Any = None
        self._send(None)

    def _send(self, answer: Any) -> None:
        try:
            self.op = self._program.send(answer)
        except StopIteration as end:
            if self._finished is not None:
                self._finished(end.value)
            self.end(False)

    def step(self, chance: random.Random, fault: str | None) -> bool:
        """Whether it did something: who looks for work may have to wait."""
        op = self.op
        if op.__class__ is Choose:
            found = [name for name in self._disk.names(op.folder) if name[0] != "."]
            if found:
                self._send(chance.choice(sorted(found)))
            return bool(found)
        try:
            answer = self._disk.perform(self.files, op, fault)
        except files.Full:
            if op.__class__ not in (Append, Sync):  # who can not write holds, and tries again
                self.end(False)
        except files.Trouble:
            self.end(False)
        else:
            self._send(answer)
        return True

    def end(self, power: bool) -> None:
        if not self.dead:
            self.dead = True
            self._program.close()
            self._disk.end(self.files, self.owner, power)


class Submission:
    """certain: submit has said that it is visible."""

    def __init__(self, jobs: range) -> None:
        self.jobs = jobs
        self.certain = False

    def told(self, answer: Any) -> None:
        self.certain = bool(answer)


class Machine(RuleBasedStateMachine):
    disk_type: Any = MemoryDisk
    steps: Any = steps
    done = 0  # operations, in all runs

    def __init__(self) -> None:
        super().__init__()
        self.disk = self.disk_type()
        self.processes: list[Process] = []
        self.started = 0
        self.submissions: list[Submission] = []
        self.dropped: Counter[str] = Counter()
        self.first = 1
        self.history: list[str] = []

    def start(self, program: Any, owner: str = "", finished: Any = None) -> None:
        self.processes.append(Process(self.disk, program, owner, finished))

    @initialize()
    def begin(self) -> None:
        self.hire(2, True, 0)
        self.hire(1, False, 0)
        self.suspect(0)
        self.submit([3, 1], 0)

    @rule(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6), seed=SEEDS)
    def submit(self, sizes: list[int], seed: int) -> None:
        self.feed(sizes)
        self.go_on(seed, 50)

    def feed(self, sizes: list[int]) -> None:
        self.started += 1
        before, pods = self.first, []
        for size in sizes:
            data = lines.write_pod(PLAN._replace(first=self.first), [["x"]] * size)
            pods.append((jobs_model.pod_name(self.first, size), data))
            self.first += size
        submission = Submission(range(before, self.first))
        self.submissions.append(submission)
        program = jobs_model.submitter(self.steps, pods, f"{self.started:012x}")
        self.start(program, finished=submission.told)

    @precondition(lambda self: len(self.processes) < 8)
    @rule(batch=st.integers(1, 3), give=st.booleans(), seed=SEEDS)
    def hire(self, batch: int, give: bool, seed: int) -> None:
        self.started += 1
        program = jobs_model.worker(self.steps, self.started, 9, give, False, batch)
        self.start(program, jobs_model.owner_name(self.started))
        self.go_on(seed, 50)

    @precondition(lambda self: len(self.processes) < 8)
    @rule(seed=SEEDS)
    def suspect(self, seed: int) -> None:
        self.started += 1
        self.start(jobs_model.sweeper(self.steps, self.started, 9))
        self.go_on(seed, 50)

    @precondition(lambda self: len(self.processes) < 12)
    @rule(retire=st.booleans())
    def tidy(self, retire: bool) -> None:
        self.start(jobs_model.retirer(self.steps) if retire else jobs_model.helper(self.steps))

    @rule(name=st.sampled_from(["a job", "$(x).sh", "ä", "-rf", "p~1~0~-", "line\nfeed"]))
    def drop(self, name: str) -> None:
        if name not in self.disk.names(names.QUEUE):
            self.disk.put(names.dropped(name))
            self.dropped[name] += 1

    @rule(seed=SEEDS, count=st.integers(1, 400))
    def go_on(self, seed: int, count: int) -> None:
        """So many operations, in any order. When all wait, there is something to do again."""
        chance = random.Random(seed)
        waited = 0
        while count > 0:
            self.processes = [process for process in self.processes if not process.dead]
            if not self.processes or waited > 3 * len(self.processes):
                if self.first > MOST_JOBS:
                    return
                self.feed([chance.randint(1, 4) for _ in range(5)])
            process = chance.choice(self.processes)
            fault = chance.choice(FAULTS) if chance.random() < 0.07 else None
            op = process.op
            if process.step(chance, fault):
                Machine.done += 1
                count -= 1
                waited = 0
                self.history.append(f"{process.name} {op!r:.300} {fault or ''}")
            else:
                waited += 1

    @precondition(lambda self: self.processes)
    @rule(who=st.integers(0, 7), power=st.booleans())
    def kill(self, who: int, power: bool) -> None:
        self.processes[who % len(self.processes)].end(power)

    @precondition(lambda self: self.disk.late)
    @rule(which=st.integers(0, 7))
    def land(self, which: int) -> None:
        self.disk.land(self.disk.late.pop(which % len(self.disk.late)))

    def teardown(self) -> None:
        try:
            for process in self.processes:
                process.end(False)
            tree = self.disk.tree()
            self.check(tree)
            for late in self.disk.late:
                jobs_model.do(tree, late)
                tree = self.check(tree)
        except Violation:
            for text in self.history:
                note(text)
            raise
        finally:
            self.disk.close()

    def check(self, tree: Tree) -> Tree:
        tree = jobs_model.settle(tree, self.steps)
        found = jobs_model.committed(tree)
        wrong = [name for name, count in self.dropped.items() if found[name] != count]
        for one in self.submissions:
            counts = {found[number] for number in one.jobs}
            if counts != {1} and (one.certain or counts != {0}):
                wrong.append(f"{[(number, found[number]) for number in one.jobs]}")
        if wrong:
            raise Violation(f"{wrong} in {dict(found)}")
        return tree


class RealMachine(Machine):
    disk_type = RealDisk


def play(machine: type[Machine], operations: int, phases: tuple[Phase, ...]) -> int:
    """Plays until so many were done; returns how many."""
    before = Machine.done
    for _ in range(99):
        if Machine.done - before >= operations:
            break
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=20,
                stateful_step_count=25,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=phases,
            ),
        )
    return Machine.done - before


@pytest.mark.timeout(600)  # shrinking takes its time
@pytest.mark.parametrize("machine", [Machine, RealMachine])
def test_no_job_is_lost_or_recorded_twice(machine):
    done = play(machine, 55_000, (Phase.generate, Phase.shrink))
    print(f"{machine.__name__}: {done} operations")
    assert done >= 55_000


@pytest.mark.parametrize("machine", [Machine, RealMachine])
def test_a_commit_that_is_wrong_is_found_out(machine):
    """So that the silence of the test above is worth something."""

    class Wrong(machine):
        steps = jobs_model.wrong(commit=commit_after_a_look)

    with pytest.raises(Violation):
        play(Wrong, 20_000, (Phase.generate,))


def commit_after_a_look(pods, owner):
    """Looks whether the claim is still there, then records."""
    yield Sync(names.results(owner))
    for pod in pods:
        data = yield steps.Read(names.claimed(pod))
        if data is not None:
            yield steps.Create(names.done(pod), data)
            yield steps.Remove(names.claimed(pod))
