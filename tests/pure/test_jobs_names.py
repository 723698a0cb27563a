"""Names and lines of a project: what is written is read back, and nothing else is taken for it."""

from __future__ import annotations

import os

import hypothesis.strategies as st
import pytest
from hypothesis import given

from worker_payload import layout
from worker_payload.jobs import lines, names
from worker_payload.jobs.lines import Cut, Plan, Result
from worker_payload.jobs.names import Pod, Tail

HEX = "0123456789abcdef"
tickets = st.text(HEX, min_size=12, max_size=12)
nonces = st.text(HEX, min_size=16, max_size=16)
priorities = st.integers(*names.PRIORITIES)
identities = st.builds(
    names.new_pod,
    st.integers(0, 10**13 - 1),
    priorities,
    st.integers(0, 10**6 - 1),
    st.booleans(),
    tickets,
)
hosts = st.text(min_size=1, max_size=100)
owners = st.builds(names.new_owner, hosts, st.integers(1, 9999))
waiting = st.builds(
    lambda *given: Pod(*given),
    identities,
    st.integers(0, 10**9 - 1),
    st.integers(0, 10**6 - 1),
    st.just(names.NO_CUT) | nonces,
)
children = st.builds("{}.{}".format, tickets, st.integers(1, 10**9 - 1))
claims = st.builds(
    lambda pod, owner, child, sweeper: pod._replace(owner=owner, child=child, sweeper=sweeper),
    waiting,
    owners,
    st.just("") | children,
    st.just("") | nonces,
)


# --- names -------------------------------------------------------------------------------------


@given(waiting | claims)
def test_pods_are_read_back(pod):
    name = pod.name()
    assert names.read_pod(name) == pod
    assert len(os.fsencode(name)) <= 255 and os.sep not in name
    assert not names.is_dropped(name)


@given(claims)
def test_each_state_of_a_pod_has_a_place_of_its_own(pod):
    assert names.queued(pod) == os.path.join(names.QUEUE, pod.waiting().name())
    assert names.claimed(pod) == os.path.join(names.CLAIMED, pod.name())
    done = names.read_pod(os.path.basename(names.done(pod)))
    assert done == pod._replace(sweeper="")
    assert names.past(pod) == os.path.join(names.PAST, os.path.basename(names.done(pod)))
    assert pod.dropped == pod.pod.startswith("d") and pod.pod.endswith(pod.ticket)


@given(claims.filter(lambda pod: pod.child))
def test_a_claim_tells_which_tail_it_left(pod):
    tail = pod.tail()
    assert tail is not None
    assert names.read_tail(tail.name()) == tail and len(tail.name()) <= 255
    assert tail.short() == pod.child
    assert (tail.pod, tail.attempt, tail.owner) == (pod.pod, pod.attempt, pod.owner)
    assert tail.child[:-12] == pod.pod[:-12], "at its parent's place in the queue"
    assert pod._replace(child="").tail() is None


@given(identities)
def test_a_child_is_new_and_at_its_parent_s_place(pod):
    child = names.child_of(pod)
    assert child != pod and names.age_of(child) == names.age_of(pod)
    assert names.read_tail(Tail(child, 2, pod, 0, "h-w1-0123456789ab").name()) is not None


@given(st.lists(st.tuples(priorities, st.integers(0, 10**13 - 1), st.integers(0, 10**6 - 1))))
def test_names_sort_by_priority_then_age_then_number(keys):
    made = {names.new_pod(age, priority, number): (-priority, age, number)
            for priority, age, number in keys}  # fmt: skip
    assert [made[name] for name in sorted(made)] == sorted(made.values())
    for name, (priority, age, number) in made.items():
        assert names.priority_of(name) == -priority
        assert names.age_of(name) == (age, number)


@pytest.mark.parametrize("priority", [-1000, 1000])
def test_priorities_have_bounds(priority):
    with pytest.raises(ValueError, match="priority"):
        names.new_pod(0, priority)


@given(hosts, st.integers(1, 9999))
def test_owners_are_read_back(host, number):
    owner = names.new_owner(host, number)
    assert names.read_owner(owner) == (names.host_part(host), number)
    assert names.new_owner(host, number) != owner, "new at every start"


@given(st.text(max_size=300))
def test_no_host_gets_out_of_its_part(host):
    part = names.host_part(host)
    assert 1 <= len(part) <= 64 and part.isascii()
    assert not set(part) & set("~+/ \n") and part[0] not in ".-"


def test_an_owner_of_others_is_refused():
    for text in ("", "host", "host-w1", "host-w1-xyz", "host-w1-0123456789ab\n"):
        with pytest.raises(ValueError):
            names.read_owner(text)


@given(claims, st.data())
def test_a_name_that_was_changed_is_another_or_none(pod, data):
    name = pod.name()
    at = data.draw(st.integers(0, len(name) - 1))
    letter = data.draw(st.sampled_from(["", "~", "+", ".", "x", "/", "\n", "é"]))
    changed = name[:at] + letter + name[at + 1 :]
    read = names.read_pod(changed)
    assert read is None or read.name() == changed


@given(st.text(max_size=260))
def test_what_people_drop_is_never_ours(name):
    pod = names.read_pod(name)
    assert pod is None or pod.name() == name
    assert names.read_tail(name) is None
    if names.is_dropped(name):
        assert pod is None and not name.startswith(".")


def test_files_that_were_to_become_others_are_known_by_their_names():
    assert names.is_aside("." + layout.aside("new"))
    assert names.is_aside("." + layout.aside("remote.conf"))
    for name in (
        "new.0123456789abcdef.tmp",
        ".new.tmp",
        ".a.swp",
        ".0123456789abcdef.tmp",
        "a.tmp",
    ):
        assert not names.is_aside(name)


@pytest.mark.parametrize("name", [".hidden", "a.tmp", "a~", "a.swp", "a.part", ".a.swp"])
def test_files_in_the_making_are_left_alone(name):
    assert not names.is_dropped(name)


@pytest.mark.parametrize(
    "name", ["-rf", "a b", "a'\"b", "ä\n", "p~1~0~-", "x" * 255, "a.b.c", "~a"]
)
def test_any_other_name_is_a_job(name):
    assert names.is_dropped(name)


# --- lines -------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
results = st.builds(
    Result,
    st.integers(-1, 255),
    st.integers(0, 64),
    st.integers(0, 2 * 10**9).map(float),
    st.integers(0, 10**6).map(float),
    st.integers(0, 10**12),
    st.integers(0, 1000).map(float),
    st.integers(1, 9),
    st.sampled_from(["", "timeout", "lost", "spawn"]),
    st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)),
    st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)),
    st.text(),
    st.text(HEX, max_size=64),
    st.just("h-w1-0123456789ab"),
)
POD = Pod(names.new_pod(1), 4, 2, names.NO_CUT, "h-w1-0123456789ab")
OTHER = Pod(names.new_pod(1), 4, 2, names.NO_CUT, POD.owner)
GOOD = Result(0, 0, 1.0, 1.0)


@given(values)
def test_a_line_is_one_line_and_read_back(value):
    data = lines.line(value)
    assert data.endswith(b"\n") and data.count(b"\n") == 1 and data.isascii()
    assert lines.read_line(data) == value == lines.read_line(data[:-1])


@given(st.lists(st.integers(), max_size=5), st.binary(max_size=40), st.lists(st.integers()))
def test_a_torn_line_spoils_no_other(before, torn, after):
    whole = b"".join(map(lines.line, before))
    rest = b"\n" + b"".join(map(lines.line, after))
    found = list(lines.read_lines(whole + torn + rest))
    assert found[: len(before)] == before and found[len(found) - len(after) :] == after
    assert lines.whole(whole + torn.replace(b"\n", b"")) == len(whole)


@given(values.filter(lambda value: value is not None), st.data())
def test_a_line_cut_short_is_none(value, data):
    written = lines.line(value)
    assert lines.read_line(written[: data.draw(st.integers(0, len(written) - 2))]) is None


@given(values, st.data())
def test_a_changed_byte_is_seen(value, data):
    written = bytearray(lines.line(value)[:-1])
    at = data.draw(st.integers(0, len(written) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != written[at]))
    written[at] = other
    read = lines.read_line(bytes(written))
    # the checksum's own digits may be told in either case; spaces at the end may be dropped
    assert read is None or read == value


@given(results)
def test_results_are_read_back(result):
    value = lines.read_line(lines.result(POD, 3, result))
    assert value["p"] == POD.pod and value["k"] == POD.attempt and value["i"] == 3
    assert lines.read_result(value) == result
    assert result.failed == (result.exit != 0 or result.signal != 0 or result.reason != "")


@given(st.lists(st.sampled_from(["begin", "result", "gave"]), max_size=6))
def test_what_began_and_did_not_end_was_lost(history):
    write = {"begin": lambda: lines.begin(POD, 0, 1.0), "gave": lambda: lines.gave(POD, 0),
             "result": lambda: lines.result(POD, 0, GOOD)}  # fmt: skip
    data = b"".join(write[kind]() for kind in history)
    cut = lines.read_cut(lines.write_cut(lines.EMPTY, POD, lines.lines_of(data, POD.pod)))
    assert set(cut.results) == ({0} if "result" in history else set())
    lost = history[-1:] == ["begin"] and "result" not in history
    assert cut.lost == ({0: 1} if lost else {})


def test_losses_add_up_and_results_stay():
    cut = lines.EMPTY
    for attempt in range(3):
        pod = POD._replace(attempt=attempt)
        data = lines.begin(pod, 1, 1.0)
        if attempt == 1:
            data += lines.result(pod, 0, GOOD) + lines.result(pod, 0, GOOD._replace(exit=1))
        cut = lines.read_cut(lines.write_cut(cut, pod, lines.read_lines(data)))
    assert cut.lost == {1: 3} and lines.LOSSES == 3
    assert lines.read_result(cut.results[0]).exit == 0, "the first counts"
    assert lines.read_result(cut.results[0]).owner == POD.owner


def test_a_cut_holds_nothing_of_other_pods_attempts_or_indices():
    data = lines.result(OTHER, 0, GOOD) + lines.result(POD._replace(attempt=1), 1, GOOD)
    data += lines.result(POD, 4, GOOD)
    assert lines.write_cut(lines.EMPTY, POD, lines.read_lines(data)) == b""
    assert lines.record(POD, lines.EMPTY, lines.read_lines(data)) == {}


def test_lines_of_reads_one_pod_only():
    data = lines.result(OTHER, 0, GOOD) + lines.result(POD, 1, GOOD) + lines.line({"p": POD.pod})
    found = list(lines.lines_of(data + b"12345678 " + POD.pod.encode(), POD.pod))
    assert [value.get("i") for value in found] == [1, None]


def test_a_record_is_the_cut_then_the_last_owner_s_lines():
    earlier = POD._replace(attempt=1, owner="h-w2-0123456789ab")
    first = lines.result(earlier, 0, GOOD._replace(exit=7))
    cut: Cut = lines.read_cut(lines.write_cut(lines.EMPTY, earlier, lines.read_lines(first)))
    data = lines.result(POD, 0, GOOD) + lines.result(POD, 1, GOOD._replace(exit=3))
    found = lines.record(POD, cut, lines.read_lines(data))
    assert {index: (one.exit, one.owner) for index, one in found.items()} == {
        0: (7, earlier.owner),
        1: (3, POD.owner),
    }


words = st.lists(st.text(), max_size=4).map(tuple)
plans = st.builds(
    Plan,
    tickets,
    st.integers(1, 10**9),
    words,
    st.booleans(),
    words,
    st.text(),
    st.integers(0, 10**6).map(float),
    st.integers(1, 99),
    st.lists(st.tuples(st.text(), st.text()), max_size=3).map(tuple),
    st.text(),
    st.sampled_from(["command", "drop", "map"]),
    st.text(HEX),
    st.floats(0, 100),
    st.integers(0, 10**9),
)


@given(plans, st.lists(st.lists(st.text(), max_size=3), max_size=5))
def test_pods_of_jobs_are_read_back(plan, jobs):
    assert lines.read_pod(lines.write_pod(plan, jobs)) == (plan, jobs)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[control]\nexecutable: x\n", lines.line({"jam": 2})]
)
def test_what_is_no_pod_is_refused(data):
    with pytest.raises(ValueError):
        lines.read_pod(data)


@given(plans)
def test_a_pod_whose_head_was_cut_is_refused(plan):
    data = lines.write_pod(plan, [["a"]])
    with pytest.raises(ValueError):
        lines.read_pod(data[: data.index(b"\n") // 2])
