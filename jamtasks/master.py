"""Master: map calls for programs.

>>> from jamtasks import Master
>>> with Master(["lab1", "lab2"]) as master:                        # doctest: +SKIP
...     total = master.run("examples.sum_matrix", dataset=matrix)
"""

from __future__ import annotations

import functools
import operator
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from worker_payload import wire
from worker_payload.wire import Buffer

from . import combining, datasets, feeding, modules, outcome, placement, printing
from . import scheduler as plan
from .calls import Answer, Call
from .encoding import Params, decode_all, decoder, encode_params
from .engine import Engine
from .errors import EncodingError, ModuleError, TaskFailed, UsageError
from .laps import SHORT, Lap
from .link import Link
from .lookout import Fold, Lookout
from .printing import OnOutput
from .reduction import OrderedFold, Reduce, all_reduced, default_reduce
from .report import HostReport, RunReport
from .rounds import Last
from .spans import Spans
from .treefold import TreeFold

if TYPE_CHECKING:
    from .datasets import Slices
    from .feeding import Feeder
    from .logins import Logins
    from .modules import Bundle
    from .settings import HostSpec, Settings

_FIRST = operator.itemgetter(0)
POLL = 1.0  # seconds between looks at what has no event of its own

Progress = Callable[[int, int, int], None]


class Master:
    """Map calls on many hosts, over connections that live as long as the Master.

    hosts: names such as "me@lab1:2222*4" (or one string with commas), or HostSpecs; None means
    those of hosts.yaml, and this machine if there is no such file. project: agents of different
    projects never share anything but stored data. on_output(host, slice, stream, line) gets what
    map functions print (stream 1 or 2); the default writes it to stderr, with host and slice in
    front. progress(done, total, failed) is called whenever slices have been answered.
    on_notice(text) is told what a person who waits should know; the default writes it to stderr.
    logins: those of these very hosts, where they were begun earlier; the other settings are theirs.

    A Master is a context manager; `close` ends its connections. `run` may be called from one
    thread at a time. Raises SettingsError or UsageError for names that mean nothing."""

    def __init__(
        self,
        hosts: str | Iterable[str | HostSpec] | None = None,
        project: str = "default",
        *,
        settings: Settings | None = None,
        hosts_file: str | None = None,
        accept_new: bool = False,
        on_output: OnOutput | None = None,
        progress: Progress | None = None,
        on_notice: Callable[[str], None] | None = None,
        logins: Logins | None = None,
    ):
        from . import archive
        from .logins import Logins

        if logins is None:
            logins = Logins.begin(
                hosts, project, settings=settings, hosts_file=hosts_file, accept_new=accept_new
            )
        self.settings = settings = logins.settings
        self.project = project
        self._logins = logins
        self._specs = logins.specs
        self._on_notice = on_notice or printing.print_notice
        self._progress = progress
        self._printer = printing.Printer(on_output or printing.print_output)
        self._last_run: RunReport | None = None
        self._report: Callable[[], RunReport] | None = None  # makes it, when somebody asks
        self._reasons: list[str] = []
        self._last: Last | None = None
        self._lookout = Lookout(project, settings, hosts_file=hosts is None, notice=self._on_notice)
        self._engine = Engine(
            self._specs,
            settings,
            build=archive.payload().build,
            project=project,
            attach=logins.attach,
            on_output=self._printer.feed,
            look_around=lambda: self._lookout.look(self._engine),
        )
        self._running = threading.Lock()
        self._closed = False
        self._engine.start()

    # --- life ------------------------------------------------------------------------------

    def close(self) -> None:
        """End all connections. What still runs for this Master at the hosts is ended there."""
        if not self._closed:
            self._closed = True
            self._last = None
            self._engine.close()
            self._logins.close()
            self._lookout.close()

    def __enter__(self) -> Master:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def last_run(self) -> RunReport:
        """The report of the last `run`, also of one that failed. Raises UsageError before any."""
        if self._report is not None:
            self._last_run, self._report = self._report(), None
        if self._last_run is None:
            raise UsageError("no run has been made with this Master yet")
        return self._last_run

    def wait(self, timeout: float | None = None) -> tuple[HostReport, ...]:
        """Wait until every host is up or has failed (or for `timeout` seconds); the hosts then.

        Raises NoHostsError if none is up."""
        self._engine.wait_ready(self.settings.connect_timeout if timeout is None else timeout)
        return self.hosts()

    def hosts(self) -> tuple[HostReport, ...]:
        """The hosts as they are now."""
        with self._engine.lock:
            return tuple(outcome.of_host(seen, None) for seen in self._seen())

    # --- a map call ------------------------------------------------------------------------

    def run(
        self,
        module: ModuleType | str,
        params: Any = None,
        dataset: Any = None,
        *,
        slice_size: int | None = None,
        keep_going: bool = False,
        writable: bool = False,
        speculate: bool | None = None,
        task_timeout: float | None = None,
        combine: str | None = None,
    ) -> Any:
        """Map `module.mapfunc(params, slice)` over the slices of the dataset, and reduce.

        module: a module object or its name. params: any object of plain values and arrays, sent
        in full. dataset: a DataSet, or anything `DataSet(x)` takes; None calls mapfunc once per
        worker with None. slice_size: items (rows, lines, files) per slice. The answers are
        reduced pairwise in slice order by `module.reduce(a, b)`, or by `default_reduce`.

        Every slice is computed at least once; its answer is used exactly once. keep_going: an
        exception does not end the run; what failed is in `last_run.failed` and left out of the
        result. writable: map functions may write to their slices (private copies). speculate:
        False forbids second copies of slow slices (default: `module.speculate`, else True).
        task_timeout: seconds after which a worker that still computes a slice is killed, and the
        slice begun anew elsewhere, as after a death (default: `module.task_timeout`, else never).

        combine: "host" joins the answers of a host there, by `module.reduce`, so that about one
        comes back from each. For a reduce that is associative: answers are then paired along a
        binary tree over the slices, ((r0 + r1) + (r2 + r3)) + ..., whoever computed them. The bits
        of the result depend on how the data is cut alone, but may differ from those without
        `combine`. No slice has a second copy. An exception that reduce raises there is a
        TaskFailed, and ends the run.

        Raises TaskFailed, TaskLost, ReduceError, NoHostsError, ModuleError, DataSetError,
        EncodingError. On KeyboardInterrupt the hosts end their tasks and stay usable."""
        combines = combining.check(combine)
        self._take_turn()
        try:
            began = time.monotonic()
            last = self._last
            lap = last.lap if last is not None else None
            # whether it was edited is looked at while the host is at work
            known = modules.known(module) if lap is not None else None
            bundle = known or modules.bundle(module)
            data = datasets.as_dataset(dataset) if dataset is not None else None
            encoded = encode_params(params)
            asked = slice_size, keep_going, writable, speculate, task_timeout, combines
            fits = last is not None and last.fits(bundle, data, asked, encoded)
            if fits and last is not None and lap is not None:
                answers = lap.go(encoded.inline, lambda: modules.bundle(module) is bundle)
                if answers is not None:
                    return self._of_lap(lap, last.call, bundle, answers, began)
            if known is not None:
                bundle = modules.bundle(module)
            if fits and last is not None and (known is None or known is bundle):
                call = lap.became if lap is not None else None
                call = call or self._engine.again(last.call, encoded.inline)
                if call is not None:
                    last.call, last.lap = call, None
                    return self._round(call, bundle, began)
            self._end_calls()  # of a module that was edited
            self._last = None
            # without data the workers that are there now are all that will be called
            links = self._engine.wait_ready(self.settings.connect_timeout, hurry=data is not None)
            workers = sum(link.workers for link in links)
            slices = data.plan(workers, slice_size) if data is not None else None
            self._check_modules(bundle, slices, encoded, links)
            links = self._check_room(encoded, links)
            if speculate is None:
                speculate = bool(getattr(bundle.module, "speculate", True))
            if task_timeout is None:
                task_timeout = getattr(bundle.module, "task_timeout", None)
            options = {"writable": writable, "timeout": _timeout(task_timeout)}
            feed = None
            tiny = slices is not None and feeding.are_tiny(slices, workers)
            if slices is not None and tiny and not combines:
                call = self._span_call(
                    bundle, encoded, {**options, "spans": True}, keep_going, speculate, len(slices)
                )
                feed = feeding.of_slices(self._engine, call, slices)
            else:
                call = self._call(
                    bundle, slices, encoded, links, keep_going, options, speculate, combines
                )
                call.inline = tiny
                if data is dataset:  # else it is made anew each time, and not kept
                    self._last = Last(call, bundle, data, slices, workers, asked)
            try:
                return self._drive(call, bundle, links, feed, began)
            finally:
                if slices is not None and call.spans is None and len(links) > 1:
                    placement.keep(slices, call.given)
        finally:
            self._leave()

    def _round(self, call: Call, bundle: Bundle, began: float) -> Any:
        """Wait for a call that repeats the last one; as for any other if it takes a while."""
        engine, round_ = self._engine, call.round  # it may be over already
        try:
            if self._progress is not None:
                self._progress(0, call.slices, 0)
            if round_ is not None and len(round_.standing.links) == 1:
                link, session = round_.standing.links[0]
                if link.lent:
                    link.read_for(call, session)
            while round_ is not None and not round_.over.acquire(timeout=POLL):
                pass
            with engine.lock:
                results = sorted(call.results, key=_FIRST) if call.round is not None else None
                if results is None:
                    engine.take_back_all()
            if results is None:
                return self._drive(call, bundle, None, None, began)
            if call.combining is not None:
                reduce = getattr(bundle.module, "reduce", None) or default_reduce
                return self._join(call, bundle, reduce, results)
            self._shorten(call)
            slices, hosts, answers, _ = zip(*results, strict=True)
            return self._folded(call, bundle, hosts, slices, answers)
        finally:
            if not call.over:
                self._ended(call, began)

    def _shorten(self, call: Call) -> None:
        """It may be repeated in the shortest way, if one host answers it shortly."""
        if self._last is not None and call.round is not None and call.lag <= SHORT:
            standing = call.round.standing
            if len(standing.links) == 1:
                self._last.lap = Lap(self._engine, call, standing)

    def _of_lap(
        self,
        lap: Lap,
        call: Call,
        bundle: Bundle,
        answers: Sequence[Sequence[Buffer]],
        began: float,
    ) -> Any:
        """What was asked for once more and is answered. call: one that went just like it."""
        try:
            return self._folded(call, bundle, lap.hosts, lap.tasks, answers)
        finally:
            seconds = time.monotonic() - began
            with self._engine.lock:
                self._report = functools.partial(outcome.of_run, call, self._seen(), seconds)

    def _folded(
        self,
        call: Call,
        bundle: Bundle,
        hosts: Sequence[str],
        slices: Sequence[int],
        answers: Sequence[Sequence[Buffer]],
    ) -> Any:
        """answers: to all slices, in their order, none of them long."""
        reduce = getattr(bundle.module, "reduce", None) or default_reduce
        values = decode_all(bundle.modules, hosts, slices, answers)
        value = all_reduced(reduce, values, slices)
        if self._progress is not None:
            self._progress(call.done, call.slices, 0)
        return value

    def _join(self, call: Call, bundle: Bundle, reduce: Reduce, results: list[Answer]) -> Any:
        with TreeFold(reduce, call.slices) as fold:
            for first, host, segments, count in results:
                fold.add(first, segments, decoder(bundle, host, first, 0), count)
            if self._progress is not None:
                self._progress(call.done, call.slices, 0)
            return fold.result()

    def map(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        *,
        ordered: bool = True,
        speculate: bool = True,
        task_timeout: float | None = None,
    ) -> Iterator[Any]:
        """function(item) for each item, computed at the hosts, as an iterator.

        function: one that its module has by name; it travels as source, as `mapfunc` does. items:
        any iterable; it is read only so far ahead that the hosts are kept busy, so it may be
        endless. ordered: in the order of the items; else as they come. Short items travel many at
        a time. Nothing is sent before the first result is asked for; closing the iterator ends
        what is under way. Raises what `run` raises; an exception in the function comes as
        TaskFailed, whose `slice` is the number of the item."""
        name = getattr(function, "__qualname__", "")
        module = getattr(function, "__module__", None)
        found = sys.modules.get(module or "")
        if not name or found is None or not modules.has(found, name):
            raise UsageError(
                f"{name or function!r} cannot be sent by name",
                "map a function that stands at the top of a module, not a lambda or an inner one",
            )
        options = {"spans": True, "function": name, "timeout": _timeout(task_timeout)}
        return self._map(found, name, options, iter(items), ordered, speculate)

    def _map(
        self,
        module: ModuleType,
        function: str,
        options: dict[str, Any],
        items: Iterator[Any],
        ordered: bool,
        speculate: bool,
    ) -> Iterator[Any]:
        self._take_turn()
        try:
            began = time.monotonic()
            bundle = modules.bundle(module, function)
            encoded = encode_params(None)
            links = self._engine.wait_ready(self.settings.connect_timeout, hurry=True)
            self._check_modules(bundle, None, encoded, links)
            call = self._span_call(bundle, encoded, options, False, speculate, None)
            kept = feeding.Items(items)
            feed = feeding.Feeder(self._engine, call, kept.encode)
            order = feeding.Order(ordered)
            for batch, _ in self._answers(call, links, feed, order, began):
                for first, host, segments, count in batch:
                    kept.forget(first, count)
                    order.add(first, count, segments, decoder(bundle, host, first, count))
                feed.limit(order.next + feeding.AHEAD)
                yield from order.ready()
        finally:
            self._leave()

    def _take_turn(self) -> None:
        if self._closed:
            raise UsageError("this Master is closed")
        if not self._running.acquire(blocking=False):
            raise UsageError("this Master is running a call: one at a time, or use another Master")

    def _leave(self) -> None:
        """The turn is over. Ctrl-C may have come before anybody knew of a call that was sent."""
        self._end_calls()
        self._running.release()

    def _end_calls(self) -> None:
        with self._engine.lock:
            left = list(self._engine.calls.values())
        for call in left:
            self._engine.finish(call)

    def _check_modules(
        self, bundle: Bundle, slices: Slices | None, params: Params, links: Sequence[Link]
    ) -> None:
        """Refuse, before anything is sent, what a host lacks. Raises ModuleError naming hosts."""
        needed: dict[str, list[str]] = {}
        if params.needs_numpy or (slices is not None and slices[0].needs_numpy):
            without = [link.label for link in links if link.welcome and not link.welcome.numpy]
            if without:
                needed["numpy"] = without
        names = tuple(sorted(bundle.third_party))
        for host, lacks in self._engine.lacking(links, names).items():
            for name in lacks:
                hosts = needed.setdefault(name, [])
                if host not in hosts:
                    hosts.append(host)
        if needed:
            what = "; ".join(
                f"{name} is missing on {', '.join(hosts)}" for name, hosts in needed.items()
            )
            raise ModuleError(
                f"{bundle.name} cannot run: {what}",
                "install it there, set `python:` or `prepare:` of the host to an environment that "
                "has it, or leave the host out",
            )

    def _check_room(self, params: Params, links: Sequence[Link]) -> list[Link]:
        if params.begin_digest == "":
            return list(links)
        room = {link: link.welcome.store if link.welcome else 0 for link in links}
        fit = [link for link in links if room[link] >= params.size]
        if not fit:
            where = ", ".join(
                f"{link.label} has room for {space:,}" for link, space in room.items()
            )
            raise EncodingError(f"params of {params.size:,} bytes fit on no host: {where}")
        return fit

    def _call(
        self,
        bundle: Bundle,
        slices: Slices | None,
        params: Params,
        links: Sequence[Link],
        keep_going: bool,
        options: dict[str, Any],
        speculate: bool,
        combines: bool,
    ) -> Call:
        count = len(slices) if slices is not None else sum(link.workers for link in links)
        homes: dict[int, list[str]] = {}
        move_seconds = 0.0
        if slices is not None and len(links) > 1:
            homes, move_seconds = placement.plan(slices, links)
        if combines:
            sched: plan.Scheduler = combining.Combining(
                count, homes=homes, move_seconds=move_seconds
            )
            options = {**options, "combine": count}
        else:
            sched = plan.Scheduler(
                count,
                speculate=speculate and slices is not None,
                homes=homes,
                move_seconds=move_seconds,
            )
        call = self._begin(bundle, params, options, keep_going, sched)
        if slices is not None:
            call.slice_of = slices.__getitem__
            call.needs_numpy = call.needs_numpy or slices[0].needs_numpy
        return call

    def _span_call(
        self,
        bundle: Bundle,
        params: Params,
        options: dict[str, Any],
        keep_going: bool,
        speculate: bool,
        total: int | None,
    ) -> Call:
        sched = plan.Scheduler(0, speculate=speculate)
        call = self._begin(bundle, params, options, keep_going, sched)
        call.spans = Spans(total)
        return call

    def _begin(
        self,
        bundle: Bundle,
        params: Params,
        options: dict[str, Any],
        keep_going: bool,
        sched: plan.Scheduler,
    ) -> Call:
        ident = self._engine.next_id()
        blobs: list[tuple[str, int, Callable[[], Sequence[Buffer]]]]
        blobs = [(bundle.digest, bundle.size, lambda: bundle.parts)]
        if params.begin_digest:
            blobs.append((params.begin_digest, params.size, lambda: params.parts))
        return Call(
            id=ident,
            begin=wire.Begin(
                ident, bundle.digest, bundle.name, params.begin_digest, options, params.inline
            ),
            blobs=blobs,
            slice_of=None,
            scheduler=sched,
            requires=tuple(sorted(bundle.third_party)),
            needs_numpy=params.needs_numpy,
            keep_going=keep_going,
        )

    def _drive(
        self,
        call: Call,
        bundle: Bundle,
        links: Sequence[Link] | None,
        feed: Feeder | None,
        began: float,
    ) -> Any:
        """Hand out, fold as answers come, clean up whatever happens. links: hosts to begin with;
        None if it has begun."""
        reduce = getattr(bundle.module, "reduce", None) or default_reduce
        combines = call.combining is not None
        fold = (TreeFold if combines else OrderedFold)(reduce, call.slices)
        try:
            for batch, failed in self._answers(call, links, feed, fold, began):
                batch.reverse()
                while batch:  # what has been folded is not kept: it may be large
                    first, host, segments, count = batch.pop()
                    many = 0 if combines else count  # of what hosts combined, there is one answer
                    fold.add(first, segments, decoder(bundle, host, first, many), count)
                    del segments
                for failure in failed:
                    fold.skip(failure.slice)
                with self._engine.lock:
                    call.head_only = self._head(call, fold.next) if fold.full else None
                if self._progress is not None:
                    self._progress(call.done, call.slices, len(call.failures))
            if call.failures and len(call.failures) == call.slices:
                raise call.failures[0]
            return fold.result()
        finally:
            fold.close()

    def _answers(
        self,
        call: Call,
        links: Sequence[Link] | None,
        feed: Feeder | None,
        fold: Fold,
        began: float,
    ) -> Iterator[tuple[list[Answer], list[TaskFailed]]]:
        """Run a call: answers as they come, and what failed. Ends the call when it is left."""
        engine = self._engine
        self._lookout.show(call, fold)
        try:
            if links is not None:
                engine.submit(call, links, pinned=call.spans is None and call.slice_of is None)
            if self._progress is not None:
                self._progress(0, call.slices, 0)
            more = True
            while more:
                if feed is not None:
                    feed.feed()
                batch, failed, more = self._next_batch(call)
                if batch or failed or call.combining is not None:
                    yield batch, failed
        finally:
            self._ended(call, began)
            self._lookout.hide()

    def _ended(self, call: Call, began: float) -> None:
        self._engine.finish(call)
        self._printer.end(call.id)
        seconds = time.monotonic() - began
        with self._engine.lock:
            self._report = functools.partial(outcome.of_run, call, self._seen(), seconds)

    @staticmethod
    def _head(call: Call, index: int) -> int | None:
        """The task that the fold waits for, if there is one yet."""
        return index if call.spans is None else call.spans.task_at(index)

    def _next_batch(self, call: Call) -> tuple[list[Answer], list[TaskFailed], bool]:
        """Answers to fold, slices that failed, and whether there may be more of either.

        Comes back with nothing if there are spans to be made, and now and then if answers are kept
        at the hosts, so that how far they are can be shown. Raises the call's error."""
        engine = self._engine
        gone_since: float | None = None
        seen = call.failures_seen
        with engine.lock:
            while True:
                if call.error is not None:
                    raise call.error
                if engine.closing:
                    raise UsageError("this Master was closed during the call")
                if call.results or len(call.failures) > seen:
                    batch = sorted(call.results, key=_FIRST)  # in order, none has to be kept
                    call.results.clear()
                    call.lag = 0
                    call.failures_seen = len(call.failures)
                    engine.changed.notify_all()
                    return batch, call.failures[seen:], not call.settled
                if call.settled:
                    return [], [], False
                if call.hungry and call.scheduler.workers:
                    return [], [], True
                engine.changed.wait(POLL)
                if call.error is not None or call.results or call.settled:
                    continue
                if any(label in call.scheduler for label in engine.links):
                    gone_since = None
                    if call.combining is not None:
                        return [], [], True
                    continue
                now = time.monotonic()
                hopes = [link for link in engine.links.values() if engine.hope(link)]
                if gone_since is None and hopes:
                    text = _waiting(hopes, self.settings.give_up_after)
                    # the engine's lock is not held while others write
                    threading.Thread(target=self._on_notice, args=(text,), daemon=True).start()
                gone_since = gone_since or now
                if not hopes or now - gone_since > self.settings.give_up_after:
                    raise engine.no_hosts()

    # --- reports ---------------------------------------------------------------------------

    def _seen(self) -> list[outcome.Seen]:
        """The hosts now; under the engine's lock. A report is made of it later, if at all."""
        return [
            (link, link.state, link.error, len(link.notes)) for link in self._engine.links.values()
        ]


def _waiting(links: Sequence[Link], seconds: float) -> str:
    reasons = "; ".join(
        f"{link.label}: {link.error.reason if link.error else 'no answer yet'}" for link in links
    )
    return f"no host is left; waiting up to {seconds:.0f} s for one to come back ({reasons})"


def _timeout(seconds: Any) -> float | None:
    """Raises UsageError unless seconds is None or a number above zero."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise UsageError(f"task_timeout must be a number of seconds above zero, not {seconds!r}")
    return float(seconds)
