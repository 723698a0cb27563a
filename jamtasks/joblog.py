"""The joblog: a line per job in GNU parallel's columns, so that what reads those reads ours.

What GNU parallel writes where an end is not plainly one number (seen in its source, and tried):
died of a signal: Exitval 0, Signal that; ran too long: Exitval -1 (or what the job made of TERM),
Signal 15; a command that is not there: 127. A newline in a command is written as NUL, because a
job is one line. Jobs stand in the order in which they ended.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO

from .errors import UsageError
from .job_report import JobRecord

COLUMNS = "Seq Host Starttime JobRuntime Send Receive Exitval Signal Command".split()
HEADING = "\t".join(COLUMNS) + "\n"
_TERM = 15


@dataclass(frozen=True)
class Entry:
    """One line. seq: number of the job. began: seconds since the epoch."""

    seq: int
    host: str
    began: float
    seconds: float
    exit: int
    signal: int
    command: str
    sent: int = 0
    received: int = 0

    @property
    def failed(self) -> bool:
        """As GNU parallel's --resume-failed judges: both must be 0."""
        return self.exit != 0 or self.signal != 0


def write(entry: Entry) -> str:
    """The entry as a line with its end."""
    return (
        f"{entry.seq}\t{entry.host}\t{entry.began:.3f}\t{entry.seconds:10.3f}\t{entry.sent}"
        f"\t{entry.received}\t{entry.exit}\t{entry.signal}\t{_one_line(entry.command)}\n"
    )


def _one_line(command: str) -> str:
    return command.replace("\n", "\0")


def read(lines: Iterable[str], name: str = "joblog") -> Iterator[Entry]:
    """The entries of a joblog, with or without its heading. A last line without its end is left
    out: who wrote it was stopped. Raises UsageError that names the line."""
    for number, line in enumerate(lines, 1):
        parts = line.rstrip("\n").split("\t", len(COLUMNS) - 1)
        if number == 1 and parts == COLUMNS:
            continue
        if not line.endswith("\n"):
            return
        try:
            seq, host, began, seconds, sent, received, status, signal, command = parts
            yield Entry(
                int(seq), host, float(began), float(seconds), int(status), int(signal),
                command.replace("\0", "\n"), int(sent), int(received),
            )  # fmt: skip
        except ValueError:
            raise UsageError(
                f"{name}, line {number} is none of a joblog: {line[:80].rstrip()!r}",
                f"its columns are {' '.join(COLUMNS)}, with tabs between",
            ) from None


@dataclass
class Numbers:
    """The numbers of jobs from several submissions in one joblog: each only once.

    The first submission keeps its own; each further one follows behind, and so do dropped files."""

    _first: dict[str, int] = field(default_factory=dict)
    _next: int = 1

    def skip(self, seq: int) -> None:
        """This number is taken."""
        self._next = max(self._next, seq + 1)

    def seq(self, submission: str, number: int, total: int) -> int:
        """total: jobs of that submission."""
        first = self._first.get(submission)
        if first is None:
            first = self._next
            self._next += max(total, number, 1)
            if total > 1:  # of a single job there is nothing to come back to
                self._first[submission] = first
        return first + number - 1


def entry(record: JobRecord, numbers: Numbers) -> Entry:
    """What GNU parallel would have written of this job."""
    status, signal = record.exit, record.signal
    if record.reason == "timeout":
        status, signal = (status if status > 0 else -1), signal or _TERM
    elif record.reason == "spawn":
        status = status if status > 0 else 127
    elif record.reason == "lost":
        status = -1
    elif signal:
        status = 0
    return Entry(
        numbers.seq(record.submission, record.number, record.total),
        record.host,
        record.began,
        record.seconds,
        status,
        signal,
        record.command,
    )


# --- files -------------------------------------------------------------------------------------


class JobLog:
    """A joblog that is being written. append: what stands there stays, and is not written again."""

    def __init__(self, path: str, append: bool):
        if path.startswith("+"):  # as in GNU parallel
            path, append = path[1:], True
        self._numbers = Numbers()
        self._there: set[tuple[str, str, str]] = set()
        try:
            if append and os.path.exists(path):
                for old in read_file(path):
                    self._there.add(_identity(old))
                    self._numbers.skip(old.seq)
                _end_last_line(path)
            self._file: IO[str] = open(  # noqa: SIM115 (closed by close)
                path,
                "a" if append else "w",
                encoding="utf-8",
                errors="surrogateescape",
                newline="\n",
            )
            if self._file.tell() == 0:
                self._file.write(HEADING)
                self._file.flush()
        except OSError as error:
            raise UsageError(f"the joblog {path} cannot be written: {error.strerror}") from None

    def add(self, record: JobRecord) -> None:
        made = entry(record, self._numbers)
        if not self._there or _identity(made) not in self._there:
            self._file.write(write(made))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _end_last_line(path: str) -> None:
    """Cut off what is left of a line whose writer was stopped."""
    with open(path, "r+b") as handle:
        end = handle.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 4096)
            handle.seek(start)
            found = handle.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        handle.truncate(end)


def read_file(path: str) -> Iterator[Entry]:
    """Raises OSError, UsageError."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as handle:
        yield from read(handle, path)


def _identity(entry: Entry) -> tuple[str, str, str]:
    return entry.host, f"{entry.began:.3f}", entry.command
