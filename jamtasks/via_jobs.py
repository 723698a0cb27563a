"""A map call through the job plane: the same slices, the same reduction, the same report.

Each slice is a job whose process maps it and leaves the answer in a file of the shared home. So the
call outlives this machine's sleep and its connections, at the price of a process for each slice.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from worker_payload import codec
from worker_payload.jobs import lines, mapping, names, steps
from worker_payload.jobs.files import Files, Trouble
from worker_payload.wire import Buffer

from . import sweep
from .encoding import decode, encode_params
from .errors import JamError, NoHostsError, TaskFailed, TaskLost
from .ledger import Ledger
from .report import FailedSlice, HostReport, RunReport
from .submission import Submission

if TYPE_CHECKING:
    from .datasets import Slices
    from .job_report import JobRecord, Progress
    from .modules import Bundle
    from .project import Hosts, Project

HIRED_NOW, HIRED_BEFORE = 20.0, 3.0  # seconds for workers to show themselves
FIRST_FAILURE = "now,fail=1"


def run(
    project: Project,
    module: ModuleType | str,
    params: Any = None,
    dataset: Any = None,
    *,
    hosts: Hosts = None,
    slice_size: int | None = None,
    keep_going: bool = False,
    writable: bool = False,
    task_timeout: float | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[Any, RunReport]:
    """What Master.run does, with the project's workers: (result, report).

    Workers that run already do it; where there are none they are hired, on the hosts, and fired
    at the end. Raises what Master.run raises."""
    from . import datasets, modules

    began = time.monotonic()
    bundle = modules.bundle(module)
    data = datasets.as_dataset(dataset) if dataset is not None else None
    encoded = encode_params(params)
    crew = _Crew(project, hosts)
    try:
        crew.assemble()
        slices = data.plan(crew.cpus, slice_size) if data is not None else None
        count = len(slices) if slices is not None else len(crew.workers)
        call = _Call(project, bundle, encoded.parts, slices, count, writable)
        try:
            call.write(task_timeout)
            halt = FIRST_FAILURE if crew.hired and not keep_going else "never"
            shown = functools.partial(_show, progress, count) if progress is not None else None
            report = project.dispatch(halt=halt, fire=crew.hired, progress=shown, say=say)
            crew.hired = crew.hired and report.fired is None
            value, failed, records = call.fold(keep_going)
            call.all_ended = True
            ran = crew.report(count, failed, records, call.size, time.monotonic() - began)
            return value, ran
        finally:
            call.remove()
    finally:
        crew.dismiss()


def _show(progress: Callable[[int, int, int], None], count: int, now: Progress) -> None:
    progress(min(now.done + now.failed, count), count, now.failed)


class _Crew:
    """The workers of a call: those there are, or else those that are hired for it."""

    def __init__(self, project: Project, hosts: Hosts):
        self._project = project
        self._hosts = hosts
        self.hired = False
        self.workers: dict[str, dict[str, Any]] = {}  # owner -> what its heartbeat says

    def assemble(self) -> None:
        self._wait_for(sum(self._project.wanted().values()), HIRED_BEFORE)
        if self.workers:
            return
        report = self._project.hire(hosts=self._hosts)
        self.hired = any(row.running for row in report.hosts)
        if not self.hired:
            reasons = "; ".join(f"{row.name}: {row.note}" for row in report.hosts)
            raise NoHostsError(f"no worker could be hired: {reasons}")
        wanted = sum(row.running or 0 for row in report.hosts)
        self._wait_for(wanted, HIRED_NOW)
        if not self.workers:
            raise JamError(
                f"{wanted} workers were hired and none gives a sign of life",
                f"look at their logs in {os.path.join(self._project.path, names.LOGS)}",
            )

    def _wait_for(self, wanted: int, seconds: float) -> None:
        """Until so many have shown themselves, or for a while."""
        self.workers = self._signs()
        deadline = time.monotonic() + seconds
        while len(self.workers) < wanted and time.monotonic() < deadline:
            time.sleep(0.02)
            self.workers = self._signs()

    def _signs(self) -> dict[str, dict[str, Any]]:
        found = {}
        if os.path.isdir(self._project.path):
            for owner, data in Ledger(Files(self._project.path)).heartbeats().items():
                told = sweep.heartbeat(data)
                if told is not None:
                    found[owner] = told
        return found

    @property
    def cpus(self) -> int:
        """As many workers as a map call would have on these hosts: the slices are cut alike."""
        loaded = self._project.settings()
        asked = {}
        with contextlib.suppress(JamError):
            asked = {spec.label: spec.workers for spec in loaded.select(self._hosts)}
        counts: dict[str, int] = {}
        for told in self.workers.values():
            label = str(told.get("label"))
            counts[label] = asked.get(label) or int(told.get("cpus") or 1)
        return sum(counts.values())

    def dismiss(self) -> None:
        if self.hired:
            self.hired = False
            self._project.fire()

    def report(
        self,
        slices: int,
        failed: Sequence[FailedSlice],
        records: Sequence[JobRecord],
        size: int,
        seconds: float,
    ) -> RunReport:
        labels = {owner: str(told.get("label")) for owner, told in self.workers.items()}
        done: dict[str, int] = dict.fromkeys(sorted(labels.values()), 0)
        for record in records:
            label = labels.get(record.owner, record.host)
            done[label] = done.get(label, 0) + 1
        workers = list(labels.values())
        python = {labels[owner]: str(told.get("python")) for owner, told in self.workers.items()}
        hosts = tuple(
            HostReport(label, "up", workers.count(label), python.get(label, ""), "", count, 0, 0)
            for label, count in done.items()
        )
        return RunReport(
            slices=slices,
            workers=len(workers),
            hosts=hosts,
            seconds=seconds,
            bytes_sent=size,
            bytes_cached=0,
            retried=sum(record.tries - 1 for record in records),
            failed=tuple(failed),
        )


class _Call:
    """A map call's folder in the project, and its jobs."""

    def __init__(
        self,
        project: Project,
        bundle: Bundle,
        params: Sequence[Buffer],
        slices: Slices | None,
        count: int,
        writable: bool,
    ):
        self._project = project
        self._files = Files(project.path)
        self._bundle = bundle
        self._params = params
        self._slices = slices
        self._count = count
        self._writable = writable
        self._ticket = names.new_ticket()
        self._folder = os.path.join(project.path, names.map_call(self._ticket))
        self._submission = ""
        self.size = 0  # bytes written for the workers
        self.all_ended = False  # none of its jobs waits

    def write(self, timeout: float | None) -> None:
        """Put all that the jobs need into the folder, then the jobs into the queue."""
        try:
            self._files.run(self._written())
            with Submission() as submission:
                plan = lines.Plan(
                    "", words=("mapfunc", self._bundle.name), kind="map", name=self._ticket,
                    timeout=timeout or 0.0, tries=3 if timeout else 1,
                )  # fmt: skip
                submission.add(plan, ([str(index)] for index in range(self._count)))
                self._submission = submission.name
                submission.write(self._files)
        except Trouble as error:
            raise JamError(f"the map call could not be written: {error}") from None

    def _written(self) -> steps.Steps:
        """The folder appears whole: no job can find half of it."""
        hidden = names.map_call("." + self._ticket)
        yield steps.MakeFolder(hidden)
        about = {
            "module": self._bundle.name,
            "writable": self._writable,
            "slices": self._slices is not None,
        }
        yield self._file(hidden, mapping.ABOUT, [json.dumps(about).encode("ascii")])
        yield self._file(hidden, mapping.CODE, self._bundle.parts)
        yield self._file(hidden, mapping.PARAMS, self._params)
        for index in range(self._count if self._slices is not None else 0):
            assert self._slices is not None
            yield self._file(hidden, mapping.given(index), self._slices[index].parts())
        yield steps.SyncFolder(hidden)
        yield steps.Rename(hidden, names.map_call(self._ticket))

    def _file(self, folder: str, name: str, parts: Sequence[Buffer]) -> steps.Write:
        data = b"".join(parts)
        self.size += len(data)
        return steps.Write(names.within(folder, name), data)

    def fold(self, keep_going: bool) -> tuple[Any, list[FailedSlice], list[JobRecord]]:
        """The answers, reduced in slice order; what failed; all jobs that ended."""
        from .reduction import OrderedFold, default_reduce

        records = {record.number - 1: record for record in self._project.results(self._submission)}
        failed: list[FailedSlice] = []
        reduce = getattr(self._bundle.module, "reduce", None) or default_reduce
        with OrderedFold(reduce, self._count) as fold:
            for index, record in sorted(records.items()):
                if not record.failed:
                    continue
                error = self._error(index, record)
                if not keep_going:
                    raise error
                failed.append(
                    FailedSlice(index, error.host, error.type, error.detail, error.traceback)
                )
                fold.skip(index)
            for index in range(self._count):
                answered = records.get(index)
                if answered is None:
                    raise JamError(
                        f"slice {index} has no result: its job was taken out of the queue"
                    )
                if not answered.failed:
                    segments = self._answer(index, answered)
                    made = functools.partial(decode, self._bundle.modules, answered.host, index)
                    fold.add(index, segments, made)
            if failed and len(failed) == self._count:
                raise self._error(failed[0].slice, records[failed[0].slice])
            return fold.result(), failed, list(records.values())

    def _answer(self, index: int, record: JobRecord) -> list[Buffer]:
        """The segments of an answer, proven by its digest. Raises TaskFailed."""
        try:
            with open(os.path.join(self._folder, mapping.answer(record.data)), "rb") as handle:
                data = bytearray(handle.read())
        except OSError as error:
            reason = f"its answer cannot be read: {error.strerror}"
        else:
            if hashlib.sha256(data).hexdigest() == record.data:
                return list(codec.blob_segments(data))
            reason = "its answer is damaged"
        raise TaskFailed(host=record.host, slice=index, type="DecodeError", message=reason)

    def _error(self, index: int, record: JobRecord) -> TaskFailed:
        with contextlib.suppress(OSError, ValueError, TypeError):
            path = os.path.join(self._folder, mapping.failure(index))
            with open(path, encoding="ascii") as handle:
                kind, message, traceback = json.load(handle)
            if record.exit == 1 and not record.signal and not record.reason:
                return TaskFailed(
                    host=record.host, slice=index, type=str(kind), message=str(message),
                    traceback=str(traceback),
                )  # fmt: skip
        return TaskLost(
            host=record.host, slice=index, type="WorkerDied", message=record.ending,
            traceback=record.stderr,
        )  # fmt: skip

    def remove(self) -> None:
        """The folder, and what of the jobs still waits."""
        if not self.all_ended:  # only then: others' queues may be long
            with contextlib.suppress(OSError, Trouble):
                self._files.run(self._withdrawn())
        for ticket in (self._ticket, "." + self._ticket):
            folder = os.path.join(self._project.path, names.map_call(ticket))
            shutil.rmtree(folder, ignore_errors=True)
        self._files.close()

    def _withdrawn(self) -> steps.Steps:
        for name in (yield steps.List(names.QUEUE)):
            pod = names.read_pod(name)
            if pod is None or not self._submission:
                continue
            head = yield steps.Read(names.queued(pod))
            if head is None:
                continue
            with contextlib.suppress(ValueError):
                plan, _ = lines.read_pod(head)
                if plan.kind == "map" and plan.name == self._ticket:
                    yield steps.Remove(names.queued(pod))
