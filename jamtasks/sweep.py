"""What a dispatcher decides, and when; no I/O, no clock.

It is shown one look at the folder after the other, each with its time, and answers with what is to
be done. So invented histories test it in microseconds.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from worker_payload.jobs import names
from worker_payload.jobs.leases import Leases
from worker_payload.jobs.names import Pod

from .errors import UsageError
from .job_report import WorkerRow, some
from .ledger import Counts, Look
from .report import counted

LEASE = 90.0  # seconds of silence after which a worker's claims are taken from it
NETWORK_WAIT = 60.0  # seconds for which a network file system may hide a new file
_VANISHED = 2.0  # seconds after which jobs that stand nowhere are believed to be removed
_UNREAD = 60.0  # seconds that results of committed jobs may take to come into sight
_NO_WORKERS = (1.0, 60.0, 600.0)  # seconds without workers until it is said; then each last one
_MISSING = 15.0  # seconds that hired workers may be away: their keepers start them again sooner
_PAUSES = (5.0, 300.0)  # seconds between attempts to hire anew: the first, the longest
_PAUSE_FOR_KEEPERS = 20.0  # the same if none was missing after all
_WINDOW = 30.0  # seconds over which a rate is measured


# --- halting -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Halt:
    """When to stop before the end, in GNU parallel's words. when: never | soon | now. what: fail |
    success | done. Of count and percent one is set."""

    when: str = "never"
    what: str = ""
    count: int = 0
    percent: int = 0

    @classmethod
    def parse(cls, text: str) -> Halt:
        """`now,fail=1`, `soon,done=10%`, `never`, and 0, 1, 2, -1, -2, 5% for short.
        Raises UsageError."""
        short = {"0": "never", "1": "soon,fail=1", "2": "now,fail=1"}
        short |= {"-1": "soon,success=1", "-2": "now,success=1"}
        word = short.get(text.strip(), text.strip())
        word = re.sub(r"\A(\d+%)\Z", r"soon,fail=\1", word)
        if word in ("", "never"):
            return cls()
        match = re.fullmatch(r"(soon|now),(fail|success|done)=(\d{1,9})(%?)", word)
        if match is None or not int(match[3]) or (match[4] and int(match[3]) > 100):
            raise UsageError(
                f"--halt cannot be {text!r}",
                "write never, or now or soon, a comma, and fail, success or done = a number or "
                "percentage: now,fail=1 or soon,done=10%",
            )
        number = int(match[3])
        count, percent = (0, number) if match[4] else (number, 0)
        return cls(match[1], match[2], count, percent)

    def reached(self, counts: Counts) -> str:
        """Why it is time to halt; "" if it is not."""
        if self.when == "never":
            return ""
        ended = counts.done + counts.failed
        number = {"fail": counts.failed, "success": counts.done, "done": ended}[self.what]
        total = ended + counts.queued + counts.claimed
        if not number or number < (self.count or total * self.percent / 100):
            return ""
        words = {"fail": "failed", "success": "ended with success", "done": "ended"}
        return f"{counted(number, 'job')} {words[self.what]}"


# --- what is seen, and what is to be done ------------------------------------------------------


@dataclass(frozen=True)
class Sight:
    """What a dispatcher knows at one moment. now: monotonic. hearts: heartbeats by owner, hired:
    {label: workers wanted}; None where they were not read this time."""

    now: float
    look: Look
    hearts: Mapping[str, bytes] | None = None
    hired: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Take:
    """Take this claim from who holds it, and put it back into the queue."""

    claim: Pod


@dataclass(frozen=True)
class Refill:
    """See to it that this host has so many workers."""

    label: str
    count: int


@dataclass(frozen=True)
class Publish:
    """Complete the submissions of those who died over it."""


@dataclass(frozen=True)
class Say:
    text: str


@dataclass(frozen=True)
class Stop:
    """Halt: end the workers, at once or after their jobs."""

    soon: bool
    why: str


@dataclass(frozen=True)
class AllEnded:
    """Nothing waits and nothing runs. removed: jobs that somebody took out of the folder."""

    removed: int = 0


Action = Take | Refill | Publish | Say | Stop | AllEnded


# --- workers -----------------------------------------------------------------------------------


def worker_row(owner: str, data: bytes, silent: bool = False) -> WorkerRow | None:
    """A worker by its heartbeat; None while that is being written."""
    told = heartbeat(data)
    if told is None:
        return None
    host, number = names.read_owner(owner)
    complaints, since, state = told.get("complaints"), told.get("since"), str(told.get("state"))
    notes = [str(told["note"])] if told.get("note") else []
    if isinstance(complaints, dict) and complaints:
        notes += [f"{name!r} is no job: {why}" for name, why in list(complaints.items())[:1]]
    return WorkerRow(
        name=f"w{number}",
        host=host,
        pid=_integer(told.get("pid")),
        state="silent" if silent else state,
        job=str(told.get("job") or "") if state == "running" else "",
        since=since if isinstance(since, (int, float)) else 0.0,
        label=str(told.get("label") or ""),
        note="; ".join(notes),
    )


def heartbeat(data: bytes) -> dict[str, object] | None:
    try:
        told = json.loads(data.decode("ascii"))
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


def complaints_in(hearts: Mapping[str, bytes]) -> dict[str, str]:
    """Names in the queue that are no jobs, and why, as workers say."""
    found: dict[str, str] = {}
    for data in hearts.values():
        complaints = (heartbeat(data) or {}).get("complaints")
        if isinstance(complaints, dict):
            found.update((str(name), str(why)) for name, why in complaints.items())
    return found


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0


class _Workers:
    """Who lives: whose heartbeat has changed within a lease of our own clock."""

    def __init__(self, lease: float):
        self._lease = lease
        self._seen: dict[str, tuple[bytes, float]] = {}  # when it changed last
        self._now = 0.0

    def see(self, hearts: Mapping[str, bytes], now: float) -> None:
        self._now = now
        before = self._seen
        self._seen = {}
        for owner, data in hearts.items():
            known = before.get(owner)
            self._seen[owner] = known if known and known[0] == data else (data, now)

    def alive(self) -> list[str]:
        limit = self._now - self._lease
        return [owner for owner, (_, changed) in self._seen.items() if changed > limit]

    def labels(self) -> dict[str, int]:
        """How many live, by the host's label."""
        found: dict[str, int] = {}
        for owner in self.alive():
            told = heartbeat(self._seen[owner][0]) or {}
            if told.get("state") != "ending":
                label = str(told.get("label") or "")
                found[label] = found.get(label, 0) + 1
        return found

    def rows(self) -> list[WorkerRow]:
        alive = set(self.alive())
        rows = [worker_row(owner, data, owner not in alive) for owner, (data, _) in
                sorted(self._seen.items())]  # fmt: skip
        return [row for row in rows if row is not None]


@dataclass
class _Missing:
    """Workers that a host lacks: since when, and when hiring is tried next."""

    since: float
    again: float
    pause: float = _PAUSES[0]
    asked: float = 0.0  # when hiring was tried last

    @property
    def tried(self) -> bool:
        return self.pause > _PAUSES[0]


# --- the sweep ---------------------------------------------------------------------------------


class Sweep:
    """One sweep, from the first look to the end."""

    def __init__(
        self, project: str, halt: Halt, *, network: bool, keep: bool = False, lease: float = LEASE
    ):
        self.complaints: dict[str, str] = {}
        self._project = project
        self._halt = halt
        self._network = network
        self._keep = keep
        self._lease = lease
        self._leases = Leases(lease)
        self._workers = _Workers(lease)
        self._open: dict[str, int] = {}  # pods that are not done, and their jobs
        self._done: set[str] = set()
        self._swept: dict[str, float] = {}  # claims that a sweeper has, since when
        self._missing: dict[str, _Missing] = {}
        self._said: set[str] = set()
        self._alone: float | None = None  # since when there are no workers
        self._told_alone = 0
        self._unpublished: float | None = None
        self._quiet: float | None = None  # since when nothing waits or runs
        self._unread: float | None = None
        self._stopped = False
        self._ended = False

    @property
    def workers(self) -> list[WorkerRow]:
        return self._workers.rows()

    def counts(self, look: Look) -> Counts:
        """The counts without files in the queue that are no jobs."""
        strays = len(look.dropped & self.complaints.keys())
        counts = look.counts
        return Counts(
            counts.queued - strays, counts.claimed, counts.running, counts.done, counts.failed,
            counts.retried,
        )  # fmt: skip

    def see(self, sight: Sight) -> list[Action]:
        """What is to be done now."""
        self._follow(sight.look)
        actions: list[Action] = []
        if sight.hearts is not None:
            self._workers.see(sight.hearts, sight.now)
            actions += self._news(sight.hearts)
            actions += self._silent(sight)
            actions += self._refills(sight)
        actions += self._abandoned(sight)
        actions += self._no_workers(sight)
        why = "" if self._stopped else self._halt.reached(self.counts(sight.look))
        if why:
            self._stopped = True
            return [*actions, Stop(self._halt.when == "soon", why)]
        return actions + self._end(sight)

    # --- jobs ----------------------------------------------------------------------------------

    def _follow(self, look: Look) -> None:
        """Every pod that was ever seen has to be done in the end."""
        for pod in look.arrived:
            if pod.jobs:
                self._expect(pod.pod, pod.jobs)
            self._expect_tail(pod)
        for pod in look.ended:
            self._done.add(pod.pod)
            self._open.pop(pod.pod, None)
            self._expect_tail(pod)

    def _expect_tail(self, pod: Pod) -> None:
        tail = pod.tail()
        if tail is not None:
            self._expect(tail.child, tail.jobs)

    def _expect(self, pod: str, jobs: int) -> None:
        if pod not in self._done:
            self._open[pod] = jobs

    def _end(self, sight: Sight) -> list[Action]:
        look = sight.look
        waits = look.dropped - self.complaints.keys()
        if not look.empty or waits or not (look.steady or self._network):
            self._quiet = self._unread = None
            self._ended = self._ended and look.empty and not waits
            return []
        if look.counts.claimed:  # committed, but the results are not yet in sight
            self._unread = sight.now if self._unread is None else self._unread
            if sight.now - self._unread < _UNREAD:
                return []
        actions: list[Action] = []
        if self._quiet is None:
            self._quiet = sight.now
            if self._network and not self._ended:
                actions.append(Say(
                    f"Nothing waits any more. The project is on a network file system, which may "
                    f"show new files late: looking once more in {NETWORK_WAIT:.0f} s."
                ))  # fmt: skip
        wait = NETWORK_WAIT if self._network else _VANISHED if self._open else 0.0
        if self._ended or sight.now - self._quiet < wait:
            return actions
        self._ended = True
        removed = sum(self._open.values())
        self._open.clear()
        return [*actions, AllEnded(removed)]

    # --- workers -------------------------------------------------------------------------------

    def _news(self, hearts: Mapping[str, bytes]) -> list[Action]:
        """What workers complain of, each once."""
        self.complaints = complaints_in(hearts)
        texts = [
            f"{name!r} in the queue is no job, and is left there: {why}"
            for name, why in self.complaints.items()
        ]
        texts += [
            f"{row.name} on {row.host} holds: {row.note}"
            for row in self._workers.rows()
            if row.state == "held"
        ]
        fresh = [text for text in texts if text not in self._said]
        self._said.update(fresh)
        return [Say(text) for text in fresh]

    def _silent(self, sight: Sight) -> list[Action]:
        """Claims of who has not been heard of for a lease, or does not know of them."""
        assert sight.hearts is not None
        held: dict[str, set[Pod]] = {}
        for pod in sight.look.claims:
            if not pod.sweeper:
                held.setdefault(pod.owner, set()).add(pod)
        actions: list[Action] = []
        for owner, claims in held.items():
            lost = self._leases.look(owner, sight.hearts.get(owner), claims, sight.now)
            if not lost:
                continue
            host, number = names.read_owner(owner)
            jobs = counted(sum(max(1, pod.jobs) for pod in lost), "job")
            actions.append(Say(f"w{number} on {host} is gone: {jobs} that it had taken wait again"))
            actions += [Take(pod) for pod in sorted(lost)]
        return actions

    def _abandoned(self, sight: Sight) -> list[Action]:
        """What was begun by somebody who did not come to its end: sweeps, submissions."""
        actions: list[Action] = []
        swept = {pod.name(): pod for pod in sight.look.claims if pod.sweeper}
        self._swept = {name: self._swept.get(name, sight.now) for name in swept}
        for name, since in self._swept.items():
            if sight.now - since >= self._lease:
                self._swept[name] = sight.now
                actions.append(Take(swept[name]))
        if not sight.look.submissions:
            self._unpublished = None
        elif self._unpublished is None:
            self._unpublished = sight.now
        elif sight.now - self._unpublished >= _VANISHED:
            self._unpublished = sight.now
            actions.append(Publish())
        return actions

    def _refills(self, sight: Sight) -> list[Action]:
        if sight.hired is None or self._stopped:
            return []
        alive = self._workers.labels()
        actions: list[Action] = []
        for label, wanted in sight.hired.items():
            if alive.get(label, 0) >= wanted:
                self._missing.pop(label, None)
                continue
            missing = self._missing.setdefault(label, _Missing(sight.now, sight.now + _MISSING))
            if sight.now >= missing.again:
                missing.asked, missing.again = sight.now, sight.now + missing.pause
                missing.pause = min(missing.pause * 2, _PAUSES[1])
                actions.append(Refill(label, wanted))
        for label in self._missing.keys() - sight.hired.keys():
            del self._missing[label]
        return actions

    def none_was_missing(self, label: str) -> None:
        """Hiring anew found all of a host's workers there: some are about to be started again by
        their keepers. Should a keeper die meanwhile, it is not found out only after minutes."""
        missing = self._missing.get(label)
        if missing is not None:
            missing.pause = min(missing.pause, _PAUSE_FOR_KEEPERS)
            missing.again = min(missing.again, missing.asked + _PAUSE_FOR_KEEPERS)

    def _no_workers(self, sight: Sight) -> list[Action]:
        if self._workers.alive() or self._stopped:
            self._alone, self._told_alone = None, 0
            return []
        if self._alone is None:
            self._alone = sight.now
        counts = self.counts(sight.look)
        if not (counts.queued or counts.claimed or self._keep):
            return []
        wait = _NO_WORKERS[min(self._told_alone, len(_NO_WORKERS) - 1)]
        if sight.now - self._alone < wait:
            return []
        self._alone, self._told_alone = sight.now, self._told_alone + 1
        option = "" if self._project == "default" else f" --project {self._project}"
        hosts = some(sorted(label for label, one in self._missing.items() if one.tried))
        if hosts:
            return [Say(f"No worker is there, and hiring anew on {hosts} has not helped so far.")]
        waiting = counts.queued + counts.claimed
        wait_for = f", and {counted(waiting, 'job')} wait{'s' * (waiting == 1)}" if waiting else ""
        text = f'No workers are hired in project "{self._project}"{wait_for}. Hire some: inv hire'
        return [Say(text + option)]


# --- how fast ----------------------------------------------------------------------------------


class Rate:
    """Jobs per second of late."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def see(self, now: float, ended: int) -> float:
        """0.0 while it cannot be known."""
        samples = self._samples
        if not samples or now - samples[-1][0] >= 0.5 or len(samples) == 1:
            samples.append((now, ended))
        while len(samples) > 2 and now - samples[1][0] >= _WINDOW:
            samples.popleft()
        seconds = now - samples[0][0]
        return max(0.0, (ended - samples[0][1]) / seconds) if seconds > 0 else 0.0
