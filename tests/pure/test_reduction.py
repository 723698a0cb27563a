"""The default reduction, and the fold that keeps the order of slices."""

import errno
import fractions
import operator
import pickle
from collections import Counter, deque, namedtuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jamtasks import reduction
from jamtasks.errors import ReduceError, TaskFailed
from jamtasks.reduction import OrderedFold, default_reduce

Pair = namedtuple("Pair", "a b")


def encoded(value):
    return [b"", bytearray(pickle.dumps(value))]


def decoded(segments):
    assert segments[0] == b""
    return pickle.loads(segments[1])


# --- default_reduce ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "a, b, total",
    [
        (1, 2, 3),
        (1.5, 2, 3.5),
        ("ab", "cd", "abcd"),
        (b"ab", b"cd", b"abcd"),
        ([1, 2], [10, 20], [11, 22]),
        ((1, 2), (10, 20), (11, 22)),
        (Pair(1, "x"), Pair(2, "y"), Pair(3, "xy")),
        ([], [], []),
        ([[1, 2], [3]], [[4], [5, 6]], [[1, 2, 4], [3, 5, 6]]),
        ([1, 2], (10, 20), [11, 22]),
        (range(2), range(2), [0, 2]),
        (deque([1]), deque([2]), [3]),
        (Counter(a=1), Counter(a=2, b=1), Counter(a=3, b=1)),
        (fractions.Fraction(1, 3), fractions.Fraction(1, 6), fractions.Fraction(1, 2)),
    ],
)
def test_sums(a, b, total):
    assert default_reduce(a, b) == total
    assert type(default_reduce(a, b)) is type(total)


def test_arrays_add_with_plus():
    a = np.arange(6.0).reshape(2, 3)
    assert np.array_equal(default_reduce(a, a), 2 * a)
    one, two = default_reduce([a, 1], [a, 2])
    assert np.array_equal(one, 2 * a) and two == 3


@pytest.mark.parametrize(
    "a, b, words",
    [
        ([1], [1, 2], "a list of 1 and a list of 2 items"),
        ((), (1,), "a tuple of 0 and a tuple of 1 items"),
        (np.zeros(3), np.zeros(1), r"shape \(3,\) and \(1,\)"),
        (np.zeros((3, 1)), np.zeros((1, 3)), r"shape \(3, 1\) and \(1, 3\)"),
        ([np.zeros(3)], [np.zeros(1)], r"shape \(3,\) and \(1,\)"),
        ({"a": 1}, {"a": 2}, "cannot add dict and dict"),
        (1, "a", "cannot add int and str"),
        (None, None, "mapfunc returned None"),
    ],
)
def test_what_does_not_add_is_an_error(a, b, words):
    with pytest.raises(ReduceError, match=words):
        default_reduce(a, b)


# --- the fold ----------------------------------------------------------------------------------


@given(order=st.permutations(range(9)), memory=st.sampled_from([0, 40, 1000]), data=st.data())
def test_the_pairing_does_not_depend_on_the_order_of_arrival(order, memory, data):
    with OrderedFold(lambda a, b: f"({a}+{b})", 9, in_memory=memory) as fold:
        for index in order:
            again = data.draw(st.sampled_from([0, 1]))
            for _ in range(1 + again):  # a second copy of a slow slice
                fold.add(index, encoded(str(index)), decoded)
        assert fold.next == 9
        assert fold.result() == "((((((((0+1)+2)+3)+4)+5)+6)+7)+8)"


@given(order=st.permutations(range(6)), failed=st.sets(st.integers(0, 5), max_size=5))
def test_failed_slices_are_left_out(order, failed):
    with OrderedFold(operator.add, 6) as fold:
        for index in order:
            if index in failed:
                fold.skip(index)
                fold.add(index, encoded("!"), decoded)  # a late copy of it
            else:
                fold.add(index, encoded(str(index)), decoded)
        assert fold.result() == "".join(str(i) for i in range(6) if i not in failed)


def test_one_result_is_not_reduced():
    with OrderedFold(None, 1) as fold:
        fold.add(0, encoded("only"), decoded)
        assert fold.result() == "only"


def test_a_result_that_is_none_counts():
    with OrderedFold(lambda a, b: (a, b), 2) as fold:
        fold.add(0, encoded(None), decoded)
        fold.add(1, encoded(1), decoded)
        assert fold.result() == (None, 1)


def test_results_ahead_stay_encoded():
    with OrderedFold(operator.add, 3) as fold:
        for index in (2, 1):
            fold.add(index, encoded(1), lambda _: pytest.fail("decoded too early"))


def test_each_result_is_decoded_by_its_own_decoder():
    with OrderedFold(operator.add, 3) as fold:
        for index in (2, 1, 0):
            fold.add(index, [b"x"], lambda _, index=index: [index])
            fold.add(index, [b"x"], lambda _: ["never"])
        assert fold.result() == [0, 1, 2]


def test_what_has_been_folded_is_let_go():
    answers = [encoded(number) for number in range(3)]
    with OrderedFold(operator.add, 3) as fold:
        for index in (2, 0, 1):
            fold.add(index, answers[index], decoded)
        assert fold.result() == 3
    assert answers[:2] == [[], []]


def test_results_beyond_memory_go_to_a_file_and_come_back_writeable():
    with OrderedFold(operator.add, 4, in_memory=100, in_file=1000) as fold:
        for index in (3, 2, 1):
            fold.add(index, [b"", bytearray(60)], bytes_of)
        assert not fold.full
        fold.add(0, [b"", bytearray(60)], bytes_of)
        assert fold.result() == 4 * 60


def bytes_of(segments):
    assert isinstance(segments[1], bytearray)
    return len(segments[1])


def test_a_full_file_says_so_until_the_fold_moves_on():
    with OrderedFold(operator.add, 9, in_memory=100, in_file=100) as fold:
        for index in (8, 2, 1):
            fold.add(index, [b"", bytearray(60)], bytes_of)
        assert fold.full and fold.next == 0
        fold.add(3, [b"", bytearray(60)], bytes_of)  # it was under way
        for index in (4, 5, 6, 7, 0):
            fold.add(index, [b"", bytearray(60)], bytes_of)
        assert not fold.full
        assert fold.result() == 9 * 60


def test_a_full_disk_is_not_the_end(monkeypatch):
    def full(fd, data, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reduction.os, "pwrite", full)
    with OrderedFold(operator.add, 3, in_memory=0) as fold:
        fold.add(2, encoded(2), decoded)
        fold.add(1, encoded(1), decoded)
        assert fold.full
        fold.add(0, encoded(0), decoded)
        assert not fold.full
        assert fold.result() == 3


def test_the_first_slice_that_does_not_fit_is_named():
    with OrderedFold(default_reduce, 4) as fold:
        fold.add(3, encoded([1]), decoded)
        fold.add(2, encoded([1, 2]), decoded)
        fold.add(1, encoded([1, 2, 3]), decoded)
        with pytest.raises(
            ReduceError, match=r"slice 1 does not fit: .* 2 and a list of 3"
        ) as info:
            fold.add(0, encoded([1, 2]), decoded)
        assert "reduce(a, b)" in info.value.hint


def test_what_the_users_reduce_raises_names_the_slice():
    with OrderedFold(lambda a, b: a / 0, 2) as fold:
        fold.add(0, encoded(1), decoded)
        with pytest.raises(
            ReduceError, match="slice 1 does not fit: reduce raised ZeroDiv"
        ) as info:
            fold.add(1, encoded(1), decoded)
        assert isinstance(info.value.__cause__, ZeroDivisionError)


def test_what_decoding_raises_is_not_hidden():
    failure = TaskFailed(host="h", slice=0, type="DecodeError", message="refused")

    def refuse(segments):
        raise failure

    with OrderedFold(operator.add, 1) as fold, pytest.raises(TaskFailed):
        fold.add(0, [b""], refuse)


def test_a_missing_or_empty_result_is_an_error():
    with OrderedFold(operator.add, 2) as fold:
        fold.add(0, encoded(1), decoded)
        with pytest.raises(ReduceError, match="slice 1 of 2"):
            fold.result()
    with OrderedFold(operator.add, 1) as fold:
        fold.skip(0)
        with pytest.raises(ReduceError, match="no results"):
            fold.result()
