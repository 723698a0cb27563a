"""Hosts whose store is small: more data than it holds, and objects that it can never hold."""

from __future__ import annotations

import sys

import numpy
import pytest

from jamtasks import JamError, Master
from jamtasks.errors import EncodingError

KIB = 1 << 10
SOURCE = (
    "def mapfunc(params, rows):\n"
    "    return [float(rows.sum()) + (0 if params is None else float(params[-1]))]\n"
    "\n\ndef reduce(a, b):\n    return a + b\n"
)


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "room_" + tmp_path.name.replace("-", "_")
    (tmp_path / f"{name}.py").write_text(SOURCE)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def small(lab, transport):
    """A host with 200 KiB in memory and 400 KiB on disk for data."""
    env = {"JAM_STORE_RAM": str(200 * KIB), "JAM_STORE_DISK": str(400 * KIB)}
    return lab.spec(lab.host(env=env), workers=2)


def test_a_dataset_larger_than_the_store(small, module):
    matrix = numpy.arange(64 * 8 * KIB, dtype="f8").reshape(64, -1)  # 4 MiB
    expected = [float(row.sum()) for row in matrix]
    with Master([small]) as master:
        for _ in range(2):
            assert master.run(module, None, matrix, slice_size=1) == expected
        assert master.last_run.notes == ()
        assert master.last_run.hosts[0].note.count("its store is full") == 1
        sent = master.last_run.bytes_sent
        assert master.run(module, None, matrix[:2], slice_size=1) == expected[:2]
        assert master.last_run.bytes_sent <= sent


def test_params_that_never_fit_are_refused_before_they_travel(small, module):
    with Master([small]) as master:
        params = numpy.ones(32 * KIB)  # 256 KiB: fits on disk
        assert master.run(module, params, numpy.zeros((4, 2)), slice_size=1) == [1.0] * 4
        with pytest.raises(EncodingError, match=rf"fit on no host: \S+ has room for {400 * KIB:,}"):
            master.run(module, numpy.ones(64 * KIB))  # 512 KiB: in one piece in neither
        assert master.run(module, numpy.ones(8 * KIB), numpy.zeros((1, 2))) == [1.0]


def test_a_slice_that_never_fits(small, module):
    with Master([small]) as master:
        with pytest.raises(JamError, match=r"no room: a blob of .* bytes does not fit"):
            master.run(module, None, numpy.zeros((1, 64 * KIB)))
        assert master.run(module, None, numpy.zeros((1, 2))) == [0.0]
