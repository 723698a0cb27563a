"""Pickles from hosts that may be hostile, read so that no code of theirs runs here.

Three walls. Only those opcodes pass that our own pickler writes (`_scan`). A global is found by its
exact name in a short list: our rebuild functions, a few builtins, exceptions, and classes of the
shipped modules that are their own. And there are two readers: the fast one of C for plain data, and
a careful one in Python as soon as a shipped class, a state or anything else comes up with which
opcodes could call methods or let an object grow without end; it lets each opcode work only on the
objects that it is made for.

What is copied is counted: a few bytes that are named again and again cannot become gigabytes.
"""

import builtins
import enum
import io
import pickle
import re
import struct
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from worker_payload.arrays import Buffer, DecodeError, Rebuild, need_numpy, show

_RANGE_MAX = 1 << 24  # items: whoever iterates over it must not run out of memory
# To hash deeper tuples, or end deeper arrays, would overflow the stack of C: that is no exception
# but the end of the process.
_MANY_TUPLES = 10000
_DEEP_ARRAYS = 100
_GLOBAL = b"\x93"  # STACK_GLOBAL, the only opcode that _scan lets through and that finds a name
_GROUP = getattr(builtins, "BaseExceptionGroup", ())


def decode(segments, modules, me, rebuilds):
    # type: (Sequence[Buffer], Mapping[str, Any], str, Mapping[str, str]) -> Any
    """See codec.decode_untrusted. me: the module that the rebuild functions are named in, rebuilds:
    method of Rebuild by name."""
    try:
        data = bytes(segments[0])
        many = len(data) > _MANY_TUPLES and sum(map(data.count, _TUPLES)) > _MANY_TUPLES
        builds = _scan_depth(data) if many else _scan(data)
        if not builds and _GLOBAL not in data:
            return pickle.loads(data)  # numbers, texts and containers: nothing in it can be called
        if not builds:
            try:
                return _read(_Fast, data, _Finder(segments, {}, me, rebuilds))
            except _NeedsCareError:
                pass
        return _read(_Careful, data, _Finder(segments, modules, me, rebuilds, careful=True))
    except DecodeError:
        raise
    except BaseException as error:  # a shipped class may raise anything, SystemExit included
        raise DecodeError("%s%s" % (type(error).__name__, _said(error)))


class _NeedsCareError(Exception):
    """The fast reader met what only the careful one may read."""


def _read(reader_class, data, finder):
    # type: (Any, bytes, _Finder) -> Any
    reader = reader_class(io.BytesIO(data))
    reader.finder = finder
    try:
        value = reader.load()
        finder.unlock()
    finally:
        finder.forget()
    return value


def _said(error):
    # type: (BaseException) -> str
    """The error's message, if it can be made without a repr of what a host sent."""
    args = error.args
    if type(args) is tuple and all(type(arg) in (str, int, bytes, float) for arg in args):
        return (": %s" % error)[:500]
    return ""


# --- which globals -------------------------------------------------------------------------------


class _Finder(object):
    """Turns the globals of one pickle into what they may be, and keeps count of what they copy."""

    def __init__(self, segments, modules, me, rebuilds, careful=False):
        # type: (Sequence[Buffer], Mapping[str, Any], str, Mapping[str, str], bool) -> None
        self.shipped = {}  # type: Dict[int, Any]  # classes of the shipped modules, by id
        self.granted = {}  # type: Dict[int, Any]  # all that may be called, by id
        self._modules = modules
        self._me = me
        self._rebuilds = rebuilds
        self._careful = careful
        self._rebuild = _Guarded(segments, self)
        self._left = 2 * sum(len(part) for part in segments) + (1 << 20)
        self._builtins = {
            "set": self._set, "frozenset": self._frozenset, "bytearray": self._bytearray,
            "complex": _make_complex, "range": _make_range,
        }  # fmt: skip

    def find(self, module, name):
        # type: (str, str) -> Any
        found = self._find(module, name)
        self.granted[id(found)] = found
        return found

    def _find(self, module, name):
        # type: (str, str) -> Any
        if type(module) is not str or type(name) is not str or "." in name:
            raise _refused(module, name)
        if module == self._me and name in self._rebuilds:
            return getattr(self._rebuild, self._rebuilds[name])
        if module == "builtins":
            if name in self._builtins:
                return self._builtins[name]
            if name == "slice":
                self.take_care()  # with a slice, a list can be assigned into itself
                return _make_slice
            if name == "getattr":  # in which Python 3.11.0 to 3.11.3 wrap the members of an Enum
                self.take_care()
                return self._member
            found = getattr(builtins, name, None)
            # groups iterate over what they are given
            if _is_class(found, Exception) and not _is_class(found, _GROUP):
                return found
        elif not self._careful:
            self.take_care()
        elif module in self._modules:
            found = vars(self._modules[module]).get(name)
            if isinstance(found, type) and (found.__module__, found.__qualname__) == (module, name):
                self.shipped[id(found)] = found
                return found
        raise _refused(module, name)

    def take_care(self):
        # type: () -> None
        if not self._careful:
            raise _NeedsCareError()

    def charge(self, size):
        # type: (int) -> None
        """Count bytes (or items) that a call is going to copy."""
        self._left -= size
        if self._left < 0:
            raise DecodeError("a pickle that makes far more than it holds")

    def unlock(self):
        # type: () -> None
        self._rebuild.unlock()

    def forget(self):
        # type: () -> None
        """Nothing more will be found. Without this the arrays, which may be large, would stay until
        Python next looks for cycles."""
        self.shipped.clear()
        self.granted.clear()
        self._builtins.clear()
        del self._rebuild

    def _set(self, *args):
        # type: (*Any) -> set
        return set(*self._one(args, list))

    def _frozenset(self, *args):
        # type: (*Any) -> frozenset
        return frozenset(*self._one(args, list))

    def _bytearray(self, *args):
        # type: (*Any) -> bytearray
        return bytearray(*self._one(args, bytes))

    def _member(self, *args):
        # type: (*Any) -> Any
        """A member of a shipped Enum, and no other attribute of anything."""
        if len(args) == 2 and id(args[0]) in self.shipped and type(args[1]) is str:
            cls, name = args
            if isinstance(cls, enum.EnumMeta) and name in cls.__members__:
                return cls.__members__[name]
        raise _refused("builtins", "getattr")

    def _one(self, args, cls):
        # type: (Tuple[Any, ...], type) -> Tuple[Any, ...]
        """The arguments, if they are none or one of this very class: set(range(10**12)) is an
        attack, and so is bytearray(10**12)."""
        if len(args) > 1 or any(type(arg) is not cls for arg in args):
            raise DecodeError("impossible arguments in a pickle")
        self.charge(sum(len(arg) for arg in args))
        return args


def _is_class(found, base):
    # type: (Any, Any) -> bool
    return isinstance(found, type) and issubclass(found, base)


def _refused(module, name):
    # type: (Any, Any) -> DecodeError
    where = "%.100s.%.100s" % (module, name) if type(module) is type(name) is str else "a global"
    return DecodeError(
        "%s is not accepted from a host: return numbers, strings, lists, dicts, arrays, "
        "or a class of the mapped module" % where
    )


def _make_complex(*args):
    # type: (*Any) -> complex
    if len(args) != 2 or any(type(arg) is not float for arg in args):
        raise DecodeError("impossible arguments in a pickle")
    return complex(*args)


def _make_range(*args):
    # type: (*Any) -> range
    if any(type(arg) is not int for arg in args):
        raise DecodeError("impossible arguments in a pickle")
    made = range(*args)
    if len(made) > _RANGE_MAX:
        raise DecodeError("a range of more than %d items" % _RANGE_MAX)
    return made


def _make_slice(*args):
    # type: (*Any) -> slice
    if any(type(arg) not in (int, float, str, bool, type(None)) for arg in args):
        raise DecodeError("impossible arguments in a pickle")
    return slice(*args)


class _Guarded(Rebuild):
    """Rebuilds arrays that stay read-only until the pickle is read: its opcodes can assign to
    items, and numpy unrolls what is assigned, however deep."""

    def __init__(self, segments, finder):
        # type: (Sequence[Buffer], _Finder) -> None
        super().__init__(segments, True)
        self._finder = finder
        self._locked = []  # type: List[Any]
        self._depths = {}  # type: Dict[int, int]  # of object arrays and their views, by id
        self._kept = []  # type: List[Any]  # so that an id stays one array's

    def unlock(self):
        # type: () -> None
        for array in self._locked:
            array.flags.writeable = True

    def _lock(self, array):
        # type: (Any) -> Any
        if array.flags.writeable:
            array.flags.writeable = False
            self._locked.append(array)
        return array

    def array(self, index, text, shape, order):
        self._finder.charge(len(index) if type(index) is bytes else 0)
        self._charge_text(text)
        array = super().array(index, text, shape, order)
        np = need_numpy()
        if array.dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
            raise DecodeError("truth values that are neither true nor false")
        return self._lock(array)

    def matrix(self, array):
        return self._again(super().matrix(array), array)

    def recarray(self, array):
        return self._again(super().recarray(array), array)

    def masked(self, data, mask, fill):
        self._finder.charge(getattr(mask, "size", 0))
        array = super().masked(data, mask, fill)
        self._again(need_numpy().ma.getmask(array), mask)
        return self._again(array, data)

    def _again(self, view, array):
        # type: (Any, Any) -> Any
        """A view of a locked array is as read-only, and is unlocked after it."""
        self._locked.append(view)
        self._depths[id(view)] = self._depths.get(id(array), 0)
        return view

    def objects(self, shape, items):
        self._finder.charge(len(items) if type(items) is list else 0)
        array = self._lock(super().objects(shape, items))
        depth = 1 + max([self._depths.get(id(item), 0) for item in items] or [0])
        if depth > _DEEP_ARRAYS:
            raise DecodeError("object arrays nested too deep")
        self._depths[id(array)] = depth
        self._kept.append(array)
        return array

    def scalar(self, text, data):
        self._charge_text(text)
        scalar = super().scalar(text, data)
        if isinstance(scalar, need_numpy().void):
            self._finder.take_care()  # it has items that can be assigned to
        return scalar

    def dtype(self, text):
        self._charge_text(text)
        return super().dtype(text)

    def _charge_text(self, text):
        # type: (Any) -> None
        self._finder.charge(len(text) if type(text) is str else 0)


# --- the readers ---------------------------------------------------------------------------------


class _Fast(pickle.Unpickler):
    finder = None  # type: Any

    def find_class(self, module, name):
        # type: (str, str) -> Any
        return self.finder.find(module, name)

    def persistent_load(self, pid):
        # type: (Any) -> Any
        raise DecodeError("a persistent id")


_InPython = pickle._Unpickler  # type: Any


class _Careful(_InPython):
    """Lets each opcode work on what it is for: calls only of granted globals, items only into
    lists and dicts, states only into instances of shipped classes and exceptions, without special
    names. The fast reader cannot be told so."""

    finder = None  # type: Any
    dispatch = dict(_InPython.dispatch)  # type: Dict[int, Any]

    def find_class(self, module, name):
        # type: (str, str) -> Any
        return self.finder.find(module, name)

    def _check_call(self, called, arguments):
        # type: (Any, Any) -> None
        if id(called) not in self.finder.granted or type(arguments) is not tuple:
            raise DecodeError("a call of %s" % show(called))

    def _check_fill(self, target, cls):
        # type: (Any, type) -> None
        if type(target) is not cls and not (
            isinstance(target, cls) and id(type(target)) in self.finder.shipped
        ):
            raise DecodeError("items for %s" % show(target))

    def load_reduce(self):
        # type: () -> None
        self._check_call(self.stack[-2], self.stack[-1])
        super().load_reduce()

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_newobj(self):
        # type: () -> None
        self._check_call(self.stack[-2], self.stack[-1])
        super().load_newobj()

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_newobj_ex(self):
        # type: () -> None
        self._check_call(self.stack[-3], self.stack[-2])
        super().load_newobj_ex()

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def load_append(self):
        # type: () -> None
        self._check_fill(self.stack[-2], list)
        super().load_append()

    dispatch[pickle.APPEND[0]] = load_append

    def load_appends(self):
        # type: () -> None
        self._check_fill(self.metastack[-1][-1], list)
        super().load_appends()

    dispatch[pickle.APPENDS[0]] = load_appends

    def load_setitem(self):
        # type: () -> None
        self._check_fill(self.stack[-3], dict)
        super().load_setitem()

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self):
        # type: () -> None
        self._check_fill(self.metastack[-1][-1], dict)
        super().load_setitems()

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_additems(self):
        # type: () -> None
        self._check_fill(self.metastack[-1][-1], set)
        super().load_additems()

    dispatch[pickle.ADDITEMS[0]] = load_additems

    def load_build(self):
        # type: () -> None
        state, instance = self.stack[-1], self.stack[-2]
        cls = type(instance)
        setter = getattr(cls, "__setstate__", None)
        if id(cls) in self.finder.shipped:
            theirs = setter is not None and setter is not getattr(Exception, "__setstate__", None)
        elif isinstance(instance, Exception) and cls.__module__ == "builtins":
            theirs = False
        else:
            raise DecodeError("a state for %s" % show(instance))
        if not theirs:
            _check_state(state)
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def _check_state(state):
    # type: (Any) -> None
    """A state is a dict of attributes, or such a pair as objects with slots have."""
    parts = state if type(state) is tuple and len(state) == 2 else (state,)
    for part in parts:
        if part is None:
            continue
        if type(part) is not dict or not all(type(key) is str for key in part):
            raise DecodeError("a state of another form than attributes")
        if any(key[:2] == "__" and key != "__notes__" for key in part):
            raise DecodeError("a state with special names")


# --- which opcodes -------------------------------------------------------------------------------

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


_TUPLES = (b"t", b"\x85", b"\x86", b"\x87")
_NUMBERS = {0x4B: 1, 0x4D: 2, 0x4A: 4, 0x47: 8}  # BININT1 BININT2 BININT BINFLOAT


def _scan_depth(data):
    # type: (bytes) -> bool
    """As _scan, and refuses tuples nested deeper than _MANY_TUPLES; slower, for many tuples.

    Follows the opcodes with, in place of each object, how deep tuples are nested in it."""
    stack, marks, memo = [], [], []  # type: List[int], List[int], List[int]
    position, builds = 0, False
    while True:
        opcode = data[position]
        position += 1
        if opcode in _COUNTED:
            width, form = _COUNTED[opcode]
            position += width + struct.unpack_from(form, data, position)[0]
            stack.append(0)
        elif opcode == 0x94:  # MEMOIZE
            memo.append(stack[-1])
        elif opcode in _NUMBERS:
            position += _NUMBERS[opcode]
            stack.append(0)
        elif opcode in b"\x85\x86\x87":  # TUPLE1 TUPLE2 TUPLE3
            count = opcode - 0x84
            stack[-count:] = [_deeper(stack[-count:])]
        elif opcode == 0x68:  # BINGET
            stack.append(memo[data[position]])
            position += 1
        elif opcode == 0x6A:  # LONG_BINGET
            stack.append(memo[struct.unpack_from("<I", data, position)[0]])
            position += 4
        elif opcode == 0x28:  # MARK
            marks.append(len(stack))
        elif opcode in b"t\x91":  # TUPLE FROZENSET
            start = marks.pop()
            depth = _deeper(stack[start:])
            stack[start:] = [depth if opcode == 0x74 else 0]
        elif opcode in b"eu\x901":  # APPENDS SETITEMS ADDITEMS POP_MARK
            del stack[marks.pop() :]
        elif opcode in b"N\x88\x89]})\x8f":  # constants and empty containers
            stack.append(0)
        elif opcode in b"R\x81":  # REDUCE NEWOBJ: may give a tuple of another class
            stack[-2:] = [_deeper(stack[-1:])]
        elif opcode == 0x92:  # NEWOBJ_EX
            stack[-3:] = [_deeper(stack[-2:])]
        elif opcode == 0x93:  # STACK_GLOBAL
            stack[-2:] = [0]
        elif opcode == 0x30 and marks and marks[-1] == len(stack):  # POP of a MARK
            marks.pop()
        elif opcode in b"ab0":  # APPEND BUILD POP
            builds = builds or opcode == 0x62
            stack.pop()
        elif opcode == 0x73:  # SETITEM
            del stack[-2:]
        elif opcode == 0x95:  # FRAME
            position += 8
        elif opcode == 0x80 and data[position] == 4:  # PROTO
            position += 1
        elif opcode == 0x2E:  # STOP
            if position != len(data):
                raise DecodeError("bytes after the end of a pickle")
            return builds
        else:
            raise DecodeError(
                "opcode %r at byte %d" % (data[position - 1 : position], position - 1)
            )


def _deeper(depths):
    # type: (List[int]) -> int
    depth = 1 + max(depths or [0])
    if depth > _MANY_TUPLES:
        raise DecodeError("tuples nested too deep")
    return depth
