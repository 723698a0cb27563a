"""Hosts of every kind: each Python from 3.6 on and PyPy, with and without numpy, over SSH."""

from __future__ import annotations

import sys

import numpy
import pytest
from pythons import numpy_for, pythons

from jamtasks import Master, TaskFailed
from jamtasks.errors import ModuleError


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Names of two modules: one needs numpy at the host, one does not."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = "plain_" + tmp_path.name, "numbers_" + tmp_path.name
    names = tuple(name.replace("-", "_").replace(".", "_") for name in names)
    (tmp_path / f"{names[0]}.py").write_text(
        "import sys\n\n\n"
        "def mapfunc(params, items):\n"
        "    if params == 'fail':\n"
        "        raise ValueError('here')  # as asked\n"
        "    print('from', sys.version_info[1])\n"
        "    return [sum(items), {'minor': {sys.version_info[1]}}['minor']]\n\n\n"
        "def reduce(a, b):\n"
        "    return [a[0] + b[0], a[1] | b[1]]\n"
    )
    (tmp_path / f"{names[1]}.py").write_text(
        "import numpy\n\n\n"
        "def mapfunc(params, rows):\n"
        "    return {'sum': rows.dot(params), 'one': numpy.float32(1.5), 'when': rows[:0]}\n\n\n"
        "def reduce(a, b):\n"
        "    return {'sum': numpy.concatenate([a['sum'], b['sum']]), 'one': a['one'] + b['one']}\n"
    )
    yield names
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("with_numpy", [True, False], ids=["numpy", "no-numpy"])
@pytest.mark.parametrize("python", pythons(), ids=str)
def test_a_host_with_this_python(lab, ssh, modules, tmp_path, python, with_numpy):
    plain, numbers = modules
    folder = numpy_for(python) if with_numpy else None
    if folder is None:  # the interpreter may have one of its own
        folder = str(tmp_path / "none")
        (tmp_path / "none" / "numpy").mkdir(parents=True)
        (tmp_path / "none/numpy/__init__.py").write_text("raise ImportError('not here')\n")
        with_numpy = False
    lab.host("lab1", env={"PYTHONPATH": folder})
    lines = []
    spec = lab.spec("lab1", python=python.executable, workers=2)
    with Master([spec], on_output=lambda *line: lines.append(line)) as master:
        total, minors = master.run(plain, None, list(range(100)), slice_size=10)
        assert (total, minors) == (4950, {python.minor[1]})
        assert ("lab1", 0, 1, f"from {python.minor[1]}") in lines
        for _ in range(2):
            combined = master.run(plain, None, list(range(100)), slice_size=10, combine="host")
            assert combined == [4950, {python.minor[1]}]
        with pytest.raises(TaskFailed, match="ValueError: here") as caught:
            master.run(plain, "fail", [1])
        assert "# as asked" in caught.value.traceback
        (host,) = master.hosts()
        assert host.python == python.version and bool(host.numpy) == with_numpy
        matrix = numpy.arange(60_000.0).reshape(600, 100)
        params = numpy.linspace(0.0, 1.0, 100)
        if with_numpy:
            found = master.run(numbers, params, matrix, slice_size=100)
            assert numpy.allclose(found["sum"], matrix.dot(params)) and found["one"] == 9.0
            params = numpy.ones((100, 50))  # its answers are so large that they pass through files
            for _ in range(2):
                found = master.run(numbers, params, matrix, slice_size=100, combine="host")
                assert numpy.allclose(found["sum"], matrix.dot(params))
        else:
            with pytest.raises(ModuleError, match="numpy is missing on lab1"):
                master.run(numbers, params, matrix, slice_size=100)


def test_hosts_of_different_pythons_in_one_run(lab, ssh, modules):
    plain, numbers = modules
    oldest, newest = pythons()[0], [p for p in pythons() if p.implementation == "CPython"][-1]
    specs = []
    for name, key, python in (("lab1", "host1", oldest), ("lab2", "host2", newest)):
        lab.host(name, key=key, env={"PYTHONPATH": numpy_for(python) or ""})
        specs.append(lab.spec(name, python=python.executable, workers=2))
    matrix = numpy.arange(60_000.0).reshape(600, 100)
    with Master(specs, on_output=lambda *line: None) as master:
        _, minors = master.run(plain, None, list(range(100)), slice_size=5)
        assert minors == {oldest.minor[1], newest.minor[1]}
        found = master.run(numbers, numpy.ones(100), matrix, slice_size=50)
        assert (found["sum"] == matrix.sum(axis=1)).all()
