"""What a hostile host may send: none of it runs, fills the memory, ends the process, or raises
anything but DecodeError."""

import contextlib
import enum
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
import types
from collections import namedtuple

import numpy as np
import pytest
from attacks import (
    ADDITEMS,
    APPEND,
    APPENDS,
    ATTACKS,
    BUILD,
    DTYPES,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_SET,
    EMPTY_TUPLE,
    MARK,
    MEMO,
    MODULES,
    NEWOBJ,
    NONE,
    POP,
    RAN,
    REDUCE,
    SETITEM,
    SETITEMS,
    SHIPPED,
    STRUCTURES,
    T1,
    T2,
    T3,
    TOP,
    TUPLE,
    array,
    bomb,
    call,
    get,
    mine,
    name,
    new,
    num,
    raw,
    slice_,
    structure,
    text,
    tup,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from worker_payload import codec, restricted
from worker_payload.codec import DecodeError


@pytest.fixture(autouse=True)
def nothing_ran(monkeypatch):
    monkeypatch.setitem(sys.modules, "shipped", SHIPPED)
    RAN.clear()
    yield
    assert not RAN


def decode(body, *segments, modules=MODULES):
    return codec.decode_untrusted([TOP + body + b".", *segments], modules)


def works():
    """That a good one passes, so that the bad ones fail for what is bad in them."""
    assert decode(array()).tolist() == [0.0]
    assert decode(mine("dtype", text(structure()))).itemsize == 12
    assert decode(call(name("shipped", "Pair"), num(1), num(2))) == SHIPPED.Pair(1, 2)
    assert (
        type(decode(new("Plain") + EMPTY_DICT + text("x") + num(1) + SETITEM + BUILD))
        is SHIPPED.Plain
    )
    assert decode(call(name("builtins", "bytearray"), raw(b"x"))) == bytearray(b"x")
    assert decode(slice_(0, 1)) == slice(0, 1)
    # as Python 3.11.0 to 3.11.3 write it
    dark = call(name("builtins", "getattr"), name("shipped", "Hue"), text("DARK"))
    assert decode(dark) is SHIPPED.Hue.DARK
    assert decode(EMPTY_DICT + EMPTY_TUPLE + T1 * 9000 + num(1) + SETITEM)
    assert decode(name("shipped", "Many") + EMPTY_TUPLE + NEWOBJ + MARK + num(1) + APPENDS) == [1]
    assert decode(name("shipped", "Table") + EMPTY_TUPLE + NEWOBJ + num(1) + num(2) + SETITEM) == {
        1: 2
    }


def refuse(body, *segments):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with pytest.raises(DecodeError) as info:
        decode(body, *segments)
    assert time.monotonic() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    assert len(str(info.value)) < 1000
    return str(info.value)


def test_what_is_good_passes():
    works()


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks(attack):
    refuse(ATTACKS[attack])


@pytest.mark.parametrize("dtype", DTYPES + STRUCTURES)
def test_forged_dtypes(dtype):
    refuse(mine("dtype", text(dtype)))
    refuse(array(b"", dtype, (0,)))


@given(
    st.lists(st.none() | st.booleans() | st.integers() | st.floats(), max_size=20),
    st.lists(st.tuples(st.integers(0, 30), st.binary(max_size=2)), max_size=2),
)
def test_many_numbers_at_once_are_what_they_are_one_by_one(values, changes):
    pickles = [bytearray(pickle.dumps(value, codec.PROTOCOL)) for value in values]
    short = [value for value in values if type(value) is not int or -(2**31) <= value < 2**31]
    found = codec.numbers(pickles)
    assert found is None or len(found) == len(short) == len(values)
    assert found is not None or len(short) < len(values)
    for at, data in changes:
        for changed in pickles[at // 2 : at // 2 + 1]:
            changed[at : at + 1] = data
    found = codec.numbers(pickles)
    if found is not None:
        one_by_one = [codec.decode_untrusted([data], {}) for data in pickles]
        assert repr(found) == repr(one_by_one)
    for attack in ATTACKS.values():
        assert codec.numbers([*pickles, TOP + attack + b"."]) is None


def test_nothing_that_is_shared_has_changed():
    for attack in ATTACKS.values():
        with pytest.raises(DecodeError):
            decode(attack)
    assert (
        np.dtype("f8") == np.float64
        and np.dtype("f8").itemsize == 8
        and np.dtype("V8").itemsize == 8
    )
    works()


def test_a_segment_is_used_once():
    use = mine("array", num(1), text("<f8"), tup(num(1)), text("C"))
    assert decode(use, bytearray(8)).tolist() == [0.0]
    assert "no such segment" in refuse(use + use + T2, bytearray(8))


def test_a_bomb_alone_is_harmless():
    value = decode(bomb())
    for _ in range(40):
        value = value[0]
    assert value == [1]


def test_messages_do_not_hold_what_was_sent():
    assert "x" * 200 not in refuse(name("x" * 10**6, "y" * 10**6))
    assert len(refuse(mine("dtype", text("z" * 10**6)))) < 300


def test_refusals_say_what_to_do():
    assert "shipped.function is not accepted from a host: return numbers" in refuse(
        ATTACKS["shipped function"]
    )


def test_modules_that_were_not_shipped_have_no_classes():
    with pytest.raises(DecodeError, match=r"shipped\.Plain is not accepted"):
        decode(new("Plain"), modules={})


def test_classes_that_were_moved_are_not_theirs():
    moved = types.ModuleType("moved")
    moved.Plain = SHIPPED.Plain
    moved.Forged = type("Forged", (), {"__module__": "moved", "__qualname__": "Other"})
    for attribute in ("Plain", "Forged"):
        with pytest.raises(DecodeError):
            decode(call(name("moved", attribute)), modules={"moved": moved})


# --- anything ----------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_random_bytes(data):
    for segments in ([data], [TOP + data + b"."], [data, data]):
        with contextlib.suppress(DecodeError):
            codec.decode_untrusted(segments, MODULES)


Pair = namedtuple("Pair", "a b")


class Color(enum.Enum):
    RED = 1


SAMPLES = [
    codec.encode(obj)
    for obj in (
        [1, "x", 2.5, (None, True), {"a": b"b"}, {1, 2}, frozenset([3]), 1 << 70, 1j],
        [np.zeros(3), np.array(["a", "b"]), np.float64(2), np.ma.array([1, 2], mask=[0, 1])],
        [np.zeros(2, [("a", "i4"), ("b", "f8")]), np.array([{}, None]), bytearray(b"x"), range(3)],
        [Pair(1, 2), Color.RED, ValueError("x"), slice(1), np.zeros(1)],
    )
]


@settings(max_examples=400)
@given(st.sampled_from(SAMPLES), st.data())
def test_damaged_pickles(segments, data):
    pickled = bytearray(segments[0])
    for _ in range(data.draw(st.integers(1, 3))):
        pickled[data.draw(st.integers(0, len(pickled) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DecodeError):
        codec.decode_untrusted([bytes(pickled), *segments[1:]], {__name__: sys.modules[__name__]})


@settings(max_examples=100)
@given(st.sampled_from(SAMPLES), st.integers(0, 10**4))
def test_truncated_pickles(segments, length):
    pickled = bytes(segments[0])
    with pytest.raises(DecodeError):
        codec.decode_untrusted([pickled[: length % len(pickled)]], {})


opcodes = st.sampled_from(
    [MARK, TUPLE, REDUCE, NEWOBJ, BUILD, MEMO, EMPTY_TUPLE, EMPTY_DICT, EMPTY_LIST, EMPTY_SET, NONE,
     T1, T2, T3, APPEND, APPENDS, SETITEM, SETITEMS, ADDITEMS, POP, b"1", b"\x91", b"\x92", get(0),
     get(1), num(1), num(0), text("x"), raw(b"y"), array(), slice_(0, 1), new("Plain"), new("Many"),
     name("shipped", "Pair"), name("builtins", "set"), name("builtins", "ValueError"), bomb(20),
     name("shipped", "Callable"), new("Method"), mine("dtype", text("<f8")), b"\x95" + bytes(8)]
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(opcodes, max_size=25))
def test_any_opcodes(parts):
    with contextlib.suppress(DecodeError):
        decode(b"".join(parts))


@settings(max_examples=200)
@given(st.lists(opcodes, max_size=30))
def test_both_scans_agree(parts):
    """Wherever the fast scan lets a pickle through that can be read, so does the one that counts
    how deep tuples are, with the same answer."""
    data = TOP + b"".join(parts) + b"."
    try:
        value = decode(b"".join(parts))
    except DecodeError:
        return
    assert restricted._scan_depth(data) == restricted._scan(data), value


def test_only_listed_opcodes_pass_either_scan():
    listed = set()
    for opcode in range(256):
        if opcode == 0x2E:
            continue
        for argument in (b"", b"\x00", bytes(2), bytes(4), bytes(8), b"\x04"):
            for before in (b"", NONE * 4, NONE + MARK + NONE, MARK, b"NN" + b"X\0\0\0\0" * 2):
                data = TOP + before + bytes([opcode]) + argument + b"."
                for scan in (restricted._scan, restricted._scan_depth):
                    try:
                        scan(data)
                    except (DecodeError, IndexError, struct.error):
                        continue
                    listed.add(opcode)
    ours = "( N \x88 \x89 ) t \x85 \x86 \x87 ] a e } s u \x8f \x90 \x91 0 1 \x94 \x93 R \x81 \x92"
    ours += " K h M J j G \x95 \x80 \x8a \x8b C B \x8e \x8c X \x8d b"
    assert listed == set(ours.replace(" ", "").encode("latin-1"))


def test_what_our_pickler_writes_passes_both_scans():
    for segments in SAMPLES:
        assert restricted._scan_depth(bytes(segments[0])) == restricted._scan(bytes(segments[0]))


# --- the process lives on ------------------------------------------------------------------------


def test_hashing_what_just_passes_does_not_end_the_process():
    """The limit on nested tuples, tried where it would hurt nobody else: a thread of a child."""
    code = (
        "import sys, threading; sys.path.insert(0, sys.argv[1])\n"
        "from worker_payload import codec, restricted\n"
        "body = b'\\x80\\x04})' + b'\\x85' * restricted._MANY_TUPLES + b'K\\x01s.'\n"
        "got = []\n"
        "t = threading.Thread(target=lambda: got.append(codec.decode_untrusted([body], {})))\n"
        "t.start(); t.join()\n"
        "assert len(got[0]) == 1\n"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    assert subprocess.run([sys.executable, "-c", code, root]).returncode == 0


def test_the_readers_are_made_for_this_python():
    assert issubclass(restricted._Careful, pickle._Unpickler)
    for opcode, method in restricted._Careful.dispatch.items():
        checked = getattr(restricted._Careful, method.__name__)
        assert checked is method, f"opcode {opcode} would skip its check"
