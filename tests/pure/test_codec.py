"""Objects there and back: arrays of every kind, by both readers, and as blobs."""

import collections
import enum
import gc
import hashlib
import pickle
import pickletools
import sys
import threading
import types
import warnings
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from worker_payload import codec
from worker_payload.codec import DecodeError, EncodeError

# --- what a shipped module may hold ---------------------------------------------------------------

SHIPPED = {__name__: sys.modules[__name__]}
Pair = collections.namedtuple("Pair", "a b")


@dataclass
class Answer:
    x: object
    y: object = None


@dataclass(frozen=True)
class Frozen:
    x: object


class Slots:
    __slots__ = ("a", "b")

    def __init__(self, a, b):
        self.a, self.b = a, b

    def __eq__(self, other):
        return (self.a, self.b) == (other.a, other.b)


class Stateful:
    def __init__(self, a):
        self.a = a

    def __getstate__(self):
        return [self.a]

    def __setstate__(self, state):
        (self.a,) = state

    def __eq__(self, other):
        return self.a == other.a


class Names(list):
    pass


class Table(dict):
    pass


class Color(enum.Enum):
    RED = 1


class OwnError(Exception):
    pass


def back(obj, find=None):
    """The object by both readers, which must agree."""
    segments = [bytes(part) for part in codec.encode(obj)]
    untrusted = codec.decode_untrusted([bytearray(part) for part in segments], SHIPPED)
    assert same(codec.decode(segments), untrusted)
    return untrusted


def same(a, b):
    """Equal, and of equal types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ma.MaskedArray):
        return (
            same(np.ma.getmaskarray(a), np.ma.getmaskarray(b))
            and same(np.ma.getdata(a), np.ma.getdata(b))
            and str(a.fill_value) == str(b.fill_value)
        )
    if isinstance(a, np.ndarray):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        if a.dtype.kind == "O":
            return all(map(same, a.ravel().tolist(), b.ravel().tolist()))
        return a.tobytes() == b.tobytes()
    if isinstance(a, np.generic):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, Exception):
        return same(a.args, b.args) and same(vars(a), vars(b))
    if isinstance(a, (Answer, Frozen)):
        return same(vars(a), vars(b))
    return a == b or (a != a and b != b)


# --- plain objects -----------------------------------------------------------------------------

atoms = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text()
    | st.binary() | st.binary().map(bytearray)
)  # fmt: skip
keys = st.none() | st.integers() | st.text() | st.tuples(st.integers(), st.text())
objects = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(keys, inner)
        | st.sets(keys)
        | st.frozensets(keys)
    ),
    max_leaves=20,
)


@settings(max_examples=60)
@given(objects)
def test_plain_objects(obj):
    assert same(back(obj), obj)
    segments = codec.encode(obj)
    assert len(segments) == 1
    # a string may happen to be that name; a needless "needs numpy" does no harm
    assert not codec.needs_numpy(segments) or b"worker_payload.codec" in segments[0]


@pytest.mark.parametrize(
    "obj",
    [
        range(3, 100, 7), slice(1, None, -1), slice("a", 2.5), [slice(3)], 1 << 5000, -(1 << 70000),
        "x" * 70000, b"x" * 300, list(range(3000)), {i: (i, {i}) for i in range(3000)},
        ValueError("x", 3), KeyError(), OSError(2, "no"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "r"),
        StopIteration(1),
        Pair(1, [2]), Answer(1, [Answer(2)]), Frozen((1,)), Slots(1, {2}),
        Stateful([3]), Names([1, 2]), Table(a=1), Color.RED, {Color.RED: Pair}, OwnError("x"),
        Answer, ValueError, "numpy", ["numpy", "array"], {"worker_payload.codec": 1},
        bytearray(b"x" * 5000), float("nan"), frozenset([frozenset([1])]), [(1, 2)] * 20000,
        [(str(i), i) for i in range(12000)],
    ],
    ids=lambda obj: str(type(obj).__name__),
)  # fmt: skip
def test_these_objects_too(obj):
    assert same(back(obj), obj)


def test_what_is_one_object_stays_one():
    inner = [1]
    loop = [inner, inner, np.zeros(500)]
    loop += [loop, loop[2]]
    got = back_of(loop)
    assert got[0] is got[1] and got[3] is got and got[2] is got[4]
    array = np.empty(2, object)
    array[:] = [inner, inner]
    got = back_of(array)
    assert got[0] is got[1]


def back_of(obj):
    return codec.decode_untrusted([bytearray(part) for part in codec.encode(obj)], SHIPPED)


def test_notes_on_an_exception():
    error = ValueError("x")
    error.detail = [1]
    error.__dict__["__notes__"] = ["look there"]
    assert vars(back_of(error)) == {"detail": [1], "__notes__": ["look there"]}


# --- arrays ------------------------------------------------------------------------------------

LONG = 8 * np.dtype(np.longdouble).itemsize  # depends on the machine
dtypes = (
    npst.boolean_dtypes()
    | npst.integer_dtypes(endianness="?")
    | npst.unsigned_integer_dtypes(endianness="?")
    | npst.floating_dtypes(endianness="?", sizes=(16, 32, 64, LONG))
    | npst.complex_number_dtypes(endianness="?", sizes=(64, 128, 2 * LONG))
    | npst.datetime64_dtypes(endianness="?")
    | npst.timedelta64_dtypes(endianness="?")
    | npst.byte_string_dtypes(endianness="?", min_len=1)
    | npst.unicode_string_dtypes(endianness="?", min_len=1)
    | npst.array_dtypes(allow_subarrays=True, max_size=3)
)
shapes = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def filled(dtype, shape, seed):
    """An array of these bytes: faster than drawing its elements, and with NaNs and NaTs of all
    kinds."""
    dtype = np.dtype(dtype)
    if dtype.subdtype:
        dtype = dtype.base
    count = int(np.prod(shape, dtype=object))
    if dtype.kind == "U":  # not any bytes are letters
        return np.random.RandomState(seed).choice(["", "a", "\0é"], shape).astype(dtype)
    raw = np.random.RandomState(seed).randint(0, 2, count * dtype.itemsize, np.uint8)
    return np.frombuffer(raw.tobytes(), dtype, count).reshape(shape)


def usable(dtype):
    try:
        codec.dtype_to_string(dtype)
        return dtype.itemsize > 0
    except EncodeError:
        return False


@settings(max_examples=120)
@given(
    dtypes.filter(usable), shapes, st.integers(0, 99),
    st.sampled_from(["C", "F", "turned", "every other", "backwards", "scalar"]),
)  # fmt: skip
def test_arrays(dtype, shape, seed, way):
    array = filled(dtype, shape, seed)
    if way == "F":
        array = np.asarray(array, order="F")
    elif way == "turned":
        array = np.moveaxis(array, 0, -1) if array.ndim else array
    elif way == "every other":
        array = array[::2] if array.ndim else array
    elif way == "backwards":
        array = array[..., ::-1] if array.ndim else array
    elif way == "scalar" and array.size:
        array = array.ravel()[0]
    got = back(array)
    assert same(got, array)
    if isinstance(got, np.ndarray):
        assert got.flags.writeable
        if way == "F":
            assert got.flags.f_contiguous
    assert codec.needs_numpy(codec.encode(array))


@pytest.mark.parametrize("obj", [{"a": np.arange(5000.0)}, [np.arange(5000.0), slice(1, 2)]])
def test_arrays_that_came_back_go_when_nobody_uses_them(obj):
    """At once: in cycles of references they would wait for the next collection."""
    segments = codec.encode(obj)
    gc.collect()
    gc.disable()
    try:
        value = codec.decode_untrusted([bytearray(part) for part in segments], SHIPPED)
        array = weakref.ref(value["a"] if isinstance(value, dict) else value[0])
        assert array() is not None
        del value
        assert array() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("size", [codec.INLINE // 8, codec.INLINE // 8 + 1, 10000])
def test_small_arrays_travel_in_the_pickle_and_large_ones_as_views(size):
    array = np.arange(float(size))
    array.flags.writeable = False
    segments = codec.encode([array, "x"])
    large = array.nbytes > codec.INLINE
    assert len(segments) == 1 + large
    if large:
        assert np.shares_memory(np.frombuffer(segments[1]), array)
        mapped = codec.decode(segments)[0]
        assert np.shares_memory(mapped, array) and not mapped.flags.writeable
    assert same(back([array, "x"])[0], array)


BARE = [
    np.arange(1000.0),
    np.arange(1000.0).reshape(10, 100),
    np.arange(1000.0).reshape(10, 100).T,
    np.arange(1000, dtype=">i4"),
    np.arange(1000).astype("longlong"),
    np.arange(2000)[::2],
    np.arange(1000, dtype="f2") * 1j,
    np.arange(5000) % 3 == 0,
    np.ones((20, 0, 50)),
    np.zeros(300, dtype=[("a", "i4"), ("b", "f8")]),
    np.zeros(300, dtype=[("a", "i4"), ("b", "f8")]).view(np.recarray),
    np.arange(6.0).reshape(2, 3).view(np.recarray),  # without fields
    np.zeros((30, 30), dtype="M8[s]"),
]


@pytest.mark.parametrize("number", range(len(BARE)))
@pytest.mark.parametrize("forms", [64, 1])
def test_a_bare_array_whose_form_was_seen_before(monkeypatch, number, forms):
    """The short way comes to what the long one does, with what was learned at either end."""
    monkeypatch.setattr(codec, "_FORMS", forms)
    array = BARE[number]

    def forget():
        codec._forms.clear()
        codec._pickles.clear()

    def look(value):
        order = value.flags.c_contiguous, value.flags.f_contiguous
        return type(value), value.dtype.str, value.dtype.char, value.shape, order, value.tobytes()

    forget()
    first = [bytes(part) for part in codec.encode(array)]
    forget()
    expected = look(codec.decode([bytearray(part) for part in first]))
    for sent in range(4):
        segments = [bytes(part) for part in codec.encode(array)]
        assert segments == first
        if sent % 2:
            forget()
        theirs = codec.decode_untrusted([bytearray(part) for part in segments], {})
        assert look(theirs) == expected and theirs.flags.writeable
        ours = codec.decode(segments)
        assert look(ours) == expected
        assert ours.flags.writeable == (len(segments) == 1 and not array.size)
        codec.encode(np.ones(1000 + sent))
    assert len(codec._forms) <= forms


def test_a_form_that_was_seen_does_not_let_anything_else_in():
    array = np.arange(5000) % 3 == 0
    head, data = (bytes(part) for part in codec.encode(array))
    for _ in range(2):
        assert (codec.decode_untrusted([head, bytearray(data)], {}) == array).all()
        with pytest.raises(DecodeError, match="truth values"):
            codec.decode_untrusted([head, bytearray(b"\2" * len(data))], {})
    array = np.arange(1000.0)
    head, data = (bytes(part) for part in codec.encode(array))
    for read in (codec.decode, lambda segments: codec.decode_untrusted(segments, {})):
        for _ in range(2):
            assert (read([head, bytearray(data)]) == array).all()
            for wrong in (data[:-1], data + data[:8], b""):
                with pytest.raises(DecodeError, match="needs 8000 bytes"):
                    read([head, bytearray(wrong)])


def masked():
    structured = np.ma.array([(1, 2.0), (3, 4.0)], dtype=[("a", "i4"), ("b", "f8")])
    structured["a"][0] = np.ma.masked
    return [
        np.ma.array([1, 2, 3], mask=[0, 1, 0]),
        np.ma.array([1.5, 2], fill_value=7),
        np.ma.array(
            np.arange(1000.0).reshape(10, 100), mask=np.arange(1000).reshape(10, 100) % 3 == 0
        ),
        np.ma.array(["a", "bc"], mask=[1, 0], fill_value="zz"),
        np.ma.array(3, mask=True),
        structured,
    ]


@pytest.mark.parametrize("number", range(6))
def test_masked_arrays(number):
    array = masked()[number]
    got = back(array)
    assert same(got, array)
    got[...] = got  # writeable, mask and all
    if array.dtype.names is None:
        got[...] = np.ma.masked
        assert got.mask.all()


def special():
    objects_ = np.empty((2, 2), object)
    objects_[:] = [[1, "x"], [None, np.zeros(3)]]
    record = np.rec.array([(1, "x"), (2, "yy")], dtype=[("n", "<i4"), ("s", "<U3")])
    aligned = np.zeros(3, np.dtype([("a", "i1"), ("b", "f8")], align=True))
    overlapping = np.dtype({"names": ["a", "b"], "formats": ["<i4", "<i2"], "offsets": [0, 2]})
    nested = np.dtype([("p", [("x", "<f4"), ("y", ">f4", (2, 3))]), ("q", "S5")])
    return [
        np.ones((3, 4)).view(np.matrix), record, record[0], aligned, aligned[0],
        np.ones(2, overlapping), np.ones(4, nested), np.ones(4, nested)[1], objects_,
        np.zeros(5, []), np.zeros((0, 7)), np.array("text"), np.array(b"\0\0"), np.array([], "U5"),
        np.datetime64("NaT"), np.timedelta64(5, "25s"), np.datetime64("2020-01-01", "ns"),
        np.array(["2020", "NaT"], "M8[Y]"), np.float16(1), np.longdouble("0.1"), np.str_("é"),
        np.bytes_(b"x"), np.bytes_(b"x\0"), np.str_(""), np.str_("\0x\0"), np.bool_(True),
        np.void(b"abc"), np.dtype("f8"), np.dtype(nested),
        np.dtype(("i4", (2, 3))), [np.float64(1), np.zeros(200), {"a": np.int8(3)}],
        np.arange(12.0).reshape(3, 4)[:, 1], np.broadcast_to(np.arange(500), (3, 500)),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(len(special())))
def test_special_arrays(number):
    obj = special()[number]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(back(obj), obj)


def test_arrays_inside_objects_come_out_writeable():
    record = special()[1]
    got = back_of([Answer(np.zeros(5), np.zeros(500)), special()[8], record, special()[0]])
    for array in (got[0].x, got[0].y, got[1], got[2], got[3]):
        array[0] = array[1]
    got[2].n = 5


def test_no_pickle_names_numpy():
    for obj in [*special(), *masked()]:
        for opcode, argument, _ in pickletools.genops(codec.encode([obj])[0]):
            assert opcode.name != "SHORT_BINUNICODE" or not str(argument).startswith("numpy")


@pytest.mark.parametrize(
    "obj, words",
    [
        (lambda: 1, "cannot be pickled"),
        ([threading.Lock()], "cannot be pickled"),
        ({"rng": np.random.default_rng(1)}, r"holds numpy[\w.]+, which other versions"),
        (np.add, r"holds numpy[\w.]+, which other versions"),
        (np.zeros(2, [("a", object)]), "holds Python objects in a structure"),
        (type("Sub", (np.ndarray,), {"__module__": __name__})(3), "cannot be pickled|numpy"),
    ],
)
def test_what_cannot_travel(obj, words):
    with pytest.raises(EncodeError, match=words):
        codec.encode(obj)
    assert same(codec.decode(codec.encode([np.zeros(999)])), [np.zeros(999)]), (
        "nothing is left over"
    )


def test_nested_too_deep():
    obj = []
    for _ in range(100000):
        obj = [obj]
    with pytest.raises(EncodeError, match="nested too deeply"):
        codec.encode(obj)
    while obj:  # end it from outside in
        obj = obj[0]


def test_threads_do_not_mix_their_segments():
    failures = []

    def work(number):
        for size in range(200, 260):
            expected = [np.full(size, number), [np.full(size + 1, number)]]
            if not same(codec.decode(codec.encode(expected)), expected):
                failures.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_host_without_numpy_says_so(monkeypatch):
    segments = codec.encode(np.zeros(3))
    plain = codec.encode([1, "x"])
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert codec.decode(plain) == [1, "x"]
    with pytest.raises(DecodeError, match="has no numpy"):
        codec.decode(segments)


def test_a_worker_finds_globals_as_it_wishes():
    module = types.ModuleType(__name__)
    module.Pair = Pair
    assert codec.decode(codec.encode(Pair(1, 2)), find=lambda m, n: getattr(module, n)) == Pair(
        1, 2
    )


# --- blobs -------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=200), max_size=6))
def test_blobs(segments):
    parts = codec.blob_parts(segments)
    data = b"".join(parts)
    assert [bytes(part) for part in codec.blob_segments(data)] == segments
    assert codec.blob_size(parts) == len(data)
    assert codec.blob_digest(parts) == hashlib.sha256(data).hexdigest()
    position = 0
    for part in parts:
        assert part.count(b"\0") == len(part) or position % codec.ALIGN == 0 or part not in segments
        position += len(part)


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=99), max_size=4), st.data())
def test_damaged_blobs_are_refused_or_another_blob(segments, data):
    blob = bytearray(b"".join(codec.blob_parts(segments)))
    change = data.draw(st.sampled_from(["cut", "grow", "flip"]))
    if change == "cut":
        del blob[data.draw(st.integers(0, len(blob) - 1)) :]
    elif change == "grow":
        blob += data.draw(st.binary(min_size=1, max_size=9))
    else:
        place = data.draw(st.integers(0, min(len(blob), 16 + 8 * len(segments)) - 1))
        blob[place] ^= data.draw(st.integers(1, 255))
    try:
        got = codec.blob_segments(bytes(blob))
    except DecodeError:
        return
    assert change == "flip" and sum(map(len, got)) <= len(blob)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize(
    "value",
    [
        7, "x", b"\x93", None, [1, "\x93"], Pair, np.arange(5.0), np.arange(600.0),
        np.ones((20, 30), ">f4"), np.zeros((0, 3)), np.asfortranarray(np.ones((30, 40))),
        [np.arange(999.0)], np.ones((4, 5, 6, 7), "c16"), np.ones(700, bool),
    ],
    ids=lambda value: str(type(value).__name__),
)  # fmt: skip
def test_a_blob_is_read_at_once_or_piece_by_piece(value, kind):
    blob = kind(b"".join(codec.blob_parts(codec.encode(value))))
    expected = codec.decode(codec.blob_segments(blob))
    for _ in range(2):  # forms of arrays are known by then
        found = codec.decode_blob(blob)
        assert same(found, expected)
        if type(found) is np.ndarray:
            assert found.flags.writeable == expected.flags.writeable
            assert np.shares_memory(found, np.frombuffer(blob, np.uint8)) == (
                found.nbytes > codec.INLINE
            )


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_blob_is_read_as_it_would_be_piece_by_piece(data):
    value = data.draw(st.sampled_from([12, np.arange(300.0), np.ones((20, 20), "f4")]))
    blob = bytearray(b"".join(codec.blob_parts(codec.encode(value))))
    codec.decode_blob(bytes(blob))
    place = data.draw(st.integers(0, 63))
    blob[place] ^= data.draw(st.integers(0, 255))
    for damaged in (bytes(blob), bytes(blob[: data.draw(st.integers(0, len(blob)))])):
        try:
            expected = codec.decode(codec.blob_segments(damaged))
        except DecodeError:
            with pytest.raises((DecodeError, pickle.UnpicklingError, EOFError, ValueError)):
                codec.decode_blob(damaged)
        else:
            assert same(codec.decode_blob(damaged), expected)


def test_arrays_in_a_blob_are_aligned_and_used_where_they_are():
    blob = b"".join(
        codec.blob_parts(codec.encode([np.arange(999.0), "x", np.arange(1000, dtype="c16")]))
    )
    buffer = np.frombuffer(blob, np.uint8)
    for array in codec.decode(codec.blob_segments(blob))[::2]:
        assert np.shares_memory(array, buffer) and not array.flags.writeable


def test_the_protocol_is_one_that_python_3_6_reads():
    assert codec.PROTOCOL == 4 and pickle.DEFAULT_PROTOCOL >= 4
    assert max(op.proto for op, _, _ in pickletools.genops(codec.encode(special())[0])) <= 4
