"""A user's program under mypy."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from typing import Any

import numpy as np

import jamtasks
from jamtasks import BaseDataSet, DataSet, FilesDataSet, HostSpec, JamError, ListDataSet, Master
from jamtasks import NpyFileDataSet, NumpyMatrixDataSet, NumpyMatrixFileDataSet, RunReport
from jamtasks import TaskFailed, TextLinesDataSet, default_reduce


class Squares(BaseDataSet):
    def chunks(self) -> int:
        return 3

    def slice(self, index: int) -> object:
        return index * index


def mapfunc(params: float, items: list[float]) -> float:
    return params * sum(items)


def main(anything: Any) -> float:
    matrix = np.zeros((10, 10))
    data: BaseDataSet = DataSet(matrix)
    lists: list[BaseDataSet] = [
        DataSet([1, 2, 3], slice_size=2),
        DataSet("a.txt"),
        DataSet(anything),
        Squares(),
        ListDataSet(range(3)),
        NumpyMatrixDataSet(matrix, "column", slice_size=3),
        NumpyMatrixDataSet([[1, 2], [3, 4]]),
        NumpyMatrixFileDataSet("x.csv", delimiter=","),
        NpyFileDataSet("x.npy"),
        TextLinesDataSet("a.txt"),
        FilesDataSet(["a", "b"]),
    ]
    data.changed()
    print(isinstance(data, DataSet), len(lists))
    total: float = 0
    show = lambda done, total, failed: None
    with Master([HostSpec("lab1", workers=3), "lab2*4"], "p", progress=show) as master:
        try:
            total = master.run(__name__, 2.0, data, slice_size=1)
            total = master.run(sys.modules[__name__], dataset=matrix, keep_going=True)
            total = master.run("x", dataset=[1, 2])
        except TaskFailed as error:
            print(error.host, error.slice, error.type, error.traceback)
        except JamError as error:
            print(error)
        report: RunReport = master.last_run
        print(report.slices, [host.name for host in report.hosts])
    print(default_reduce(1, 2), jamtasks.__version__)
    return total
"""


def test_a_program_that_uses_all_of_it(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"),
         "--follow-imports", "silent", "--cache-dir", str(ROOT / ".mypy_cache"), str(path)],
        env={**os.environ, "MYPYPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
