"""A map call under way: what was asked, what has come of it, and who decides about it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker_payload import wire
from worker_payload.wire import Buffer

from . import scheduler as plan
from .combining import Combining
from .errors import TaskFailed
from .rounds import Round, Standing
from .session import Session
from .spans import Spans

Answer = tuple[int, str, list[Buffer], int]  # slice, host, segments; 0, or of how many slices


@dataclass
class Call:
    """One map call under way. Guarded by the engine's lock."""

    id: int
    begin: wire.Begin  # of a call that this one repeats, while `round` is
    blobs: list[tuple[str, int, Callable[[], Sequence[Buffer]]]]  # code and params
    slice_of: Callable[[int], Any] | None  # task -> SliceRef; None without a dataset
    scheduler: plan.Scheduler  # not there while `round` is; made when it is looked at
    requires: tuple[str, ...]
    needs_numpy: bool
    keep_going: bool
    spans: Spans | None = None  # a task is many slices, not one
    inline: bool = False  # slices travel with their tasks, and are not kept
    results: deque[Answer] = field(default_factory=deque)
    lag: int = 0  # bytes in `results`
    failures: list[TaskFailed] = field(default_factory=list)
    failures_seen: int = 0
    error: BaseException | None = None
    over: bool = False
    head_only: int | None = None  # the fold is full: hand out nothing but this task
    begun: set[Session] = field(default_factory=set)  # those that have the Begin
    named: dict[str, int] = field(default_factory=dict)  # host -> bytes of blobs named to it
    sent: dict[str, int] = field(default_factory=dict)
    finished_by: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    deaths: dict[int, list[str]] = field(default_factory=dict)  # task -> of what, and where
    given: dict[str, list[int]] = field(default_factory=dict)  # tasks sent to each host
    asked_back: bool = False  # some of these tasks, by a Revoke or Cancel
    round: Round | None = None
    params: Sequence[Buffer] = ()  # that go with it
    combining: Combining | None = field(init=False)  # the scheduler, if hosts combine their answers

    def __post_init__(self) -> None:
        self.combining = self.scheduler if isinstance(self.scheduler, Combining) else None

    def again(self, ident: int, params: list[Buffer], standing: Standing, now: float) -> Call:
        """This call once more, with other params. ident: its number."""
        call = Call.__new__(Call)
        call.__dict__.update(self.__dict__)
        call.__dict__.pop("scheduler", None)
        call.id = ident
        call.params = params
        call.results, call.failures, call.notes, call.deaths = deque(), [], [], {}
        call.sent, call.finished_by, call.named = {}, {}, dict(self.named)
        call.over, call.head_only, call.lag, call.failures_seen = False, None, 0, 0
        call.round = Round(standing, now)
        return call

    def __getattr__(self, name: str) -> Any:
        # under the lock, like all else
        if name != "scheduler" or self.round is None:
            raise AttributeError(name)
        self.begin = self.begin._replace(call=self.id, segments=self.params)
        self.scheduler = self.round.unrolled()
        self.round = None
        return self.scheduler

    def take_back(self, host: str, tasks: Iterable[int]) -> set[int]:
        """Some tasks are not this host's any more. Those of them that it was given."""
        back = set(tasks).intersection(self.given.get(host, ()))
        if back:
            self.given[host] = [task for task in self.given[host] if task not in back]
        return back

    @property
    def settled(self) -> bool:
        """Nothing more will come."""
        if self.over or self.error is not None:
            return True
        if self.round is not None:
            return not self.round.left
        return self.scheduler.left == 0 and (self.spans is None or self.spans.exhausted)

    @property
    def hungry(self) -> bool:
        """More spans are to be made: the hosts could have them soon."""
        if self.spans is None or self.spans.exhausted or self.spans.waits or self.settled:
            return False
        return self.scheduler.unassigned < 2 * self.scheduler.workers

    @property
    def slices(self) -> int:
        """How many there are, as far as we know."""
        if self.round is not None:
            return self.round.standing.tasks
        if self.spans is None:
            return self.scheduler.tasks
        return self.spans.cut if self.spans.total is None else self.spans.total

    @property
    def done(self) -> int:
        """How many slices were computed, or failed."""
        if self.round is not None:
            return self.round.standing.tasks - self.round.left
        if self.spans is not None:
            return self.spans.done
        return self.scheduler.done + (self.combining.kept if self.combining is not None else 0)

    @property
    def retried(self) -> int:
        """How many tasks were begun anew."""
        return 0 if self.round is not None else self.scheduler.retried

    @property
    def moved(self) -> frozenset[int]:
        """Calls of a worker that ran elsewhere."""
        return frozenset() if self.round is not None else self.scheduler.moved

    def slice_at(self, task: int) -> int:
        """The slice that a task is, or begins with; -1 for none."""
        return task if self.spans is None else self.spans.first(task)
