"""Pickles that attack whoever reads them, by name, and the small assembler that makes them."""

import json
import struct
import types

ME = "worker_payload.codec"
SHIPPED = types.ModuleType("shipped")
MODULES = {"shipped": SHIPPED}
RAN = []

SOURCE = """
import collections, enum, os, subprocess
from subprocess import CalledProcessError, Popen
from os import system
from collections import OrderedDict

class Hue(enum.Enum):
    DARK = 1

class Plain:
    pass

class Other:
    pass

class Text(str):
    pass

class Many(list):
    pass

class Table(dict):
    pass

class Marks(set):
    pass

class Callable:
    def __call__(self, *args):
        RAN.append(args)

class Method:
    def append(self, *args):
        RAN.append(args)
    extend = add = __setitem__ = append

class Bomb:
    def __setstate__(self, state):
        raise SystemExit("from a state")

class Interrupts:
    def __new__(cls):
        raise KeyboardInterrupt

class Loud(Exception):
    def __init__(self, *args):
        super().__init__([[args]] * 2)
        raise self

class Outer:
    class Inner:
        pass

Pair = collections.namedtuple("Pair", "a b")
Alias = Plain
instance = Plain()

def function(*args):
    RAN.append(args)
"""
SHIPPED.RAN = RAN
exec(SOURCE, SHIPPED.__dict__)


# --- a small assembler of pickles ----------------------------------------------------------------

TOP = b"\x80\x04"
MARK, TUPLE, REDUCE, NEWOBJ, BUILD, MEMO = b"(", b"t", b"R", b"\x81", b"b", b"\x94"
EMPTY_TUPLE, EMPTY_DICT, EMPTY_LIST, EMPTY_SET, NONE = b")", b"}", b"]", b"\x8f", b"N"
T1, T2, T3 = b"\x85", b"\x86", b"\x87"
APPEND, APPENDS, SETITEM, SETITEMS, ADDITEMS, POP = b"a", b"e", b"s", b"u", b"\x90", b"0"


def text(value):
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def raw(data):
    return b"B" + struct.pack("<I", len(data)) + data


def num(value):
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<I", len(data)) + data


def get(index):
    return b"j" + struct.pack("<I", index)


def name(module, attribute):
    return text(module) + text(attribute) + b"\x93"


def tup(*items):
    return MARK + b"".join(items) + TUPLE


def call(function, *arguments):
    return function + tup(*arguments) + REDUCE


def new(cls, *arguments):
    return name("shipped", cls) + tup(*arguments) + NEWOBJ


def mine(function, *arguments):
    return call(name(ME, "rebuild_" + function), *arguments)


def array(data=bytes(8), dtype="<f8", shape=(1,), order="C"):
    return mine("array", raw(data), text(dtype), tup(*map(num, shape)), text(order))


def slice_(start, stop):
    return call(name("builtins", "slice"), num(start), num(stop), NONE)


def bomb(depth=40):
    """A list nested 2**depth wide: a few hundred bytes, and no memory holds its repr, its copy, or
    an array of it. Uses the memo from 0."""
    parts = [EMPTY_LIST + MEMO + num(1) + APPEND + POP]
    for i in range(depth):
        parts.append(EMPTY_LIST + MEMO + MARK + get(i) + get(i) + APPENDS + POP)
    return b"".join(parts) + get(depth)


ONE_ATTRIBUTE = EMPTY_DICT + text("x") + num(1) + SETITEM

ATTACKS = {
    # --- globals
    "eval": call(name("builtins", "eval"), text("RAN.append(1)")),
    "exec": call(name("builtins", "exec"), text("1")),
    "getattr": call(name("builtins", "getattr"), name("shipped", "Plain"), text("x")),
    "getattr of what": call(name("builtins", "getattr"), text("x"), text("join")),
    "getattr of a builtin": call(name("builtins", "getattr"), name("builtins", "set"), text("add")),
    "getattr of an enum": call(name("builtins", "getattr"), name("shipped", "Hue"), text("mro")),
    "getattr of three": call(
        name("builtins", "getattr"), name("shipped", "Hue"), text("DARK"), text("x")
    ),
    "getattr by bytes": call(name("builtins", "getattr"), name("shipped", "Hue"), raw(b"DARK")),
    "import": call(name("builtins", "__import__"), text("os")),
    "open": call(name("builtins", "open"), text("/tmp/x"), text("w")),
    "type": call(name("builtins", "type"), text("x"), EMPTY_TUPLE, EMPTY_DICT),
    "object": call(name("builtins", "object")),
    "print": call(name("builtins", "print"), text("x")),
    "input": call(name("builtins", "input")),
    "breakpoint": call(name("builtins", "breakpoint")),
    "list of range": call(name("builtins", "list"), call(name("builtins", "range"), num(10**12))),
    "bytes": call(name("builtins", "bytes"), num(10**12)),
    "map": call(name("builtins", "map"), name("builtins", "eval"), EMPTY_LIST),
    "dotted": call(name("builtins", "Exception.__subclasses__")),
    "os": call(name("os", "system"), text("x")),
    "posix": call(name("posix", "system"), text("x")),
    "subprocess": call(name("subprocess", "Popen"), text("x")),
    "numpy": call(name("numpy", "load"), text("/etc/passwd")),
    "numpy through f2py": call(name("numpy", "f2py.os.system"), text("x")),
    "numpy reconstruct": call(
        name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), tup(num(0)),
        raw(b"b")
    ),
    "numpy ndarray": call(name("numpy", "ndarray"), tup(num(10**6)), text("O")),
    "pickle": call(name("pickle", "loads"), raw(b"I1\n.")),
    "copyreg": call(name("copyreg", "_reconstructor"), name("shipped", "Plain")),
    "functools": call(name("functools", "partial"), name("shipped", "Plain")),
    "operator": call(name("operator", "attrgetter"), text("x")),
    "codec": call(name(ME, "decode"), EMPTY_LIST),
    "codec imports": call(name(ME, "pickle.loads"), raw(b"I1\n.")),
    "codec others": call(name(ME, "_restricted"), EMPTY_LIST),
    "restricted": call(name("worker_payload.restricted", "decode"), EMPTY_LIST),
    "main": call(name("__main__", "x")),
    "base exception": call(name("builtins", "SystemExit"), num(1)),
    "keyboard interrupt": call(name("builtins", "KeyboardInterrupt")),
    "exception group of a range": call(
        name("builtins", "ExceptionGroup"), text("x"), call(name("builtins", "range"), num(10**12))
    ),
    # --- names in shipped modules
    "shipped import": call(name("shipped", "system"), text("x")),
    "shipped module": call(name("shipped", "os.system"), text("x")),
    "shipped function": call(name("shipped", "function"), text("x")),
    "shipped instance": name("shipped", "instance"),
    "shipped alias": call(name("shipped", "Alias")),
    "class from elsewhere": call(name("shipped", "Popen"), text("x")),
    "exception from elsewhere": call(name("shipped", "CalledProcessError"), num(1), text("x")),
    "dict from elsewhere": call(name("shipped", "OrderedDict")),
    "inner class": call(name("shipped", "Outer.Inner")),
    "missing": call(name("shipped", "nothing")),
    "special": call(name("shipped", "__builtins__")),
    "other module": call(name("shipped.sub", "Plain")),
    "name of another kind": new("Text", text("os")) + text("system") + b"\x93",
    # --- calls of what is no class
    "call an instance": new("Callable") + tup(text("x")) + REDUCE,
    "call through memo": new("Callable") + MEMO + POP + get(0) + tup(text("x")) + REDUCE,
    "new of an instance": new("Callable") + tup(text("x")) + NEWOBJ,
    "call an array": array() + tup() + REDUCE,
    "arguments of another kind": name("shipped", "Plain") + new("Many") + REDUCE,
    "new with keywords": new("Callable") + EMPTY_TUPLE + EMPTY_DICT + b"\x92",
    # --- methods by opcode
    "append": new("Method") + text("x") + APPEND,
    "extend": new("Method") + MARK + text("x") + text("y") + APPENDS,
    "add": new("Method") + MARK + text("x") + ADDITEMS,
    "setitem": new("Method") + text("x") + text("y") + SETITEM,
    "setitems": new("Method") + MARK + text("x") + text("y") + SETITEMS,
    # --- states
    "state of a class": name("shipped", "Plain") + ONE_ATTRIBUTE + BUILD,
    "state of a rebuild": name(ME, "rebuild_array") + ONE_ATTRIBUTE + BUILD,
    "state of a builtin": name("builtins", "set") + ONE_ATTRIBUTE + BUILD,
    "state of an exception class": name("builtins", "ValueError") + EMPTY_DICT + BUILD,
    "state of a list": EMPTY_LIST + EMPTY_DICT + BUILD,
    "state of an array": array() + tup(
        num(1), tup(num(4)), mine("dtype", text("<f8")), b"\x89", raw(bytes(32))
    ) + BUILD,
    "state of a dtype": mine("dtype", text("|V8")) + tup(
        num(3), text("|"), NONE, NONE, NONE, num(1 << 30), num(1), num(0)
    ) + BUILD,
    "state of the dtype of all": mine("dtype", text("<f8")) + tup(
        num(3), text(">"), NONE, NONE, NONE, num(-1), num(-1), num(0)
    ) + BUILD,
    "special attribute": new("Plain") + EMPTY_DICT + text("__class__") + name("shipped", "Other")
    + SETITEM + BUILD,
    "special slot": new("Plain") + NONE + EMPTY_DICT + text("__class__") + name("shipped", "Other")
    + SETITEM + T2 + BUILD,
    "special slot in a named tuple": new("Plain") + call(
        name("shipped", "Pair"), NONE,
        EMPTY_DICT + text("__class__") + name("shipped", "Other") + SETITEM,
    ) + BUILD,
    "special name that is no str": new("Plain") + NONE + EMPTY_DICT + new("Text", text("__class__"))
    + name("shipped", "Other") + SETITEM + T2 + BUILD,
    "special name in a dict of theirs": new("Plain") + NONE + new("Table") + text("__class__")
    + name("shipped", "Other") + SETITEM + T2 + BUILD,
    "special attribute of an exception": call(name("builtins", "ValueError")) + EMPTY_DICT
    + text("__class__") + name("builtins", "OSError") + SETITEM + BUILD,
    "setstate as an attribute": new("Plain") + EMPTY_DICT + text("__setstate__")
    + name("shipped", "Callable") + SETITEM + BUILD,
    "system exit": new("Bomb") + EMPTY_DICT + text("x") + num(1) + SETITEM + BUILD,
    "keyboard interrupt in new": new("Interrupts"),
    "an error that holds itself": call(name("shipped", "Loud"), bomb()),
    # --- memory by number
    "bytearray by number": call(name("builtins", "bytearray"), num(10**12)),
    "bytearray of a range": call(
        name("builtins", "bytearray"), call(name("builtins", "range"), num(10**12))
    ),
    "set of a range": call(name("builtins", "set"), call(name("builtins", "range"), num(10**12))),
    "set of a memoized range": call(name("builtins", "range"), num(10**12)) + MEMO + POP
    + call(name("builtins", "set"), get(0)),
    "range": call(name("builtins", "range"), num(10**12)),
    "list of theirs": call(name("shipped", "Many"), call(name("builtins", "range"), num(10**12))),
    "long binput": num(1) + b"r\xff\xff\xff\x0f",
    "binput": num(1) + b"q\x05",
    "frame": b"\x95" + struct.pack("<Q", 1 << 60) + num(1),
    "long": b"\x8b\xff\xff\xff\x7f1",
    "bytes8": b"\x8e" + struct.pack("<Q", 1 << 60) + b"1",
    "text8": b"\x8d" + struct.pack("<Q", 1 << 62) + b"1",
    "negative long": b"\x8b\xff\xff\xff\xff1",
    "bytearray8": b"\x96" + struct.pack("<Q", 1 << 60) + b"1",
    # --- memory by repetition
    "a list into itself": EMPTY_LIST + MEMO + num(1) + APPEND + slice_(0, 0) + MEMO + POP + POP
    + get(0) + (get(1) + get(0) + SETITEM) * 60,
    "a bytearray into itself": call(name("builtins", "bytearray"), raw(b"x")) + MEMO + slice_(0, 0)
    + MEMO + POP + (get(1) + get(0) + SETITEM) * 60,
    "bytearrays of one bytes": raw(bytes(1 << 20)) + MEMO + POP + EMPTY_LIST + MARK
    + call(name("builtins", "bytearray"), get(0)) * 5000 + APPENDS,
    "arrays of one bytes": raw(bytes(1 << 20)) + MEMO + POP + EMPTY_LIST + MARK
    + mine("array", get(0), text("|i1"), tup(num(1 << 20)), text("C")) * 5000 + APPENDS,
    "sets of one list": EMPTY_LIST + MEMO + MARK + b"".join(map(num, range(50000))) + APPENDS + POP
    + EMPTY_LIST + MARK + call(name("builtins", "frozenset"), get(0)) * 5000 + APPENDS,
    "object arrays of one list": EMPTY_LIST + MEMO + MARK + NONE * 100000 + APPENDS + POP
    + EMPTY_LIST + MARK + mine("objects", tup(num(100000)), get(0)) * 9000 + APPENDS,
    "masks of one array": array(bytes(1 << 20), "|i1", (1 << 20,)) + MEMO + POP + EMPTY_LIST + MARK
    + mine("masked", get(0), get(0), NONE) * 5000 + APPENDS,
    "a mask from one element": mine(
        "masked", array(b"", "<f8", (0, 1 << 40)), array(b"\0", "|b1", (1,)), NONE
    ),
    "dtypes of one text": text('{"base": "|V1", "shape": [1]%s}' % (" " * 10**6)) + MEMO + POP
    + mine("dtype", get(0)) * 200,
    "an item of an array": array() + num(0) + bomb() + SETITEM,
    "all of an array": array() + slice_(0, 1) + bomb() + SETITEM,
    "an item of an object array": mine(
        "objects", tup(num(1)), EMPTY_LIST + NONE + APPEND
    ) + tup() + bomb() + SETITEM,
    "an item of a masked array": mine(
        "masked", array(), array(b"\0", "|b1"), NONE
    ) + num(0) + bomb() + SETITEM,
    "an item of a matrix": mine("matrix", array(shape=(1, 1))) + tup(num(0)) + bomb() + SETITEM,
    "an item of a record": mine("scalar", text(json.dumps({
        "type": "void", "names": ["a"], "titles": [None], "formats": ["<U2"], "offsets": [0],
        "itemsize": 8, "align": False,
    })), raw(bytes(8))) + num(0) + bomb() + SETITEM,
    "fill value": mine("masked", array(), array(b"\0", "|b1"), bomb()),
    # --- what messages must not show
    "shape": mine("array", raw(bytes(8)), text("<f8"), bomb(), text("C")),
    "shape of shapes": mine("array", raw(bytes(8)), text("<f8"), tup(bomb()), text("C")),
    "dtype that is no text": mine("dtype", bomb()),
    "order": mine("array", raw(bytes(8)), text("<f8"), tup(num(1)), bomb()),
    "index": mine("array", bomb(), text("<f8"), tup(num(1)), text("C")),
    "data": mine("scalar", text("<f8"), bomb()),
    "items": mine("objects", tup(num(1)), tup(bomb())),
    "call": bomb() + tup() + REDUCE,
    "key": EMPTY_DICT + bomb() + num(1) + SETITEM,
    "range of": call(name("builtins", "range"), bomb()),
    "slice of": call(name("builtins", "slice"), bomb()),
    "array as an index": mine("array", array(), text("<f8"), tup(num(1)), text("C")),
    # --- the stack of C
    "deep key": EMPTY_DICT + EMPTY_TUPLE + T1 * 300000 + num(1) + SETITEM,
    "deep key by memo": EMPTY_DICT + EMPTY_TUPLE + MEMO + POP
    + b"".join(get(i) + T1 + MEMO + POP for i in range(60000)) + get(60000) + num(1) + SETITEM,
    "deep key by marks": EMPTY_DICT + MARK * 300000 + TUPLE * 300000 + num(1) + SETITEM,
    "deep key of pairs": EMPTY_DICT + name("shipped", "Pair") + MEMO + POP + NONE + MEMO + POP
    + b"".join(get(0) + NONE + get(i + 1) + T2 + REDUCE + MEMO + POP for i in range(30000))
    + get(30001) + num(1) + SETITEM,
    "deep element": EMPTY_SET + MARK + EMPTY_TUPLE + T1 * 300000 + ADDITEMS,
    "deep frozen set": MARK + EMPTY_TUPLE + T1 * 300000 + b"\x91",
    "deep with a popped mark": EMPTY_DICT + MARK + POP + EMPTY_TUPLE + (MARK + POP + T1) * 100000
    + num(1) + SETITEM,
    "deep arrays": mine("objects", tup(num(1)), EMPTY_LIST + NONE + APPEND) + MEMO + POP + b"".join(
        mine("objects", tup(num(1)), EMPTY_LIST + get(i) + APPEND) + MEMO + POP for i in range(3000)
    ) + get(3000),
    "deep slices": name("builtins", "slice") + MEMO + POP + NONE + MEMO + POP
    + b"".join(get(0) + get(i + 1) + T1 + REDUCE + MEMO + POP for i in range(3000)) + get(3001),
    "deep dtype": mine("dtype", text('{"base":' * 5000)),
    # --- opcodes
    "GLOBAL": b"cos\nsystem\n" + tup(text("x")) + REDUCE,
    "INST": MARK + text("x") + b"ios\nsystem\n",
    "OBJ": MARK + name("shipped", "Plain") + b"o",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"P1\n",
    "BINPERSID": num(1) + b"Q",
    "DUP": num(1) + b"2",
    "PUT": num(1) + b"p0\n",
    "GET": b"g0\n",
    "INT": b"I1\n",
    "LONG": b"L1L\n",
    "FLOAT": b"F1\n",
    "STRING": b"S'x'\n",
    "UNICODE": b"Vx\n",
    "BINSTRING": b"T\x01\x00\x00\x00x",
    "SHORT_BINSTRING": b"U\x01x",
    "DICT": MARK + b"d",
    "LIST": MARK + b"l",
    "NEXT_BUFFER": b"\x97",
    "READONLY_BUFFER": b"\x97\x98",
    "protocol 5": b"\x80\x05" + NONE,
    "protocol 2": b"\x80\x02" + NONE,
    "unknown": b"\xff",
    "a second pickle": NONE + b"." + NONE,
    "nothing": b"",
    "an empty stack": REDUCE,
    "only a mark": MARK,
    "tuple of nothing": TUPLE,
    "memo that is not there": get(5),
    "memo of nothing": MEMO,
    "append to nothing": APPEND,
    "an odd dict": EMPTY_DICT + MARK + NONE + SETITEMS,
    # --- arrays
    "no such segment": mine("array", num(1), text("<f8"), tup(num(1)), text("C")),
    "segment 0": mine("array", num(0), text("|i1"), tup(num(1)), text("C")),
    "segment -1": mine("array", num(-1), text("|i1"), tup(num(1)), text("C")),
    "segment true": mine("array", b"\x88", text("|i1"), tup(num(1)), text("C")),
    "too short": array(bytes(7)),
    "too long": array(bytes(9)),
    "overflowing shape": array(bytes(8), "<f8", (1 << 32, 1 << 32)),
    "overflowing to nothing": array(b"", "<f8", (1 << 61, 8)),
    "huge and empty": array(b"", "<f8", (0, 1 << 61, 1 << 61)),
    "negative": array(bytes(8), "<f8", (-1, -1)),
    "no size": array(b"", "|V0", (1 << 40,)),
    "text of no size": array(b"", "<U0", (1 << 23,)),
    "bytes of no size": array(b"", "|S0", (5,)),
    "empty structure": array(b"", json.dumps({
        "type": "void", "names": [], "titles": [], "formats": [], "offsets": [], "itemsize": 0,
        "align": False,
    }), (1 << 30,)),
    "too many dimensions": array(b"x", "|i1", (1,) * 99),
    "a shape with a truth": mine("array", raw(b"x"), text("|i1"), tup(b"\x88"), text("C")),
    "shape is a list": mine(
        "array", raw(b"x"), text("|i1"), EMPTY_LIST + num(1) + APPEND, text("C")
    ),
    "order of another kind": array(b"x", "|i1", (1,), "K"),
    "neither true nor false": array(b"\x02", "|b1"),
    "matrix of no array": mine("matrix", num(1)),
    "matrix of one dimension": mine("matrix", array()),
    "records of a text": mine("recarray", text("a")),
    "mask of another shape": mine("masked", array(), array(b"\0\0", "|b1", (2,)), NONE),
    "scalar of nothing": mine("scalar", text("|V0"), raw(b"")),
    "scalar too short": mine("scalar", text("<f8"), raw(b"x")),
    "too few arguments": mine("array", raw(b"x")),
    "objects of another number": mine("objects", tup(num(5)), EMPTY_LIST),
}  # fmt: skip

DTYPES = [
    "O", "|O", "|O8", "<O8", "object", "f8,O", "i4,i4", "(2,)f8", "float64", "f8", "=f8", "<f8 ",
    "<f7", "<f8\n", "<m8[0s]", "<M8[s", "<M8[-1s]", "<M8[1000000000s]", "<M8[generic]", "<U-1",
    "|S", "<U1000000000", "|V9999999999", "<i16", "\0", "", " ", "<f8" * 1000, "[('a', 'O')]", "{}",
    "[]", "{", '{"base": "|O8", "shape": [1]}', '{"base": "<f8"}', '{"base": "<f8", "shape": 3}',
    '{"base": "<f8", "shape": [-1]}', '{"base": "<f8", "shape": [1.5]}',
    '{"base": "<f8", "shape": [4611686018427387904]}', '{"base": ["<f8"], "shape": [1]}',
    '{"base": "<f8", "shape": [%s]}' % ("9" * 10000),
]  # fmt: skip


def structure(**changes):
    spec = {
        "type": "void", "names": ["a", "b"], "titles": [None, None], "formats": ["<f8", "<i4"],
        "offsets": [0, 8], "itemsize": 12, "align": False,
    }  # fmt: skip
    return json.dumps(dict(spec, **changes))


STRUCTURES = [
    structure(offsets=[0, 9]), structure(itemsize=11), structure(offsets=[-1, 8]),
    structure(offsets=[0, 1 << 40]), structure(itemsize=1 << 40), structure(itemsize=-1),
    structure(names=["a", "a"]), structure(names=["a"]), structure(formats=["<f8", "|O8"]),
    structure(formats=["<f8", None]), structure(titles=["b", None]), structure(offsets=[0, True]),
    structure(offsets=5), structure(more=1), structure(align=True, offsets=[1, 9]),
    structure(names=["a"] * 2000, formats=["|i1"] * 2000, offsets=[0] * 2000, titles=[None] * 2000),
]  # fmt: skip
