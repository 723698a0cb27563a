"""A job project: jobs in a shared folder, workers that pull them, a sweep that loses nothing.

The face for programs; the tasks of the command line are built on it::

    project = Project("default")
    project.submit(["gzip", "-k", "{}"], parameters=["a.txt", "b.txt"])
    project.hire(4)
    report = project.dispatch()
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from worker_payload import layout
from worker_payload.jobs import files as job_files
from worker_payload.jobs import names, steps
from worker_payload.jobs.files import Files, Trouble

from . import fleet, folding, remembered, submission, sweep
from . import parameters as parsing
from . import resume as resuming
from . import settings as configured
from .dispatch import Crew, Dispatcher, Here, Outcome
from .errors import JamError, SettingsError, UsageError
from .job_report import (
    DispatchReport,
    HireReport,
    JobRecord,
    Progress,
    StatusReport,
    Submitted,
)
from .joblog import JobLog
from .ledger import Ledger
from .report import FireReport, FireRow, duration

if TYPE_CHECKING:
    from .settings import HostSpec, Settings

    Hosts = str | HostSpec | Iterable[str | HostSpec] | None  # as everywhere in jam

ORDERS = ("name", "age", "priority")
REMOTE_CONF = "remote.conf"


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
        self.name = configured.check_project(name)
        self.path = os.path.join(os.path.abspath(home), name) if home else names.home(name)
        self._home = os.path.abspath(home) if home else os.environ.get("JAM_HOME") or None
        self._given = settings
        self._hosts_file = hosts_file
        self._accept_new = accept_new
        self._specs: dict[str, HostSpec] = {}  # that were given as such, by label

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
        files = self._files()
        if command is None:
            if not resume_failed:
                raise UsageError("no command was given", "say what the jobs shall run")
            return self._submit_failed(files)
        plan = submission.plan_of(command, shell, cwd, timeout, tries, env, logfile)
        submission.check_priority(priority)
        found = submission.parameters_of(parameters, parameters_from, colsep, grid, repeat)
        plan = plan._replace(names=found.names)
        rows = parsing.checked([*plan.words, plan.logfile], found, shell)
        skipped = 0
        with submission.Submission() as made:
            if resume or resume_failed:
                skipped = resuming.add_new(
                    made, Ledger(files), plan, rows, priority,
                    failed_again=resume_failed, log=joblog,
                )  # fmt: skip
            else:
                made.add(plan, rows, priority)
            jobs = made.write(files)
            return Submitted(self.name, jobs, made.name if jobs else "", skipped)

    def _submit_failed(self, files: Files) -> Submitted:
        ledger = Ledger(files)
        with submission.Submission() as made:
            resuming.add_failed(made, ledger)
            jobs = made.write(files)
            dropped = resuming.drop_failed(self.path, ledger)
            return Submitted(self.name, jobs + dropped, made.name if jobs else "")

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
        if count is not None and count < 1:
            raise UsageError(f"hire at least 1 worker, not {count}", "to end workers: fire")
        identity = self._prepare()
        loaded = self.settings()
        specs = loaded.select(hosts)
        self._specs.update((spec.label, spec) for spec in specs)
        place = os.path.abspath(cwd or os.curdir)
        report = self._hire(loaded, specs, count, place, identity, idle)
        hired = self._hired()
        wanted = {spec.label: count or spec.workers for spec in specs}
        for row in report.hosts:
            if row.running:
                hired[row.name] = {
                    "count": wanted[row.name] or row.running, "cwd": place, "idle": idle,
                }  # fmt: skip
        self._write(names.HIRED, json.dumps(hired, indent=1))
        return report

    def _hire(
        self,
        loaded: Settings,
        specs: Sequence[HostSpec],
        count: int | None,
        cwd: str,
        identity: str,
        idle: float | None,
    ) -> HireReport:
        request = {"cwd": cwd, "idle": idle, "home": self._home, "id": identity}
        return fleet.hire(loaded, specs, self.name, count, request)

    def _hired(self) -> dict[str, dict[str, Any]]:
        """What hired.json says: {label: {"count", "cwd", "idle"}}."""
        with contextlib.suppress(OSError, ValueError):
            with open(os.path.join(self.path, names.HIRED), encoding="utf-8") as handle:
                found = json.load(handle)
            return {
                str(label): entry
                for label, entry in found.items()
                if isinstance(entry, dict) and isinstance(entry.get("count"), int)
            }
        return {}

    def _spec(self, loaded: Settings, label: str) -> HostSpec:
        """The host that was hired under this label. Raises SettingsError."""
        given = self._specs.get(label)
        return given if given is not None else loaded.select(label)[0]

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

        hosts: None: all where workers were hired, and with agents all that are configured, and
        those to which map calls or `bootstrap` on this machine brought one. drain: let each end
        its current job. agents: the map plane's agents of this project too."""
        loaded = self.settings()
        hired = self._hired()
        used: dict[str, float] = {}  # hosts that are merely remembered, and when they were used
        strangers: list[FireRow] = []
        if hosts is not None:
            specs = list(loaded.select(hosts))
        else:
            found: dict[str, HostSpec] = {}
            if agents or not hired:
                found.update((spec.label, spec) for spec in loaded.select(None))
            for label in hired:
                try:
                    found.setdefault(label, self._spec(loaded, label))
                except SettingsError as error:
                    strangers.append(FireRow(label, None, None, error.message, None))
            for spec, when in remembered.hosts(self.name) if agents else ():
                if spec.label not in found:
                    used[spec.label] = when
                    password = loaded.fallback.password
                    found[spec.label] = dataclasses.replace(spec, password=password)
            specs = list(found.values())
        specs = [self._specs.get(spec.label, spec) for spec in specs]
        if workers:  # first, so that no dispatcher hires them again
            gone = {spec.label for spec in specs}
            left = {label: entry for label, entry in hired.items() if label not in gone}
            if left != hired:
                self._write(names.HIRED, json.dumps(left, indent=1))
        report = fleet.fire(loaded, specs, self.name, agents=agents, workers=workers, drain=drain)
        rows = [
            fleet.missed(self.name, row, used[row.name])
            if row.left is None and row.name in used
            else row
            for row in report.hosts
        ]
        return dataclasses.replace(report, hosts=(*rows, *strangers))

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
        """Wait until the queue is empty and every job has ended; see that none is lost meanwhile.

        Takes jobs from workers that died, hires anew where workers are missing, and at the end
        fires them all (fire=False: not). keep: does not end; the callback is still called once,
        when all jobs have ended. callback: a function of the report, or a shell command. halt: as
        GNU parallel's --halt. joblog: a file that gets a line per job, in GNU parallel's columns,
        as pods of jobs are committed. reduce: a module with `reduce(a, b)`, or such a function:
        folds the standard output (JSON or text) of the jobs that ended well, in job order; see
        DispatchReport.value. progress: called a few times a second at most. say: called with
        single lines that people should see (no workers; a host is gone; who else dispatches).

        While another dispatcher runs this project, this one only watches, and takes over if that
        one dies. KeyboardInterrupt passes through at any time: nothing is lost, and a dispatch
        that is started again goes on. Raises UsageError for a halt or joblog that cannot be."""
        rule = sweep.Halt.parse(halt)
        fold = folding.reducer(reduce)
        files = self._files()
        log = JobLog(os.fspath(joblog), joblog_append) if joblog is not None else None
        crew = Crew(self.wanted, self._hire_again, lambda soon: self.fire(drain=soon))
        called = False

        def all_ended(outcome: Outcome) -> None:
            nonlocal called
            called = True
            if callback is not None:
                _call(callback, self._report(outcome, None))

        with contextlib.ExitStack() as stack:
            stack.callback(files.close)
            if log is not None:
                stack.callback(log.close)
            dispatcher = Dispatcher(
                files, self.name, crew, halt=rule, lease=_lease(), keep=keep, log=log,
                progress=progress, say=say, ended=all_ended,
            )  # fmt: skip
            try:
                outcome = dispatcher.run()
            except Trouble as error:
                raise self._unusable(error) from None
            if outcome.watched:
                return self._report(outcome, None)
            dispatcher.finish()
            fired = outcome.fired
            if fire and fired is None:
                fired = self.fire()
            ledger = dispatcher.ledger
            value, reduced = None, 0
            if fold is not None:
                done = ledger.history((names.DONE,))
                value, reduced = folding.fold(fold, done, folding.Outputs(self.path))
            report = self._report(outcome, fired, value, reduced)
            files.run(steps.retire(ledger.done_names()))
        if callback is not None and not called:
            note = _call(callback, report)
            if note:
                report = dataclasses.replace(report, notes=(*report.notes, note))
        return report

    def _report(
        self, outcome: Outcome, fired: FireReport | None, value: Any = None, reduced: int = 0
    ) -> DispatchReport:
        counts = outcome.counts
        return DispatchReport(
            project=self.name,
            done=counts.done,
            failed=counts.failed,
            retried=counts.retried,
            seconds=outcome.seconds,
            failures=tuple(outcome.failures.kept),
            groups=outcome.failures.groups(),
            halted=outcome.halted,
            left=counts.queued + counts.claimed,
            fired=fired,
            value=value,
            reduced=reduced,
            notes=outcome.notes,
        )

    def wanted(self) -> dict[str, int]:
        """How many workers were hired, by the label of their host."""
        return {label: entry["count"] for label, entry in self._hired().items()}

    def _hire_again(self, label: str, count: int) -> HireReport:
        """For the dispatcher: as it was hired before."""
        entry = self._hired().get(label, {})
        loaded = self.settings()
        identity = self._prepare()
        cwd = str(entry.get("cwd") or self.path)
        spec = self._spec(loaded, label)
        return self._hire(loaded, [spec], count, cwd, identity, entry.get("idle"))

    # --- looking --------------------------------------------------------------------------------

    def status(self) -> StatusReport:
        """Counts by listing, and the workers by their heartbeats."""
        if not os.path.isdir(self.path):
            return StatusReport(self.name, 0, 0, 0, 0, 0, notes=("there is no such project yet",))
        ledger = Ledger(Files(self.path))
        hearts = ledger.heartbeats()
        look = ledger.look()
        complaints = {
            name: why for name, why in sweep.complaints_in(hearts).items() if name in look.dropped
        }
        rows = [sweep.worker_row(owner, data) for owner, data in sorted(hearts.items())]
        notes = [f"{name!r} in the queue is no job: {why}" for name, why in complaints.items()]
        counts = look.counts
        here = Here(self.path)
        told, last = here.other(), here.read()
        if last.get("ended") and not (counts.done or counts.failed):
            ago = duration(max(0.0, time.time() - last["ended"]))
            notes.append(
                f"The last dispatch ended {ago} ago: {last.get('done')} done, "
                f"{last.get('failed')} failed"
            )
        return StatusReport(
            project=self.name,
            queued=counts.queued - len(complaints),
            claimed=counts.claimed,
            running=counts.running,
            done=counts.done,
            failed=counts.failed,
            workers=tuple(row for row in rows if row is not None),
            dispatcher=f"{told.get('host')}, process {told.get('pid')}" if told else "",
            order=self.order(),
            notes=tuple(notes),
        )

    def results(self, submission: str | None = None) -> Iterator[JobRecord]:
        """All jobs that ended and are committed, in job order (time of submission, then number),
        from all sweeps, or of one submission. A stream: it holds one pod at a time."""
        if os.path.isdir(self.path):
            yield from Ledger(Files(self.path)).history(submission=submission)

    def find(self, job: str) -> JobRecord | None:
        """The last job of that label ("job17", "17", or the name of a dropped file) that ended."""
        return Ledger(Files(self.path)).find(job) if os.path.isdir(self.path) else None

    def running(self) -> list[JobRecord]:
        """The jobs that run now; what they wrote so far is their `output`. Their exit is -1."""
        if not os.path.isdir(self.path):
            return []
        ledger = Ledger(Files(self.path))
        ledger.look()
        return ledger.running()

    def output(self, record: JobRecord, stream: str = "out") -> bytes:
        """What the job wrote to stdout ("out") or stderr ("err"); b"" if its file is gone."""
        with folding.Outputs(self.path) as outputs:
            return outputs.read(record, stream)

    def logs(self, worker: str) -> list[str]:
        """The paths of the logs of a worker ("w3", or "lab1-w3"), of all hosts that have one."""
        host, _, name = worker.rpartition("-")
        pattern = f"{glob.escape(host) if host else '*'}-{glob.escape(name)}.log"
        folder = os.path.join(glob.escape(self.path), names.LOGS)
        return sorted(glob.glob(os.path.join(folder, pattern)))

    def order(self, how: str | None = None) -> str:
        """How workers choose: name | age | priority ("": not set). how: changes it at once."""
        if how is None:
            with (
                contextlib.suppress(OSError),
                open(
                    os.path.join(self.path, names.ORDER), encoding="ascii", errors="replace"
                ) as handle,
            ):
                found = handle.read().strip()
                return found if found in ORDERS else ""
            return ""
        if how not in ORDERS:
            raise UsageError(f"the order cannot be {how!r}", f"write one of {', '.join(ORDERS)}")
        self._files()
        self._write(names.ORDER, how + "\n")
        return how

    # --- helpers --------------------------------------------------------------------------------

    def _prepare(self) -> str:
        """Make the project's folder, if need be; what identifies it. Raises JamError."""
        try:
            return job_files.prepare(self.path)
        except OSError as error:
            raise UsageError(
                f"the project's folder cannot be made: {error.filename}: {error.strerror}",
                "set JAM_HOME to another place",
            ) from None
        except Trouble as error:
            raise self._unusable(error) from None

    def _files(self) -> Files:
        self._prepare()
        return Files(self.path)

    def _unusable(self, error: Trouble) -> JamError:
        return JamError(f"the project's folder {self.path} cannot be used: {error}")

    def settings(self) -> Settings:
        """The hosts, as they are configured for this project."""
        if self._given is not None:
            return self._given
        loaded = configured.load(self._hosts_file, accept_new=self._accept_new)
        own = os.path.join(self.path, REMOTE_CONF)
        if loaded.path is None and os.path.isfile(own):
            return configured.load(own, accept_new=self._accept_new)
        return loaded

    def _write(self, name: str, text: str) -> None:
        """A small file of the project, whole or as it was."""
        path = os.path.join(self.path, name)
        aside = layout.aside(os.path.join(self.path, "." + name))
        try:
            with open(aside, "w", encoding="utf-8") as handle:
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(aside, path)
        except OSError as error:
            raise JamError(f"{path} cannot be written: {error.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(aside)


def _call(callback: str | Callable[[DispatchReport], object], report: DispatchReport) -> str:
    """Run the callback; what is to be said of it, if anything."""
    if callable(callback):
        callback(report)
        return ""
    import subprocess

    told = {"PROJECT": report.project, "DONE": report.done, "FAILED": report.failed}
    environ = {**os.environ, **{f"JAM_{key}": str(value) for key, value in told.items()}}
    code = subprocess.run(callback, shell=True, env=environ, check=False).returncode
    return f"the callback exited with {code}" if code else ""


def _lease() -> float:
    """Seconds; JAM_LEASE is for tests, and has to be the same for workers and dispatcher."""
    try:
        return float(os.environ.get("JAM_LEASE") or sweep.LEASE)
    except ValueError:
        return sweep.LEASE
