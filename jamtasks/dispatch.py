"""The dispatcher: looks, lets the sweep decide, does it. Owns nothing: it may die at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from worker_payload.jobs import names, steps
from worker_payload.jobs.files import Files, Trouble

from . import joblog
from .errors import JamError
from .job_report import Failures, HireReport, Progress, valid
from .ledger import Counts, Ledger, Look
from .report import FireReport, counted
from .sweep import (
    NETWORK_WAIT,
    AllEnded,
    Halt,
    Publish,
    Rate,
    Refill,
    Say,
    Sight,
    Stop,
    Sweep,
    Take,
    complaints_in,
)

_PAUSES = {False: (0.05, 1.0), True: (1.0, 3.0)}  # seconds between looks; by "is a network"
_QUIET_SHARE = 0.1  # of the time since something changed: the pause until the next look
_COST_SHARE = 10  # times what a look took: the shortest pause
_HEARTS_EVERY = 10.0
_HEARTS_FIRST = 1.0  # while nobody is there: whoever is hired now shall be seen soon
_BEAT_EVERY = 5.0
_PRESUMED_DEAD = 20.0  # a dispatcher that has not said anything for so long
_HIRING_ENDS = 90.0
_QUIET = 1.0  # two looks at an empty folder are enough for one who only watches


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to, before anything is reduced, fired or moved."""

    counts: Counts
    seconds: float
    failures: Failures
    halted: str = ""
    notes: tuple[str, ...] = ()
    fired: FireReport | None = None
    watched: bool = False


@dataclass
class Crew:
    """How workers are hired and fired. wanted: {label: count}."""

    wanted: Callable[[], dict[str, int]]
    hire: Callable[[str, int], HireReport]
    fire: Callable[[bool], FireReport]


class Dispatcher:
    """Runs one sweep. ended: called once, when all jobs have ended for the first time."""

    def __init__(
        self,
        files: Files,
        project: str,
        crew: Crew,
        *,
        halt: Halt,
        lease: float,
        keep: bool = False,
        log: joblog.JobLog | None = None,
        progress: Callable[[Progress], None] | None = None,
        say: Callable[[str], None] | None = None,
        ended: Callable[[Outcome], None] | None = None,
    ):
        self.ledger = Ledger(files)
        self._files = files
        self._crew = crew
        self._sweep = Sweep(project, halt, network=files.network, keep=keep, lease=lease)
        self._hearts_every = min(_HEARTS_EVERY, lease / 9)
        self._hearts_at = -1e9
        self._keep = keep
        self._log = log
        self._progress = progress or (lambda progress: None)
        self._say = say or (lambda text: None)
        self._ended = ended
        self._rate = Rate()
        self._failures = Failures()
        self._notes: list[str] = []
        self._began = time.monotonic()
        self._stopping: tuple[threading.Thread, str] | None = None
        self._fired: FireReport | None = None
        self._hiring: list[threading.Thread] = []
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._here = Here(files.root, keep)

    def run(self) -> Outcome:
        """Until all has ended; with keep, until somebody interrupts."""
        outcome = self._watch()
        if outcome is not None:
            return outcome
        try:
            self._here.beat(self._began)  # before the first look, which may be the last one
            self._files.run(steps.publish_all())
            with contextlib.suppress(Trouble):
                self._files.tidy()
            outcome = self._loop()
            self._here.leave(outcome.counts)
            return outcome
        finally:
            self._here.leave()

    def finish(self) -> None:
        """Wait for what is being hired: nobody must be hired after all were fired."""
        deadline = time.monotonic() + _HIRING_ENDS
        for thread in self._hiring:
            thread.join(max(0.0, deadline - time.monotonic()))

    # --- the loop ------------------------------------------------------------------------------

    def _loop(self) -> Outcome:
        changed = time.monotonic()
        told = False
        while True:
            began = time.monotonic()
            try:
                look = self.ledger.look()
                outcome = self._step(look, began)
            except Trouble as error:  # the file server is not well; the next look tells more
                self._tell(f"The project's folder cannot be read: {error}")
                look, outcome = None, None
            if outcome is not None:
                if not self._keep or outcome.halted:
                    return outcome
                if not told and self._ended is not None:
                    told = True
                    self._ended(outcome)
            now = time.monotonic()
            if look is None or look.changed:
                changed = now
            self._here.beat(now)
            shortest, longest = _PAUSES[self._files.network]
            pause = min(longest, max(shortest, (now - changed) * _QUIET_SHARE))
            time.sleep(max(pause, _COST_SHARE * (now - began) if look else 0.0))

    def _step(self, look: Look, now: float) -> Outcome | None:
        sight = Sight(now, look)
        often = self._hearts_every if self._sweep.workers else _HEARTS_FIRST
        if now - self._hearts_at >= often:
            self._hearts_at = now
            sight = replace(sight, hearts=self.ledger.heartbeats(), hired=self._crew.wanted())
        actions = self._sweep.see(sight)
        self._record(look)
        while not self._answers.empty():
            self._tell(self._answers.get())
        counts = self._sweep.counts(look)
        self._show(counts, now)
        for action in actions:
            if isinstance(action, AllEnded):
                if action.removed:
                    jobs = counted(action.removed, "job")
                    self._notes.append(f"Somebody removed {jobs} from the project's folder")
                if self._stopping is None:
                    return self._outcome(counts)
            else:
                self._do(action)
        return self._halted(counts)

    def _do(self, action: Take | Refill | Publish | Say | Stop | AllEnded) -> None:
        if isinstance(action, Say):
            self._tell(action.text)
        elif isinstance(action, Take):
            self._files.run(steps.sweep(action.claim, names.new_cut()))
        elif isinstance(action, Publish):
            self._files.run(steps.publish_all())
        elif isinstance(action, Refill):
            self._thread(self._refill, action.label, action.count)
        elif isinstance(action, Stop):
            self._tell(f"Halting: {action.why}.")
            self._stopping = self._thread(self._stop, action.soon), action.why

    def _thread(self, target: Callable[..., None], *args: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, daemon=True, name="dispatch")
        thread.start()
        self._hiring = [*(old for old in self._hiring if old.is_alive()), thread]
        return thread

    def _refill(self, label: str, count: int) -> None:
        try:
            (row,) = self._crew.hire(label, count).hosts
        except JamError as error:
            self._answers.put(f"Workers are missing on {label}, and hiring failed: {error.message}")
            return
        if row.hired is None:
            self._answers.put(f"Workers are missing on {label}, and hiring failed: {row.note}")
        elif row.hired:
            self._answers.put(f"Hired anew on {label}: {row.hired}.")
        else:
            self._sweep.none_was_missing(label)

    def _stop(self, soon: bool) -> None:
        try:
            self._fired = self._crew.fire(soon)
        except JamError as error:
            self._answers.put(f"The workers could not be fired: {error.message}")

    def _halted(self, counts: Counts) -> Outcome | None:
        if self._stopping is None or self._stopping[0].is_alive():
            return None
        look = self.ledger.look()  # what they committed in their last moments
        self._record(look)
        counts = self._sweep.counts(look)
        return replace(self._outcome(counts), halted=self._stopping[1], fired=self._fired)

    # --- what is told --------------------------------------------------------------------------

    def _record(self, look: Look) -> None:
        for pod, failed in look.settled:
            if not failed and self._log is None:
                continue
            for record in self.ledger.records(pod):
                if self._log is not None:
                    self._log.add(record)
                if record.failed:
                    self._failures.add(record)
        if self._log is not None:
            self._log.flush()

    def _show(self, counts: Counts, now: float) -> None:
        ended = counts.done + counts.failed
        rate = self._rate.see(now, ended)
        left = counts.queued + counts.claimed
        self._progress(
            Progress(
                counts.queued,
                counts.claimed,
                counts.running,
                counts.done,
                counts.failed,
                sum(row.state != "silent" for row in self._sweep.workers),
                rate,
                left / rate if rate else None,
                now - self._began,
            )
        )

    def _tell(self, text: str) -> None:
        self._say(valid(text))

    def _outcome(self, counts: Counts) -> Outcome:
        self._failures.kept.sort(key=lambda record: (record.submission, record.number))
        return Outcome(
            counts, time.monotonic() - self._began, self._failures, notes=tuple(self._notes)
        )

    # --- another dispatcher --------------------------------------------------------------------

    def _watch(self) -> Outcome | None:
        """Look on while another dispatcher runs; None when there is none. The outcome is what it
        reported or, of one that does not end, what there is when all jobs have ended."""
        told = self._here.other()
        if told is None:
            return None
        self._tell(
            f"{told['host']} (process {told['pid']}) dispatches this project already; watching it"
        )
        last, since, quiet = told, time.monotonic(), None
        while True:
            time.sleep(1.0)
            now = time.monotonic()
            told = self._here.read()
            if told.get("state") == "ended" and told.get("nonce") == last.get("nonce"):
                counts = Counts(*(int(told.get(key, 0)) for key in Counts.__dataclass_fields__))
                return Outcome(counts, now - self._began, self._failures, watched=True)
            if told != last:
                last, since = told, now
            if now - since > _PRESUMED_DEAD or self._here.other() is None:
                self._tell(f"The dispatcher on {last.get('host')} is gone; going on in its place")
                return None
            with contextlib.suppress(Trouble):
                look = self.ledger.look()
                self._record(look)
                self._show(look.counts, now)
                waits = look.dropped - complaints_in(self.ledger.heartbeats()).keys()
                quiet = (quiet or now) if look.empty and not waits else None
                wait = NETWORK_WAIT if self._files.network else _QUIET
                if told.get("keep") and quiet is not None and now - quiet >= wait:
                    return replace(self._outcome(look.counts), watched=True)


class Here:
    """The file that says who dispatches."""

    def __init__(self, root: str, keep: bool = False):
        self._path = os.path.join(root, names.DISPATCHER)
        self._told: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "start": _started(os.getpid()),
            "nonce": names.new_ticket(),
            "since": round(time.time(), 3),
            "state": "running",
            "keep": keep,
            "beats": 0,
        }
        self._next = 0.0

    def read(self) -> dict[str, Any]:
        try:
            with open(self._path, "rb") as handle:
                told = json.loads(handle.read().decode("ascii"))
        except (OSError, ValueError):
            return {}
        return told if isinstance(told, dict) else {}

    def other(self) -> dict[str, Any] | None:
        """What another dispatcher says that may be alive; None if there is none."""
        told = self.read()
        if told.get("state") != "running" or told.get("nonce") == self._told["nonce"]:
            return None
        if told.get("host") == self._told["host"]:
            pid = told.get("pid")
            if not isinstance(pid, int) or _started(pid) != told.get("start"):
                return None
        return told

    def beat(self, now: float) -> None:
        if now >= self._next:
            self._next = now + _BEAT_EVERY
            self._told["beats"] += 1
            self._write()

    def leave(self, counts: Counts | None = None) -> None:
        """Say that nobody dispatches any more; with counts, how it ended."""
        if self._told["state"] == "ended" or self.read().get("nonce") != self._told["nonce"]:
            return
        if counts is not None:
            self._told.update(vars(counts), state="ended", ended=round(time.time(), 3))
            self._write()
        else:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def _write(self) -> None:
        data = json.dumps(self._told).encode("ascii").ljust(511) + b"\n"
        with contextlib.suppress(OSError):  # a courtesy, no more
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(fd, data, 0)
            finally:
                os.close(fd)


def _started(pid: int) -> str:
    """When a process of this machine started, as the kernel counts; "" if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as handle:
            return handle.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError):
        return ""
    return "?"
