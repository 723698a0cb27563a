"""A file system in memory, and a look at everything that processes over it can do to each other.

The processes are the real generators of worker_payload/jobs/steps.py inside small programs: workers
that claim, run and commit, sweepers that suspect anybody at any time. All interleavings of their
operations are visited. A process that is never scheduled again is one that died at that step, one
that is scheduled late is one that was thought dead; so both are among the histories.
"""

from __future__ import annotations

import gc
import hashlib
import posixpath
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple

from worker_payload.jobs import lines, names
from worker_payload.jobs import steps as real_steps
from worker_payload.jobs.names import Pod
from worker_payload.jobs.steps import (
    Append,
    Create,
    List,
    MakeFolder,
    Read,
    Remove,
    RemoveFolder,
    Rename,
    Sync,
    SyncFolder,
    Write,
)  # fmt: skip

Tree = dict[str, Any]  # path -> bytes; of a file that grows (bytes, how many are on disk); FOLDER
FOLDER = "a folder"
DROPPED_AGAIN = "seen/dropped again"  # the model's own memory
Step = Generator[Any, Any, Any]


class Choose(NamedTuple):
    """What a process does when it looks for work: goes on with any name that is there, or waits."""

    folder: str


class Drop(NamedTuple):
    """What a person does: puts a file there, as soon as there is none of that name."""

    path: str


class Violation(AssertionError):
    pass


# --- the file system ---------------------------------------------------------------------------


def within(tree: Tree, folder: str) -> list[str]:
    return sorted(path for path in tree if posixpath.dirname(path) == folder)


def is_folder(tree: Tree, path: str) -> bool:
    return path in names.FOLDERS or tree.get(path) is FOLDER


def do(tree: Tree, op: Any) -> Any:
    """Does one operation, as a good local file system would."""
    kind = op.__class__
    if kind is Rename:
        if op.source not in tree or not is_folder(tree, posixpath.dirname(op.target)):
            return op.target in tree
        if op.target in tree:
            raise Violation(f"{op} overwrites")
        for path in [op.source, *(p for p in tree if p.startswith(op.source + "/"))]:
            tree[op.target + path[len(op.source) :]] = tree.pop(path)
        return True
    if kind is Read:
        found = tree.get(op.path)
        return found[0] if isinstance(found, tuple) else found
    if kind is Append:
        before, synced = tree.get(op.path, (b"", 0))
        tree[op.path] = (before + op.data, synced)
        return None
    if kind is Sync:
        if op.path in tree:
            tree[op.path] = (tree[op.path][0], len(tree[op.path][0]))
        return None
    if kind is Create:
        return tree.setdefault(op.path, op.data) is op.data
    if kind is Write:
        tree[op.path] = (op.data, 0)
        return None
    if kind is List:
        return tuple(posixpath.basename(path) for path in within(tree, op.folder))
    if kind is Remove:
        return tree.pop(op.path, None) is not None
    if kind is Drop:
        tree[op.path] = b"echo"
        tree[DROPPED_AGAIN] = posixpath.basename(op.path)
        return None
    if kind is MakeFolder:
        there = is_folder(tree, op.path)
        tree.setdefault(op.path, FOLDER)
        return not there
    if kind is RemoveFolder:
        if op.path not in tree:
            return "gone"
        if within(tree, op.path):
            return "full"
        del tree[op.path]
        return "removed"
    assert kind is SyncFolder, op
    for path in within(tree, op.folder):
        tree[path] = do(tree, Read(path))
    return None


def run(tree: Tree, generator: Step) -> Any:
    """Does all of its steps at once."""
    answer = None
    try:
        while True:
            op = generator.send(answer)
            answer = do(tree, op)
    except StopIteration as end:
        return end.value


def power_failure(tree: Tree) -> Tree:
    """What is left when all that was not yet on disk is lost."""
    return {
        path: (found[0][: found[1]], found[1]) if isinstance(found, tuple) else found
        for path, found in tree.items()
    }


def wrong(**changed: Any) -> Any:
    """The steps, some of them replaced."""
    return SimpleNamespace(**{**vars(real_steps), **changed})


# --- what processes do -------------------------------------------------------------------------

PLAN = lines.Plan("5b0000000000", words=("true",))


def pod_name(number: int, jobs: int) -> Pod:
    return Pod(names.new_pod(number, ticket=f"{number:012x}"), jobs, 0, names.NO_CUT)


def owner_name(number: int) -> str:
    return f"host-w{number}-{number:012x}"


def drop_plan(name: str) -> bytes:
    return lines.write_pod(PLAN._replace(kind="drop", name=name), [[]])


def worker(
    steps: Any, number: int, rounds: int, give: bool, together: bool, batch: int = 1
) -> Step:
    """Claims and runs so many pods, gives back the tail of each that it can, and commits so many
    at a time.

    together: begin and result of a job are one step, which makes the model smaller."""
    owner = owner_name(number)
    held = []
    for turn in range(rounds):
        name = yield Choose(names.QUEUE)
        pod = yield from work_on(steps, name, owner, number * 16 + turn, give, together)
        if pod is not None:
            held.append(pod)
        if held and (len(held) == batch or turn == rounds - 1):
            yield from steps.commit(held, owner)
            held = []


def work_on(
    steps: Any, name: str, owner: str, nonce: int, give: bool = False, together: bool = True
) -> Step:
    """Returns the pod, whose jobs have ended; None if it is not the owner's."""
    pod = names.read_pod(name)
    if pod is None:
        identity = names.new_pod(0, dropped=True, ticket=f"d{nonce:011x}")
        held = yield from steps.adopt(name, identity, owner, drop_plan(name))
    else:
        held = yield from steps.claim(pod, owner)
    data = None if held is None else (yield Read(names.claimed(held)))
    if data is None:
        return None
    plan, jobs = lines.read_pod(data)
    cut = yield from steps.read_cut(held)
    for index in range(len(jobs)):
        known = set(cut.results) | set(cut.lost)
        if give and 0 < index < held.jobs and not held.child and max(known, default=-1) < index:
            child = names.child_of(held.pod)[:-12] + f"c{nonce:011x}"
            held = yield from steps.give_back(held, index, plan, jobs, child)
            if held is None:
                return None
        if index >= held.jobs or index in cut.results:
            continue
        begun = lines.begin(held, index, 1.0)
        ended = lines.result(held, index, lines.Result(0, 0, 1.0, 1.0))
        for data in [begun + ended] if together else [begun, ended]:
            yield Append(names.results(owner), data)
    return held


def sweeper(steps: Any, number: int, rounds: int) -> Step:
    for turn in range(rounds):
        name = yield Choose(names.CLAIMED)
        yield from steps.sweep(names.read_pod(name), f"{number:08x}{turn:08x}")


def submitter(steps: Any, pods: list[tuple[Pod, bytes]], ticket: str = "5b0000000000") -> Step:
    count = yield from steps.submit(pods, ticket)
    if not count:
        yield from steps.discard(ticket)
    return count


def helper(steps: Any) -> Step:
    """Completes what it takes for left over, at any time."""
    yield from steps.publish_all()


def retirer(steps: Any) -> Step:
    """Puts a pod that is done out of sight."""
    name = yield Choose(names.DONE)
    yield from steps.retire([name])


def person(name: str) -> Step:
    """Drops a file of the same name again when the first has gone."""
    yield Drop(names.dropped(name))


# --- what must hold ----------------------------------------------------------------------------


def committed(tree: Tree) -> Counter[Any]:
    """How often each job is recorded: by number, or by the name of its dropped file."""
    found: Counter[Any] = Counter()
    for path in within(tree, names.DONE) + within(tree, names.PAST):
        pod = names.read_pod(posixpath.basename(path))
        assert pod is not None
        plan, _jobs = lines.read_pod(do(tree, Read(path)))
        record = run(tree, real_steps.read_record(pod))
        if sorted(record) != list(range(pod.jobs)):
            raise Violation(f"{path}: recorded are only {sorted(record)} of {pod.jobs} jobs")
        for index in record:
            found[plan.name or plan.first + index] += 1
    return found


def recover(tree: Tree, steps: Any, histories: Iterable[Any]) -> Tree:
    """Everybody died. One who comes then must find each job, and record it exactly once.

    histories: what may be recorded in the end: one, if all jobs were there from the beginning."""
    tree = settle(tree, steps)
    found = committed(tree)
    again = [tree[DROPPED_AGAIN]] if DROPPED_AGAIN in tree else []
    if found not in (Counter([*jobs, *again]) for jobs in histories):
        raise Violation(f"recorded in the end: {dict(found)}")
    return tree


def settle(tree: Tree, steps: Any) -> Tree:
    """What one who is worker and sweeper makes of it, alone and whole."""
    tree = dict(tree)
    owner = owner_name(9)
    for _ in range(9):
        run(tree, steps.publish_all())
        for pod in claims(tree):
            run(tree, steps.sweep(pod, unused(tree)[:16]))
        waiting = [p for p in within(tree, names.QUEUE) if posixpath.basename(p)[0] != "."]
        for path in waiting:
            nonce = int(unused(tree)[:11], 16)
            held = run(tree, work_on(steps, posixpath.basename(path), owner, nonce))
            run(tree, steps.commit([] if held is None else [held], owner))
        if not waiting and not claims(tree):
            return tree
    raise Violation("what is left comes to no end")


def claims(tree: Tree) -> list[Pod]:
    found = [names.read_pod(posixpath.basename(path)) for path in within(tree, names.CLAIMED)]
    return [pod for pod in found if pod is not None]


def unused(tree: Tree) -> str:
    """Hex digits that are the same for the same tree, and others for any that comes of it."""
    return hashlib.sha256("\n".join(sorted(tree)).encode()).hexdigest()


# --- every interleaving ------------------------------------------------------------------------


class Numbers:
    """Values to small numbers and back: states are then tuples of numbers."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def of(self, key: Any, value: Any = None) -> int:
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.values)
            self.values.append(key if value is None else value)
        return number


class Explorer:
    """programs: by name, what makes the process anew. histories: see recover.
    stale: reads of other people's files may show what was there earlier, also a file that is not
    yet there. faults: so many operations may come late: told as failed, or their process dead, and
    done at any time after; or told as failed although done."""

    def __init__(
        self,
        tree: Tree,
        programs: dict[str, Callable[[], Step]],
        histories: Iterable[Any],
        *,
        steps: Any = real_steps,
        stale: bool = False,
        faults: int = 0,
    ) -> None:
        self.programs = list(programs.items())
        self.histories = list(histories)
        self.steps = steps
        self.stale = stale
        self.faults = faults
        self.transitions = 0
        self.trees = Numbers()
        self._ops = Numbers()
        self._locals = Numbers()
        self._done: dict[tuple[int, int], list[tuple[Any, int]]] = {}
        self._next: dict[Any, int] = {}
        self._sound: set[Any] = set()
        self._ends: dict[int, int] = {}
        self._start = self._tree(tree)

    def _tree(self, tree: Tree) -> int:
        return self.trees.of(frozenset(tree.items()), tree)

    # a process is known by the answers it got: (which program, answers); its value adds its next
    # operation. All that have ended, or died, are one

    def _local(self, program: int, answers: tuple[Any, ...]) -> int:
        generator = self.programs[program][1]()
        op = None
        try:
            for answer in (None, *answers):
                op = generator.send(answer)
            number = self._ops.of((op.__class__, op), op)
        except StopIteration:
            return self._ended()
        return self._locals.of((program, answers), (program, answers, number))

    def _after(self, local: int, answer: Any) -> int:
        key = (local, answer)
        found = self._next.get(key)
        if found is None:
            program, answers, _ = self._locals.values[local]
            found = self._next[key] = self._local(program, (*answers, answer))
        return found

    def _ended(self) -> int:
        return self._locals.of("ended", (-1, (), -1))

    def _results(self, tree_id: int, op_id: int) -> list[tuple[Any, int]]:
        """The answers an operation may get, each with what it leaves."""
        key = (tree_id, op_id)
        found = self._done.get(key)
        if found is None:
            tree, op = self.trees.values[tree_id], self._ops.values[op_id]
            if op.__class__ is Choose:
                found = [(posixpath.basename(p), tree_id) for p in within(tree, op.folder)]
            elif op.__class__ is Drop and op.path in tree:
                found = []  # waits
            else:
                after = dict(tree)
                answer = do(after, op)
                if not self.stale:
                    watch_work(tree, op, after)
                found = [(answer, self._tree(after))]
                if self.stale and op.__class__ is Read and answer is not None:
                    found += [(older, tree_id) for older in earlier(op.path, tree[op.path])]
            self._done[key] = found
        return found

    def explore(self) -> int:
        """Visits all states; returns how many. Raises Violation, telling what led there."""
        first = (self._start, tuple(self._local(n, ()) for n in range(len(self.programs))), (), 0)
        came: dict[Any, Any] = {first: None}
        stack = [first]
        state = first
        gc.disable()  # nothing of this is garbage, and there is much of it
        try:
            while stack:
                state = stack.pop()
                self._check(state[0], state[2])
                for label, after in self._moves(state):
                    self.transitions += 1
                    if after not in came:
                        came[after] = (state, label)
                        stack.append(after)
        except (Violation, ValueError) as wrong:  # ValueError: what is no pod was one
            history = [str(wrong)]
            at: Any = state
            while came[at] is not None:
                at, label = came[at]
                history.append(self._told(label))
            raise Violation("\n".join(reversed(history))) from None
        finally:
            gc.enable()
        return len(came)

    def _moves(self, state: Any) -> list[tuple[Any, Any]]:
        tree_id, processes, late, faults = state
        moves = []
        values = self._locals.values
        for place, local in enumerate(processes):
            op_id = values[local][2]
            if op_id < 0:
                continue
            for answer, after in self._results(tree_id, op_id):
                label = (place, op_id, answer)
                moves.append((label, (after, self._with(processes, place, answer), late, faults)))
                if faults < self.faults and after != tree_id:
                    op = self._ops.values[op_id]
                    if op.__class__ is Rename:
                        told = self._with(processes, place, False)
                        moves.append(((place, op_id, "a lie"), (after, told, late, faults + 1)))
                    else:
                        told = (*processes[:place], self._ended(), *processes[place + 1 :])
                    later = tuple(sorted((*late, op_id)))
                    moves.append(((place, op_id, "later"), (tree_id, told, later, faults + 1)))
        for place, op_id in enumerate(late):
            rest = late[:place] + late[place + 1 :]
            for answer, after in self._results(tree_id, op_id):
                moves.append((("late", op_id, answer), (after, processes, rest, faults)))
        return moves

    def _with(self, processes: Any, place: int, answer: Any) -> Any:
        return (*processes[:place], self._after(processes[place], answer), *processes[place + 1 :])

    def _check(self, tree_id: int, late: tuple[int, ...]) -> None:
        """Everybody dies here, with the power or without."""
        if (tree_id, late) in self._sound:
            return
        self._sound.add((tree_id, late))
        for end in {tree_id, self._tree(power_failure(self.trees.values[tree_id]))}:
            end = self._recovered(end)
            for op_id in late:
                tree = dict(self.trees.values[end])
                do(tree, self._ops.values[op_id])
                end = self._recovered(self._tree(tree))

    def _recovered(self, tree_id: int) -> int:
        found = self._ends.get(tree_id)
        if found is None:
            tree = recover(self.trees.values[tree_id], self.steps, self.histories)
            found = self._ends[tree_id] = self._tree(tree)
        return found

    def _told(self, label: Any) -> str:
        place, op_id, answer = label
        who = place if place == "late" else self.programs[place][0]
        op = self._ops.values[op_id]
        text = " ".join(part if isinstance(part, str) else "…" for part in op)
        return f"{who}: {op.__class__.__name__} {text} -> {answer!r:.200}"


def earlier(path: str, content: Any) -> list[Any]:
    """What a stale read of a file may show instead."""
    if isinstance(content, tuple):
        data, synced = content
        return [data[:synced]] if synced < len(data) else [b""] if data else []
    return [None] if path.startswith(names.CUTS) else []


def watch_work(before: Tree, op: Any, after: Tree) -> None:
    """Raises Violation if a sweep loses results that were in their file when it took the claim.

    No job would be recorded twice or not at all, but work would be done again for nothing."""
    if op.__class__ is not Rename or op.source not in before or op.source in after:
        return
    held = names.read_pod(posixpath.basename(op.source))
    pod = names.read_pod(posixpath.basename(op.target))
    if held is None or pod is None or not held.owner or op.target.startswith(names.DONE):
        return
    seen = after.pop("seen/" + op.source, None)
    if seen is None or pod.sweeper:
        data = before.get(names.results(held.owner), (b"", 0))[0]
        found = lines.lines_of(data, held.pod)
        cut = lines.read_cut(before.get(names.cut(held.cut), b""))
        seen = frozenset(lines.read_cut(lines.write_cut(cut, held, found)).results)
    if pod.owner:
        after["seen/" + op.target] = seen
    else:
        kept = lines.read_cut(before.get(names.cut(pod.cut), b"")).results
        if not seen <= set(kept):
            raise Violation(f"results of {sorted(seen)} were there, the cut holds {sorted(kept)}")
