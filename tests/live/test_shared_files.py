"""Datasets in files that the hosts see too: nothing is sent, and no other file is taken for it."""

from __future__ import annotations

import os
import shutil

import numpy
import pytest
from test_commands import Shell

from jamtasks import FilesDataSet, Master, NpyFileDataSet, TextLinesDataSet, via_jobs
from jamtasks.datasets import as_dataset
from jamtasks.errors import DataSetError, JamError
from jamtasks.project import Project

SUM = "def mapfunc(params, rows):\n    return float(rows.sum())\n"
COUNT = "def mapfunc(params, lines):\n    return [len(lines), sum(map(len, lines))]\n"


@pytest.fixture
def matrix(tmp_path):
    path = tmp_path / "matrix.npy"
    numpy.save(path, numpy.arange(2e6).reshape(2000, 1000))
    return path


def test_rows_of_an_array_are_mapped_where_they_are(host, module, matrix):
    name = module(SUM)
    with Master([host]) as master:
        data = NpyFileDataSet(matrix, shared=True)
        for _ in range(2):
            assert master.run(name, None, data) == numpy.arange(2e6).sum()
            assert master.last_run.bytes_sent < 20_000 < matrix.stat().st_size
        numpy.save(matrix, numpy.ones((2000, 1000)))
        assert master.run(name, None, data) == 2e6, "a changed file is another file"


def test_a_private_copy_may_be_written_to(host, module, matrix):
    name = module("def mapfunc(params, rows):\n    rows += 1\n    return float(rows.sum())\n")
    with Master([host]) as master:
        data = NpyFileDataSet(matrix, shared=True)
        assert master.run(name, None, data, writable=True) == numpy.arange(2e6).sum() + 2e6
        assert master.run(name, None, data, writable=True) == numpy.arange(2e6).sum() + 2e6


def test_lines_and_files(host, module, tmp_path):
    paths = []
    for number in range(3):
        path = tmp_path / f"{number}.txt"
        path.write_text("".join(f"line {n} ä\n" for n in range(1000 * number)) + "end")
        paths.append(path)
    text = "".join(path.read_text() for path in paths)
    with Master([host]) as master:
        counts = master.run(module(COUNT), None, TextLinesDataSet(paths, shared=True))
        assert counts == [3003, len(text)]
        many = master.run(module(COUNT), None, TextLinesDataSet(paths, slice_size=10, shared=True))
        assert many == counts
        files = module(
            "import os\ndef mapfunc(params, files):\n"
            "    return [(os.path.basename(name), len(data)) for name, data in files]\n"
            "def reduce(a, b):\n    return a + b\n"
        )
        sizes = [(path.name, path.stat().st_size) for path in paths]
        assert master.run(files, None, FilesDataSet(paths, shared=True), slice_size=1) == sizes


def test_a_host_that_sees_another_file_takes_no_part(lab, transport, module, matrix, tmp_path):
    """Not by its size alone: by its time and its content too."""
    home = lab.private("elsewhere")
    spec = lab.spec(lab.host("lab1"), workers=2)
    name = module(
        f"""
        import os
        from unittest import mock
        SPOILT = {str(home)!r}
        if "lab1" in os.environ["JAM_TEST"] and os.path.exists(SPOILT + "/matrix.npy"):
            stat = os.fstat
            real = open
            import builtins
            def elsewhere(path, *args, **more):
                if path == {os.path.realpath(matrix)!r}:
                    path = SPOILT + "/matrix.npy"
                return real(path, *args, **more)
            builtins.open = elsewhere
        def mapfunc(params, rows):
            return float(rows.sum())
        """
    )
    shutil.copy2(matrix, home / "matrix.npy")
    with (home / "matrix.npy").open("r+b") as handle:
        handle.seek(1000)
        handle.write(b"x")
    seen = matrix.stat()
    os.utime(home / "matrix.npy", ns=(seen.st_atime_ns, seen.st_mtime_ns))
    here = lab.spec("localhost", "local", workers=1)
    data = NpyFileDataSet(matrix, shared=True)
    with Master([spec, here]) as master:
        master.wait()
        assert master.run(name, None, data) == numpy.arange(2e6).sum()
        note = next(note for note in master.last_run.notes if "takes no part" in note)
        assert "lab1" in note and "its content differs" in note
    with Master([spec]) as master, pytest.raises(JamError, match="its content differs"):
        master.run(name, None, data)


def test_what_cannot_be_shared_is_refused(tmp_path):
    (tmp_path / "m.csv").write_text("1,2\n")
    for data in (str(tmp_path / "m.csv"), [1, 2, 3]):
        with pytest.raises(DataSetError, match="cannot be read by the hosts"):
            as_dataset(data, shared=True)


def test_by_the_command_line_and_through_the_job_plane(
    lab, neighbour, module, matrix, tmp_path, monkeypatch
):
    shell = Shell(tmp_path, lab)
    shell.module("total", SUM)
    code, out, err = shell.jam("map", "total", "--dataset", str(matrix), "--shared")
    assert code == 0 and float(out) == numpy.arange(2e6).sum(), err
    assert shell.jam("map", "total", "--shared")[0] == 2
    assert shell.jam("map", "total", "--dataset", "total.SUM", "--shared")[0] == 2
    monkeypatch.chdir(tmp_path)
    project = Project("p")
    result, report = via_jobs.run(project, module(SUM), None, NpyFileDataSet(matrix, shared=True))
    assert result == float(out) and report.bytes_sent < 20_000
