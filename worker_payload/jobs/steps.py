"""Every change of a project's directory that needs an order, step by step; no I/O.

Each function is a generator that yields operations and is sent their answers. files.Files executes
them; the tests execute them too, in every order and with every failure.

What the order rests on:

* The fence is a rename, which the file server decides, never a look. Whoever's rename comes late
  finds its source gone, because a name that was left never comes back: a pod that is taken from its
  owner returns to the queue under its next attempt.
* Targets of renames are unique to who renames. So a target that exists after a failure proves that
  the rename was done, and nothing is ever overwritten.
* Anybody may die at any step, and may turn out to be alive after he was thought dead. A rename that
  was reported as failed may have been done, or may be done later. So who is told "gone" lets go and
  destroys nothing: only who has taken a claim knows that no rename of its owner can follow.
"""

from typing import Any, Dict, Generator, Iterable, NamedTuple, Optional, Sequence, Tuple

from worker_payload.jobs import lines, names
from worker_payload.jobs.names import Pod, Tail

Steps = Generator[Any, Any, Any]

# --- operations; paths are relative to the project's folder ------------------------------------


class Rename(NamedTuple):
    """-> True: done, target is there. False: source was gone (or, rarely, this could not be told).
    For files and folders."""

    source: str
    target: str


class Read(NamedTuple):
    """-> all bytes of the file, opened afresh; None if there is none."""

    path: str


class Create(NamedTuple):
    """-> True: the file is there, whole and on disk. False: another has this name, and keeps it."""

    path: str
    data: bytes


class Write(NamedTuple):
    """-> None. A new file that nobody looks for yet, and that a SyncFolder will bring to disk."""

    path: str
    data: bytes


class Append(NamedTuple):
    """-> None. Adds whole lines to a file that only this process writes."""

    path: str
    data: bytes


class Sync(NamedTuple):
    """-> None. What was appended to the file is on disk; if nothing was, there may be no file."""

    path: str


class SyncFolder(NamedTuple):
    """-> None. The folder and the files in it are on disk."""

    folder: str


class List(NamedTuple):
    """-> names in the folder, in no order, read afresh; [] if there is no folder. Names that are
    renamed meanwhile may be missing."""

    folder: str


class Remove(NamedTuple):
    """-> True: removed. False: it was gone."""

    path: str


class MakeFolder(NamedTuple):
    """-> True: made. False: it was there."""

    path: str


class RemoveFolder(NamedTuple):
    """-> "removed" | "gone" | "full"."""

    path: str


# --- submitting --------------------------------------------------------------------------------


def submit(pods, ticket):
    # type: (Iterable[Tuple[Pod, bytes]], str) -> Steps
    """Makes pods visible: all of them, or, if it dies before the rename of their folder, none.
    Returns how many; 0 if the server would not show their folder: then discard it, and say so.
    pods may be an iterator, of which one is held at a time. ticket: new_ticket().

    If it dies after that rename, publish_all completes it."""
    hidden, whole = names.submitted("." + ticket), names.submitted(ticket)
    yield MakeFolder(hidden)
    count = 0
    for pod, data in pods:
        yield Write(names.within(hidden, pod.name()), data)
        count += 1
    yield SyncFolder(hidden)
    if not (yield Rename(hidden, whole)) and not (yield Rename(hidden, whole)):
        return 0
    yield from publish(ticket)
    return count


def publish(ticket):
    # type: (str) -> Steps
    """Moves the pods of a whole submission into the queue; any number may do so at once."""
    folder = names.submitted(ticket)
    for _ in range(3):  # a listing or a rename may have failed
        for name in sorted((yield List(folder))):
            yield Rename(names.within(folder, name), names.dropped(name))
        if (yield RemoveFolder(folder)) != "full":
            break


def discard(ticket):
    # type: (str) -> Steps
    """Removes what a submit that failed has written. Returns whether it did; False: it became
    visible after all, or there was nothing.

    Moved away first, so that a late rename of submit finds nothing to show."""
    folder = names.submitted(".%s.gone" % ticket)
    if not (yield Rename(names.submitted("." + ticket), folder)):
        return False
    for name in (yield List(folder)):
        yield Remove(names.within(folder, name))
    yield RemoveFolder(folder)
    return True


def publish_all():
    # type: () -> Steps
    """Completes the submissions of those who died half-way. Returns how many there were."""
    found = [name for name in (yield List(names.SUBMITTED)) if not name.startswith(".")]
    for ticket in found:
        yield from publish(ticket)
    return len(found)


# --- an owner's steps --------------------------------------------------------------------------


def claim(pod, owner):
    # type: (Pod, str) -> Steps
    """Returns the pod as it is now held; None if another was quicker."""
    held = pod._replace(owner=owner, child="", sweeper="")
    done = yield Rename(names.queued(pod), names.claimed(held))
    return held if done else None


def adopt(name, pod_id, owner, plan_bytes):
    # type: (str, str, str, bytes) -> Steps
    """Claims a dropped file. Returns the pod that stands for it, the file being
    jobs/<ticket>/<name>; None if another was quicker. pod_id: names.new_pod(..., dropped=True), new
    for every call. plan_bytes: lines.write_pod of a plan of kind "drop", with one job.

    The token in jobpods comes first and stands for no job until the file has arrived; who sweeps it
    removes the file's folder, so that the file cannot arrive any more."""
    token = Pod(pod_id, 0, 0, names.NO_CUT, owner)
    held = token._replace(jobs=1)
    folder = names.ticket_folder(token.ticket)
    yield MakeFolder(folder)
    if not (yield Create(names.claimed(token), plan_bytes)):
        return None
    arrived = yield Rename(names.dropped(name), names.within(folder, name))
    if not arrived and (yield RemoveFolder(folder)) != "full":
        yield Remove(names.claimed(token))
        return None
    done = yield Rename(names.claimed(token), names.claimed(held))
    return held if done else None


def give_back(held, m, plan, jobs, child):
    # type: (Pod, int, lines.Plan, Sequence[Any], str) -> Steps
    """Lets go of the jobs from index m on, which become a pod of their own. Returns the pod as it
    is now held; None if it was taken away, and with it all that was to be done.

    Only if nothing is known of these jobs: none was begun, and none stands in the cut.
    plan, jobs: what read_pod gave for this pod. child: names.child_of(held.pod)."""
    if not 0 < m < held.jobs:
        raise ValueError("no part of %d jobs begins at %d" % (held.jobs, m))
    if not (yield from _publish(held.tail())):
        return held
    made = Tail(child, held.jobs - m, held.pod, held.attempt, held.owner)
    data = lines.write_pod(plan._replace(first=plan.first + m), jobs[m : held.jobs])
    if not (yield Create(names.tail(made), data)):
        return held
    narrow = held._replace(jobs=m, child=made.short())
    if not (yield Rename(names.claimed(held), names.claimed(narrow))):
        return None  # the tail stays: this rename may yet be done, and then it is needed
    yield from _publish(made)  # if that fails: before the commit again
    return narrow


def commit(pods, owner):
    # type: (Iterable[Pod], str) -> Steps
    """Makes the owner's lines of these pods the record. Returns for each whether it is so; False:
    it was taken away, and the lines are void."""
    pods = list(pods)
    yield Sync(names.results(owner))
    answers = []
    for pod in pods:
        if not (yield from _publish(pod.tail())):
            answers.append(False)
        else:
            answers.append((yield Rename(names.claimed(pod), names.done(pod))))
    return answers


# --- a sweeper's steps -------------------------------------------------------------------------


def sweep(found, sweeper=None):
    # type: (Pod, Optional[str]) -> Steps
    """Takes a claim from its owner, or from a sweeper who did not finish. Returns the pod that
    waits in the queue now; None if there is none: somebody else has it, or it is a token whose file
    never came. sweeper: names.new_cut(), new for every call, and the name of the cut it makes."""
    taken = found._replace(sweeper=sweeper or names.new_cut())
    if not (yield Rename(names.claimed(found), names.claimed(taken))):
        return None
    if not taken.jobs and (yield RemoveFolder(names.ticket_folder(taken.ticket))) != "full":
        yield Remove(names.claimed(taken))
        return None
    if not (yield from _publish(taken.tail())):
        return None
    for name in (yield List(names.TAILS)):
        made = names.read_tail(name)
        if made is not None and made[2:] == (taken.pod, taken.attempt, taken.owner):
            yield Remove(names.tail(made))
    before = yield from read_cut(taken)
    data = yield Read(names.results(taken.owner))
    cut = lines.write_cut(before, taken, lines.lines_of(data or b"", taken.pod))
    name = names.NO_CUT
    if cut:
        name = taken.sweeper
        if not (yield Create(names.cut(name), cut)):
            return None
    waiting = Pod(taken.pod, taken.jobs or 1, taken.attempt + 1, name)
    if not (yield Rename(names.claimed(taken), names.queued(waiting))):
        return None
    return waiting


def retire(done):
    # type: (Iterable[str]) -> Steps
    """Moves these names from done/ to past/, and removes what their owners left in tails/."""
    found = {}  # type: Dict[str, Pod]
    for name in done:
        pod = names.read_pod(name)
        if pod is not None:
            found[pod.pod] = pod
    for name in (yield List(names.TAILS)):
        made = names.read_tail(name)
        if made is not None and made.pod in found:
            yield Remove(names.tail(made))
    for pod in found.values():
        yield Rename(names.done(pod), names.past(pod))


# --- reading -----------------------------------------------------------------------------------


def read_cut(pod):
    # type: (Pod) -> Steps
    """What earlier attempts of the pod left: a lines.Cut."""
    if pod.cut == names.NO_CUT:
        return lines.EMPTY
    data = yield Read(names.cut(pod.cut))
    if data is None:
        yield List(names.CUTS)  # on NFS this ends the time for which "no such file" is believed
        data = yield Read(names.cut(pod.cut))
    return lines.read_cut(data or b"")


def read_record(pod):
    # type: (Pod) -> Steps
    """{index: lines.Result} of a pod in done/ or past/. For all pods of a project read each owner's
    results once instead, and give them to lines.record."""
    before = yield from read_cut(pod)
    data = yield Read(names.results(pod.owner))
    return lines.record(pod, before, lines.lines_of(data or b"", pod.pod))


# --- tails -------------------------------------------------------------------------------------


def _publish(made):
    # type: (Optional[Tail]) -> Steps
    """Makes a tail visible, if there is one. Returns whether it certainly is, now or before."""
    if made is None:
        return True
    waiting = Pod(made.child, made.jobs, 0, names.NO_CUT)
    for _ in range(2):
        if (yield Rename(names.tail(made), names.queued(waiting))):
            return True
        if (yield Read(names.tail(made))) is None:
            return True  # another made it visible
    return False
