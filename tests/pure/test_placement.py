"""Which hosts have which slices: of this process, and as earlier commands left it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jamtasks import placement
from jamtasks.slices import Sealed


@dataclasses.dataclass(eq=False)
class FakeHost:
    label: str
    holds: dict[str, None] = dataclasses.field(default_factory=dict)
    workers: int = 2


class FakeData:
    """Slices, of which all or some have been read."""

    def __init__(self, digests, read=True):
        self.digests = list(digests)
        self.read = set(range(len(self.digests))) if read else set()

    def __len__(self):
        return len(self.digests)

    def peek(self, index):
        return self.sealed(index) if index in self.read else None

    def sealed(self, index):
        self.read.add(index)
        return Sealed(digest=self.digests[index], size=1_000_000, needs_numpy=False)


def digests(count, of="x"):
    return [hashlib.sha256(f"{of}{index}".encode()).hexdigest() for index in range(count)]


def host(label, *indices, workers=2):
    names = digests(100)
    return FakeHost(label, dict.fromkeys(names[index] for index in indices), workers)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAM_CACHE_DIR", str(tmp_path))
    return tmp_path / "placed"


def firsts(homes):
    return {index: labels[0] for index, labels in homes.items()}


# --- what this process knows --------------------------------------------------------------------


def test_slices_go_where_they_lie_and_unknown_ones_anywhere():
    data = FakeData(digests(5))
    data.read.discard(4)
    homes, seconds = placement.plan(data, [host("a", 1), host("b", 0, 2)])
    assert homes == {0: ["b"], 1: ["a"], 2: ["b"]}
    assert seconds > 0.01


def test_what_lies_at_several_hosts_is_shared_out():
    """b was away for a while: a holds everything since then."""
    data = FakeData(digests(16))
    hosts = [host("a", *range(16)), host("b", *range(8))]
    homes, _ = placement.plan(data, hosts)
    assert sorted(homes) == list(range(16))
    assert list(firsts(homes).values()).count("b") == 8
    assert all(set(homes[index]) == {"a", "b"} for index in range(8)), "either may run them"
    hosts[0].workers = 6
    homes, _ = placement.plan(data, hosts)
    assert list(firsts(homes).values()).count("b") == 4


# --- from one command to the next ---------------------------------------------------------------


def test_the_next_command_finds_slices_where_this_one_left_them(cache):
    placement.keep(FakeData(digests(6)), {"a": [0, 1, 2, 5], "b": [3, 4, 2], "gone": [2]})
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.iterdir()} == {0o600}
    homes, _ = placement.plan(FakeData(digests(6), read=False), [host("b"), host("a"), host("c")])
    assert {index: sorted(labels) for index, labels in homes.items()} == {
        0: ["a"], 1: ["a"], 2: ["a", "b"], 3: ["b"], 4: ["b"], 5: ["a"],
    }  # fmt: skip
    assert homes[2][0] == "b", "who has less to do"


def test_what_this_process_knows_counts_more_than_what_was_kept():
    placement.keep(FakeData(digests(4)), {"a": [0, 1], "b": [2, 3]})
    homes, _ = placement.plan(FakeData(digests(4)), [host("a"), host("b", 0)])
    assert homes == {0: ["b"], 1: ["a"], 2: ["b"], 3: ["b"]}


@pytest.mark.parametrize("changed", [0, 2, 5])
def test_a_change_of_one_slice_does_not_make_it_forget_the_others(changed):
    names = digests(6)
    placement.keep(FakeData(names), {"a": [0, 1, 2, 5], "b": [3, 4]})
    names[changed] = "f" * 64
    homes, _ = placement.plan(FakeData(names, read=False), [host("a"), host("b")])
    assert firsts(homes) == {0: "a", 1: "a", 2: "a", 3: "b", 4: "b", 5: "a"}


def test_other_data_and_other_slices_are_not_mistaken_for_it():
    placement.keep(FakeData(digests(6)), {"a": range(6)})
    for other in (digests(5), digests(6, of="y")):
        homes, _ = placement.plan(FakeData(other, read=False), [host("a")])
        assert homes == {}


def test_nothing_is_read_where_nothing_can_be_known():
    data = FakeData(digests(6), read=False)
    assert placement.plan(data, [host("a")])[0] == {}
    placement.keep(FakeData(digests(7)), {"a": range(7)})
    assert placement.plan(data, [host("a")])[0] == {}
    assert not data.read


def test_a_call_that_did_not_come_to_its_end_leaves_what_was_kept():
    data = FakeData(digests(4))
    placement.keep(data, {"a": [0, 1], "b": [2, 3]})
    placement.keep(data, {"a": [3]})
    homes, _ = placement.plan(data, [host("a"), host("b")])
    assert firsts(homes) == {0: "a", 1: "a", 2: "b", 3: "b"}


@pytest.mark.parametrize(
    "told", [b"", b"[]", b"{", b"\xff", b'{"a": [0]}', b'{"a": [0, 9]}', b'{"a": [2, 1]}',
             b'{"a": [-1, 2]}', b'{"a": "0123"}', b'{"a": [0, true]}', b'{"a": [0, 1e9]}',
             b'{"a": [0.5, 1]}', b'{"a": 7}', b'{"a": [null, 1]}'],
)  # fmt: skip
def test_what_cannot_be_meant_is_as_if_it_were_not_there(cache, told):
    data = FakeData(digests(6))
    placement.keep(data, {"a": range(6)})
    for path in cache.iterdir():
        path.write_bytes(told)
    assert placement.plan(data, [host("a")])[0] == {}
    placement.keep(data, {"a": range(6)})
    assert len(placement.plan(data, [host("a")])[0]) == 6


def test_what_stands_there_already_is_not_written_again_and_counts_as_new(cache):
    data = FakeData(digests(6))
    placement.keep(data, {"a": range(6)})
    before = {path: path.stat().st_ino for path in cache.iterdir()}
    for path in before:
        os.utime(path, (1, 1))
    placement.keep(data, {"a": range(6)})
    assert {path: path.stat().st_ino for path in cache.iterdir()} == before
    assert all(path.stat().st_mtime > 1 for path in before)
    placement.keep(data, {"b": range(6)})
    assert placement.plan(data, [host("a"), host("b")])[0][0] == ["b"]


def test_it_is_nobodys_error(cache):
    data = FakeData(digests(6))
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file where a folder should be")
    placement.keep(data, {"a": range(6)})
    assert placement.plan(data, [host("a")])[0] == {}


def test_the_oldest_go(cache):
    names = digests(placement.KEPT + placement.MORE + 1)
    for number, name in enumerate(names):
        placement.keep(FakeData([name]), {"a": [0]})
        os.utime(cache / f"1.{name[:16]}.json", (number, number))
    left = {path.name for path in cache.iterdir()}
    assert left == {f"1.{name[:16]}.json" for name in names[-placement.KEPT :]}


def test_very_many_slices_are_not_written_down(cache):
    many = placement.MOST_SLICES + 1
    placement.keep(FakeData(digests(many)), {"a": range(many)})
    assert not cache.exists()


@given(st.dictionaries(st.text(max_size=5), st.sets(st.integers(0, 30)), max_size=4))
def test_what_is_written_is_what_is_read(given):
    found = placement.decode(placement.encode(given), 31)
    assert {
        host: {index for index, hosts in found.items() if host in hosts} for host in given
    } == given


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_whatever_is_read_is_a_placement_or_a_value_error(data):
    try:
        found = placement.decode(data, 10)
    except ValueError:
        return
    assert all(0 <= index < 10 for index in found)
