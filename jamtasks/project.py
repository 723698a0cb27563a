"""A job project: jobs in a shared folder, workers that pull them, a sweep that loses nothing.

The face for programs; the tasks of the command line are built on it::

    project = Project("default")
    project.submit(["gzip", "-k", "{}"], parameters=["a.txt", "b.txt"])
    project.hire(4)
    report = project.dispatch()
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .job_report import (
    DispatchReport,
    HireReport,
    JobRecord,
    Progress,
    StatusReport,
    Submitted,
)
from .report import FireReport

if TYPE_CHECKING:
    from .settings import HostSpec, Settings

    Hosts = str | HostSpec | Iterable[str | HostSpec] | None  # as everywhere in jam


class Project:
    """The project of that name in $JAM_HOME or ~/.jam, made when first used.

    home: instead of these two. settings: the hosts; else they are read as for map calls (and
    hosts_file, accept_new mean what they mean there), or from the project's remote.conf where there
    is no hosts.yaml. Raises SettingsError for a name that no project can have."""

    def __init__(
        self,
        name: str = "default",
        *,
        home: str | os.PathLike[str] | None = None,
        settings: Settings | None = None,
        hosts_file: str | os.PathLike[str] | None = None,
        accept_new: bool = False,
    ):
        self.name = name
        self.path: str = ""  # the project's folder
        raise NotImplementedError

    # --- jobs in --------------------------------------------------------------------------------

    def submit(
        self,
        command: str | Sequence[str] | None = None,
        *,
        parameters: str | Iterable[object] | None = None,
        parameters_from: str | os.PathLike[str] | None = None,
        colsep: str | None = None,
        grid: Mapping[str, object] | Sequence[str] | None = None,
        repeat: int | None = None,
        shell: bool = False,
        cwd: str | os.PathLike[str] | None = None,
        timeout: float | str | None = None,
        tries: int = 1,
        priority: int = 0,
        env: Mapping[str, str] | None = None,
        logfile: str | None = None,
        resume: bool = False,
        resume_failed: bool = False,
        joblog: str | os.PathLike[str] | None = None,
    ) -> Submitted:
        """Put jobs into the queue: all of them or, if this is killed half-way, none.

        command: words, or a text that is split as a shell splits it; with shell, one text for
        `sh -c`. One job is made for each of parameters (a text as on the command line,
        `a,b#c`; or a list of texts, or of rows of texts), of the lines of parameters_from ("-" is
        stdin; colsep cuts them into columns), of the product of grid ({"lr": [0.1, 0.01]} or
        ["lr=0.1,0.01"]), or `repeat` times; only one of these may be given, and grid with repeat.
        None of them: one job. cwd: default: the current folder. timeout: seconds, "90", "1.5h" or
        "300%" of the median of jobs that ended well. tries: how often a failing job is run in
        all; 0: for ever. resume: leave out jobs whose content was run before or waits; with
        resume_failed those that failed are run again, and without a command it is all failed jobs
        of the project. joblog: jobs that stand in this file count as run too.
        Raises UsageError."""
        raise NotImplementedError

    # --- workers --------------------------------------------------------------------------------

    def hire(
        self,
        count: int | None = None,
        hosts: Hosts = None,
        *,
        idle: float | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> HireReport:
        """See to it that count workers run, on each of the hosts; those that run are counted.

        hosts: as everywhere; None: all of hosts.yaml or remote.conf, else this machine. count:
        None: what is configured for a host, else its CPUs - 1, at least 1. idle: seconds after
        which a worker without job and dispatcher ends itself (12 h). cwd: where relative
        executables are looked for; default: the current folder.
        Never raises because of one host: its row has None and says why."""
        raise NotImplementedError

    def fire(
        self,
        hosts: Hosts = None,
        *,
        drain: bool = False,
        workers: bool = True,
        agents: bool = False,
    ) -> FireReport:
        """End the project's workers; claims go back to the queue. Returns what is proven of each
        host.

        hosts: None: all where workers were hired, and with agents all that are configured. drain:
        let each end its current job. agents: the map plane's agents of this project too."""
        raise NotImplementedError

    # --- the sweep ------------------------------------------------------------------------------

    def dispatch(
        self,
        callback: str | Callable[[DispatchReport], object] | None = None,
        *,
        keep: bool = False,
        fire: bool = True,
        halt: str = "never",
        joblog: str | os.PathLike[str] | None = None,
        joblog_append: bool = False,
        reduce: Any = None,
        progress: Callable[[Progress], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> DispatchReport:
        """Wait until the queue is empty and every job has ended; see that nothing is lost on the way.

        Takes jobs from workers that died, hires anew where workers are missing, and at the end
        fires them all (fire=False: not). keep: does not end; the callback is still called once, when
        all jobs have ended. callback: a function of the report, or a shell command. halt: as GNU
        parallel's --halt. joblog: a file that gets a line per job, in GNU parallel's columns, as
        pods of jobs are committed. reduce: a module with `reduce(a, b)`, or such a function: folds
        the standard output (JSON or text) of the jobs that ended well, in job order; see
        DispatchReport.value. progress: called a few times a second at most. say: called with
        single lines that people should see (no workers; a host is gone; who else dispatches).

        While another dispatcher runs this project, this one only watches, and takes over if that
        one dies. KeyboardInterrupt passes through at any time: nothing is lost, and a dispatch
        that is started again goes on. Raises UsageError for a halt or joblog that cannot be."""
        raise NotImplementedError

    # --- looking --------------------------------------------------------------------------------

    def status(self) -> StatusReport:
        """Counts by listing, and the workers by their heartbeats."""
        raise NotImplementedError

    def results(self, submission: str | None = None) -> Iterator[JobRecord]:
        """All jobs that ended and are committed, in job order (time of submission, then number),
        from all sweeps, or of one submission. A stream: it holds one pod at a time."""
        raise NotImplementedError

    def find(self, job: str) -> JobRecord | None:
        """The last job of that label ("job17", "17", or the name of a dropped file) that ended."""
        raise NotImplementedError

    def output(self, record: JobRecord, stream: str = "out") -> bytes:
        """What the job wrote to stdout ("out") or stderr ("err"); b"" if its file is gone."""
        raise NotImplementedError

    def logs(self, worker: str) -> list[str]:
        """The paths of the logs of a worker ("w3", or "lab1-w3"), of all hosts that have one."""
        raise NotImplementedError

    def order(self, how: str | None = None) -> str:
        """How workers choose: name | age | priority ("": not set). how: changes it at once."""
        raise NotImplementedError
