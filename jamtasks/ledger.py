"""What a project's folder says: counts by listing names, results by reading what is new.

A listing is made only of a folder that has changed, results are read from where reading stopped,
and only of owners that hold claims or have just committed. Of a line that was read only the place
and the count are kept, so a million jobs are a thousand entries.
"""

from __future__ import annotations

import binascii
import contextlib
import hashlib
import heapq
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from worker_payload.jobs import commands, lines, names, steps
from worker_payload.jobs.files import Files
from worker_payload.jobs.lines import Cut, Plan, Result, Tally
from worker_payload.jobs.names import Pod

from .job_report import JobRecord

_UNSURE = 50_000_000  # ns for which a folder's mtime may stay the same though it changed
_BLOCK = 1 << 20
_TAIL = 1 << 16
_CACHED_CUTS = 256


@dataclass(frozen=True)
class Counts:
    """Jobs. queued: nobody took them. claimed: taken and not ended. running: of these, begun.
    done: ended well; failed: not; retried: of both, those that ran more than once."""

    queued: int = 0
    claimed: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    retried: int = 0


@dataclass(frozen=True)
class Look:
    """What one look at the folder found.

    claims: all there are. arrived: pods whose names are new in the queue or among the claims.
    ended: pods that are new in done/. settled: those of which all results are now read, and whether
    some of them failed. dropped: names of people's files in the queue. empty: nothing but these
    waits, and nothing is claimed. steady: the listings were made while nothing changed, so they
    belong to one moment (a network file system cannot promise that). submissions: whole ones that
    are not yet visible. changed: there is news, be it only of a job that ended."""

    counts: Counts
    claims: tuple[Pod, ...]
    arrived: tuple[Pod, ...]
    ended: tuple[Pod, ...]
    settled: tuple[tuple[Pod, bool], ...]
    dropped: frozenset[str]
    empty: bool
    steady: bool
    changed: bool
    submissions: int = 0


class _Folder:
    """The names in a folder of the project."""

    def __init__(self, files: Files, path: str):
        self.names: set[str] = set()
        self._files = files
        self._path = path
        self._full = os.path.join(files.root, path)
        self._mtime = 0  # 0: it may have changed unseen

    def changed(self) -> bool:
        """Whether a listing could differ from the last one."""
        if self._files.network or not self._mtime:
            return True
        return self._stat() != self._mtime

    def list(self) -> tuple[set[str], set[str]]:
        """Lists it anew; what came and what went."""
        mtime = self._stat()
        self._mtime = mtime if abs(time.time_ns() - mtime) > _UNSURE else 0
        found = {
            name for name in self._files.do(steps.List(self._path)) if not name.startswith(".")
        }
        came, went = found - self.names, self.names - found
        self.names = found
        return came, went

    def steady(self) -> bool:
        """Whether nothing has changed since before the last listing."""
        return bool(self._mtime) and self._stat() == self._mtime

    def _stat(self) -> int:
        self._files.counted += 1
        try:
            return os.stat(self._full).st_mtime_ns
        except OSError:
            return 0


class _Reader:
    """An owner's results, as far as they were read."""

    def __init__(self, path: str):
        self.tallies: dict[bytes, Tally] = {}
        self._path = path
        self._offset = 0

    def advance(self) -> None:
        """Read what is new."""
        try:
            with open(self._path, "rb", 0) as handle:
                if os.fstat(handle.fileno()).st_size < self._offset:
                    self.tallies.clear()  # cut back by a full disk: what was counted is no more
                    self._offset = 0
                handle.seek(self._offset)
                rest = b""
                while block := handle.read(_BLOCK):
                    rest += block
                    end = lines.whole(rest)
                    lines.tally(rest[:end], self._offset, self.tallies)
                    self._offset += end
                    rest = rest[end:]
        except OSError:
            return  # not there yet, or not now: the next look tells

    def read(self, pod: Pod) -> bytes:
        """The part of the file in which the lines of this attempt of the pod stand."""
        tally = self.tallies.get(lines.tally_key(pod))
        if tally is None:
            return b""
        try:
            with open(self._path, "rb", 0) as handle:
                return os.pread(handle.fileno(), tally.end - tally.start, tally.start)
        except OSError:
            return b""

    def written(self) -> tuple[int, int]:
        """How far into its output files this owner's jobs had written when the last one ended."""
        with contextlib.suppress(OSError), open(self._path, "rb", 0) as handle:
            size = os.fstat(handle.fileno()).st_size
            for start in (max(0, size - _TAIL), 0):
                data = os.pread(handle.fileno(), size - start, start)
                for value in reversed(list(lines.read_lines(data))):
                    if "o" in value or "e" in value:
                        return value.get("o", (0, 0))[1], value.get("e", (0, 0))[1]
        return 0, 0


class _Sums(NamedTuple):
    """Jobs that ended: all, those that failed, those that ran more than once."""

    ended: int = 0
    failed: int = 0
    retried: int = 0

    def plus(self, other: _Sums) -> _Sums:
        return _Sums(*map(sum, zip(self, other, strict=True)))


class Ledger:
    """The project's folder, looked at again and again. Changes nothing there."""

    def __init__(self, files: Files):
        self._files = files
        self._queue = _Folder(files, names.QUEUE)
        self._claims = _Folder(files, names.CLAIMED)
        self._done = _Folder(files, names.DONE)
        self._owners = _Folder(files, names.OWNERS)
        self._submitted = _Folder(files, names.SUBMITTED)
        self._pods: dict[str, Pod] = {}  # of claims
        self._dropped: frozenset[str] = frozenset()
        self._waiting = 0
        self._readers: dict[str, _Reader] = {}
        self._unsettled: dict[str, Pod] = {}
        self._settled = _Sums()
        self._cuts: dict[str, tuple[Cut, _Sums]] = {}
        self._last = Counts()
        self._places: dict[str, tuple[str, str, str, str]] = {}

    # --- looking -------------------------------------------------------------------------------

    def look(self) -> Look:
        """One look at everything that has changed."""
        listed = False
        arrived: list[Pod] = []
        ended: list[Pod] = []
        if self._queue.changed():
            listed = True
            arrived += self._look_at_queue()
        if self._claims.changed():
            listed = True
            arrived += self._look_at_claims()
            # pods come into done/ from the claims only, and these were listed before
            ended += self._look_at_done()
        if self._submitted.changed():
            self._submitted.list()
        settled = self._settle()
        counts = self._counts()
        changed = bool(arrived or ended or settled) or counts != self._last
        self._last = counts
        claims = tuple(self._pods.values())
        return Look(
            counts=counts,
            claims=claims,
            arrived=tuple(arrived),
            ended=tuple(ended),
            settled=tuple(settled),
            dropped=self._dropped,
            empty=not (self._waiting or claims or self._submitted.names),
            steady=not listed or (self._queue.steady() and self._claims.steady()),
            changed=changed,
            submissions=len(self._submitted.names),
        )

    def _look_at_queue(self) -> list[Pod]:
        came, went = self._queue.list()
        arrived = []
        for name in came:
            pod = names.read_pod(name)
            if pod is not None:
                arrived.append(pod)
                self._waiting += pod.jobs
        for name in went:
            gone = names.read_pod(name)
            self._waiting -= gone.jobs if gone else 0
        if came or went:
            self._dropped = (self._dropped - went).union(filter(names.is_dropped, came))
        return arrived

    def _look_at_claims(self) -> list[Pod]:
        came, went = self._claims.list()
        for name in went:
            self._pods.pop(name, None)
        for name in came:
            pod = names.read_pod(name)
            if pod is not None:
                self._pods[name] = pod
        return [self._pods[name] for name in came if name in self._pods]

    def _look_at_done(self) -> list[Pod]:
        came, went = self._done.list()
        found = {name: pod for name in came if (pod := names.read_pod(name)) is not None}
        self._unsettled.update(found)
        if went:  # moved to past/: another sweep begins
            self._settled = _Sums()
            pods = map(names.read_pod, self._done.names)
            self._unsettled = {pod.name(): pod for pod in pods if pod is not None}
        return list(found.values())

    def _settle(self) -> list[tuple[Pod, bool]]:
        """Read what owners wrote since; the pods of which all results are now there."""
        pods = itertools.chain(self._pods.values(), self._unsettled.values())
        for owner in {pod.owner for pod in pods}:
            self._reader(owner).advance()
        settled = []
        for name, pod in list(self._unsettled.items()):
            sums = self._sums(pod)
            if sums.ended >= pod.jobs:
                del self._unsettled[name]
                self._settled = self._settled.plus(sums._replace(ended=pod.jobs))
                settled.append((pod, sums.failed > 0))
        return settled

    def _sums(self, pod: Pod) -> _Sums:
        """Of a pod's jobs, as far as it is known."""
        sums = self._cut(pod)[1]
        tally = self._tally(pod)
        if tally is None:
            return sums
        return sums.plus(_Sums(tally.results, tally.failed, tally.retried))

    def _counts(self) -> Counts:
        sums, claimed, running = self._settled, 0, 0
        for pod in itertools.chain(self._pods.values(), self._unsettled.values()):
            found = self._sums(pod)
            sums = sums.plus(found)
            claimed += max(0, pod.jobs - found.ended)
        for pod in self._pods.values():
            tally = self._tally(pod)
            running += tally is not None and bool(tally.begun)
        queued = self._waiting + len(self._dropped)
        done = sums.ended - sums.failed
        return Counts(queued, claimed, running, done, sums.failed, sums.retried)

    def _tally(self, pod: Pod) -> Tally | None:
        return self._reader(pod.owner).tallies.get(lines.tally_key(pod))

    def _reader(self, owner: str) -> _Reader:
        reader = self._readers.get(owner)
        if reader is None:
            path = os.path.join(self._files.root, names.results(owner))
            reader = self._readers[owner] = _Reader(path)
        return reader

    def _cut(self, pod: Pod) -> tuple[Cut, _Sums]:
        if pod.cut == names.NO_CUT:
            return lines.EMPTY, _Sums()
        found = self._cuts.get(pod.cut)
        if found is None:
            if len(self._cuts) >= _CACHED_CUTS:
                self._cuts.clear()
            cut = self._files.run(steps.read_cut(pod))
            results = [lines.read_result(value) for value in cut.results.values()]
            failed = sum(result is not None and result.failed for result in results)
            again = sum(result is not None and result.tries > 1 for result in results)
            found = self._cuts[pod.cut] = cut, _Sums(len(results), failed, again)
        return found

    # --- workers -------------------------------------------------------------------------------

    def heartbeats(self) -> dict[str, bytes]:
        """What each owner last said of itself."""
        if self._owners.changed():
            self._owners.list()
        found = {}
        for owner in self._owners.names:
            with contextlib.suppress(ValueError):
                names.read_owner(owner)
                data = self._files.do(steps.Read(names.heartbeat(owner)))
                if data is not None:
                    found[owner] = data
        return found

    # --- records -------------------------------------------------------------------------------

    def done_names(self) -> list[str]:
        """The pods of the sweep at hand that are committed."""
        return sorted(self._done.names)

    def records(self, pod: Pod, folder: str = names.DONE) -> list[JobRecord]:
        """The jobs of a pod that ended, by number; all of them, if the pod is committed."""
        data = self._read_pod(pod, folder)
        if data is None:
            return []
        try:
            plan, jobs = lines.read_pod(data)
        except ValueError:
            return []
        found = self._results(pod)
        return [
            self._record(pod, plan, jobs[index], index, found[index])
            for index in sorted(found)
            if index < len(jobs)
        ]

    def _results(self, pod: Pod) -> dict[int, Result]:
        reader = self._reader(pod.owner)
        if self._sums(pod).ended < pod.jobs:
            reader.advance()
        found = lines.results_of(reader.read(pod), pod.pod)
        return lines.record(pod, self._cut(pod)[0], found)

    def _read_pod(self, pod: Pod, folder: str, most: int | None = None) -> bytes | None:
        """folder: where it was seen; it may have moved on to past/."""
        name = pod.name()
        for place in (folder, names.DONE, names.PAST):
            path = os.path.join(self._files.root, place, name)
            with contextlib.suppress(OSError), open(path, "rb", 0) as handle:
                if most is None:
                    return handle.readall()
                return _first_line(handle.fileno(), most)
        return None

    def _record(
        self, pod: Pod, plan: Plan, params: list[str], index: int, found: Result
    ) -> JobRecord:
        number = plan.first + index
        name = path = ""
        if plan.kind == "drop":
            name = os.fsdecode(binascii.unhexlify(plan.name))
            path = os.path.join(self._files.root, names.ticket_folder(pod.ticket), name)
        host, worker, out, err = self._place_of(found.owner)
        if plan.logfile:
            log = commands.fill(plan, plan.logfile, params, number)
            out = err = os.path.join(plan.cwd, log)
        elif pod.dropped:
            out, err = (names.job_output(pod.ticket, stream) for stream in ("out", "err"))
        return JobRecord(
            number=number,
            submission=plan.submission or pod.ticket,
            name=name,
            command=commands.shown(plan, params, number, path),
            host=host,
            worker=worker,
            owner=found.owner,
            began=found.began,
            seconds=found.seconds,
            exit=found.exit,
            signal=found.signal,
            reason=found.reason,
            tries=found.tries,
            memory=found.memory,
            cpu=found.cpu,
            out=(out, 0, -1) if plan.logfile else (out, *found.out),
            err=(err, 0, -1) if plan.logfile else (err, *found.err),
            stderr=found.last,
            data=found.data,
            total=plan.total,
        )

    def _place_of(self, owner: str) -> tuple[str, str, str, str]:
        """(host, worker, file of stdout, of stderr)."""
        found = self._places.get(owner)
        if found is None:
            host, number = names.read_owner(owner)
            files = [names.output(owner, stream) for stream in ("out", "err")]
            found = self._places[owner] = host, f"w{number}", files[0], files[1]
        return found

    def running(self) -> list[JobRecord]:
        """The jobs that run now, after a look, as far as they can be known: exit -1, and `out` and
        `err` reach to the end of the file, wherever that will be."""
        found = []
        for pod in self._pods.values():
            data = self._read_pod(pod, names.CLAIMED) if self._tally(pod) else None
            if data is None:
                continue
            plan, jobs = lines.read_pod(data)
            reader = self._reader(pod.owner)
            begun: dict[int, float] = {}
            for value in lines.lines_of(reader.read(pod), pod.pod):
                begun.pop(value["i"], None)
                if "begin" in value:
                    begun[value["i"]] = value["begin"]
            for index, began in begun.items():
                out, err = (0, 0) if pod.dropped else reader.written()
                seconds = max(0.0, time.time() - began)
                result = Result(
                    -1, 0, began, seconds, out=(out, -1), err=(err, -1), owner=pod.owner
                )
                found.append(self._record(pod, plan, jobs[index], index, result))
        return found

    # --- history -------------------------------------------------------------------------------

    def history(
        self, folders: Iterable[str] = (names.DONE, names.PAST), submission: str | None = None
    ) -> Iterator[JobRecord]:
        """All jobs of committed pods, in job order: by the time of submission, then by number.
        A pod at a time is held."""
        for folder, pod, _ in self._in_order(folders, submission):
            yield from self.records(pod, folder)

    def contents(self) -> Iterator[tuple[Plan, list[str], int, str, int]]:
        """All submitted jobs in job order, without files that were dropped: (plan, parameters,
        number, "done" | "failed" | "waits", priority)."""
        folders = (names.QUEUE, names.CLAIMED, names.DONE, names.PAST)
        for folder, pod, plan in self._in_order(folders):
            data = self._read_pod(pod, folder)
            if data is None or plan.kind != "command":
                continue
            jobs = lines.read_pod(data)[1]
            found = self._results(pod) if pod.owner else {}
            priority = names.priority_of(pod.pod)
            for index in range(min(pod.jobs, len(jobs))):
                result = found.get(index)
                state = "waits" if result is None else "failed" if result.failed else "done"
                yield plan, jobs[index], plan.first + index, state, priority

    def failed_files(self) -> Iterator[tuple[str, str]]:
        """(name, path in the project) of dropped files whose last run under that name failed."""
        found: dict[str, str] = {}
        for folder, pod, plan in self._in_order((names.CLAIMED, names.DONE, names.PAST)):
            if plan.kind == "drop":
                name = os.fsdecode(binascii.unhexlify(plan.name))
                found.pop(name, None)
                if any(record.failed for record in self.records(pod, folder)):
                    found[name] = names.within(names.ticket_folder(pod.ticket), name)
        return iter(found.items())

    def find(self, label: str) -> JobRecord | None:
        """The last job that has ended, committed or not, and is called so: by the name of its file,
        or by its number (`17` or `job17`)."""
        digits = label.removeprefix("job")
        number = int(digits) if digits.isascii() and digits.isdecimal() else 0
        for folder, pod, plan in self._in_order(
            (names.CLAIMED, names.DONE, names.PAST), newest_first=True
        ):
            if plan.kind == "drop":
                wanted = plan.name == binascii.hexlify(os.fsencode(label)).decode()
            else:
                wanted = plan.first <= number < plan.first + pod.jobs
            for record in self.records(pod, folder) if wanted else ():
                if record.name == label if record.name else record.number == number:
                    return record
        return None

    def _in_order(
        self,
        folders: Iterable[str],
        submission: str | None = None,
        newest_first: bool = False,
    ) -> Iterator[tuple[str, Pod, Plan]]:
        found: dict[str, tuple[str, Pod]] = {}
        for folder in folders:
            for name in self._files.do(steps.List(folder)):
                pod = names.read_pod(name)
                if pod is not None:
                    found[pod.pod] = (folder, pod)  # one that moves meanwhile is found twice
        entries = sorted(
            ((names.age_of(name)[0], *entry) for name, entry in found.items()), reverse=newest_first
        )
        for _, group in itertools.groupby(entries, key=lambda entry: entry[0]):
            # of one moment: what belongs together, and in which order, only the heads know
            heads: list[tuple[str, int, str, Pod, Plan]] = []
            for _, folder, pod in group:
                plan = self.plan(pod, folder)
                if plan is not None and submission in (None, plan.submission or pod.ticket):
                    heapq.heappush(heads, (plan.submission, plan.first, folder, pod, plan))
            while heads:
                _, _, folder, pod, plan = heapq.heappop(heads)
                yield folder, pod, plan

    def plan(self, pod: Pod, folder: str) -> Plan | None:
        """What the pod's jobs have in common; None if it is gone, or is no pod."""
        head = self._read_pod(pod, folder, 1 << 24)
        try:
            return lines.read_plan(head) if head is not None else None
        except ValueError:
            return None


def _first_line(fd: int, most: int) -> bytes:
    data, size = b"", 4096
    while b"\n" not in data and len(data) < most:
        more = os.pread(fd, size, len(data))
        if not more:
            break
        data += more
        size *= 4
    return data[: data.find(b"\n") + 1]


# --- content -----------------------------------------------------------------------------------


def content_of_job(plan: Plan, params: list[str], number: int) -> bytes:
    """Equal for jobs that do the same: the words that run, and where."""
    words = commands.expand(plan, params, number)
    return _digest([*words, plan.cwd])


def content_of_file(name: str, data: bytes) -> bytes:
    return _digest(["file", name, hashlib.sha256(data).hexdigest()])


def _digest(parts: Iterable[str]) -> bytes:
    text = "\0".join(parts).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).digest()[:16]  # two of a million are equal once in 10**26
