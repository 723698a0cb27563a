"""What happened, as frozen records, and their forms: one line, a table, JSON. Strings only.

Whatever a host says about itself passes `clean`: a host must not be able to move the cursor or
recolour the terminal of the person who looks at a table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# --- records -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FailedSlice:
    """A slice without an answer. type: name of the exception. traceback: the remote one, as text.

    host: where it was tried last."""

    slice: int
    host: str
    type: str
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class HostReport:
    """One host in a run. state: "up", "lost" (it answered, then no more), "unreachable", or
    another word that its note explains.

    tasks: answers that came from it. bytes_sent: bytes of data, code and long params (above 32
    KiB; shorter ones travel with the call) sent to it. bytes_cached: of these it had already."""

    name: str
    state: str
    workers: int
    python: str
    numpy: str
    tasks: int
    bytes_sent: int
    bytes_cached: int
    note: str = ""


@dataclass(frozen=True)
class RunReport:
    """One map call. slices: how many calls of mapfunc it took, retries not counted.

    hosts: all that were asked for, also those that never answered. failed: slices without an
    answer, in slice order; only `keep_going` lets a run end with some."""

    slices: int
    workers: int
    hosts: tuple[HostReport, ...]
    seconds: float
    bytes_sent: int
    bytes_cached: int
    retried: int
    notes: tuple[str, ...] = ()
    failed: tuple[FailedSlice, ...] = ()

    def json(self, result: Any) -> dict[str, Any]:
        """The one value of `inv map --json`. `failed` is there only if something failed."""
        value: dict[str, Any] = {
            "result": jsonable(result),
            "slices": self.slices,
            "workers": self.workers,
            "seconds": round(self.seconds, 6),
            "bytes_sent": self.bytes_sent,
            "bytes_cached": self.bytes_cached,
            "retried": self.retried,
            "hosts": [asdict(host) for host in self.hosts],
        }
        if self.failed:
            value["failed"] = [asdict(failed) for failed in self.failed]
        return value


@dataclass(frozen=True)
class BootstrapRow:
    """One host after `inv bootstrap`. payload: "sent", "present" or "" if it never came to that."""

    name: str
    state: str
    python: str = ""
    implementation: str = ""
    numpy: str = ""
    cpus: int = 0
    workers: int = 0
    payload: str = ""
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class BootstrapReport:
    hosts: tuple[BootstrapRow, ...]

    def json(self) -> dict[str, Any]:
        return {"hosts": [{**asdict(row), "seconds": round(row.seconds, 6)} for row in self.hosts]}


@dataclass(frozen=True)
class FireRow:
    """What `inv fire` did on one host. ended: agents and job workers. left: processes that would
    not end. workers: how many of the ended were job workers.

    All are None where the host could not be asked: nothing is proven there, `note` says why."""

    name: str
    ended: int | None
    left: int | None
    note: str = ""
    workers: int | None = 0

    @property
    def clean(self) -> bool:
        return self.left == 0


@dataclass(frozen=True)
class FireReport:
    project: str
    hosts: tuple[FireRow, ...]

    def json(self) -> dict[str, Any]:
        rows = [{"name": row.name, "ended": row.ended, "left": row.left} for row in self.hosts]
        return {"project": self.project, "hosts": rows}


# --- units -------------------------------------------------------------------------------------

_SIZES = ("kB", "MB", "GB", "TB", "PB")


def size(count: float) -> str:
    """A number of bytes for people, in powers of 1000.

    >>> size(0), size(999), size(2_100_000), size(999_999)
    ('0 B', '999 B', '2.1 MB', '1.0 MB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    value = float(count)
    for unit in _SIZES:
        value /= 1000
        if value < 99.95:
            return f"{value:.1f} {unit}"
        if value < 999.5 or unit == _SIZES[-1]:
            return f"{value:.0f} {unit}"
    raise AssertionError  # the last unit returns


def duration(seconds: float) -> str:
    """A time span for people.

    >>> duration(0.0004), duration(0.314), duration(12.34), duration(75), duration(7500)
    ('0.4 ms', '0.31 s', '12.3 s', '1 min 15 s', '2 h 5 min')
    """
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def counted(count: int, noun: str) -> str:
    """
    >>> counted(1, "slice"), counted(0, "host")
    ('1 slice', '0 hosts')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# All C0 and C1 controls but tab and newline, which `clean` turns into spaces.
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """The text as one line without control characters.

    >>> clean("\\x1b[31mred\\x1b[0m and\\n  blue")
    'red and blue'
    """
    return " ".join(_CONTROLS.sub("", text).split())


# --- text --------------------------------------------------------------------------------------


def summary(report: RunReport) -> str:
    """A run in one line.

    A host counts if it was up at some time in this run."""
    used = [host for host in report.hosts if host.state == "up" or host.tasks]
    parts = [
        f"{size(report.bytes_sent)} sent",
        f"{size(report.bytes_cached)} already there",
        f"{report.retried} retried",
    ]
    if report.failed:
        parts.append(f"{len(report.failed)} failed")
    return (
        f"{counted(report.slices, 'slice')} on {counted(len(used), 'host')}"
        f" ({counted(report.workers, 'worker')}) in {duration(report.seconds)}; " + ", ".join(parts)
    )


def run_notes(report: RunReport) -> list[str]:
    """What the user should know beyond the summary, one line each: hosts that are not well, notes
    of hosts, notes of the run."""
    notes = [clean(note) for note in report.notes]
    lines = []
    for host in report.hosts:
        if f"{host.name} was lost: {clean(host.note)}" in notes:
            continue
        if host.state != "up":
            reason = clean(host.note).removeprefix(f"{host.name}: ")
            lines.append(f"{host.name} ({host.state}): {reason}".rstrip(": "))
        elif host.note:
            lines.append(f"{host.name}: {clean(host.note)}")
    return lines + notes


def failures(failed: Sequence[FailedSlice]) -> list[str]:
    """What failed, grouped by error, most frequent first, and one traceback as an example."""
    groups: dict[tuple[str, str], list[FailedSlice]] = {}
    for item in failed:
        groups.setdefault((item.type, clean(item.message)), []).append(item)
    lines = []
    for (kind, message), items in sorted(groups.items(), key=lambda pair: -len(pair[1])):
        where = ", ".join(sorted({item.host for item in items if item.host}))
        numbers = _some([str(item.slice) for item in items], 8)
        what = f"{kind}: {message}" if message else kind
        plural = "slice" if len(items) == 1 else "slices"
        lines.append(f"{plural} {numbers}{' on ' + where if where else ''}: {what}")
    example = next((item for item in failed if item.traceback), None)
    if example:
        lines.append(f"slice {example.slice} on {example.host}, in full:")
        lines += ["  " + _CONTROLS.sub("", line) for line in example.traceback.splitlines()]
    return lines


def _some(items: Sequence[str], most: int) -> str:
    """
    >>> _some(["1", "2", "3"], 2)
    '1, 2 and 1 more'
    """
    if len(items) <= most:
        return ", ".join(items)
    return f"{', '.join(items[:most])} and {len(items) - most} more"


def bootstrap_table(report: BootstrapReport, width: int | None = None) -> str:
    rows = [
        (
            row.name,
            row.state,
            f"{row.implementation} {row.python}".replace("CPython ", "").strip(),
            row.numpy if row.numpy or row.state != "up" else "none",
            str(row.cpus or ""),
            str(row.workers or ""),
            row.payload,
            f"{row.seconds:.2f}" if row.seconds else "",
            row.note,
        )
        for row in report.hosts
    ]
    columns = "host state python numpy cpus workers payload seconds note".split()
    return table(columns, rows, right=("cpus", "workers", "seconds"), width=width)


def fire_table(report: FireReport, width: int | None = None) -> str:
    rows = [
        (
            row.name,
            "?" if row.ended is None else str(row.ended),
            "not proven" if row.left is None else str(row.left),
            row.note,
        )
        for row in report.hosts
    ]
    return table(["host", "ended", "left", "note"], rows, right=("ended",), width=width)


def fire_summary(report: FireReport) -> str:
    """One line: what ended, and whether nothing is left."""
    fired = sum(row.workers or 0 for row in report.hosts)
    ended = sum(row.ended or 0 for row in report.hosts) - fired
    what = [f"fired {counted(fired, 'worker')}"] if fired else []
    what += [f"ended {counted(ended, 'agent')}"] if ended else []
    unknown = [row.name for row in report.hosts if row.left is None]
    left = {row.name: row.left for row in report.hosts if row.left}
    text = " and ".join(what) or "nothing ran"
    parts = [f'{text[0].upper()}{text[1:]} in project "{report.project}"']
    if left:
        parts += [f"{count} of their processes left on {name}" for name, count in left.items()]
    elif len(unknown) < len(report.hosts):
        proven = len(report.hosts) - len(unknown)
        parts.append("nothing is left" + (f" on {counted(proven, 'host')}" if unknown else ""))
    if unknown:
        parts.append(f"not proven for {', '.join(unknown)}")
    return "; ".join(parts) + "."


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Iterable[str] = (),
    width: int | None = None,
) -> str:
    """Columns in capitals, no lines; empty columns are left out.

    width: of the terminal: long last columns wrap there. None: nothing wraps, for pipes and files.
    """
    import io

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[clean(cell) for cell in row] for row in rows]
    keep = [i for i, name in enumerate(columns) if i == 0 or any(row[i] for row in cells)]
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for i in keep:
        drawn.add_column(
            Text(columns[i].upper()),  # not markup: a note may hold [brackets]
            justify="right" if columns[i] in right else "left",
            no_wrap=width is None or i != keep[-1],
            overflow="fold",
        )
    for row in cells:
        drawn.add_row(*(Text(row[i]) for i in keep))
    out = io.StringIO()
    Console(file=out, width=width or 10_000, color_system=None, force_terminal=False).print(drawn)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


# --- JSON --------------------------------------------------------------------------------------


_SURROGATES = re.compile(r"[\ud800-\udfff]")


def dumps(value: Any, *, ascii: bool = False) -> str:
    """One JSON value for programs, in one line, readable by any parser (no bare NaN).

    UTF-8 can hold it: lone surrogates, which stand for bytes of files in other encodings, are
    escaped. ascii: so are all other characters that ASCII does not have.
    """
    text = json.dumps(value, ensure_ascii=ascii, allow_nan=False)
    return _SURROGATES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def jsonable(value: Any) -> Any:
    """The value as what JSON can hold.

    Arrays become nested lists, tuples and sets lists (sets in sorted order), bytes
    {"base64": ...}, complex numbers {"real": ..., "imag": ...}; NaN and infinities the strings
    "NaN", "Infinity", "-Infinity", which Python's float() and JavaScript's Number() read; dates
    ISO text; a mapping whose keys are not all text a list of [key, value] pairs; anything else
    its str().

    >>> jsonable({1: (2, {3}), "a": b"x"})
    [[1, [2, [3]]], ['a', {'base64': 'eA=='}]]
    """
    if value is None or isinstance(value, (bool, str)):
        return str(value) if type(value) is not str and isinstance(value, str) else value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _number(float(value))
    if isinstance(value, complex):
        return {"real": _number(value.real), "imag": _number(value.imag)}
    if isinstance(value, (bytes, bytearray, memoryview)):
        import base64

        return {"base64": base64.b64encode(bytes(value)).decode("ascii")}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {str(key): jsonable(item) for key, item in value.items()}
        return [[jsonable(key), jsonable(item)] for key, item in value.items()]
    if isinstance(value, (set, frozenset)):
        return sorted((jsonable(item) for item in value), key=_order)
    if isinstance(value, (list, tuple, range)):
        return [jsonable(item) for item in value]
    if hasattr(value, "dtype"):
        return _array(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value)


def _array(value: Any) -> Any:
    """An array or array scalar: lists as deep as it has dimensions."""
    import numpy

    if value.dtype.kind in "mM":
        value = value.astype(str)  # tolist() makes bare integers of nanoseconds
    plain = value.tolist()
    whole = value.dtype.kind in "biuU" or (value.dtype.kind == "f" and numpy.isfinite(value).all())
    return plain if whole else jsonable(plain)


def _number(value: float) -> float | str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _order(value: Any) -> tuple[str, Any]:
    """Numbers by size, then the rest by its text: elements of one set need not compare."""
    if isinstance(value, (int, float)):
        return ("", value)
    return (type(value).__name__, json.dumps(value, sort_keys=True, default=str))
