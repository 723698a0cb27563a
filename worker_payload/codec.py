"""Objects to segments and back: arrays as raw bytes, the rest as a pickle that holds no numpy.

`encode(obj)` gives a list of buffers: a protocol 4 pickle, then the bytes of every array in it.
Arrays and array scalars, however deep inside the object, are cut out by the pickler's dispatch
table, because numpy 1 and 2 do not read each other's pickles; a dtype travels as a string.

`decode(segments)` is for what comes from someone we trust (a worker decodes its master's params).
`decode_untrusted(segments, modules)` trusts nobody (restricted.py says how); whatever goes wrong is
one DecodeError. A hostile host can still waste its master's time; it cannot run code there.

A blob is the same segments in one file, aligned so that arrays can be used where they are mapped.
"""

import copyreg
import hashlib
import io
import pickle
import re
import struct
import sys
import threading
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from worker_payload.arrays import (
    Buffer,
    DecodeError,
    EncodeError,
    Rebuild,
    dtype_from_string,
    dtype_to_string,
    need_numpy,
)

PROTOCOL = 4  # the newest that Python 3.6 reads
INLINE = 1024  # arrays up to this many bytes stay in the pickle: a segment would cost more
ALIGN = 64  # of a segment within a blob
_BLOB = struct.Struct("<8sQ")
_ONE = struct.Struct("<8sQQ")  # with the length of the first segment
_TWO = struct.Struct("<QQQ")  # number of segments, lengths of the first two
_BLOB_MAGIC = b"jamblob1"
_MAX_PARTS = 1 << 24
_FORMS = 64  # of bare arrays that are remembered
_FORM_BYTES = 256  # of the pickle of such a form
_ME = "worker_payload.codec"  # where the pickles look for the rebuild functions


# The globals that stand in our pickles. Reading replaces each by the method of Rebuild.


def rebuild_array(index, text, shape, order):
    raise TypeError("only decode() rebuilds arrays")


def rebuild_matrix(array):
    raise TypeError("only decode() rebuilds arrays")


def rebuild_recarray(array):
    raise TypeError("only decode() rebuilds arrays")


def rebuild_masked(data, mask, fill):
    raise TypeError("only decode() rebuilds arrays")


def rebuild_objects(shape, items):
    raise TypeError("only decode() rebuilds arrays")


def rebuild_scalar(text, data):
    raise TypeError("only decode() rebuilds arrays")


def rebuild_dtype(text):
    raise TypeError("only decode() rebuilds arrays")


_REBUILD = dict(
    ("rebuild_" + name, name)
    for name in ("array", "matrix", "recarray", "masked", "objects", "scalar", "dtype")
)


# --- encode ------------------------------------------------------------------------------------


class _Encoder(threading.local):
    """Collects the segments of the object that this thread is pickling."""

    def __init__(self):
        # type: () -> None
        self.segments = [b""]  # type: List[Buffer]
        self.table = None  # type: Optional[Dict[Any, Any]]

    def dispatch_table(self):
        # type: () -> Optional[Dict[Any, Any]]
        """copyreg's table plus numpy's types; None until numpy is imported."""
        np = sys.modules.get("numpy")
        if self.table is None and np is not None and hasattr(np, "ma"):
            table = copyreg.dispatch_table.copy()
            for cls in (np.ndarray, np.matrix, np.memmap, np.recarray, np.ma.MaskedArray):
                table[cls] = self.array
            for cls in _subclasses(np.generic):
                table[cls] = _reduce_scalar
            for code in np.typecodes["All"]:
                table[type(np.dtype(code))] = _reduce_dtype
            self.table = table
        return self.table

    def array(self, array):
        # type: (Any) -> Tuple[Any, Tuple[Any, ...]]
        np = need_numpy()
        cls = type(array)
        if cls is np.ma.MaskedArray:
            plain = np.ma.getdata(array).view(np.ndarray)
            return rebuild_masked, (plain, np.ma.getmaskarray(array), array.fill_value)
        if cls is np.matrix:
            return rebuild_matrix, (array.view(np.ndarray),)
        if cls is np.recarray:
            return rebuild_recarray, (array.view(np.ndarray),)
        if array.dtype.kind == "O":
            return rebuild_objects, (array.shape, array.ravel().tolist())
        text = dtype_to_string(array.dtype)
        order = "C"
        if not array.flags.c_contiguous:
            if array.flags.f_contiguous:
                order = "F"
            else:
                array = np.ascontiguousarray(array)
        raw = raw_bytes(array)
        if len(raw) <= INLINE:
            return rebuild_array, (bytes(raw), text, array.shape, order)
        self.segments.append(raw)
        return rebuild_array, (len(self.segments) - 1, text, array.shape, order)


def _reduce_scalar(scalar):
    # type: (Any) -> Tuple[Any, Tuple[Any, ...]]
    # an empty string has no size, and tobytes() gives it one letter all the same
    data = scalar.tobytes()[: scalar.dtype.itemsize]
    return rebuild_scalar, (dtype_to_string(scalar.dtype), data)


def _reduce_dtype(dtype):
    # type: (Any) -> Tuple[Any, Tuple[Any, ...]]
    return rebuild_dtype, (dtype_to_string(dtype),)


def _subclasses(cls):
    # type: (Any) -> List[Any]
    found = []
    for sub in cls.__subclasses__():
        if sub.__module__.partition(".")[0] == "numpy":
            found.append(sub)
            found.extend(_subclasses(sub))
    return found


def raw_bytes(array):
    # type: (Any) -> memoryview
    """The bytes of a C- or Fortran-contiguous array, in memory order, without a copy."""
    np = need_numpy()
    if not array.nbytes:
        return memoryview(b"")
    if not array.flags.c_contiguous:
        array = array.T
    # datetimes and structures have no buffer of their own, and a 0-d array no items to view
    return memoryview(array.view(np.ndarray).reshape(-1).view(np.uint8))


_encoder = _Encoder()
_PLAIN = frozenset([int, float, str, bytes, bool, type(None)])
_NUMBERS = "biufc"  # dtypes of which arrays come out as they went in: `settled`


def encode(obj):
    # type: (Any) -> List[Buffer]
    """The segments of an object: its pickle first, then the raw bytes of its arrays.

    The buffers of large arrays are views, not copies: encode, send, then let go.
    Raises EncodeError saying what cannot travel."""
    if type(obj) in _PLAIN:
        return [pickle.dumps(obj, PROTOCOL)]
    if _pickles and type(obj) is sys.modules["numpy"].ndarray and obj.flags.c_contiguous:
        known = _pickles.get((obj.dtype, obj.shape))
        if known is not None:  # of numbers, and nothing else
            return [known, obj.reshape(-1).view("u1").data]
    out = io.BytesIO()
    pickler = pickle.Pickler(out, PROTOCOL)
    table = _encoder.dispatch_table()
    if table is not None:
        pickler.dispatch_table = table
    _encoder.segments = [b""]
    try:
        pickler.dump(obj)
        segments = _encoder.segments
    except EncodeError:
        raise
    except MemoryError:
        raise EncodeError("there is not enough memory to encode it")
    except RecursionError:
        raise EncodeError("it is nested too deeply to pickle")
    except Exception as error:  # a pickler raises whatever a user's __reduce__ raises
        raise EncodeError("it cannot be pickled: %s" % (error,))
    finally:
        _encoder.segments = [b""]
    segments[0] = data = out.getvalue()
    if b"numpy" in data:
        _refuse_numpy(data)
    if len(segments) == 2 and _is_bare(obj):
        _remember(obj, data)
    return segments


def encode_result(result):
    # type: (Any) -> List[Buffer]
    """The segments of what a map function returned. Raises EncodeError saying so."""
    if type(result) in _PLAIN:
        return [pickle.dumps(result, PROTOCOL)]
    try:
        return encode(result)
    except EncodeError as error:
        raise EncodeError("the result of mapfunc cannot travel: %s" % (error,)) from None


def needs_numpy(segments):
    # type: (Sequence[Buffer]) -> bool
    """Whether decoding them takes numpy."""
    return len(segments) > 1 or _ME.encode() in bytes(segments[0])


def _refuse_numpy(data):
    # type: (bytes) -> None
    """Raise EncodeError if the pickle names a global of numpy: other versions may lack it."""
    import pickletools  # which takes long to import

    recent = ["", ""]  # type: List[Any]
    memo = []  # type: List[Any]
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "STACK_GLOBAL":
            module, name = recent
            if str(module).partition(".")[0] == "numpy":
                raise EncodeError(
                    "it holds %s.%s, which other versions of numpy may not read: send arrays, "
                    "numbers or a seed instead" % (module, name)
                )
        elif opcode.name == "MEMOIZE":
            memo.append(recent[1])
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            recent = [recent[1], memo[argument or 0]]
        elif opcode.name != "FRAME":
            recent = [recent[1], argument]


# --- bare arrays -------------------------------------------------------------------------------
# What iterative programs send all day is one array of numbers, of the same form each time. Its
# pickle is the same each time too, and need be made and read only once.

_pickles = {}  # type: Dict[Tuple[Any, Tuple[int, ...]], bytes]  # by dtype and shape
_forms = {}  # type: Dict[bytes, _Form]  # by pickle


class _Form(NamedTuple):
    """array: numpy's `frombuffer`. size: in bytes."""

    array: Callable[..., Any]
    dtype: Any
    shape: Tuple[int, ...]
    size: int


def _is_bare(obj):
    # type: (Any) -> bool
    """Whether this is nothing but an array of numbers, in C order."""
    np = sys.modules.get("numpy")  # type: Any
    return (
        type(obj) is getattr(np, "ndarray", None)
        and obj.dtype.kind in "iufc"  # truth values from a stranger are looked at each time
        and obj.flags.c_contiguous
    )


def _remember(array, data):
    # type: (Any, bytes) -> None
    """data: the pickle of all bare arrays of this form, beside their one segment."""
    if len(_forms) >= _FORMS:
        _forms.clear()
        _pickles.clear()
    _pickles[array.dtype, array.shape] = data
    dtype = dtype_from_string(dtype_to_string(array.dtype))
    _forms[data] = _Form(need_numpy().frombuffer, dtype, array.shape, array.nbytes)


def _bare(segments):
    # type: (Sequence[Buffer]) -> Any
    """The array in segments, if it is a bare one of a form that we know; else None."""
    if len(segments) != 2 or len(segments[0]) > _FORM_BYTES:
        return None
    form = _forms.get(bytes(segments[0]))
    if form is None or len(segments[1]) != form.size:
        return None
    return form.array(segments[1], form.dtype).reshape(form.shape)


def _learned(value, segments):
    # type: (Any, Sequence[Buffer]) -> Any
    """The value, which was in these segments; if it is a bare array, its form is known then.

    Whoever made the pickle: it is one that we would have made ourselves."""
    if len(segments) == 2 and len(segments[0]) <= _FORM_BYTES and _is_bare(value):
        encode(value)
    return value


# --- decode ------------------------------------------------------------------------------------

Find = Callable[[str, str], Any]


def decode(segments, find=None, writable=False):
    # type: (Sequence[Buffer], Optional[Find], bool) -> Any
    """The object in segments from someone we trust: its globals are imported, or found by `find`.

    Large arrays share memory with their segments; writable concerns the small ones in the pickle.
    Raises DecodeError."""
    array = _bare(segments)
    if array is not None:
        return array
    rebuild = Rebuild(segments, writable)
    try:
        unpickler = _Trusting(io.BytesIO(segments[0]))
        unpickler.rebuild = rebuild
        unpickler.find = find
        return _learned(unpickler.load(), segments)
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError("%s: %s" % (type(error).__name__, error))


class _Trusting(pickle.Unpickler):
    rebuild = None  # type: Any
    find = None  # type: Optional[Find]

    def find_class(self, module, name):
        # type: (str, str) -> Any
        if module == _ME and name in _REBUILD:
            return getattr(self.rebuild, _REBUILD[name])
        if self.find is not None:
            return self.find(module, name)
        return super().find_class(module, name)


# the pickle of a number, or of None, whose form leaves nothing to be checked
_NUMBER = re.compile(
    b"\x80\x04(?:K.|[N\x88\x89]|\x95\x04\\0{7}M..|\x95\x06\\0{7}J....|\x95\x0a\\0{7}G.{8})\\.\\Z",
    re.DOTALL,
)


def numbers(pickles):
    # type: (Sequence[Buffer]) -> Optional[List[Any]]
    """What hosts sent, if each is nothing but a number or None; else None."""
    return list(map(pickle.loads, pickles)) if all(map(_NUMBER.match, pickles)) else None


def decode_untrusted(segments, modules):
    # type: (Sequence[Buffer], Mapping[str, Any]) -> Any
    """The object in segments that a host sent. Arrays come out writeable.

    modules: the shipped modules by name, as this process has them. Of these only classes that are
    their own (`__module__` and `__qualname__` equal the name) may be made; their constructors run.
    Raises DecodeError, whatever happens."""
    if len(segments) == 1 and _NUMBER.match(segments[0]):
        return pickle.loads(segments[0])
    array = _bare(segments)
    if array is not None:
        return array
    from worker_payload import restricted  # hosts never need it

    return _learned(restricted.decode(segments, modules, _ME, _REBUILD), segments)


def settled(value, ours):
    # type: (Any, bool) -> Any
    """The value as it would be if it had been encoded and decoded.

    So it cannot be seen in what comes of it which values travelled and which did not. ours: it
    shares no memory with anything else, because user code runs before it is used. Raises
    EncodeError."""
    cls = type(value)
    if cls in _PLAIN:
        return value
    np = sys.modules.get("numpy")  # type: Any
    if np is not None and cls.__module__ == "numpy":
        if cls is np.ndarray and value.dtype.kind in _NUMBERS:
            flags = value.flags
            if flags.c_contiguous or flags.f_contiguous:
                return value.copy(order="K") if ours or not flags.writeable else value
        elif isinstance(value, np.generic) and value.dtype.kind in _NUMBERS:
            return value
    return decode([bytearray(part) for part in encode(value)], writable=True)


# --- blobs -------------------------------------------------------------------------------------


_LENGTH = struct.Struct("<Q")
_GAP = b"\0" * (-(_BLOB.size + _LENGTH.size) % ALIGN)


def blob_parts(segments):
    # type: (Sequence[Buffer]) -> List[Buffer]
    """The segments as one file: lengths first, each segment at a multiple of ALIGN."""
    if len(segments) == 1:  # as most are
        return [_BLOB.pack(_BLOB_MAGIC, 1) + _LENGTH.pack(len(segments[0])) + _GAP, segments[0]]
    lengths = [len(part) for part in segments]
    head = _BLOB.pack(_BLOB_MAGIC, len(lengths)) + struct.pack("<%dQ" % len(lengths), *lengths)
    parts = [head]  # type: List[Buffer]
    position = len(head)
    for part in segments:
        gap = -position % ALIGN
        if gap:
            parts.append(b"\0" * gap)
        parts.append(part)
        position += gap + len(part)
    return parts


def decode_blob(data, writable=False):
    # type: (Any, bool) -> Any
    """The object in a blob from someone we trust, as `decode` gives it; at once where it is a plain
    value, or an array of a form that is known: most params and slices are, and a round is short."""
    if len(data) >= ALIGN and data[: len(_BLOB_MAGIC)] == _BLOB_MAGIC:
        count, first, second = _TWO.unpack_from(data, len(_BLOB_MAGIC))
        if count == 1:
            bare = bare_pickle(data)
            if bare is not None:
                return pickle.loads(bare)
        elif count == 2 and first <= _FORM_BYTES:
            begin = 2 * ALIGN + (first - 1) // ALIGN * ALIGN
            form = _forms.get(bytes(data[ALIGN : ALIGN + first]))
            if form is not None and second == form.size and begin + second == len(data):
                return form.array(data, form.dtype, -1, begin).reshape(form.shape)
    return decode(blob_segments(data), writable=writable)


def bare_pickle(data):
    # type: (Buffer) -> Optional[bytes]
    """The pickle in a blob, if there is nothing else in it, and it names no global: `pickle.loads`
    reads it. `blob_parts` makes the blob of it again."""
    if type(data) is not bytes or len(data) < ALIGN or b"\x93" in data:
        return None
    magic, count, length = _ONE.unpack_from(data)
    if magic != _BLOB_MAGIC or count != 1 or ALIGN + length != len(data):
        return None
    return data[ALIGN:]


def blob_size(parts):
    # type: (Sequence[Buffer]) -> int
    return sum(map(len, parts))


def blob_digest(parts):
    # type: (Sequence[Buffer]) -> str
    """SHA-256 of a blob, 64 hex digits: the name of what it is, not of where it sits."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()


def blob_segments(data):
    # type: (Buffer) -> List[memoryview]
    """The segments of a blob, as views. Raises DecodeError if the lengths do not fit the bytes."""
    view = memoryview(data)
    if len(view) < _BLOB.size:
        raise DecodeError("a blob of %d bytes" % len(view))
    magic, count = _BLOB.unpack_from(view, 0)
    if magic != _BLOB_MAGIC or count > _MAX_PARTS or len(view) < _BLOB.size + 8 * count:
        raise DecodeError("not a blob")
    position = _BLOB.size + 8 * count
    segments = []
    for length in struct.unpack_from("<%dQ" % count, view, _BLOB.size):
        position += -position % ALIGN
        if position + length > len(view):
            raise DecodeError("a blob shorter than its segments")
        segments.append(view[position : position + length])
        position += length
    if position != len(view):
        raise DecodeError("a blob longer than its segments")
    return segments
