"""What was run before need not run again: jobs by their content, whatever their number."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable

from worker_payload import layout
from worker_payload.jobs import commands, names
from worker_payload.jobs.lines import Plan

from . import joblog
from .errors import UsageError
from .ledger import Ledger, content_of_job
from .submission import Submission


def add_new(
    submission: Submission,
    ledger: Ledger,
    plan: Plan,
    rows: Iterable[list[str]],
    priority: int,
    *,
    failed_again: bool,
    log: str | os.PathLike[str] | None,
) -> int:
    """Add the jobs that were not run before, by the project's ledger or by a joblog, and do not
    wait; how many were left out. failed_again: those count as not run that failed last."""
    known = known_contents(ledger, failed_again)
    shown = known_commands(log, failed_again)
    keeps = depends_on_number(plan)
    skipped = 0
    for number, row in enumerate(rows, 1):
        if content_of_job(plan, row, number) in known or (
            shown and commands.shown(plan, row, number) in shown
        ):
            skipped += 1
        else:
            submission.add(plan, [row], priority, number if keeps else None)
    return skipped


def add_failed(submission: Submission, ledger: Ledger) -> None:
    """Add all jobs of the project whose last run failed, in job order."""
    found: dict[bytes, tuple[Plan, list[str], int, int]] = {}
    for plan, params, number, state, priority in ledger.contents():
        key = content_of_job(plan, params, number)
        found.pop(key, None)
        if state == "failed":
            found[key] = plan, params, number, priority
    for plan, params, number, priority in found.values():
        plan = plan._replace(submission="", first=1, total=1)
        keeps = depends_on_number(plan)
        submission.add(plan, [params], priority, number if keeps else None)


def drop_failed(root: str, ledger: Ledger) -> int:
    """Put dropped files back into the queue whose last run failed; how many. Left out are those of
    whose name one waits there."""
    return sum(_drop_again(root, name, path) for name, path in list(ledger.failed_files()))


def known_contents(ledger: Ledger, failed_again: bool) -> set[bytes]:
    """Of all jobs of the project that need not be run."""
    found: set[bytes] = set()
    for plan, params, number, state, _ in ledger.contents():
        key = content_of_job(plan, params, number)
        if state == "failed" and failed_again:
            found.discard(key)
        else:
            found.add(key)
    return found


def known_commands(path: str | os.PathLike[str] | None, failed_again: bool) -> set[str]:
    """The commands in a joblog that need not run; none without a file. Raises UsageError."""
    if path is None:
        return set()
    name = os.fspath(path).removeprefix("+")
    found: set[str] = set()
    try:
        for entry in joblog.read_file(name):
            if entry.failed and failed_again:
                found.discard(entry.command)
            else:
                found.add(entry.command)
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise UsageError(f"the joblog {name} cannot be read: {error.strerror}") from None
    return found


def depends_on_number(plan: Plan) -> bool:
    """Whether a job's number is a part of what it does."""
    return any("{#" in text for text in (*plan.words, plan.logfile))


def _drop_again(root: str, name: str, path: str) -> bool:
    """Put a dropped file back into the queue. False: one of its name waits there, or it is gone."""
    target = os.path.join(root, names.dropped(name))
    aside = os.path.join(root, names.QUEUE, "." + layout.aside("again"))
    try:
        shutil.copy2(os.path.join(root, path), aside)
        os.link(aside, target)
        return True
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            os.unlink(aside)
