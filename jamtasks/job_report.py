"""What happened to jobs, workers and sweeps, as frozen records, and their forms: text and JSON.

`done` always means ended well; what failed is counted as `failed` only. Strings only, no I/O.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .report import FireReport, clean, counted, duration, size, table

KEPT_FAILURES = (
    10_000  # of which a report tells all; the joblog and `Project.results` have the rest
)
_LONGEST = 100  # characters of a command or of a line of stderr in a table


# --- records -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class JobRecord:
    """One job that ended: what the joblog, `results()` and the tables tell of it.

    number: within its submission, from 1. submission: 12 hex digits; of a dropped file its ticket.
    name: of a dropped file as os.fsdecode reads it, else "". command: the words that ran, quoted
    for a shell. host, worker: where it ran ("lab1", "w3"); owner: the same and of which start.
    began: seconds since the epoch. seconds: of the last try. exit: -1 if it has none. signal: what
    it died of, or 0. reason: "" | "timeout" | "lost" | "spawn". tries: how often it ran. memory:
    its peak, bytes. cpu: seconds. out, err: (file, from, to) of what it wrote there; the file is
    relative to the project's folder unless the job has a log file of its own. stderr: its last
    line, of a job that failed. data: digest of a result file, or "". total: jobs of its submission.
    """

    number: int
    submission: str
    name: str
    command: str
    host: str
    worker: str
    owner: str
    began: float
    seconds: float
    exit: int
    signal: int
    reason: str = ""
    tries: int = 1
    memory: int = 0
    cpu: float = 0.0
    out: tuple[str, int, int] = ("", 0, 0)
    err: tuple[str, int, int] = ("", 0, 0)
    stderr: str = ""
    data: str = ""
    total: int = 1

    @property
    def failed(self) -> bool:
        return self.exit != 0 or self.signal != 0 or bool(self.reason)

    @property
    def label(self) -> str:
        """What people call it: the name of its file, else job17."""
        return self.name or f"job{self.number}"

    @property
    def ending(self) -> str:
        """How it ended, in a few words: `exit 3`, `signal 9`, `timeout`, `lost with its worker`."""
        if self.reason:
            words = {"lost": "lost with its worker", "spawn": "could not be started"}
            return words.get(self.reason, self.reason)
        return f"signal {self.signal}" if self.signal else f"exit {self.exit}"

    def json(self) -> dict[str, Any]:
        """As it stands in `failures` of `inv dispatch --json`."""
        return {
            "job": valid(self.label),
            "command": valid(self.command),
            "exit": self.exit,
            "signal": self.signal,
            "attempts": self.tries,
            "host": self.host,
            "stderr": valid(self.stderr),
        }


@dataclass(frozen=True)
class Submitted:
    """What `submit` put into the queue. submission: its name, "" if there was nothing to submit.

    skipped: jobs that `resume` found to have been run or to wait already."""

    project: str
    jobs: int
    submission: str = ""
    skipped: int = 0

    def json(self) -> dict[str, Any]:
        return {"project": self.project, "jobs": self.jobs}


@dataclass(frozen=True)
class HireRow:
    """What `hire` did on one host. hired: workers started now. running: of this project in all.

    left: wanted and not running. All three are None where the host could not be asked."""

    name: str
    hired: int | None
    running: int | None
    left: int | None = 0
    note: str = ""


@dataclass(frozen=True)
class HireReport:
    project: str
    hosts: tuple[HireRow, ...]

    @property
    def hired(self) -> int:
        return sum(row.hired or 0 for row in self.hosts)

    @property
    def running(self) -> int:
        return sum(row.running or 0 for row in self.hosts)

    def json(self) -> dict[str, Any]:
        rows = [{"name": row.name, "hired": row.hired, "left": row.left} for row in self.hosts]
        return {"project": self.project, "hosts": rows}


@dataclass(frozen=True)
class WorkerRow:
    """A worker as its heartbeat tells. name: "w3". state: idle | running | held | ending | silent.

    job: what it runs, "" if nothing. since: seconds since the epoch, of that state. label: the host
    as it was named to `hire`. note: why it is held, what it complains of."""

    name: str
    host: str
    pid: int
    state: str
    job: str
    since: float
    label: str = ""
    note: str = ""

    def json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "host": self.host,
            "pid": self.pid,
            "state": self.state,
            "job": valid(self.job),
            "since": self.since,
        }


@dataclass(frozen=True)
class StatusReport:
    """A project at one moment. queued: jobs that nobody took. claimed: taken and not ended, those
    that run included. running: that run now. done, failed: ended well, or not, in this sweep.

    dispatcher: who runs it, "" if nobody. order: name | age | priority, "" if it was not set."""

    project: str
    queued: int
    claimed: int
    running: int
    done: int
    failed: int
    workers: tuple[WorkerRow, ...] = ()
    dispatcher: str = ""
    order: str = ""
    notes: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        return {
            "project": self.project,
            "queued": self.queued,
            "claimed": self.claimed,
            "running": self.running,
            "done": self.done,
            "failed": self.failed,
            "workers": [row.json() for row in self.workers],
        }


@dataclass(frozen=True)
class Progress:
    """A sweep at one moment, for progress bars. Counts as in StatusReport.

    rate: jobs per second of late, 0.0 if unknown. eta: seconds to go, None if unknown.
    seconds: since the dispatcher began. watching: another dispatcher runs the sweep."""

    queued: int
    claimed: int
    running: int
    done: int
    failed: int
    workers: int
    rate: float = 0.0
    eta: float | None = None
    seconds: float = 0.0
    watching: bool = False

    @property
    def total(self) -> int:
        return self.queued + self.claimed + self.done + self.failed


@dataclass(frozen=True)
class DispatchReport:
    """How a sweep ended. retried: jobs that were run more than once.

    failures: the first KEPT_FAILURES of the jobs that failed. groups: all of them, as
    (how they ended, last line of stderr, how many, an example). halted: why it stopped before the
    end, "" if it did not. left: jobs that wait still. fired: what became of the workers, None if
    they were kept. value: what `reduce` made of the results; reduced: of how many."""

    project: str
    done: int
    failed: int
    retried: int
    seconds: float
    failures: tuple[JobRecord, ...] = ()
    groups: tuple[FailureGroup, ...] = ()
    halted: str = ""
    left: int = 0
    fired: FireReport | None = None
    value: Any = None
    reduced: int = 0
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """1 if some jobs failed, or did not come to run; halting at a success is well."""
        if "success" in self.halted:
            return 0
        return 1 if self.failed or self.left else 0

    def json(self) -> dict[str, Any]:
        return {
            "project": self.project,
            "done": self.done,
            "failed": self.failed,
            "retried": self.retried,
            "seconds": round(self.seconds, 3),
            "failures": [record.json() for record in self.failures],
        }


@dataclass(frozen=True)
class FailureGroup:
    """Failed jobs that ended in the same way with the same last line of stderr."""

    ending: str
    stderr: str
    count: int
    example: JobRecord


@dataclass
class Failures:
    """Collects failed jobs: all of them by group, the first of them whole."""

    kept: list[JobRecord] = field(default_factory=list)
    count: int = 0
    _groups: dict[tuple[str, str], tuple[int, JobRecord]] = field(default_factory=dict)

    def add(self, record: JobRecord) -> None:
        self.count += 1
        if len(self.kept) < KEPT_FAILURES:
            self.kept.append(record)
        key = record.ending, shape(record.stderr)
        if key not in self._groups and len(self._groups) >= KEPT_FAILURES:
            key = record.ending, "(and other lines)"
        count, example = self._groups.get(key, (0, record))
        self._groups[key] = count + 1, example

    def groups(self) -> tuple[FailureGroup, ...]:
        """The most frequent first."""
        found = [
            FailureGroup(ending, line, count, example)
            for (ending, line), (count, example) in self._groups.items()
        ]
        return tuple(sorted(found, key=lambda group: (-group.count, group.ending, group.stderr)))


# --- text --------------------------------------------------------------------------------------


def submit_summary(report: Submitted) -> str:
    """
    >>> submit_summary(Submitted("default", 10))
    'Submitted 10 jobs to project "default".'
    """
    text = f'Submitted {counted(report.jobs, "job")} to project "{report.project}"'
    if report.skipped:
        text += f"; {counted(report.skipped, 'job')} had been run or waits there already"
    return text + "."


def hire_summary(report: HireReport) -> str:
    """One line: how many workers were started, and where that did not succeed.

    >>> hire_summary(HireReport("default", (HireRow("localhost", 4, 4),)))
    'Hired 4 workers in project "default".'
    """
    already = report.running - report.hired
    text = f'Hired {counted(report.hired, "worker")} in project "{report.project}"'
    if already > 0:
        text += f"; {already} {'was' if already == 1 else 'were'} there already"
    missing = [f"{row.left} on {row.name}" for row in report.hosts if row.left]
    if missing:
        text += f"; missing: {', '.join(missing)}"
    unknown = [row.name for row in report.hosts if row.hired is None]
    if unknown:
        text += f"; could not reach {', '.join(unknown)}"
    return text + "."


def hire_table(report: HireReport, width: int | None = None) -> str:
    rows = [
        (row.name, _number(row.hired), _number(row.running), str(row.left or ""), row.note)
        for row in report.hosts
    ]
    right = ("hired", "running", "missing")
    return table(["host", "hired", "running", "missing", "note"], rows, right=right, width=width)


def fired_summary(report: FireReport) -> str:
    """The workers' part of what `fire` did, in one line: `Fired 4 workers in project "default".`"""
    fired = sum(row.workers or 0 for row in report.hosts)
    text = f'Fired {counted(fired, "worker")} in project "{report.project}"'
    for row in report.hosts:
        if row.left:
            text += f"; {row.left} of their processes left on {row.name}"
    unknown = [row.name for row in report.hosts if row.left is None]
    if unknown:
        text += f"; not proven for {', '.join(unknown)}"
    return text + "."


def dispatch_summary(report: DispatchReport) -> str:
    """A sweep in one line.

    >>> dispatch_summary(DispatchReport("default", 10, 0, 0, 2.1))
    '10 jobs done, 0 failed, 2.1 s.'
    """
    parts = [f"{counted(report.done, 'job')} done", f"{report.failed} failed"]
    if report.retried:
        parts.append(f"{report.retried} retried")
    if report.left:
        parts.append(f"{report.left} left")
    took = f"{report.seconds:.1f} s" if report.seconds < 60 else duration(report.seconds)
    text = ", ".join([*parts, took]) + "."
    if report.halted:
        text += f" Halted: {report.halted}."
    if report.fired is not None:
        text += " " + fired_summary(report.fired)
    return text


def failures_table(report: DispatchReport, width: int | None = None) -> str:
    """The failed jobs by how they ended and their last line of stderr, each with an example.

    The empty text if none failed."""
    if not report.groups:
        return ""
    rows = [
        (
            str(group.count),
            group.ending,
            _short(group.stderr),
            f"{_short(group.example.label)} on {group.example.host}",
            _short(group.example.command),
        )
        for group in report.groups[:20]
    ]
    text = table(["jobs", "ended", "stderr", "example", "command"], rows, ("jobs",), width)
    more = sum(group.count for group in report.groups[20:])
    if more:
        text += f"\nand {counted(more, 'job')} that ended in other ways"
    return text


def status_table(report: StatusReport, width: int | None = None, now: float | None = None) -> str:
    """Counts in one line, then a row for each worker. now: seconds since the epoch."""
    lines = [
        f"{report.queued} queued, {report.running} running, {report.done} done, "
        f"{report.failed} failed"
    ]
    if report.claimed > report.running:
        lines[0] = lines[0].replace(
            " queued,", f" queued, {report.claimed - report.running} taken by workers,", 1
        )
    if report.dispatcher:
        lines.append(f"Dispatched by {clean(report.dispatcher)}")
    if report.order:
        lines.append(f"Order: {report.order}")
    if (report.queued or report.claimed) and not report.workers:
        lines.append("No workers are hired: inv hire")
    lines += [clean(note) for note in report.notes]
    if report.workers:
        rows = [
            (row.name, row.host, str(row.pid), row.state, row.job, _since(row.since, now), row.note)
            for row in report.workers
        ]
        columns = "worker host pid state job since note".split()
        lines += ["", table(columns, rows, ("pid",), width)]
    return "\n".join(lines)


def progress_line(progress: Progress) -> str:
    """A sweep in one line, for logs and beside a bar.

    >>> progress_line(Progress(89, 3, 2, 8, 1, 2, rate=4.0, eta=23.0))
    '90 queued, 2 running, 8 done, 1 failed, 2 workers, 4/s, about 23.0 s to go'
    """
    waiting = progress.queued + progress.claimed - progress.running  # taken is not begun
    parts = [
        f"{max(0, waiting)} queued",
        f"{progress.running} running",
        f"{progress.done} done",
        f"{progress.failed} failed",
        counted(progress.workers, "worker"),
    ]
    if progress.rate:
        parts.append(f"{progress.rate:.3g}/s")
    if progress.eta:
        parts.append(f"about {duration(progress.eta)} to go")
    return ", ".join(parts)


def record_line(record: JobRecord) -> str:
    """One job in one line, for people."""
    parts = [f"{clean(record.label)}: {record.ending}", duration(record.seconds)]
    if record.memory:
        parts.append(f"{size(record.memory)} at most")
    if record.tries > 1:
        parts.append(f"{record.tries} tries")
    return f"{', '.join(parts)}, {record.worker} on {record.host}: {clean(record.command)}"


# --- helpers -----------------------------------------------------------------------------------


def valid(text: str) -> str:
    """The text as any JSON parser reads it: bytes that are no UTF-8, which Python keeps as lone
    surrogates, become `\\xff` in letters.

    >>> valid("caf\\udce9")
    'caf\\\\xe9'
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shape(line: str) -> str:
    """A line without what differs between jobs that fail alike: numbers of two and more digits.

    >>> shape("open /tmp/a1/run-4711.txt: No such file")
    'open /tmp/a1/run-….txt: No such file'
    """
    import re

    return re.sub(r"(?:0x)?[0-9][0-9a-f]*[0-9](?:\.[0-9]+)*(?=\b|_)", "…", clean(valid(line)))


def some(items: Iterable[str], most: int = 5) -> str:
    """
    >>> some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    found = list(items)
    if len(found) <= most:
        return ", ".join(found)
    return f"{', '.join(found[:most])} and {len(found) - most} more"


def _short(text: str) -> str:
    text = clean(valid(text))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)


def _since(when: float, now: float | None) -> str:
    if not when:
        return ""
    if now is not None:
        return duration(max(0.0, now - when))
    return datetime.datetime.fromtimestamp(when).strftime("%Y-%m-%d %H:%M:%S")


def failure_groups(records: Sequence[JobRecord]) -> tuple[FailureGroup, ...]:
    found = Failures()
    for record in records:
        found.add(record)
    return found.groups()
