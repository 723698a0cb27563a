"""jam: the machines you can SSH into, as one computer.

>>> from jamtasks import Master
>>> with Master() as master:                                        # doctest: +SKIP
...     print(master.run("examples.sum_matrix"))
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # type checkers know the name; `typing` would take longer than all of this
if TYPE_CHECKING:
    from typing import Any

    from .datasets import (
        BaseDataSet,
        DataSet,
        FilesDataSet,
        ListDataSet,
        NpyFileDataSet,
        NumpyMatrixDataSet,
        NumpyMatrixFileDataSet,
        TextLinesDataSet,
    )
    from .errors import JamError, NoHostsError, ReduceError, TaskFailed, TaskLost, UsageError
    from .job_report import DispatchReport, JobRecord, StatusReport
    from .master import Master
    from .project import Project
    from .reduction import default_reduce
    from .report import HostReport, RunReport
    from .settings import HostSpec, Settings

# Loaded when first used: `inv --list` and a program that only imports us need none of it.
_HOME = {
    "BaseDataSet": "datasets",
    "DataSet": "datasets",
    "FilesDataSet": "datasets",
    "ListDataSet": "datasets",
    "NpyFileDataSet": "datasets",
    "NumpyMatrixDataSet": "datasets",
    "NumpyMatrixFileDataSet": "datasets",
    "TextLinesDataSet": "datasets",
    "JamError": "errors",
    "NoHostsError": "errors",
    "ReduceError": "errors",
    "TaskFailed": "errors",
    "TaskLost": "errors",
    "UsageError": "errors",
    "DispatchReport": "job_report",
    "JobRecord": "job_report",
    "StatusReport": "job_report",
    "Master": "master",
    "Project": "project",
    "default_reduce": "reduction",
    "namespace": "cli",  # where Invoke looks: `ns.add_collection(jamtasks)`
    "HostReport": "report",
    "RunReport": "report",
    "HostSpec": "settings",
    "Settings": "settings",
}
__all__ = [
    "BaseDataSet",
    "DataSet",
    "DispatchReport",
    "FilesDataSet",
    "HostReport",
    "HostSpec",
    "JamError",
    "JobRecord",
    "ListDataSet",
    "Master",
    "NoHostsError",
    "NpyFileDataSet",
    "NumpyMatrixDataSet",
    "NumpyMatrixFileDataSet",
    "Project",
    "ReduceError",
    "RunReport",
    "Settings",
    "StatusReport",
    "TaskFailed",
    "TaskLost",
    "TextLinesDataSet",
    "UsageError",
    "__version__",
    "default_reduce",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
