"""What jobs and workers wrote, and the screens of workers: `inv logs`, `inv attach`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from . import job_report, screens
from .console import note, stdout_may_close
from .errors import UsageError
from .report import clean, duration

if TYPE_CHECKING:
    from .job_report import JobRecord, WorkerRow
    from .project import Project

_WORKER = re.compile(r"(?:(?P<host>.+)-)?w(?P<number>[0-9]{1,4})\Z")
_LOOK_EVERY = 0.2  # seconds, at a file that grows
_ASK_EVERY = 2.0  # seconds, whether a job still runs
_NO_SCREEN = 65  # exit code of the line below
# All of it means the same within single quotes in sh, csh and fish. The space behind the name tells
# w1 from w12; screen itself takes the beginning of a name for the name.
_JOIN = (
    "exec sh -c '"
    's=$(screen -ls 2>/dev/null | grep -o "[0-9][0-9]*[.]{name}[[:space:]]" | head -n 1); '
    'test -n "$s" || exit {code}; exec screen -x $s\''
)


def show(project: Project, name: str | None, stream: str, follow: bool) -> int:
    """Print what the job or worker of that name wrote. Raises UsageError if there is none."""
    if name is None:
        raise UsageError("which? Name a job or a worker", _known(project))
    if _WORKER.fullmatch(name) and (paths := project.logs(name)):
        return _print_files(paths, follow)
    now = [record for record in project.running() if _is_called(record, name)]
    if now:
        record = max(now, key=lambda record: record.began)
        note(f"{clean(record.label)} runs: {record.worker} on {record.host}, "
             f"{duration(record.seconds)}: {clean(record.command)}")  # fmt: skip
        if follow:
            path, start, _ = record.out if stream == "out" else record.err
            _follow(os.path.join(project.path, path), start, _Ended(project, record))
        else:
            _write(project.output(record, stream))
        return 0
    found = project.find(name)
    if found is None:
        raise UsageError(f"no job {name!r} runs or has ended, and no worker is called so",
                         _known(project))  # fmt: skip
    note(job_report.record_line(found))
    _write(project.output(found, stream))
    return 0


def _is_called(record: JobRecord, name: str) -> bool:
    return name in ((record.name,) if record.name else (record.label, str(record.number)))


class _Ended:
    """Whether a job that ran has ended; looked up now and then."""

    def __init__(self, project: Project, record: JobRecord):
        self._project = project
        self._record = record
        self._next = 0.0

    def __call__(self) -> bool:
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + _ASK_EVERY
        this = self._record
        return not any(
            (record.submission, record.number, record.owner)
            == (this.submission, this.number, this.owner)
            for record in self._project.running()
        )


def attach(project: Project, name: str | None, hosts_file: str | None) -> int:
    """Join the screen of a worker, or follow its log. Raises UsageError for an unknown name."""
    from . import settings

    row = _worker(project, name)
    host = settings.load(hosts_file).select(row.label or row.host)[0]
    session = screens.name(project.name, int(row.name.removeprefix("w")))
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to join", f"see: inv logs {row.name} --follow")
    if host.transport == "local":
        code = _join_here(session)
    else:
        from .transport import Attempt
        from .transport.openssh import OpensshConnection

        line = _JOIN.format(name=session.replace(".", "[.]"), code=_NO_SCREEN)
        connection = OpensshConnection(host, settings.load(hosts_file), Attempt(host.label))
        code = subprocess.call(connection.terminal(line))
    if code != _NO_SCREEN:
        return 1 if code else 0
    note(f"{row.name} on {row.host} has no screen; this is its log (Ctrl-C ends it)")
    return _print_files(project.logs(f"{row.host}-{row.name}"), follow=True)


def _join_here(session: str) -> int:
    if shutil.which("screen") is None:
        return _NO_SCREEN
    listed = subprocess.run(screens.listing(), capture_output=True, text=True, check=False).stdout
    for found in screens.parse(listed):
        if found.name == session and found.alive:
            return subprocess.call(["screen", "-x", found.full_name])
    return _NO_SCREEN


# --- names -------------------------------------------------------------------------------------


def _worker(project: Project, name: str | None) -> WorkerRow:
    """The worker of that name, `w3` or `lab1-w3`. Raises UsageError that names those there are."""
    rows = project.status().workers
    match = _WORKER.fullmatch(name or "")
    found = [
        row
        for row in rows
        if match
        and row.name == f"w{match['number']}"
        and match["host"] in (None, row.host, row.label)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        places = ", ".join(f"{row.host}-{row.name}" for row in found)
        raise UsageError(f"{name} is on {len(found)} hosts", f"say which: {places}")
    if not rows:
        raise UsageError(f'project "{project.name}" has no workers', "hire some: inv hire")
    what = "which worker?" if name is None else f"no worker is called {clean(name)!r}"
    raise UsageError(what, _known(project))


def _known(project: Project) -> str:
    """What could be named."""
    rows = project.status().workers
    if not rows:
        return f'project "{project.name}" has no workers now; jobs go by number or file name'
    many = len({row.host for row in rows}) > 1
    names = [f"{row.host}-{row.name}" if many else row.name for row in rows]
    busy = [
        f"{name} ({row.job})" if row.job else name for name, row in zip(names, rows, strict=True)
    ]
    return f"workers: {', '.join(clean(text) for text in busy)}"


# --- files -------------------------------------------------------------------------------------


def _print_files(paths: Sequence[str], follow: bool) -> int:
    """The files one after the other; with follow, the last of them to change as it grows."""
    paths = sorted(paths, key=_changed)
    for path in paths[:-1] if follow else paths:
        if len(paths) > 1:
            note(f"==> {path}")
        with open(path, "rb") as handle:
            _write(handle.read())
    if follow:
        _follow(paths[-1], 0, lambda: False)
    return 0


def _follow(path: str, start: int, ended: Callable[[], bool]) -> None:
    """Print what is in the file from start on, and what comes, until ended()."""
    while True:
        over = ended()  # asked before the last look, so that nothing is left out
        try:
            with open(path, "rb") as handle:
                handle.seek(start)
                data = handle.read()
        except FileNotFoundError:
            data = b""  # nothing was written yet
        start += len(data)
        _write(data)
        if over:
            return
        time.sleep(_LOOK_EVERY)


def _write(data: bytes) -> None:
    """As it is: a terminal shows what the job meant it to show."""
    with stdout_may_close():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _changed(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
