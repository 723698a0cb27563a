"""The queue as a host's workers see it: its order, and that hosts and workers do not collide."""

import collections
import fcntl
import json
import os
import random
import time

import pytest

from worker_payload import layout
from worker_payload.jobs import drops, files, names, view
from worker_payload.jobs.names import Pod


def pods(count, **more):
    return [Pod(names.new_pod(1000 + n, 0, n), 1, 0, "-", **more).name() for n in range(count)]


def entries(found):
    return [(view.key_of(name), name) for name in found]


# --- order -------------------------------------------------------------------------------------


def test_default_order_is_priority_then_age_then_number():
    low = names.new_pod(1, -5, 0) + "~1~0~-"
    old, new = (names.new_pod(ms, 0, 9) + "~1~0~-" for ms in (100, 200))
    second = names.new_pod(200, 0, 10) + "~1~0~-"
    high = names.new_pod(900, 7, 0) + "~1~0~-"
    made = entries([low, new, second, high, old])
    random.shuffle(made)
    assert [name for _, name in view.ordered(made, "priority")] == [high, old, new, second, low]


def test_dropped_files_have_their_place_among_pods():
    old, new = (names.new_pod(ms, 0, 0) + "~1~0~-" for ms in (100, 300))
    made = [*entries([new, old]), (view.key_of_drop(0, 200), "b"), (view.key_of_drop(3, 400), "a")]
    assert [name for _, name in view.ordered(made, "priority")] == ["a", old, "b", new]
    assert [name for _, name in view.ordered(made, "age")] == [old, "b", new, "a"]
    assert [name for _, name in view.ordered(made, "name")] == [old, new, "a", "b"]


# --- many hosts --------------------------------------------------------------------------------


def test_a_lone_host_keeps_the_order():
    made = entries(pods(200))
    assert [name for _, _, name in view.arranged(made, "a", ["a"])] == [n for _, n in made]
    assert all(mine for mine, _, _ in view.arranged(made, "a", ["a"]))


@pytest.mark.parametrize(
    "hosts", [["a", "b"], ["lab1", "lab2", "lab3"], [f"n{i}" for i in range(20)]]
)
def test_hosts_take_different_names_first_and_leave_the_order_within_a_window_only(hosts):
    made = entries(pods(view.WINDOW * len(hosts) + 700))
    rank = {name: place for place, (_, name) in enumerate(made)}
    size = view.WINDOW * len(hosts)
    owners = collections.Counter()
    for host in hosts:
        found = view.arranged(made, host, hosts)
        assert sorted(name for _, _, name in found) == sorted(rank)
        for place, (mine, _, name) in enumerate(found):
            assert rank[name] // size == place // size
            owners[name] += mine
        for start in range(0, len(found), size):  # its own first, each part in order
            window = found[start : start + size]
            assert window == sorted(window, key=lambda entry: (not entry[0], rank[entry[2]]))
    assert set(owners.values()) == {1}  # every name is exactly one host's
    share = collections.Counter(view.home_of(name, hosts) for _, name in made)
    assert len(share) == len(hosts)
    assert max(share.values()) < 2.5 * len(made) / len(hosts)


def test_a_host_that_comes_takes_over_few_names():
    found = pods(1000)
    before = {name: view.home_of(name, ["a", "b", "c"]) for name in found}
    after = {name: view.home_of(name, ["a", "b", "c", "d"]) for name in found}
    moved = [name for name in found if before[name] != after[name]]
    assert all(after[name] == "d" for name in moved)
    assert 150 < len(moved) < 350


def test_claims_are_tried_little_more_than_once_where_hosts_share_a_queue():
    """Many hosts see one queue, each as it was when it listed; all claim at the same pace."""
    hosts = [f"n{number}" for number in range(12)]
    waiting = {name: key for key, name in entries(pods(1200))}
    views = {host: [] for host in hosts}
    collided = dict.fromkeys(hosts, 0)
    tries = claims = 0
    while waiting:
        for host in hosts:
            mine = views[host]
            if not mine or collided[host] >= 2:
                listed = view.ordered([(key, name) for name, key in waiting.items()], "priority")
                mine[:] = view.arranged(listed[: 3 * view.WINDOW * len(hosts)], host, hosts)
                collided[host] = 0
            for _, _, name in mine[:4]:
                tries += 1
                done = waiting.pop(name, None) is not None
                claims += done
                collided[host] = 0 if done else collided[host] + 1
            del mine[:4]
    assert claims == 1200
    assert tries < 1.5 * claims


# --- the list that workers of a host share -----------------------------------------------------


@pytest.fixture
def make(tmp_path):
    """Workers' views of one project, each with its own files."""
    run_path = tmp_path / "run"
    run_path.mkdir(mode=0o700)
    run = layout.run_dir({"JAM_RUN_DIR": str(run_path)})
    root = str(tmp_path / "home" / "p")
    files.prepare(root)
    made = []

    def one(host="here", network=False):
        here = files.Files(root)
        here.network = network
        queue = os.path.join(root, names.QUEUE)
        seen = view.View(run, "p", here, host, drops.Drops(queue, network, str(tmp_path)))
        seen.folder = queue
        made.append(seen)
        return seen

    yield one
    for seen in made:
        seen.close()
    os.close(run.fd)


def fill(seen, found):
    for name in found:
        with open(os.path.join(seen.folder, name), "w"):
            pass


def settle(seen):
    """As if the queue had been left alone for a while."""
    past = time.time() - 60
    os.utime(seen.folder, (past, past))


def test_workers_of_a_host_share_one_list(make):
    first, second = make(), make()
    found = pods(10)
    fill(first, found)
    settle(first)
    taken = [item.name for item in first.take(3, 0.0) + second.take(3, 0.0) + first.take(9, 0.0)]
    assert taken == found
    assert first._files.counted + second._files.counted <= 4  # queue, order, hosts: once
    assert second.take(5, 0.0) == []


def test_what_was_taken_and_not_claimed_is_found_again(make):
    seen = make()
    found = pods(2)
    fill(seen, found)
    assert len(seen.take(5, 0.0)) == 2
    again = seen.take(5, time.monotonic() + 5)
    assert [item.name for item in again] == found


def test_a_queue_that_does_not_change_is_not_listed(make):
    seen = make()
    settle(seen)
    seen.take(1, 0.0)
    counted = seen._files.counted
    seen.take(1, time.monotonic() + 0.8)
    assert seen._files.counted == counted


def test_a_watching_worker_sees_a_new_job_soon_and_others_wait_their_turn(make):
    import threading

    first, second = make(), make()
    settle(first)
    answers = {}

    def watch(name, seen):
        answers[name] = (seen.take(1, time.monotonic() + 20), time.monotonic())

    threads = [threading.Thread(target=watch, args=pair) for pair in (("a", first), ("b", second))]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    began = time.monotonic()
    fill(first, pods(2))
    for thread in threads:
        thread.join(20)
    assert sorted(len(found) for found, _ in answers.values()) == [1, 1]
    assert len({found[0].name for found, _ in answers.values()}) == 2
    assert max(when for _, when in answers.values()) - began < 2


def test_who_does_not_wait_finds_nothing_while_another_watches(make):
    first, second = make(), make()
    assert first._acquire(True)
    fill(first, pods(1))
    assert second.take(1, 0.0) == []
    assert second.someone_is_idle()
    fcntl.flock(first._lock, fcntl.LOCK_UN)
    assert len(second.take(1, 0.0)) == 1
    assert not second.someone_is_idle()


def test_two_collisions_leave_the_names_of_other_hosts(make):
    seen = make("a")
    for host in ("a", "b"):
        owner = names.new_owner(host, 1)
        with open(os.path.join(seen._files.root, names.heartbeat(owner)), "w") as handle:
            handle.write('{"state": "idle"}')
    fill(seen, pods(40))
    settle(seen)
    (first,) = seen.take(1, 0.0)
    seen.claimed(False)
    seen.claimed(False)
    rest = [item.name for item in seen.take(100, 0.0)]
    assert rest and all(view.home_of(name, ["a", "b"]) == "a" for name in rest)
    assert first.name not in rest
    assert seen.someone_is_idle()  # on b
    seen.claimed(False)
    seen.claimed(False)
    assert len(seen.take(100, time.monotonic() + 5)) == 40  # listed anew: all that is still there


def test_a_torn_list_is_listed_again(make):
    first, second = make(), make()
    fill(first, pods(5))
    first.take(1, 0.0)
    with open(first._path, "r+b") as handle:
        handle.truncate(30)
    assert len(second.take(9, time.monotonic() + 5)) == 5


class Killed(BaseException):
    pass


@pytest.mark.parametrize("lines", range(7))
def test_who_is_killed_while_it_writes_the_list_leaves_nothing_and_misleads_nobody(
    make, monkeypatch, lines
):
    first, second = make(), make()
    fill(first, pods(5))
    assert len(first.take(1, 0.0) + second.take(1, 0.0)) == 2  # both know it
    written, real = [], json.dumps

    def dumps(value):
        if len(written) == lines:
            raise Killed
        written.append(value)
        return real(value)

    with monkeypatch.context() as patch:
        patch.setattr(view.json, "dumps", dumps)
        with pytest.raises(Killed):
            assert first._acquire(True)
            first._list()
    fcntl.flock(first._lock, fcntl.LOCK_UN)
    run = os.path.dirname(first._path)
    assert set(os.listdir(run)) <= {os.path.basename(first._path), "view.p.lock"}
    left = 3 if lines < 2 else 5  # the old list counts, or all that is there is listed anew
    assert len(second.take(4, time.monotonic() + 5)) == min(left, 4)
    if left == 5:
        assert len(first.take(4, 0.0)) == 1


def test_a_large_queue_is_not_listed_per_job(make):
    seen = make()
    fill(seen, pods(1000))
    settle(seen)
    count = 0
    while count < 1000:
        count += len(seen.take(1, time.monotonic() + 5))
    assert seen._files.counted < 20


# --- dropped files -----------------------------------------------------------------------------


def drop(seen, name, text="[control]\nexecutable: true\n"):
    with open(os.path.join(seen.folder, name), "w") as handle:
        handle.write(text)


def test_priorities_of_dropped_files_count(make):
    seen = make()
    for number in (1, 3, 2):
        drop(seen, f"job{number}", f"[fjd]\nexecutable: true\npriority: {number}\n")
    drop(seen, "other")
    assert [item.name for item in seen.take(9, 0.0)] == ["job3", "job2", "job1", "other"]


def test_a_file_that_is_written_waits_and_is_noticed_when_it_is_closed(make):
    seen = make()
    with open(os.path.join(seen.folder, "job"), "w") as handle:
        handle.write("[control]\n")
        handle.flush()
        assert seen.take(1, time.monotonic() + 0.6) == []
        handle.write("executable: true\n")
    (item,) = seen.take(1, time.monotonic() + 5)
    assert item.drop.plan.words == ("true",)


def test_on_a_network_a_file_has_to_settle_whoever_looks(make, monkeypatch):
    monkeypatch.setattr(drops, "SETTLED", 0.5)
    monkeypatch.setitem(view._LIST_EVERY, True, 0.1)
    first, second = make(network=True), make(network=True)
    drop(first, "job", "[control]\n")
    assert first.take(1, time.monotonic() + 0.3) == []
    drop(first, "job")
    began = time.monotonic()
    assert second.take(1, time.monotonic() + 0.3) == []
    (item,) = first.take(1, time.monotonic() + 5)
    assert item.drop.plan.words == ("true",) and time.monotonic() - began >= 0.5


def test_complaints_are_remembered_and_files_that_change_are_read_again(make):
    seen = make()
    drop(seen, "notes", "milk\n")
    os.mkdir(os.path.join(seen.folder, "folder"))
    assert seen.take(9, 0.0) == []
    assert set(seen.complaints()) == {"notes", "folder"}
    assert seen.complaints()["folder"] == "it is no file"
    drop(seen, "notes")
    assert [item.name for item in seen.take(9, time.monotonic() + 5)] == ["notes"]
    assert set(seen.complaints()) == {"folder"}
    os.rmdir(os.path.join(seen.folder, "folder"))
    os.unlink(os.path.join(seen.folder, "notes"))
    assert seen.take(9, time.monotonic() + 0.6) == []
    assert not seen.complaints()


@pytest.mark.parametrize(
    ("text", "mode", "words", "reason"),
    [
        ("[control]\nexecutable: a 'b c'\n", 0o644, ("a", "b c"), None),
        ("[fjd]\nexecutable = %(x)s\n[other]\nk: %\n", 0o644, ("%(x)s",), None),
        ("#!/bin/sh -e -x\n", 0o644, ("/bin/sh", "-e -x"), None),
        ("#!/bin/sh\n", 0o755, (), None),
        ("\0\1binary", 0o755, (), None),
        ("\0\1binary", 0o644, None, "no section"),
        ("[control]\nexe: x\n", 0o644, None, "no section"),
        ("[control]\nexecutable:\n", 0o644, None, "empty"),
        ("[control]\nexecutable: 'x\n", 0o644, None, "quotation"),
        ("[control]\nexecutable: x\npriority: 1000\n", 0o644, None, "priority"),
        ("[control]\nexecutable: x\nretries: few\n", 0o644, None, "retries"),
        ("#!\n", 0o644, None, "no program"),
        ("", 0o644, None, "no section"),
    ],
)
def test_what_a_file_says(tmp_path, text, mode, words, reason):
    path = tmp_path / "job"
    path.write_text(text)
    path.chmod(mode)
    reader = drops.Drops(str(tmp_path), False, "/hired")
    if reason is None:
        assert reader.read("job", 0.0).plan.words == words
    else:
        with pytest.raises(drops.NoJob, match=reason):
            reader.read("job", 0.0)


def test_paths_in_a_file(tmp_path):
    (tmp_path / "tool").write_text("")
    (tmp_path / "tool").chmod(0o755)
    reader = drops.Drops(str(tmp_path), False, str(tmp_path), {"PATH": "/bin", "HOME": "/h"})

    def read(text):
        (tmp_path / "job").write_text("[control]\n" + text)
        return reader.read("job", 0.0).plan

    assert read("executable: ./a/../b x\n").words == (f"{tmp_path}/b", "x")
    assert read("executable: tool\n").words == (f"{tmp_path}/tool",)
    assert read("executable: sh\n").words == ("sh",)
    plan = read("executable: ~/x\nlogfile: ~/l\ncwd: ~\n")
    assert (plan.words, plan.logfile, plan.cwd) == (("/h/x",), "/h/l", "/h")
    plan = read("executable: x\ncwd: sub\nlogfile: l\ntimeout: 1.5\nretries: 4\n")
    assert (plan.cwd, plan.logfile, plan.timeout, plan.tries) == (f"{tmp_path}/sub", "l", 1.5, 4)
    assert bytes.fromhex(plan.name) == b"job" and plan.kind == "drop"
