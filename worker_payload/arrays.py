"""Arrays and what they are made of: dtypes as strings, arrays over bytes, without trusting either.

Nothing that comes in is believed: a dtype is text in a grammar (never objects), and shape times
item size must be exactly the bytes that are there.
"""

import json
import re
import sys
from typing import Any, Sequence, Tuple, Union

Buffer = Union[bytes, bytearray, memoryview]


class EncodeError(Exception):
    """The object cannot travel; says what in it, and why."""


class DecodeError(Exception):
    """The bytes are not an object that we accept."""


def show(value):
    # type: (Any) -> str
    """A short repr for an error. Of what is nested only the type: a few bytes of pickle can hold
    an object whose repr fills the memory."""
    if type(value) in (str, bytes):
        return repr(value[:80])
    if type(value) is int and value.bit_length() <= 64 or value is None:
        return repr(value)
    return "a " + type(value).__name__


# --- dtypes as strings -------------------------------------------------------------------------

# [byte order] kind size [unit]; never O. 'V' only as raw void, structures are spelled out in JSON.
_SIMPLE = re.compile(
    r"(?:[|]b1|[<>|][iu](?:1|2|4|8)|[<>](?:f(?:2|4|8|12|16)|c(?:8|16|24|32))"
    r"|[|]S[0-9]{1,9}|[<>]U[0-9]{1,9}|[|]V[0-9]{1,9}"
    r"|[<>][mM]8(?:\[(?:[1-9][0-9]{0,8})?(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?)\Z"
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
        titles = [field[2] if len(field) > 2 else None for field in fields]
        if not all(title is None or type(title) is str for title in titles):
            raise EncodeError("an array of dtype %s has titles that are not text" % (dtype,))
        return json.dumps(
            {
                "type": record,
                "names": list(dtype.names),
                "titles": titles,
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
    np = need_numpy()
    if type(text) is not str or depth > _MAX_DEPTH:
        raise DecodeError("a dtype must be a string, not %s" % show(text))
    if _SIMPLE.match(text):
        dtype = np.dtype(text)
    elif text.startswith("{") and len(text) < 1 << 20:
        dtype = _structure(json.loads(text), depth)
    else:
        raise DecodeError("not a dtype we accept: %s" % show(text))
    if dtype.hasobject:
        raise DecodeError("a dtype that holds objects")
    return dtype


def _structure(spec, depth):
    # type: (Any, int) -> Any
    np = need_numpy()
    if type(spec) is not dict:
        raise DecodeError("not a structure's dtype")
    if set(spec) == {"base", "shape"}:
        shape = tuple(spec["shape"])
        _check_shape(shape)
        return np.dtype((dtype_from_string(spec["base"], depth + 1), shape))
    if set(spec) != {"type", "names", "titles", "formats", "offsets", "itemsize", "align"}:
        raise DecodeError("not a structure's dtype")
    names, titles = spec["names"], spec["titles"]
    formats, offsets = spec["formats"], spec["offsets"]
    if not (len(names) == len(titles) == len(formats) == len(offsets) <= _MAX_FIELDS):
        raise DecodeError("a structure with fields that do not match")
    if not all(type(n) is int and n >= 0 for n in offsets + [spec["itemsize"]]):
        raise DecodeError("a structure with impossible offsets")
    fields = {
        "names": [str(name) for name in names],
        "formats": [dtype_from_string(item, depth + 1) for item in formats],
        "offsets": offsets,
        "itemsize": spec["itemsize"],
    }
    if any(titles):
        fields["titles"] = [None if title is None else str(title) for title in titles]
    dtype = np.dtype(fields, align=bool(spec["align"]))
    return np.dtype((np.record, dtype)) if spec["type"] == "record" else dtype


def _check_shape(shape):
    # type: (Any) -> None
    if type(shape) is not tuple or len(shape) > 32:
        raise DecodeError("not a shape: %s" % show(shape))
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
        raise DecodeError("not a shape: %s" % show(shape))


def _product(shape):
    # type: (Sequence[int]) -> int
    count = 1
    for n in shape:
        count *= n
    return count


# --- rebuilding: the only functions of ours that a pickle may call -------------------------------


def need_numpy():
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
    np = need_numpy()
    dtype = dtype_from_string(text)
    _check_shape(shape)
    if order not in ("C", "F"):
        raise DecodeError("no such array order: %s" % show(order))
    count = _product(shape)
    if count * dtype.itemsize != len(data):
        raise DecodeError("an array of %d %s needs %d bytes, and there are %d"
                          % (count, show(text), count * dtype.itemsize, len(data)))  # fmt: skip
    if not len(data):
        # Items of no size: nothing holds their number down. Only an empty structure stays so small;
        # numpy would make room for at least one letter of a string.
        if count > 1 << 24 or (count and dtype.names is None):
            raise DecodeError("an array of %d items without size" % count)
        return np.empty(shape, dtype, order)
    return np.frombuffer(data, dtype).reshape(shape, order=order)


class Rebuild(object):
    """What the `rebuild_*` globals of a pickle become when it is read: bound to its segments."""

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
            raise DecodeError("no such segment: %s" % show(index))
        return _array(data, text, shape, order)

    def matrix(self, array):
        np = need_numpy()
        if type(array) is not np.ndarray or array.ndim != 2:
            raise DecodeError("not a matrix")
        return array.view(np.matrix)

    def recarray(self, array):
        np = need_numpy()
        if type(array) is not np.ndarray:
            raise DecodeError("not a record array")
        return array.view(np.recarray)

    def masked(self, data, mask, fill):
        np = need_numpy()
        if type(data) is not np.ndarray or type(mask) is not np.ndarray:
            raise DecodeError("not a masked array")
        if data.shape != mask.shape:
            raise DecodeError("a mask of another shape than its data")
        if not isinstance(fill, (np.generic, bool, int, float, complex, str, bytes, type(None))):
            raise DecodeError("a fill value that is no single value")  # numpy would unroll a list
        return np.ma.MaskedArray(data, mask=mask, fill_value=fill)

    def objects(self, shape, items):
        """An array of Python objects, from its items in C order."""
        np = need_numpy()
        _check_shape(shape)
        if type(items) is not list:
            raise DecodeError("an object array of %s" % show(items))
        if _product(shape) != len(items):
            raise DecodeError("an object array of %d with %d items" % (_product(shape), len(items)))
        flat = np.empty(len(items), object)
        for i, item in enumerate(items):
            flat[i] = item
        return flat.reshape(shape)

    def scalar(self, text, data):
        np = need_numpy()
        dtype = dtype_from_string(text)
        if type(data) is not bytes or len(data) != dtype.itemsize:
            raise DecodeError("a scalar of %s in %s" % (show(text), show(data)))
        if dtype.kind == "S":
            return np.bytes_(data)  # an item of an array would lose NULs at its end
        if dtype.kind == "U":
            encoding = "utf-32-le" if dtype.str[0] == "<" else "utf-32-be"
            return np.str_(data.decode(encoding, "surrogatepass"))
        if not data:
            raise DecodeError("a scalar of %s, which has no size" % show(text))
        return np.frombuffer(data, dtype)[0]

    def dtype(self, text):
        return dtype_from_string(text)
