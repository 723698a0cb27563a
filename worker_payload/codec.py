"""Objects to segments and back: arrays as raw bytes, the rest as a pickle that holds no numpy.

`encode(obj)` gives a list of buffers: a protocol 4 pickle, then the bytes of every array in it.
Arrays and array scalars, however deep inside the object, are cut out by the pickler's dispatch
table, because numpy 1 and 2 do not read each other's pickles; a dtype travels as a string.

`decode(segments)` is for what comes from someone we trust (a worker decodes its master's params).
`decode_untrusted(segments, modules)` trusts nobody: only the globals listed here, only the opcodes that
our own pickler writes, no length believed before the bytes are there; whatever goes wrong is one
DecodeError. A hostile host can still waste its master's time; it cannot run code there.

A blob is the same segments in one file, aligned so that arrays can be used where they are mapped.
"""

import builtins
import copyreg
import hashlib
import io
import json
import pickle
import pickletools
import re
import struct
import sys
import threading
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

Buffer = Union[bytes, bytearray, memoryview]

PROTOCOL = 4  # the newest that Python 3.6 reads
INLINE = 1024  # arrays up to this many bytes stay in the pickle: a segment would cost more
ALIGN = 64  # of a segment within a blob
_BLOB = struct.Struct("<8sQ")
_BLOB_MAGIC = b"jamblob1"
_MAX_PARTS = 1 << 24
_ME = "worker_payload.codec"  # where the pickles look for the rebuild functions


class EncodeError(Exception):
    """The object cannot travel; says what in it, and why."""


class DecodeError(Exception):
    """The bytes are not an object that we accept."""


# --- dtypes as strings -------------------------------------------------------------------------

# [byte order] kind size [unit]; never O. 'V' only as raw void, structures are spelled out in JSON.
_SIMPLE = re.compile(
    r"(?:[|]b1|[<>|][iu](?:1|2|4|8)|[<>](?:f(?:2|4|8|12|16)|c(?:8|16|24|32))"
    r"|[|]S[0-9]{1,9}|[<>]U[0-9]{1,9}|[|]V[0-9]{1,9}"
    r"|[<>][mM]8(?:\[[0-9]{0,9}(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?)\Z"
)
_MAX_FIELDS = 1000
_MAX_DEPTH = 8


def dtype_to_string(dtype):
    # type: (Any) -> str
    """A dtype as text that `dtype_from_string` reads on any numpy. Raises EncodeError."""
    if dtype.hasobject:
        raise EncodeError("an array of dtype %s holds Python objects in a structure" % (dtype,))
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return json.dumps({"base": dtype_to_string(base), "shape": list(shape)})
    if dtype.names is not None:
        fields = [dtype.fields[name] for name in dtype.names]
        record = "record" if dtype.type.__name__ == "record" else "void"
        return json.dumps(
            {
                "type": record,
                "names": list(dtype.names),
                "formats": [dtype_to_string(field[0]) for field in fields],
                "offsets": [field[1] for field in fields],
                "itemsize": dtype.itemsize,
                "align": bool(dtype.isalignedstruct),
            }
        )
    text = dtype.str
    if not _SIMPLE.match(text):
        raise EncodeError("an array of dtype %s cannot travel" % (dtype,))
    return text


def dtype_from_string(text, depth=0):
    # type: (str, int) -> Any
    """The dtype that the text names. Raises DecodeError for anything outside the grammar."""
    np = _numpy()
    if type(text) is not str or depth > _MAX_DEPTH:
        raise DecodeError("a dtype must be a string, not %.80r" % (text,))
    if _SIMPLE.match(text):
        dtype = np.dtype(text)
    elif text.startswith("{") and len(text) < 1 << 20:
        dtype = _structure(json.loads(text), depth)
    else:
        raise DecodeError("not a dtype we accept: %.80r" % (text,))
    if dtype.hasobject:
        raise DecodeError("a dtype that holds objects")
    return dtype


def _structure(spec, depth):
    # type: (Any, int) -> Any
    np = _numpy()
    if set(spec) == {"base", "shape"}:
        shape = tuple(spec["shape"])
        _check_shape(shape)
        return np.dtype((dtype_from_string(spec["base"], depth + 1), shape))
    if set(spec) != {"type", "names", "formats", "offsets", "itemsize", "align"}:
        raise DecodeError("not a structure's dtype")
    names, formats, offsets = spec["names"], spec["formats"], spec["offsets"]
    if not (len(names) == len(formats) == len(offsets) <= _MAX_FIELDS):
        raise DecodeError("a structure with fields that do not match")
    if not all(type(n) is int and n >= 0 for n in offsets + [spec["itemsize"]]):
        raise DecodeError("a structure with impossible offsets")
    fields = {
        "names": [str(name) for name in names],
        "formats": [dtype_from_string(item, depth + 1) for item in formats],
        "offsets": offsets,
        "itemsize": spec["itemsize"],
    }
    dtype = np.dtype(fields, align=bool(spec["align"]))
    return np.dtype((np.record, dtype)) if spec["type"] == "record" else dtype


def _check_shape(shape):
    # type: (Any) -> None
    if type(shape) is not tuple or len(shape) > 32:
        raise DecodeError("not a shape: %.80r" % (shape,))
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
        raise DecodeError("not a shape: %.80r" % (shape,))


def _product(shape):
    # type: (Sequence[int]) -> int
    count = 1
    for n in shape:
        count *= n
    return count


# --- rebuilding: the only functions of ours that a pickle may call -------------------------------


def _numpy():
    # type: () -> Any
    try:
        import numpy
    except ImportError:
        raise DecodeError("the data holds numpy arrays, and this Python (%s) has no numpy"
                          % sys.executable)  # fmt: skip
    return numpy


def _array(data, text, shape, order):
    # type: (Buffer, str, Tuple[int, ...], str) -> Any
    """An array of this shape over `data`, without a copy; writeable if `data` is."""
    np = _numpy()
    dtype = dtype_from_string(text)
    _check_shape(shape)
    if order not in ("C", "F"):
        raise DecodeError("no such array order: %.80r" % (order,))
    count = _product(shape)
    if count * dtype.itemsize != len(data):
        raise DecodeError("an array of %r %s needs %d bytes, and there are %d"
                          % (shape, text, count * dtype.itemsize, len(data)))  # fmt: skip
    if not len(data):
        if count > 1 << 24:  # items of no size: nothing to hold, and a length that hangs a loop
            raise DecodeError("an array of %d items without size" % count)
        return np.empty(shape, dtype, order)
    return np.frombuffer(data, dtype).reshape(shape, order=order)


class _Rebuild(object):
    """What the `rebuild_*` globals of a pickle become when it is read, bound to the segments of one object."""

    def __init__(self, segments, writable):
        # type: (Sequence[Buffer], bool) -> None
        self._segments = segments
        self._used = set()  # type: set
        self._writable = writable

    def array(self, index, text, shape, order):
        """An array in segment `index`, or in the bytes given in place of an index."""
        if type(index) is bytes:
            data = bytearray(index) if self._writable else index  # type: Buffer
        elif type(index) is int and 0 < index < len(self._segments) and index not in self._used:
            self._used.add(index)
            data = self._segments[index]
        else:
            raise DecodeError("no such segment: %.80r" % (index,))
        return _array(data, text, shape, order)

    def matrix(self, array):
        np = _numpy()
        if type(array) is not np.ndarray or array.ndim != 2:
            raise DecodeError("not a matrix")
        return array.view(np.matrix)

    def recarray(self, array):
        np = _numpy()
        if type(array) is not np.ndarray or array.dtype.names is None:
            raise DecodeError("not a record array")
        return array.view(np.recarray)

    def masked(self, data, mask, fill):
        np = _numpy()
        if type(data) is not np.ndarray or type(mask) is not np.ndarray:
            raise DecodeError("not a masked array")
        return np.ma.MaskedArray(data, mask=mask, fill_value=fill)

    def objects(self, shape, items):
        """An array of Python objects, from its items in C order."""
        np = _numpy()
        _check_shape(shape)
        if type(items) is not list or _product(shape) != len(items):
            raise DecodeError("an object array of %r with another number of items" % (shape,))
        flat = np.empty(len(items), object)
        for i, item in enumerate(items):
            flat[i] = item
        return flat.reshape(shape)

    def scalar(self, text, data):
        dtype = dtype_from_string(text)
        if type(data) is not bytes or len(data) != dtype.itemsize or not data:
            raise DecodeError("a scalar of %s in %d bytes" % (text, len(data)))
        return _numpy().frombuffer(data, dtype)[0]

    def dtype(self, text):
        return dtype_from_string(text)


# The globals that stand in our pickles. Reading replaces each by the method of _Rebuild.


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
        np = _numpy()
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
    return rebuild_scalar, (dtype_to_string(scalar.dtype), scalar.tobytes())


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
    np = _numpy()
    if not array.nbytes:
        return memoryview(b"")
    if not array.flags.c_contiguous:
        array = array.T
    # datetimes and structures have no buffer of their own, and a 0-d array no items to view
    return memoryview(array.view(np.ndarray).reshape(-1).view(np.uint8))


_encoder = _Encoder()
_PLAIN = frozenset([int, float, str, bytes, bool, type(None)])


def encode(obj):
    # type: (Any) -> List[Buffer]
    """The segments of an object: its pickle first, then the raw bytes of its arrays.

    The buffers of large arrays are views, not copies: encode, send, then let go.
    Raises EncodeError saying what cannot travel."""
    if type(obj) in _PLAIN:
        return [pickle.dumps(obj, PROTOCOL)]
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
    return segments


def needs_numpy(segments):
    # type: (Sequence[Buffer]) -> bool
    """Whether decoding them takes numpy."""
    return len(segments) > 1 or _ME.encode() in bytes(segments[0])


def _refuse_numpy(data):
    # type: (bytes) -> None
    """Raise EncodeError if the pickle names a global of numpy: other versions may lack it."""
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
            recent = [recent[1], memo[argument]]
        elif opcode.name != "FRAME":
            recent = [recent[1], argument]


# --- decode ------------------------------------------------------------------------------------

Find = Callable[[str, str], Any]


def decode(segments, find=None, writable=False):
    # type: (Sequence[Buffer], Optional[Find], bool) -> Any
    """The object in segments from someone we trust: its globals are imported, or found by `find`.

    Large arrays share memory with their segments; writable concerns the small ones in the pickle.
    Raises DecodeError."""
    rebuild = _Rebuild(segments, writable)
    try:
        unpickler = _Trusting(io.BytesIO(segments[0]))
        unpickler.rebuild = rebuild
        unpickler.find = find
        return unpickler.load()
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


def decode_untrusted(segments, modules):
    # type: (Sequence[Buffer], Mapping[str, Any]) -> Any
    """The object in segments that a host sent. Arrays come out writeable.

    modules: the shipped modules by name, as this process has them. Of these only classes that are
    their own (`__module__` and `__qualname__` equal the name) may be made; their constructors run.
    Raises DecodeError, whatever happens."""
    try:
        data = bytes(segments[0])
        builds = _scan(data)
        rebuild = _Rebuild(segments, True)

        def find(module, name):
            # type: (str, str) -> Any
            return _find_untrusted(module, name, rebuild, modules)

        reader = _Building(io.BytesIO(data)) if builds else _Restricted(io.BytesIO(data))
        reader.find = find  # type: ignore[attr-defined]
        return reader.load()
    except DecodeError:
        raise
    except BaseException as error:  # a shipped class may raise anything, SystemExit included
        raise DecodeError("%s: %s" % (type(error).__name__, error))


def _find_untrusted(module, name, rebuild, modules):
    # type: (str, str, _Rebuild, Mapping[str, Any]) -> Any
    if type(module) is not str or type(name) is not str or "." in name:
        raise DecodeError("%s.%s is not accepted from a host" % (module, name))
    if module == _ME and name in _REBUILD:
        return getattr(rebuild, _REBUILD[name])
    if module == "builtins":
        if name in _BUILTINS:
            return _BUILTINS[name]
        found = getattr(builtins, name, None)
        if isinstance(found, type) and issubclass(found, Exception):
            return found
    elif module in modules:
        found = vars(modules[module]).get(name)
        if isinstance(found, type) and (found.__module__, found.__qualname__) == (module, name):
            return found
    raise DecodeError(
        "%s.%s is not accepted from a host: return numbers, strings, lists, dicts, arrays, "
        "or a class of the mapped module" % (module, name)
    )


def _make_set(*args):
    # type: (*Any) -> set
    return set(*_one(args, list))


def _make_frozenset(*args):
    # type: (*Any) -> frozenset
    return frozenset(*_one(args, list))


def _make_bytearray(*args):
    # type: (*Any) -> bytearray
    return bytearray(*_one(args, bytes))


def _one(args, cls):
    # type: (Tuple[Any, ...], type) -> Tuple[Any, ...]
    """The arguments, if they are none or one of this very class: set(range(10**12)) is an attack."""
    if len(args) > 1 or any(type(arg) is not cls for arg in args):
        raise DecodeError("impossible arguments in a pickle")
    return args


def _make_complex(*args):
    # type: (*Any) -> complex
    if len(args) != 2 or any(type(arg) is not float for arg in args):
        raise DecodeError("impossible arguments in a pickle")
    return complex(*args)


_BUILTINS = {
    "set": _make_set,
    "frozenset": _make_frozenset,
    "bytearray": _make_bytearray,
    "complex": _make_complex,
    "range": range,
    "slice": slice,
}


class _Restricted(pickle.Unpickler):
    find = None  # type: Any

    def find_class(self, module, name):
        # type: (str, str) -> Any
        return self.find(module, name)

    def persistent_load(self, pid):
        # type: (Any) -> Any
        raise DecodeError("a persistent id")


class _Building(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """Reads pickles with BUILD, which sets attributes: on instances only, never on a class or one
    of our functions, and no special names. The fast unpickler cannot be told so."""

    find = None  # type: Any
    dispatch = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def find_class(self, module, name):
        # type: (str, str) -> Any
        return self.find(module, name)

    def load_build(self):
        # type: () -> None
        state, instance = self.stack[-1], self.stack[-2]
        allowed = type(instance).__module__ != "builtins" or isinstance(instance, Exception)
        if isinstance(instance, type) or not allowed or callable(state):
            raise DecodeError("a state for %s" % type(instance).__name__)
        parts = state if type(state) is tuple else (state,)
        for part in parts:
            if type(part) is dict and any(type(k) is str and k[:2] == "__" for k in part):
                raise DecodeError("a state with special names")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build


# Every opcode our pickler writes, with what follows it: fixed sizes by one expression, in C ...
_FIXED = re.compile(
    rb"(?:[(N\x88\x89)t\x85\x86\x87\]ae}su\x8f\x90\x9101\x94\x93R\x81\x92]"
    rb"|K.|h.|M..|[Jj].{4}|[G\x95].{8}|\x80\x04){1,4096}",
    re.DOTALL,
)
# ... and those with a length in front, by hand.
_COUNTED = {
    0x8A: (1, "<B"), 0x8B: (4, "<I"),  # LONG1 LONG4
    0x43: (1, "<B"), 0x42: (4, "<I"), 0x8E: (8, "<Q"),  # bytes
    0x8C: (1, "<B"), 0x58: (4, "<I"), 0x8D: (8, "<Q"),  # str
}  # fmt: skip


def _scan(data):
    # type: (bytes) -> bool
    """Check every opcode and length before anything is made; True if there is a BUILD.

    Other opcodes are old, or ask for memory by number (LONG_BINPUT), or import (GLOBAL, INST)."""
    position, end, builds = 0, len(data), False
    while position < end:
        match = _FIXED.match(data, position)
        if match:
            position = match.end()
            continue
        opcode = data[position]
        counted = _COUNTED.get(opcode)
        if counted:
            width, form = counted
            if position + 1 + width > end:
                break
            position += 1 + width + struct.unpack_from(form, data, position + 1)[0]
        elif opcode == 0x62:  # BUILD
            builds = True
            position += 1
        elif opcode == 0x2E:  # STOP
            if position + 1 != end:
                raise DecodeError("bytes after the end of a pickle")
            return builds
        else:
            raise DecodeError("opcode %r at byte %d" % (data[position : position + 1], position))
    raise DecodeError("a pickle that ends in the middle")


# --- blobs -------------------------------------------------------------------------------------


def blob_parts(segments):
    # type: (Sequence[Buffer]) -> List[Buffer]
    """The segments as one file: lengths first, each segment at a multiple of ALIGN."""
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


def blob_size(parts):
    # type: (Sequence[Buffer]) -> int
    return sum(len(part) for part in parts)


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
