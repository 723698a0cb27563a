"""`codec.settled`: a value that was joined where it was made is as one that travelled."""

from __future__ import annotations

import collections
import fractions

import numpy
import pytest

from worker_payload import codec
from worker_payload.codec import EncodeError, settled

BASE = numpy.arange(24.0).reshape(4, 6)
FROZEN = numpy.arange(5.0)
FROZEN.flags.writeable = False
VALUES = [
    1, 1 << 70, 2.5, float("nan"), "x", b"x", None, True, 1j, (1, [2, {"a": BASE}]), {1, 2},
    fractions.Fraction(1, 3), collections.Counter("aab"),
    BASE, BASE.T, BASE[::2, ::3], BASE[1:, 1:].T, BASE[:0], numpy.zeros(()), FROZEN,
    BASE.astype(">f8"), BASE.astype("f2"), BASE > 3, BASE.astype(complex),
    numpy.array(["a", None], object), numpy.array(["ab", "c"]), numpy.rec.array([(1, 2.0)]),
    numpy.ma.masked_array([1.0, 2.0], [True, False]),
    numpy.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]), numpy.array([1, 2], "M8[s]"),
    numpy.float32(1.5), numpy.float64(1.5), numpy.int8(3), numpy.bool_(True), numpy.str_("x"),
    numpy.datetime64("2001-01-01"), numpy.arange(1000.0)[::2],
]  # fmt: skip


def look(value):
    """All that reductions could see of it."""
    if isinstance(value, numpy.ndarray):
        flags = value.flags
        layout = flags.c_contiguous, flags.f_contiguous, flags.writeable
        return type(value), value.dtype, value.shape, value.tolist().__repr__(), layout
    if isinstance(value, (tuple, list)):
        return type(value), [look(one) for one in value]
    if isinstance(value, dict):
        return type(value), {key: look(one) for key, one in value.items()}
    return type(value), repr(value)


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_it_is_what_decoding_gives(value, ours):
    travelled = codec.decode([bytearray(p) for p in codec.encode(value)], writable=True)
    assert look(settled(value, ours)) == look(travelled)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_what_is_ours_shares_no_memory(value):
    if isinstance(value, numpy.ndarray) and value.dtype.kind != "O":
        assert not numpy.shares_memory(settled(value, True), value)


def test_an_array_is_copied_only_where_it_must_be():
    array = numpy.arange(10.0)
    assert settled(array, False) is array and settled(array, True) is not array
    mine = [array]
    assert not numpy.shares_memory(settled(mine, False)[0], array)


def test_what_cannot_travel_is_an_error():
    with pytest.raises(EncodeError):
        settled(lambda: 0, False)
