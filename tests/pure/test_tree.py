"""The tree of blocks: the same pairs, whatever blocks come and in whatever order."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_payload import tree
from worker_payload.tree import Tree, is_block, sibling


def test_doctests():
    failed, attempted = doctest.testmod(tree)
    assert attempted and not failed


def blocks(total):
    """All of the tree, from its definition: [j * 2^k, (j + 1) * 2^k), cut at the end."""
    found, size = set(), 1
    while True:
        found |= {(first, min(size, total - first)) for first in range(0, total, size)}
        if size >= total:
            return found
        size *= 2


@pytest.mark.parametrize("total", [1, 2, 3, 5, 6, 7, 8, 11, 16, 21])
def test_blocks_and_siblings(total):
    known = blocks(total)
    for first in range(-1, total + 1):
        for count in range(-1, total + 2):
            assert is_block(first, count, total) == ((first, count) in known)
    assert sibling(0, total, total) is None
    for first, count in known - {(0, total)}:
        other = sibling(first, count, total)
        assert other in known and sibling(*other, total) == (first, count)
        left, right = sorted([(first, count), other])
        assert left[0] + left[1] == right[0]
        assert (left[0], left[1] + right[1]) in known


def whole(total):
    """What must come of it, by recursion over the definition."""

    def value(first, size):
        if size == 1:
            return str(first)
        half = size // 2
        left = value(first, half)
        return left if first + half >= total else f"({left}{value(first + half, half)})"

    return value(0, 1 << (total - 1).bit_length())


def join(left, right, first, count):
    return f"({left}{right})"


@st.composite
def partitions(draw):
    """A number of slices, and blocks that make it up, in any order."""
    total = draw(st.integers(1, 70))
    parts, pending = [], [(0, total)]
    while pending:
        first, count = pending.pop()
        size = 1 << (count - 1).bit_length()
        if count > 1 and draw(st.booleans()):
            half = size // 2
            pending += [(first, min(half, count)), (first + half, count - half)][
                : 1 + (count > half)
            ]
        else:
            parts.append((first, count))
    return total, draw(st.permutations(parts))


def block_value(first, count, total):
    made = Tree(total, join)
    for index in range(first, first + count):
        made.add(index, 1, str(index))
    ((found, (length, value)),) = made.blocks.items()
    assert (found, length) == (first, count), "slices of a block join to it, and no further"
    return value


@given(partitions())
def test_the_pairs_depend_on_the_number_of_slices_alone(case):
    total, parts = case
    made = Tree(total, join)
    for first, count in parts:
        made.add(first, count, block_value(first, count, total))
    assert made.blocks == {0: (total, whole(total))}


@given(partitions(), st.data())
def test_what_waits_are_whole_blocks_apart_from_each_other(case, data):
    total, parts = case
    made = Tree(total, join)
    for first, count in parts[: data.draw(st.integers(0, len(parts)))]:
        made.add(first, count, block_value(first, count, total))
        for waiting, (length, _) in made.blocks.items():
            assert is_block(waiting, length, total)
            other = sibling(waiting, length, total)
            assert other is None or made.blocks.get(other[0], (0,))[0] != other[1]


def test_joins_are_told_what_they_make():
    told = []
    made = Tree(6, lambda left, right, first, count: told.append((first, count)))
    for index in (5, 3, 0, 2, 4, 1):
        made.add(index, 1, None)
    assert told == [(2, 2), (4, 2), (0, 2), (0, 4), (0, 6)]
