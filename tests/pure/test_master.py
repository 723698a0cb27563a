"""What Master decides before a call: which host gets which slice."""

from __future__ import annotations

import dataclasses

from jamtasks import master
from jamtasks.slices import Sealed


@dataclasses.dataclass(eq=False)
class FakeLink:
    label: str
    holds: set[str]
    workers: int = 2


class FakeSlices(list):
    peek = list.__getitem__


def slices(count):
    return FakeSlices(
        Sealed(digest=str(index), size=1_000_000, needs_numpy=False) for index in range(count)
    )


def held(*numbers):
    return {str(number) for number in numbers}


def test_slices_go_where_they_lie_and_unknown_ones_anywhere():
    links = [FakeLink("a", held(1)), FakeLink("b", held(0, 2))]
    homes, seconds = master._homes(FakeSlices([*slices(4), None]), links)
    assert homes == {0: "b", 1: "a", 2: "b"}
    assert seconds > 0.01


def test_what_lies_at_several_hosts_is_shared_out():
    """b was away for a while: a holds everything since then."""
    links = [FakeLink("a", held(*range(16))), FakeLink("b", held(*range(8)))]
    homes, _ = master._homes(slices(16), links)
    assert sorted(homes) == list(range(16))
    assert list(homes.values()).count("b") == 8
    links[0].workers = 6
    homes, _ = master._homes(slices(16), links)
    assert list(homes.values()).count("b") == 4
