"""One encoding for all: what any Python with any numpy encodes, any other decodes the same."""

import os
import subprocess
from pathlib import Path

import pytest
from pythons import numpy_for, pythons

ROOT = Path(__file__).resolve().parents[2]

# Runs in each Python: writes what it makes, or reads what another made and says what differs.
PROGRAM = """\
import os, pickle, struct, sys
sys.path.insert(0, sys.argv[1])
from worker_payload import codec

def plain():
    return [None, True, -5, 1 << 70, 2.5, 1j, "\\u00e9\\u20ac", b"\\0\\xff", bytearray(b"x"),
            (1, [2], {"a": {3}}), frozenset([4]), range(3, 9, 2), slice(1, None),
            ValueError("v", 1), list(range(3000)), [("k%d" % i, i) for i in range(300)]]

def arrays():
    import numpy as np
    shuffled = np.arange(24.0).reshape(2, 3, 4)
    holder = np.empty(3, object)
    holder[:] = [1, "two", shuffled]
    return [
        shuffled, np.asarray(shuffled, order="F"), shuffled[:, ::2], shuffled.T, np.float64(0.1),
        np.zeros((0, 3), "f4"), np.array(5, "i1"), np.arange(5000), np.array([True, False]),
        np.arange(3, dtype=">i8"), np.array([1.5, float("nan")], "<f2"), np.array([1 + 2j], "c8"),
        np.array(["a", "\\u00e9\\u20ac"]), np.array([b"a", b"bc"]), np.str_("\\u00e9"),
        np.bytes_(b"x"), np.array(["2020-01-02", "NaT"], "M8[D]"), np.timedelta64(3, "m"),
        np.datetime64("2020", "ns"),
        np.array([(1, 2.0, "x")], [("a", "i4"), ("b", ">f8"), ("c", "U3")]),
        np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")])[0],
        np.rec.array([(1, "x")], dtype=[("n", "i4"), ("s", "U2")]),
        np.ma.array([1, 2, 3], mask=[0, 1, 0]), np.ones((2, 2)).view(np.matrix), holder,
        np.dtype([("p", "f4", (2,))]), {"deep": [np.int8(1), (np.zeros(400),)]}, np.bool_(True),
        np.void(b"abc"),
        np.zeros(2, {"names": ["a"], "formats": ["i2"], "offsets": [4], "itemsize": 8}),
    ]

def form(obj):
    "What an object is, as text that is the same in all versions."
    name = type(obj).__name__.rstrip("_")
    name = {"bool": "bool", "str": "str", "bytes": "bytes"}.get(name, name)
    if hasattr(obj, "dtype") and hasattr(obj, "tobytes"):
        mask = form(obj.mask) if hasattr(obj, "mask") else ""
        if obj.dtype.kind == "O":
            return [name, obj.shape, [form(item) for item in obj.ravel().tolist()]]
        if mask:
            return [name, mask, str(obj.filled().tolist()), str(obj.fill_value)]
        data = obj if obj.shape == () else obj.ravel()
        return [name, codec.dtype_to_string(obj.dtype), obj.shape, data.tobytes()[: obj.nbytes]]
    if hasattr(obj, "itemsize"):
        return ["dtype", codec.dtype_to_string(obj)]
    if isinstance(obj, dict):
        return [[form(key), form(value)] for key, value in sorted(obj.items())]
    if isinstance(obj, (list, tuple)):
        return [name] + [form(item) for item in obj]
    if isinstance(obj, (set, frozenset)):
        return [name] + sorted(obj)
    if isinstance(obj, Exception):
        return [name, obj.args]
    return [name, repr(obj)]

def expected(path):
    return plain() if path.endswith(".plain") else arrays()

command, paths = sys.argv[2], sys.argv[3:]
for path in paths:
    if command == "write":
        parts = codec.blob_parts(codec.encode(expected(path)))
        with open(path, "wb") as handle:
            for part in parts:
                handle.write(part)
        continue
    with open(path, "rb") as handle:
        segments = codec.blob_segments(handle.read())
    readers = [lambda: codec.decode(segments)]
    if sys.version_info >= (3, 10):  # only masters read what they do not trust
        readers.append(lambda: codec.decode_untrusted([bytearray(part) for part in segments], {}))
    for read in readers:
        got = read()
        for number, (mine, theirs) in enumerate(zip(expected(path), got)):
            assert form(mine) == form(theirs), (path, number, form(mine), form(theirs))
        assert len(got) == len(expected(path))
print("fine", command, len(paths))
"""


def run(python, with_numpy, *arguments):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environ["PYTHONWARNINGS"] = "ignore"
    environ["PYTHONDONTWRITEBYTECODE"] = "1"
    if with_numpy:
        environ["PYTHONPATH"] = numpy_for(python)
    done = subprocess.run(
        [python.executable, "-c", PROGRAM, str(ROOT), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0 and "fine" in done.stdout, f"{python}: {done.stdout[-3000:]}"


def kinds(python):
    """What this Python can take part in: objects, and arrays if numpy was ever made for it."""
    return ["plain", "arrays"] if numpy_for(python) else ["plain"]


@pytest.fixture(scope="session")
def encoded(tmp_path_factory):
    """The files that all Pythons have written, by (Python, kind)."""
    folder = tmp_path_factory.mktemp("encoded")
    files = {}
    for python in pythons():
        names = {kind: folder / f"{python}.{kind}" for kind in kinds(python)}
        run(python, "arrays" in names, "write", *names.values())
        files.update({(python, kind): path for kind, path in names.items()})
    return files


def test_there_are_several_pythons_with_numpy_1_and_2():
    versions = {
        path.name.split("-")[1].split(".")[0]
        for python in pythons()
        if numpy_for(python)
        for path in Path(numpy_for(python)).glob("numpy-*.dist-info")
    }
    assert versions == {"1", "2"}, (
        "install Pythons old and new (pyenv), or what is tested is little"
    )
    assert len(pythons()) > 2


@pytest.mark.parametrize("python", pythons(), ids=str)
def test_every_python_reads_what_every_other_wrote(python, encoded):
    for kind in kinds(python):
        paths = [path for (_, other), path in encoded.items() if other == kind]
        run(python, kind == "arrays", "read", *paths)


@pytest.mark.parametrize("python", pythons(), ids=str)
def test_plain_objects_need_no_numpy(python, encoded):
    run(python, False, "read", *(path for (_, kind), path in encoded.items() if kind == "plain"))


def test_the_same_arrays_have_the_same_bytes_wherever_they_were_encoded():
    """So a slice that one master sent is found by another, with another numpy."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np\nfrom worker_payload import codec\n"
        "a = np.arange(1000.0).reshape(10, 100)\n"
        "print([codec.blob_digest(codec.blob_parts(codec.encode(x))) for x in (a, a.T, [1, a[3]])])"
    )
    digests = set()
    for python in pythons():
        folder = numpy_for(python)
        if folder:
            command = [python.executable, "-W", "ignore", "-c", code, str(ROOT)]
            environ = {**os.environ, "PYTHONPATH": folder}
            digests.add(subprocess.check_output(command, env=environ, text=True))
    assert len(digests) == 1
