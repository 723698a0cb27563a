"""A job worker: takes pods, runs their jobs, records what became of them.

One thread does it all, in the order that steps.py gives; it blocks in the kernel while a job runs.
Signals interrupt it: TERM ends the job at hand, USR1 lets it end first, heart.LAPSED is as TERM but
the worker is to begin anew under another name. What it held goes back to the queue.
"""

import functools
import signal
import time
from typing import Any, Callable, List, Optional, Tuple

from worker_payload.jobs import files, heart, lines, names, runner, steps, view
from worker_payload.jobs.lines import Cut, Plan, Result
from worker_payload.jobs.names import Pod

ENDED, AGAIN = 0, 75  # exit statuses: for good; to be started anew at once
COMMIT_EVERY = 1.0
_TAIL_FROM = 5.0  # seconds of work from which on a pod is shared with workers that have none
_TAIL_EVERY = 5.0
_BATCH_SECONDS = 0.25  # of work that is claimed at once
_BATCH_MOST = 32
_LOOK = 300.0  # seconds for which a worker waits for work before it looks after itself
_CUT_OFF = 200


class _Woken(Exception):
    """A signal came while there was nothing to do."""


class _Ending(Exception):
    """This worker ends, so what it tries in vain is given up."""


class Held(object):
    """A pod that is claimed. plan, jobs: None until they are needed."""

    __slots__ = ("jobs", "plan", "pod")

    def __init__(self, pod, plan=None, jobs=None):
        # type: (Pod, Optional[Plan], Optional[List[List[str]]]) -> None
        self.pod = pod
        self.plan = plan
        self.jobs = jobs


class Worker(object):
    """owner: under which it claims. idle: seconds without job and dispatcher after which it ends.
    watch: over other owners, while there is nothing else to do. say: its log."""

    def __init__(self, project_files, owner, queue, jobs, beat, watch, idle, say):
        # type: (files.Files, str, view.View, runner.Runner, heart.Heart, Any, float, Any) -> None
        self._files = project_files
        self._owner = owner
        self._view = queue
        self._runner = jobs
        self._heart = beat
        self._watch = watch
        self._idle = idle
        self._say = say
        self._held = []  # type: List[Held]  # claimed, not begun
        self._finished = []  # type: List[Pod]  # all of it ended, not committed
        self._lines = b""  # results that are not in the file yet
        self._results = names.results(owner)
        self._committed = time.monotonic()
        self._busy = time.monotonic()  # when there was work last
        self._dispatcher = b""
        self._pod_seconds = 1.0  # what a pod takes, as far as we know
        self._waiting = False
        self._draining = False
        self._ending = False
        self._again = False
        beat.claims = _Claims(self)
        beat.complaints = queue.complaints

    def run(self):
        # type: () -> int
        """Until it is told to end; its exit status."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_end)
        signal.signal(signal.SIGUSR1, self._on_drain)
        signal.signal(heart.LAPSED, self._on_lapse)
        try:
            while not self._ending and not self._draining:
                try:
                    self._round()
                except _Woken:
                    pass
        except _Ending:
            pass
        self._leave()
        return AGAIN if self._again else ENDED

    # --- signals ---------------------------------------------------------------------------

    def _on_end(self, number, frame):
        # type: (int, Any) -> None
        self._ending = True
        self._runner.processes.stop()
        self._wake()

    def _on_drain(self, number, frame):
        # type: (int, Any) -> None
        self._draining = True
        self._wake()

    def _on_lapse(self, number, frame):
        # type: (int, Any) -> None
        self._again = True
        self._on_end(number, frame)

    def _wake(self):
        # type: () -> None
        if self._waiting:
            self._waiting = False
            raise _Woken

    # --- the loop --------------------------------------------------------------------------

    def _round(self):
        # type: () -> None
        if not self._held and not self._claim(0.0):
            self._commit()
            self._heart.tell("idle")
            self._say.pause()
            if not self._claim(time.monotonic() + min(_LOOK, self._idle)):
                self._alone()
                return
        now = time.monotonic()
        held = self._held.pop(0)
        self._current = held
        try:
            self._work(held)
        finally:
            self._busy = time.monotonic()
        self._pod_seconds += (self._busy - now - self._pod_seconds) * 0.3
        if self._busy - self._committed >= COMMIT_EVERY:
            self._commit()

    _current = None  # type: Optional[Held]

    def _alone(self):
        # type: () -> None
        """After a while without work: is anybody there?"""
        if time.monotonic() - self._busy < self._idle:
            return
        before, self._dispatcher = (
            self._dispatcher,
            self._patiently(lambda: self._files.do(steps.Read(names.DISPATCHER)) or b""),
        )
        if self._dispatcher != before:
            return  # there is one, or we have never looked: look again
        self._say("no job and no dispatcher for %.0f s" % self._idle)
        self._draining = True

    def _patiently(self, call):
        # type: (Callable[[], Any]) -> Any
        """What call returns, however long the disk is full or the server away."""
        state, note, pause = self._heart.state, self._heart.note, 0.5
        while True:
            try:
                answer = call()
                break
            except files.Trouble as error:
                if self._heart.state != "held":
                    self._say("held: %s" % error)
                self._heart.tell("held", str(error))
                until = time.monotonic() + pause
                while time.monotonic() < until and not self._ending:
                    time.sleep(0.1)
                if self._ending:
                    raise _Ending
                pause = min(pause * 2, 10.0)
        if self._heart.state == "held":
            self._say("goes on")
            self._heart.tell(state, note)
        return answer

    # --- claims ----------------------------------------------------------------------------

    def _claim(self, until):
        # type: (float) -> bool
        """Whether there is something to do. until: monotonic, 0 for not to wait."""
        most = 1
        if self._pod_seconds < _BATCH_SECONDS:
            most = max(1, min(_BATCH_MOST, int(_BATCH_SECONDS / max(self._pod_seconds, 1e-4))))
        taken = self._patiently(lambda: self._take(most, until))
        for item in taken:
            if self._ending or self._draining:
                break
            held = self._patiently(functools.partial(self._claim_one, item))
            self._view.claimed(held is not None)
            if held is not None:
                self._held.append(held)
        return bool(self._held)

    def _take(self, most, until):
        # type: (int, float) -> List[view.Taken]
        self._waiting = True
        try:
            if self._ending or self._draining:
                return []
            return self._view.take(most, until, self._watch.look, self._watch.every)
        finally:
            self._waiting = False

    def _claim_one(self, item):
        # type: (view.Taken) -> Optional[Held]
        if item.pod is not None:
            pod = self._files.run(steps.claim(item.pod, self._owner))
            return Held(pod) if pod is not None else None
        drop = item.drop
        if drop is None:
            return None
        identity = names.new_pod(drop.born, drop.priority, dropped=True)
        plan = drop.plan._replace(submission=identity[-12:])
        data = lines.write_pod(plan, [[]])
        pod = self._files.run(steps.adopt(item.name, identity, self._owner, data))
        return Held(pod, plan, [[]]) if pod is not None else None

    def _commit(self):
        # type: () -> None
        """Makes what ended the record."""
        self._flush()
        if self._finished:
            self._patiently(self._commit_finished)
        self._committed = time.monotonic()

    def _commit_finished(self):
        # type: () -> None
        finished = list(self._finished)
        kept = self._files.run(steps.commit(finished, self._owner))
        for pod, done in zip(finished, kept):
            if not done:
                self._say("%s was given to others before it was recorded" % pod.pod)
        del self._finished[: len(finished)]

    def _flush(self):
        # type: () -> None
        if self._lines:
            self._append(b"")

    def _append(self, data):
        # type: (bytes) -> None
        """Results so far, and these lines, in one write."""
        data = self._lines + data
        operation = steps.Append(self._results, data)
        try:
            self._files.do(operation)
        except files.Trouble:
            self._patiently(lambda: self._files.do(operation))
        self._lines = b""

    def _slowly(self):
        # type: () -> None
        """While a job runs that takes long: what ended is recorded, and others may have what was
        claimed. Runs in the main thread, between other operations."""
        try:
            if self._finished:
                self._commit_finished()
            while self._held:
                self._let_go(self._held.pop())
        except files.Trouble as error:
            self._say("%s" % error)

    def _let_go(self, held):
        # type: (Held) -> None
        self._files.run(steps.sweep(held.pod, names.new_cut()))

    def _leave(self):
        # type: () -> None
        """Records what ended, gives up the rest. What fails here is left to those who sweep."""
        self._heart.tell("ending")
        try:
            if self._lines:
                self._files.do(steps.Append(self._results, self._lines))
            if self._finished:
                self._commit_finished()
            for held in ([self._current] if self._current else []) + self._held:
                self._let_go(held)
        except files.Trouble as error:
            self._say("%s" % error)

    # --- a pod -----------------------------------------------------------------------------

    def _read(self, held):
        # type: (Held) -> Tuple[Optional[Plan], List[List[str]]]
        """None: it is no longer ours."""
        if held.plan is not None:
            return held.plan, held.jobs or []
        data = self._patiently(lambda: self._files.do(steps.Read(names.claimed(held.pod))))
        if data is None:
            return None, []
        try:
            plan, jobs = lines.read_pod(data)
            if len(jobs) >= held.pod.jobs:
                return plan, jobs
        except ValueError:
            pass
        self._say("%s is damaged: its jobs fail" % held.pod.pod)
        return Plan("", words=("(damaged)",)), [[]] * held.pod.jobs

    def _work(self, held):
        # type: (Held) -> None
        """Runs what is to be run of the pod; then it is finished, or no longer ours."""
        plan, params = self._read(held)
        if plan is None:
            self._current = None
            return
        cut = lines.EMPTY
        if held.pod.cut != names.NO_CUT:
            cut = self._patiently(lambda: self._files.run(steps.read_cut(held.pod)))
        jobs = self._runner.prepare(held.pod, plan)
        todo = [index for index in range(held.pod.jobs) if index not in cut.results]
        tries = 1
        self._heart.tell("running")
        while todo:
            todo = self._pass(held, plan, params, jobs, cut, todo, tries)
            if self._ending or self._draining or self._current is None:
                break
            tries += 1
            if todo and tries > 10:
                time.sleep(min(0.1 * tries, 5.0))  # one that fails at once, again and again
        if self._current is None or todo:
            return
        self._finished.append(held.pod)
        self._current = None

    def _pass(self, held, plan, params, jobs, cut, todo, tries):
        # type: (Held, Plan, List[List[str]], runner.Jobs, Cut, List[int], int) -> List[int]
        """Each job once. Returns those that are still to be run: because they failed and may be
        tried again, or because this worker ends."""
        beat, say = self._heart, self._say
        failed = []  # type: List[int]
        began = looked = time.monotonic()
        for place, index in enumerate(todo):
            pod = held.pod
            if index >= pod.jobs:
                break  # given back
            if cut.lost.get(index, 0) >= lines.LOSSES:
                self._lines += lines.result(
                    pod, index, Result(-1, 0, time.time(), 0.0, reason="lost", tries=tries)
                )
                beat.ended += 1
                beat.failed += 1
                continue
            if self._ending or self._draining:
                return failed + todo[place:]
            beat.job = jobs.label(index)
            beat.since = now = time.time()
            self._append(lines.begin(pod, index, now))
            if say.room():
                say.small("%s: %s" % (beat.job, jobs.command(index, params[index])[:_CUT_OFF]))
            meanwhile = self._slowly if self._held or self._finished else None
            result = jobs.run(index, params[index], tries, meanwhile)
            if self._ending and result.signal:
                self._lines += lines.gave(pod, index)
                return failed + todo[place:]
            if result.failed and (tries < plan.tries or plan.tries == 0):
                self._lines += lines.gave(pod, index)
                failed.append(index)
            else:
                self._lines += lines.result(pod, index, result)
                beat.ended += 1
                beat.failed += result.failed
            if result.failed or say.room():
                say.small("%s: %s" % (beat.job, _told(result)))
            clock = time.monotonic()
            if clock - looked > _TAIL_EVERY:
                looked = clock
                each = (clock - began) / (place + 1)
                if tries == 1 and not self._share(
                    held, plan, params, cut, place, index, each, todo
                ):
                    self._say("%s was given to others" % pod.pod)
                    self._current = None
                    return []
        return failed

    def _share(self, held, plan, params, cut, place, index, each, todo):
        # type: (Held, Plan, List[List[str]], Cut, int, int, float, List[int]) -> bool
        """Gives half of what is left to workers that have nothing. False: the pod is not ours."""
        left = len(todo) - place - 1
        if left < 2 or left * each < _TAIL_FROM or todo[-1] < held.pod.jobs - 1:
            return True
        first = max([todo[place + 1 + left // 2]] + [i + 1 for i in cut.results] +
                    [i + 1 for i in cut.lost])  # fmt: skip
        if first >= held.pod.jobs or not self._view.someone_is_idle():
            return True
        self._flush()
        child = names.child_of(held.pod.pod)
        pod = self._patiently(
            lambda: self._files.run(steps.give_back(held.pod, first, plan, params, child))
        )
        if pod is None:
            return False
        held.pod = pod
        return True


class _Claims(object):
    """The pods that a worker holds, looked up when a heartbeat asks."""

    def __init__(self, worker):
        # type: (Worker) -> None
        self._worker = worker

    def __iter__(self):
        # type: () -> Any
        worker = self._worker
        current = worker._current
        pods = [held.pod for held in list(worker._held)] + list(worker._finished)
        if current is not None:
            pods.append(current.pod)
        return iter([pod.pod for pod in pods])


def _told(result):
    # type: (Result) -> str
    how = result.reason or (
        "signal %d" % result.signal if result.signal else "exit %d" % result.exit
    )
    text = "%s, %.2f s" % (how, result.seconds)
    return text + ": " + result.last if result.last else text
