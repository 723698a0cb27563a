"""What jobs printed, folded into one value in job order."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from .errors import ReduceError, UsageError
from .job_report import JobRecord
from .reduction import default_reduce

Reduce = Callable[[Any, Any], Any]

_OPEN = 64  # files: one for each worker, of which there may be many


def reducer(given: Any) -> Reduce | None:
    """The function in what was given: a module, a function, or None. Raises UsageError."""
    if given is None:
        return None
    found = given if callable(given) else getattr(given, "reduce", default_reduce)
    if not callable(found):
        raise UsageError(f"reduce of {getattr(given, '__name__', given)!r} is no function")
    return found


def fold(reduce: Reduce, records: Iterable[JobRecord], outputs: Outputs) -> tuple[Any, int]:
    """(the value, of how many jobs): ((r1 + r2) + r3) + ..., of jobs that ended well and printed
    something. (None, 0) if there is none. Raises ReduceError."""
    value, count = None, 0
    with outputs:
        for record in records:
            if record.failed:
                continue
            data = outputs.read(record)
            if not data.strip():
                continue
            found = parsed(data)
            try:
                value = reduce(value, found) if count else found
            except Exception as error:  # whatever the user's reduce raises
                reason = getattr(error, "message", f"{type(error).__name__}: {error}")
                raise ReduceError(
                    f"what {record.label} printed does not fit: {reason}",
                    getattr(error, "hint", None) or f"see: inv logs {record.label}",
                ) from error
            count += 1
    return value, count


def parsed(data: bytes) -> Any:
    """JSON if it is that, else the text without the end of its last line.

    >>> parsed(b"[1, 2]\\n"), parsed(b"two words\\n")
    ([1, 2], 'two words')
    """
    text = data.decode("utf-8", "replace")
    try:
        return json.loads(text)
    except ValueError:
        return text.removesuffix("\n")


class Outputs:
    """The files in which jobs' outputs stand, many in one. Use as a context manager."""

    def __init__(self, root: str):
        self._root = root
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, record: JobRecord, stream: str = "out") -> bytes:
        """What the job wrote there; b"" if it is gone."""
        path, start, end = record.out if stream == "out" else record.err
        if end >= 0 and end <= start:
            return b""
        try:
            fd = self._file(os.path.join(self._root, path))
            if end < 0:
                end = os.fstat(fd).st_size
            parts = []
            while start < end and (part := os.pread(fd, end - start, start)):
                parts.append(part)
                start += len(part)
            return b"".join(parts)
        except OSError:
            return b""

    def _file(self, path: str) -> int:
        fd = self._open.pop(path, None)
        if fd is None:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._open[path] = fd
        if len(self._open) > _OPEN:
            os.close(self._open.popitem(last=False)[1])
        return fd

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, *error: object) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
