"""Nothing that workers and sweepers do to each other loses a job or records one twice.

Beside the real steps, the same look at steps that are wrong on purpose: that it finds each of them
wrong is what makes its silence worth something.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from jobs_model import (
    PLAN,
    Explorer,
    Tree,
    Violation,
    helper,
    person,
    pod_name,
    retirer,
    submitter,
    sweeper,
    worker,
    wrong,
)

from worker_payload.jobs import lines, names
from worker_payload.jobs import steps as real_steps
from worker_payload.jobs.names import Pod, Tail
from worker_payload.jobs.steps import (
    Create,
    List,
    MakeFolder,
    Read,
    Remove,
    RemoveFolder,
    Rename,
    SyncFolder,
    Write,
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """pods: for each its number of jobs. drops: names of dropped files. give, together: see
    jobs_model.worker. stale, faults: see Explorer. submit: the pods are submitted meanwhile.
    retire: what is done is moved away. again: the files are dropped again under their names."""

    pods: tuple[int, ...] = ()
    drops: tuple[str, ...] = ()
    workers: int = 2
    sweepers: int = 2
    pods_each: int = 1
    sweeps_each: int = 1
    give: bool = False
    together: bool = True
    stale: bool = False
    faults: int = 0
    submit: bool = False
    retire: bool = False
    again: bool = False


def look(world: World, steps: Any = real_steps) -> tuple[int, int]:
    """The number of states, and of steps between them."""
    tree: Tree = {}
    jobs: list[Any] = []
    made = []
    for number, size in enumerate(world.pods, 1):
        plan = PLAN._replace(first=len(jobs) + 1)
        made.append((pod_name(number, size), lines.write_pod(plan, [[] for _ in range(size)])))
        jobs += range(plan.first, plan.first + size)
    histories = [jobs + list(world.drops)]
    programs: dict[str, Any] = {}
    for name in world.drops:
        tree[names.dropped(name)] = b"echo"
        if world.again:
            programs["person"] = lambda name=name: person(name)
    if world.submit:
        programs["submitter"] = lambda: submitter(steps, made)
        programs["helper"] = lambda: helper(steps)
        histories.append([])
    else:
        tree.update((names.queued(pod), data) for pod, data in made)
    if world.retire:
        programs["retirer"] = lambda: retirer(steps)
    programs |= {
        f"worker {n}": lambda n=n: worker(steps, n, world.pods_each, world.give, world.together)
        for n in range(1, world.workers + 1)
    } | {
        f"sweeper {n}": lambda n=n: sweeper(steps, n, world.sweeps_each)
        for n in range(1, world.sweepers + 1)
    }
    explorer = Explorer(
        tree, programs, histories, steps=steps, stale=world.stale, faults=world.faults
    )
    return explorer.explore(), explorer.transitions


WORLDS = {
    "a pod": (World(pods=(2,), together=False), 50_000),
    "a pod, stale reads": (World(pods=(2,), together=False, stale=True), 90_000),
    "a pod, claimed again": (World(pods=(2,), pods_each=2), 50_000),
    "a pod, swept again": (World(pods=(1,), sweeps_each=2), 200_000),
    "two pods": (World(pods=(1, 1)), 40_000),
    "a tail": (World(pods=(2,), give=True), 90_000),
    "a tail, stale reads": (World(pods=(2,), give=True, stale=True), 120_000),
    "a tail, its own tail": (
        World(pods=(3,), give=True, workers=1, sweepers=1, pods_each=2, sweeps_each=2, faults=2),
        100_000,
    ),
    "a tail, late renames": (World(pods=(2,), give=True, sweepers=1, faults=2), 60_000),
    "a tail, two sweepers, late renames": (
        World(pods=(2,), give=True, workers=1, faults=2),
        40_000,
    ),
    "a dropped file": (World(drops=("a",)), 25_000),
    "a dropped file, late renames": (World(drops=("a",), faults=1), 150_000),
    "a dropped file, and again": (World(drops=("a",), again=True, sweepers=1, faults=1), 20_000),
    "a tail, and past": (World(pods=(2,), give=True, sweepers=1, retire=True, faults=1), 25_000),
    "a submission": (World(pods=(1, 1), submit=True, workers=1, sweepers=1, faults=1), 35_000),
    "a submission, discarded": (
        World(pods=(1, 1), submit=True, workers=0, sweepers=0, faults=3),
        1_000,
    ),
    "a dropped file and a pod": (World(drops=("a",), pods=(1,), sweepers=1), 3_000),
}


@pytest.mark.parametrize("world", WORLDS)
def test_no_job_is_lost_or_recorded_twice(world):
    settings, least = WORLDS[world]
    states, steps = look(settings)
    print(f"{world}: {states} states, {steps} steps")
    assert states >= least, "the model sees less than it did"


# --- steps that are wrong ----------------------------------------------------------------------


def commit_after_a_look(pods, owner):
    """Looks whether the claim is still there, then records."""
    yield real_steps.Sync(names.results(owner))
    answers = []
    for pod in pods:
        data = yield Read(names.claimed(pod))
        if data is not None:
            yield Create(names.done(pod), data)
            yield Remove(names.claimed(pod))
        answers.append(data is not None)
    return answers


def commit_before_it_is_on_disk(pods, owner):
    answers = []
    for pod in pods:
        answers.append((yield Rename(names.claimed(pod), names.done(pod))))
    yield real_steps.Sync(names.results(owner))
    return answers


def commit_without_the_tail(pods, owner):
    """Does not make sure that what was given back is visible."""
    yield real_steps.Sync(names.results(owner))
    answers = []
    for pod in pods:
        answers.append((yield Rename(names.claimed(pod), names.done(pod))))
    return answers


def commit_over_a_loss(pods, owner):
    """Takes back a claim that a sweeper holds."""
    answers = yield from real_steps.commit(pods, owner)
    for pod, good in zip(pods, answers, strict=True):
        if not good:
            waiting = [names.read_pod(name) for name in (yield List(names.QUEUE))]
            for other in waiting:
                if other is not None and other.pod == pod.pod:
                    data = yield Read(names.queued(other))
                    if data is not None:
                        yield Create(names.done(pod), data)
                        yield Remove(names.queued(other))
    return answers


def _sweep(found, sweeper, *, early=False, unnamed_first=False, tail=True, requeue_first=False):
    taken = found._replace(sweeper=sweeper)
    if unnamed_first:
        yield from _remove_tails(found)
    before = yield from real_steps.read_cut(found)
    data = (yield Read(names.results(taken.owner))) if early else None
    if not (yield Rename(names.claimed(found), names.claimed(taken))):
        return None
    made = taken.tail()
    if made is not None and tail and not requeue_first:
        yield from real_steps._publish(made)
    if not unnamed_first:
        yield from _remove_tails(taken)
    if not early:
        data = yield Read(names.results(taken.owner))
    cut = lines.write_cut(before, taken, lines.lines_of(data or b"", taken.pod))
    if cut:
        yield Create(names.cut(sweeper), cut)
    waiting = Pod(taken.pod, taken.jobs, taken.attempt + 1, sweeper if cut else names.NO_CUT)
    yield Rename(names.claimed(taken), names.queued(waiting))
    if made is not None and requeue_first:
        yield from real_steps._publish(made)
    return waiting


def _remove_tails(pod):
    for name in (yield List(names.TAILS)):
        made = names.read_tail(name)
        if made[2:] == (pod.pod, pod.attempt, pod.owner) and made != pod.tail():
            yield Remove(names.tail(made))


def sweep_reads_before_it_takes(found, sweeper):
    return _sweep(found, sweeper, early=True)


def sweep_removes_tails_before_it_takes(found, sweeper):
    return _sweep(found, sweeper, unnamed_first=True)


def sweep_forgets_the_tail(found, sweeper):
    return _sweep(found, sweeper, tail=False)


def sweep_requeues_before_the_tail_is_visible(found, sweeper):
    return _sweep(found, sweeper, requeue_first=True)


def sweep_without_taking(found, sweeper):
    """Straight back into the queue, with what was read before."""
    before = yield from real_steps.read_cut(found)
    data = yield Read(names.results(found.owner))
    cut = lines.write_cut(before, found, lines.lines_of(data or b"", found.pod))
    if cut:
        yield Create(names.cut(sweeper), cut)
    waiting = Pod(found.pod, found.jobs, found.attempt + 1, sweeper if cut else names.NO_CUT)
    yield Rename(names.claimed(found), names.queued(waiting))


def sweep_by_copy(found, sweeper):
    """Makes the new pod, then removes the claim."""
    data = yield Read(names.claimed(found))
    if data is not None:
        waiting = Pod(found.pod, found.jobs, found.attempt + 1, names.NO_CUT)
        yield Create(names.queued(waiting), data)
        yield Remove(names.claimed(found))


def sweep_believes_one_look_for_the_tail(found, sweeper):
    """Takes a rename that was reported as failed for one that another did."""
    taken = found._replace(sweeper=sweeper)
    if not (yield Rename(names.claimed(found), names.claimed(taken))):
        return
    made = taken.tail()
    if made is not None:
        yield Rename(names.tail(made), names.queued(Pod(made.child, made.jobs, 0, names.NO_CUT)))
    yield Rename(names.claimed(taken), names.queued(taken._replace(attempt=taken.attempt + 1)))


def _give_back(held, m, plan, jobs, child, *, visible_first=False, tidy=False, bare=False):
    made = Tail(child, held.jobs - m, held.pod, held.attempt, held.owner)
    data = lines.write_pod(plan._replace(first=plan.first + m), jobs[m : held.jobs])
    yield Create(names.tail(made), data)
    if visible_first:
        yield from real_steps._publish(made)
    narrow = held._replace(jobs=m, child="" if bare else made.short())
    if not (yield Rename(names.claimed(held), names.claimed(narrow))):
        if tidy:
            yield Remove(names.tail(made))
        return None
    yield from real_steps._publish(made)
    return narrow


def give_back_shows_the_child_before_it_narrows(*given):
    return _give_back(*given, visible_first=True)


def give_back_removes_a_tail_it_believes_unneeded(*given):
    return _give_back(*given, tidy=True)


def give_back_does_not_name_the_child(*given):
    return _give_back(*given, bare=True)


def _adopt(name, pod_id, owner, plan_bytes, order):
    token = Pod(pod_id, 0, 0, names.NO_CUT, owner)
    held = token._replace(jobs=1)
    folder = names.ticket_folder(token.ticket)
    yield MakeFolder(folder)
    if order == "file first":
        if (yield Rename(names.dropped(name), names.within(folder, name))):
            yield Create(names.claimed(held), plan_bytes)
            return held
        return None
    yield Create(names.claimed(token), plan_bytes)
    if not (yield Rename(names.dropped(name), names.within(folder, name))):
        yield Remove(names.claimed(token))
        yield RemoveFolder(folder)
        return None
    return held if (yield Rename(names.claimed(token), names.claimed(held))) else None


def adopt_moves_the_file_first(*given):
    return _adopt(*given, order="file first")


def adopt_removes_the_token_before_the_folder(*given):
    return _adopt(*given, order="token first")


def sweep_looks_into_a_token_s_folder(found, sweeper):
    """Believes an empty folder, in which the file may arrive yet."""
    if found.jobs:
        return (yield from real_steps.sweep(found, sweeper))
    taken = found._replace(sweeper=sweeper)
    if not (yield Rename(names.claimed(found), names.claimed(taken))):
        return None
    if not (yield List(names.ticket_folder(taken.ticket))):
        yield Remove(names.claimed(taken))
        return None
    waiting = Pod(taken.pod, 1, taken.attempt + 1, names.NO_CUT)
    yield Rename(names.claimed(taken), names.queued(waiting))
    return waiting


def submit_file_by_file(pods, ticket):
    """Visible one after the other, straight from the hidden folder."""
    hidden = names.submitted("." + ticket)
    yield MakeFolder(hidden)
    for pod, data in pods:
        yield Write(names.within(hidden, pod.name()), data)
    yield SyncFolder(hidden)
    for pod, _ in pods:
        yield Rename(names.within(hidden, pod.name()), names.queued(pod))
    yield RemoveFolder(hidden)


def submit_what_is_not_on_disk(pods, ticket):
    hidden, whole = names.submitted("." + ticket), names.submitted(ticket)
    yield MakeFolder(hidden)
    for pod, data in pods:
        yield Write(names.within(hidden, pod.name()), data)
    yield Rename(hidden, whole)
    yield from real_steps.publish(ticket)


def discard_in_place(ticket):
    """Removes pods that a late rename of their folder may show."""
    folder = names.submitted("." + ticket)
    for name in (yield List(folder)):
        yield Remove(names.within(folder, name))
    yield RemoveFolder(folder)


def retire_removes_tails_of_all(done):
    """Takes a tail that nobody who is done has made for one that nobody needs."""
    for name in (yield List(names.TAILS)):
        yield Remove(names.within(names.TAILS, name))
    yield from real_steps.retire(done)


POD = World(pods=(2,))
SUBMISSION = World(pods=(1, 1), submit=True, workers=0, sweepers=0)
TAIL = World(pods=(2,), give=True)
LATE_TAIL = World(pods=(2,), give=True, sweepers=1, workers=1, faults=1)
DROP = World(drops=("a",))
WRONG = [
    ("commit", commit_after_a_look, POD),
    ("commit", commit_before_it_is_on_disk, POD),
    ("commit", commit_without_the_tail, replace(LATE_TAIL, sweepers=0, faults=2)),
    ("commit", commit_over_a_loss, POD),
    ("sweep", sweep_reads_before_it_takes, POD),
    ("sweep", sweep_removes_tails_before_it_takes, TAIL),
    ("sweep", sweep_forgets_the_tail, TAIL),
    ("sweep", sweep_requeues_before_the_tail_is_visible, TAIL),
    ("sweep", sweep_without_taking, POD),
    ("sweep", sweep_by_copy, POD),
    ("sweep", sweep_believes_one_look_for_the_tail, replace(LATE_TAIL, faults=2)),
    ("give_back", give_back_shows_the_child_before_it_narrows, TAIL),
    ("give_back", give_back_removes_a_tail_it_believes_unneeded, LATE_TAIL),
    ("give_back", give_back_does_not_name_the_child, TAIL),
    ("adopt", adopt_moves_the_file_first, DROP),
    ("adopt", adopt_removes_the_token_before_the_folder, replace(DROP, sweepers=1, faults=1)),
    ("sweep", sweep_looks_into_a_token_s_folder, DROP),
    ("submit", submit_file_by_file, SUBMISSION),
    ("submit", submit_what_is_not_on_disk, SUBMISSION),
    ("discard", discard_in_place, replace(SUBMISSION, faults=2)),
    ("retire", retire_removes_tails_of_all, replace(TAIL, pods=(2, 1), workers=2, retire=True)),
]


@pytest.mark.parametrize(
    "name, change, world", WRONG, ids=[change.__name__ for _, change, _ in WRONG]
)
def test_steps_that_are_wrong_are_found_out(name, change, world):
    with pytest.raises(Violation) as found:
        look(world, wrong(**{name: change}))
    print(found.value)
