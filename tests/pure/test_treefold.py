"""The fold along the tree: whatever blocks answers come in, the same pairs, the same bits."""

from __future__ import annotations

import operator

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_reduction import bytes_of, decoded, encoded
from test_tree import block_value, partitions, whole

from jamtasks.errors import ReduceError
from jamtasks.reduction import default_reduce
from jamtasks.treefold import TreeFold


def pair(a, b):
    return f"({a}{b})"


@given(partitions(), st.sampled_from([0, 40, 1000]))
def test_the_pairing_depends_on_the_number_of_slices_alone(case, memory):
    total, blocks = case
    with TreeFold(pair, total, in_memory=memory) as fold:
        for first, count in blocks:
            fold.add(first, encoded(block_value(first, count, total)), decoded, count)
        assert fold.next == total and fold.ahead == 0
        assert fold.result() == whole(total)


def without(total, failed):
    """The tree without some of its slices, by recursion."""

    def value(first, size):
        if size == 1 or first >= total:
            return "" if first in failed or first >= total else str(first)
        left, right = value(first, size // 2), value(first + size // 2, size // 2)
        return f"({left}{right})" if left and right else left + right

    return value(0, 1 << (total - 1).bit_length())


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.permutations(range(n)),
                                                      st.sets(st.integers(0, n - 1)))))  # fmt: skip
def test_skipped_slices_leave_a_hole(case):
    order, failed = case
    with TreeFold(pair, len(order)) as fold:
        for index in order:
            if index in failed:
                fold.skip(index)
                fold.add(index, encoded("!"), decoded, 1)
            else:
                fold.add(index, encoded(str(index)), decoded, 1)
        if len(failed) == len(order):
            with pytest.raises(ReduceError, match="no results"):
                fold.result()
        else:
            assert fold.result() == without(len(order), failed)


def test_values_are_joined_as_they_come_and_few_are_kept():
    with TreeFold(operator.add, 1000) as fold:
        for index in range(1000):
            fold.add(index, encoded(1), decoded, 1)
            assert len(fold._tree.blocks) <= 10
        assert fold.result() == 1000


def test_what_is_ahead_stays_encoded_and_goes_to_a_file():
    with TreeFold(operator.add, 8, in_memory=100, in_file=100) as fold:
        fold.add(4, [b"", bytearray(60)], bytes_of, 4)
        assert not fold.full and fold.ahead == 1
        fold.add(2, [b"", bytearray(90)], bytes_of, 2)
        fold.add(1, [b"", bytearray(90)], bytes_of, 1)
        assert fold.full and fold.next == 0
        fold.add(0, [b"", bytearray(7)], bytes_of, 1)
        assert not fold.full and fold.result() == 60 + 90 + 90 + 7


def test_a_reduce_may_work_in_place_and_may_return_what_it_will_use_again():
    buffer = numpy.zeros(3)

    def reduce(a, b):
        numpy.add(a, b, out=buffer)
        return buffer

    with TreeFold(reduce, 4) as fold:
        for index in range(4):
            fold.add(index, encoded(numpy.full(3, 10.0**index)), decoded, 1)
        assert fold.result().tolist() == [1111.0] * 3


def test_what_does_not_fit_is_named():
    words = "slices 0 to 3 do not fit together: cannot add a list of 1 and a list of 2"
    with TreeFold(default_reduce, 4) as fold:
        fold.add(0, encoded([1]), decoded, 1)
        fold.add(2, encoded([1, 2]), decoded, 2)
        with pytest.raises(ReduceError, match=words) as info:
            fold.add(1, encoded([1]), decoded, 1)
        assert "reduce(a, b)" in info.value.hint


@pytest.mark.parametrize(
    "reduce, words",
    [
        (lambda a, b: a / 0, "reduce raised ZeroDivisionError: "),
        (lambda a, b: lambda: 0, "what reduce returned cannot travel: "),
    ],
)
def test_what_reduce_does_wrong(reduce, words):
    with TreeFold(reduce, 2) as fold:
        fold.add(0, encoded(1), decoded, 1)
        with pytest.raises(ReduceError, match=f"slices 0 to 1 do not fit together: {words}"):
            fold.add(1, encoded(1), decoded, 1)


def test_a_missing_block_is_an_error():
    with TreeFold(operator.add, 3) as fold:
        fold.add(0, encoded(1), decoded, 2)
        with pytest.raises(ReduceError, match="slice 2 of 3"):
            fold.result()
