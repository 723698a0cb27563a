"""What a project's folder says, as workers fill it: counts, records, their order."""

from __future__ import annotations

import binascii
import os
from collections.abc import Iterator, Sequence

import pytest

from jamtasks.job_report import JobRecord
from jamtasks.ledger import Counts, Ledger, content_of_job
from worker_payload.jobs import files as job_files
from worker_payload.jobs import lines, names, steps
from worker_payload.jobs.files import Files
from worker_payload.jobs.lines import Plan, Result
from worker_payload.jobs.names import Pod

GOOD = Result(0, 0, 1000.0, 0.5)
BAD = Result(3, 0, 1000.0, 0.5, last="no such file")


class World:
    """A project's folder, with workers that do only what they are told."""

    def __init__(self, root: str):
        job_files.prepare(root)
        self.root = root
        self.files = Files(root)
        self.owner = names.new_owner("lab1", 1)

    def submit(self, *sizes: int, at: int = 1000, submission: str = "", **plan) -> list[Pod]:
        """A submission of pods of these sizes; their jobs are `echo <number>`."""
        submission = submission or names.new_ticket()
        pods, first = [], 1
        for number, size in enumerate(sizes):
            common = {"words": ("echo",), "cwd": "/", "total": sum(sizes), **plan}
            pod = Pod(names.new_pod(at, number=number), size, 0, names.NO_CUT)
            jobs = [[str(first + index)] for index in range(size)]
            pods.append((pod, lines.write_pod(Plan(submission, first, **common), jobs)))
            first += size
        self.files.run(steps.submit(iter(pods), names.new_ticket()))
        return [pod for pod, _ in pods]

    def claim(self, pod: Pod, owner: str = "") -> Pod:
        held = self.files.run(steps.claim(pod, owner or self.owner))
        assert held is not None
        return held

    def begin(self, pod: Pod, index: int) -> None:
        self.files.do(steps.Append(names.results(pod.owner), lines.begin(pod, index, 1000.0)))

    def end(self, pod: Pod, results: Sequence[Result], first: int = 0) -> None:
        for index, result in enumerate(results, first):
            self.begin(pod, index)
            line = lines.result(pod, index, result)
            self.files.do(steps.Append(names.results(pod.owner), line))

    def commit(self, *pods: Pod) -> None:
        assert all(self.files.run(steps.commit(pods, pods[0].owner)))

    def do(self, pod: Pod, *results: Result, owner: str = "") -> None:
        held = self.claim(pod, owner)
        self.end(held, results or [GOOD] * pod.jobs)
        self.commit(held)


@pytest.fixture
def world(tmp_path) -> Iterator[World]:
    made = World(str(tmp_path / "home" / "p"))
    yield made
    made.files.close()


def seen(ledger: Ledger) -> tuple[int, int, int, int, int]:
    """(queued, claimed, running, done, failed)."""
    counts = ledger.look().counts
    return counts.queued, counts.claimed, counts.running, counts.done, counts.failed


def test_counts_follow_a_pod_through_its_life(world):
    ledger = Ledger(world.files)
    assert ledger.look().counts == Counts()
    first, second = world.submit(3, 2)
    assert seen(ledger) == (5, 0, 0, 0, 0)
    held = world.claim(first)
    assert seen(ledger) == (2, 3, 0, 0, 0)
    world.begin(held, 0)
    assert seen(ledger) == (2, 3, 1, 0, 0)
    world.end(held, [GOOD, BAD])
    assert seen(ledger) == (2, 1, 0, 1, 1)
    world.end(held, [GOOD], 2)
    world.commit(held)
    look = ledger.look()
    assert seen(ledger) == (2, 0, 0, 2, 1)
    assert [(pod.pod, failed) for pod, failed in look.settled] == [(first.pod, True)]
    world.do(second)
    assert seen(ledger) == (0, 0, 0, 4, 1)


def test_a_ledger_that_comes_later_sees_the_same(world):
    first, second, _ = world.submit(3, 2, 4)
    world.do(first, GOOD, BAD, GOOD)
    world.end(world.claim(second), [GOOD])
    assert seen(Ledger(world.files)) == (4, 1, 0, 3, 1)


def test_a_pod_that_was_taken_away_keeps_what_is_in_its_cut(world):
    (pod,) = world.submit(4)
    held = world.claim(pod)
    world.end(held, [GOOD, BAD, GOOD._replace(tries=2)])
    world.begin(held, 3)
    ledger = Ledger(world.files)
    assert seen(ledger) == (0, 1, 1, 2, 1)
    waiting = world.files.run(steps.sweep(held, names.new_cut()))
    other = world.claim(waiting, names.new_owner("lab2", 7))
    assert seen(ledger) == (0, 1, 0, 2, 1)
    world.end(other, [GOOD], 3)
    world.commit(other)
    look = ledger.look()
    assert look.counts == Counts(done=3, failed=1, retried=1)
    records = ledger.records(look.settled[0][0])
    assert [(record.number, record.host, record.worker) for record in records] == [
        (1, "lab1", "w1"), (2, "lab1", "w1"), (3, "lab1", "w1"), (4, "lab2", "w7"),
    ]  # fmt: skip


def test_lines_of_a_worker_that_was_fenced_do_not_count(world):
    (pod,) = world.submit(1)
    held = world.claim(pod)
    waiting = world.files.run(steps.sweep(held, names.new_cut()))
    world.end(held, [BAD])  # it has not noticed
    world.do(waiting, owner=names.new_owner("lab2", 1))
    ledger = Ledger(world.files)
    assert seen(ledger) == (0, 0, 0, 1, 0)
    assert [record.failed for record in ledger.history()] == [False]


def test_a_tail_that_was_given_back_is_counted_once_and_in_its_place(world):
    (pod,) = world.submit(5)
    held = world.claim(pod)
    plan, jobs = lines.read_pod(world.files.do(steps.Read(names.claimed(held))))
    world.end(held, [GOOD, GOOD])
    narrow = world.files.run(steps.give_back(held, 2, plan, jobs, names.child_of(held.pod)))
    ledger = Ledger(world.files)
    assert seen(ledger) == (3, 0, 0, 2, 0)
    world.commit(narrow)
    (name,) = os.listdir(os.path.join(world.root, names.QUEUE))
    world.do(names.read_pod(name), owner=names.new_owner("lab2", 1))
    assert seen(ledger) == (0, 0, 0, 5, 0)
    assert [record.number for record in ledger.history()] == [1, 2, 3, 4, 5]
    assert [record.command for record in ledger.history()] == [f"echo {i}" for i in range(1, 6)]


def test_a_torn_line_counts_when_it_is_whole(world):
    (pod,) = world.submit(2)
    held = world.claim(pod)
    path = os.path.join(world.root, names.results(world.owner))
    line = lines.result(held, 0, GOOD)
    with open(path, "wb") as handle:
        handle.write(line[:30])
    ledger = Ledger(world.files)
    assert seen(ledger) == (0, 2, 0, 0, 0)
    with open(path, "ab") as handle:
        handle.write(line[30:])
    assert seen(ledger) == (0, 1, 0, 1, 0)


def test_a_pod_is_settled_when_all_its_results_are_in_sight(world):
    (pod,) = world.submit(2)
    held = world.claim(pod)
    world.end(held, [BAD])
    world.commit(held)  # the file server shows the name before the last line
    ledger = Ledger(world.files)
    look = ledger.look()
    assert (look.settled, look.counts) == ((), Counts(claimed=1, failed=1))
    world.end(held, [GOOD], 1)
    look = ledger.look()
    assert [failed for _, failed in look.settled] == [True]
    assert look.counts == Counts(done=1, failed=1)


def test_nothing_is_listed_while_nothing_changes(world, monkeypatch):
    world.submit(3)
    ledger = Ledger(world.files)
    for name in names.FOLDERS:
        os.utime(os.path.join(world.root, name), ns=(10**18, 10**18))
    assert ledger.look().changed
    before = world.files.counted
    monkeypatch.setattr(world.files, "do", lambda operation: pytest.fail(repr(operation)))
    look = ledger.look()
    assert world.files.counted - before <= 3
    assert not look.changed
    assert look.steady
    assert look.counts.queued == 3


def test_a_folder_that_changed_a_moment_ago_is_not_steady(world):
    world.submit(1)
    look = Ledger(world.files).look()
    assert not look.steady
    assert not look.empty


def test_job_order_is_time_of_submission_then_number(world):
    late = world.submit(2, 1, at=2000, words=("late",))
    early = world.submit(1, 2, at=1000, words=("early",))
    for pod in (late[1], early[1], late[0], early[0]):
        world.do(pod)
    ledger = Ledger(world.files)
    ledger.look()
    assert [record.command for record in ledger.history()] == [
        "early 1", "early 2", "early 3", "late 1", "late 2", "late 3",
    ]  # fmt: skip
    world.files.run(steps.retire(ledger.done_names()))
    assert ledger.look().counts == Counts()
    assert len(list(ledger.history())) == 6


def test_submissions_of_one_millisecond_do_not_mix(world):
    for submission in ("b" * 12, "a" * 12):
        for pod in world.submit(1, 1, at=1000, submission=submission):
            world.do(pod)
    found = [(record.submission[0], record.number) for record in Ledger(world.files).history()]
    assert found == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    only = Ledger(world.files).history(submission="b" * 12)
    assert [record.submission[0] for record in only] == ["b", "b"]


def drop(world: World, name: bytes) -> JobRecord:
    """A dropped file, from queue to record."""
    path = os.path.join(os.fsencode(world.root), b"jobqueue", name)
    with open(path, "wb") as handle:
        handle.write(b"#!/bin/sh\n")
    plan = Plan("", kind="drop", cwd="/", name=binascii.hexlify(name).decode())
    pod_id = names.new_pod(1000, dropped=True)
    data = lines.write_pod(plan, [[]])
    held = world.files.run(steps.adopt(os.fsdecode(name), pod_id, world.owner, data))
    world.end(held, [BAD])
    world.commit(held)
    (record,) = Ledger(world.files).history()
    return record


@pytest.mark.parametrize("name", [b"job 1.ini", b"caf\xe9", b"-rf", b"a\nb", b"x" * 255, b"p1~2"])
def test_any_name_that_a_file_can_have_is_a_jobs_name(world, name):
    record = drop(world, name)
    assert os.fsencode(record.name) == name
    assert record.label == os.fsdecode(name)
    assert record.out[0] == names.job_output(record.submission, "out")
    assert Ledger(world.files).find(os.fsdecode(name)) == record


def test_dropped_files_wait_until_they_are_adopted(world):
    ledger = Ledger(world.files)
    for name in ("job1", ".hidden", "half.part"):
        open(os.path.join(world.root, names.QUEUE, name), "w").close()
    look = ledger.look()
    assert look.dropped == {"job1"}
    assert look.counts.queued == 1
    assert look.empty  # but for the dropped one


def test_where_output_is(world):
    (pod,) = world.submit(2)
    world.do(pod, GOOD._replace(out=(5, 9), err=(1, 2)), GOOD)
    first, second = Ledger(world.files).history()
    assert first.out == (names.output(world.owner, "out"), 5, 9)
    assert first.err == (names.output(world.owner, "err"), 1, 2)
    assert second.out[1:] == (0, 0)
    (logged,) = world.submit(1, at=3000, logfile="logs/{1}.txt", cwd="/tmp")
    world.do(logged)
    *_, third = Ledger(world.files).history()
    assert third.out == ("/tmp/logs/1.txt", 0, -1)


def test_the_last_job_of_a_number_is_found_also_before_its_commit(world):
    (old,) = world.submit(2, at=1000)
    world.do(old)
    (new,) = world.submit(2, 1, at=2000)[:1]
    held = world.claim(new)
    world.end(held, [BAD])
    ledger = Ledger(world.files)
    assert ledger.find("1").failed
    assert ledger.find("job1") == ledger.find("1")
    assert not ledger.find("2").failed  # the newer one has not ended
    assert ledger.find("3") is None
    assert ledger.find("job") is None


def test_a_submission_whose_submitter_died_is_seen(world):
    found = steps.submit(
        [(Pod(names.new_pod(1), 1, 0, "-"), lines.write_pod(Plan("a"), [[]]))], "f" * 12
    )
    answer = None
    while not (isinstance(operation := found.send(answer), steps.Rename)):
        answer = world.files.do(operation)
    world.files.do(operation)  # whole, and then it died
    ledger = Ledger(world.files)
    look = ledger.look()
    assert (look.submissions, look.empty) == (1, False)
    assert world.files.run(steps.publish_all()) == 1
    assert seen(ledger) == (1, 0, 0, 0, 0)


def test_heartbeats_are_those_of_owners(world):
    for name in (world.owner, "README"):
        with open(os.path.join(world.root, names.OWNERS, name), "wb") as handle:
            handle.write(b"{}")
    assert Ledger(world.files).heartbeats() == {world.owner: b"{}"}


def test_content_is_what_runs_and_where():
    plan = Plan("a", words=("echo", "{}"), cwd="/tmp")
    key = content_of_job(plan, ["x"], 1)
    assert key == content_of_job(plan._replace(submission="b", first=9), ["x"], 7)
    assert key == content_of_job(plan._replace(words=("echo",)), ["x"], 1)
    assert key != content_of_job(plan, ["y"], 1)
    assert key != content_of_job(plan._replace(cwd="/"), ["x"], 1)
    numbered = plan._replace(words=("echo", "{#}"))
    assert content_of_job(numbered, [], 1) != content_of_job(numbered, [], 2)


def test_tallies_say_what_the_lines_say():
    one = Pod(names.new_pod(1), 9, 2, "-", names.new_owner("h", 1))
    two = one._replace(attempt=3)
    results = [
        GOOD, BAD, GOOD._replace(signal=9, exit=-1), GOOD._replace(reason="timeout", tries=2),
        GOOD._replace(last='","why":"x", ,"a":3'),
    ]  # fmt: skip
    parts = [lines.begin(one, 0, 1.0), lines.gave(one, 0), lines.begin(two, 7, 1.0)]
    parts += [lines.result(one, index, result) for index, result in enumerate(results)]
    parts.insert(3, b"0badbeef\n")
    data = b"".join(parts)
    tallies: dict[bytes, lines.Tally] = {}
    cut = len(b"".join(parts[:2]))
    lines.tally(data[:cut], 0, tallies)
    lines.tally(data[cut:], cut, tallies)
    assert set(tallies) == {lines.tally_key(one), lines.tally_key(two)}
    found = tallies[lines.tally_key(one)]
    assert (found.results, found.failed, found.retried) == (5, 3, 1)
    assert (found.begun, found.start, found.end) == (b"", 0, len(data))
    found = tallies[lines.tally_key(two)]
    assert (found.results, found.begun) == (0, b"7")
    assert data[found.start : found.end] == parts[2]
    assert len(list(lines.results_of(data, one.pod))) == 5
    assert len(list(lines.lines_of(data, one.pod))) == 8
