"""The tasks of the job plane: submit, hire, dispatch, status, logs, attach, order.

As in cli: flags in, one call, one report out. `TASKS` are what the namespace gets.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from invoke import Context, task

from .console import command, emit, emit_json, note, show_result, width
from .words import FORM, HOSTS, WordTask, helps

if TYPE_CHECKING:
    from .job_report import DispatchReport
    from .project import Project

PROJECT = {"project": "Its folder is ~/.jam/PROJECT, or $JAM_HOME/PROJECT."}
PLACES = {**HOSTS, "hosts": "Names with commas, each [user@]name[:port][*workers]. {default}"}
JOBS = {
    "exe": "What each job runs: a program and its arguments, with placeholders: $1 $2 or {1} {2} "
    "are the job's parameters, {name} one of --grid, {} all; {.} {/} {//} {/.} parts of a path; "
    "{#} its number. Without any, the parameters are appended.",
    "parameters": "A job for each, with commas; several for one job with # between them: a,b#c.",
    "parameters-from": "A job for each line of this file; - is stdin.",
    "colsep": "Where the lines of --parameters-from are cut into columns; a tab in .tsv files.",
    "repeat": "So many jobs of each kind.",
    "grid": "name=1,2,3 or name=0..9; given several times: all combinations, in order.",
    "shell": "--exe is a line for sh, where $1 is sh's own.",
    "retries": "How often a job that fails is run in all; default: 1; 0: until it succeeds.",
    "timeout": "Seconds after which a job is ended; also 2h, or 300% of what jobs take.",
    "priority": "From -999 to 999, higher first; default: 0.",
    "cwd": "The folder that jobs run in; default: the current one.",
    "logfile": "Where what a job prints goes, with placeholders; default: to `inv logs`.",
    "env": "NAME=VALUE, a variable of the jobs; may be given several times.",
    "resume": "Leave out jobs that were run before or wait already, judged by what they are.",
    "resume-failed": "As --resume, but run again what failed; without --exe, all that failed.",
    "joblog": "A file that gets a line for each job, in GNU parallel's columns.",
}


def _places(default: str) -> dict[str, str]:
    return {**PLACES, **PROJECT, "hosts": PLACES["hosts"].format(default=default)}


# --- jobs in -----------------------------------------------------------------------------------


@task(
    auto_shortflags=False,
    iterable=["grid", "env"],
    help={
        **JOBS,
        **PROJECT,
        "joblog": "With --resume: jobs in this file count as run too.",
        **FORM,
    },
)
@command
def submit(
    c: Context,
    exe: str | None = None,
    parameters: str | None = None,
    parameters_from: str | None = None,
    colsep: str | None = None,
    repeat: str | None = None,
    grid: list[str] | None = None,
    shell: bool = False,
    retries: str | None = None,
    timeout: str | None = None,
    priority: str | None = None,
    cwd: str | None = None,
    logfile: str | None = None,
    env: list[str] | None = None,
    resume: bool = False,
    resume_failed: bool = False,
    joblog: str | None = None,
    project: str = "default",
    json: bool = False,
    quiet: bool = False,
    debug: bool = False,
) -> int:
    """Put jobs into the queue of a project.

    inv submit --exe 'gzip -k $1' --parameters a.txt,b.txt

    inv submit --exe './train.py --lr {lr} --seed {seed}' --grid lr=0.1,0.01 --grid seed=0..9"""
    from . import job_report
    from .errors import UsageError

    flags = dict(locals())
    if exe is None and not resume_failed:
        raise UsageError("--exe is missing: what shall the jobs run?", "see: inv --help submit")
    done = _project(project).submit(**_jobs(flags), joblog=joblog)
    if json:
        emit_json(done.json())
    elif not quiet:
        emit(job_report.submit_summary(done))
    return 0


_WORK = "parameters parameters_from colsep repeat grid shell timeout cwd logfile".split()


def _jobs(flags: dict[str, Any]) -> dict[str, Any]:
    """The arguments of Project.submit for the flags of the same names. Raises UsageError."""
    from . import arguments

    retries = arguments.whole(flags["retries"], "--retries", 0)
    return {
        **{name: None if flags[name] == [] else flags[name] for name in _WORK},
        "command": flags["exe"],
        "repeat": arguments.positive(flags["repeat"], "--repeat"),
        "tries": 1 if retries is None else retries,
        "priority": arguments.whole(flags["priority"], "--priority", -999, 999) or 0,
        "env": arguments.variables(flags["env"] or []),
        "resume": flags["resume"],
        "resume_failed": flags["resume_failed"],
    }


def _project(name: str, hosts_file: str | None = None, accept_new: bool = False) -> Project:
    from .project import Project

    return Project(name, hosts_file=hosts_file, accept_new=accept_new)


# --- workers -----------------------------------------------------------------------------------


@task(
    klass=WordTask,
    positional=["count"],
    auto_shortflags=False,
    help={
        "count": "Workers in all, here or on each host; those that run are counted. Default: as "
        "configured, else CPUs - 1.",
        **_places("Default: all of hosts.yaml or the project's remote.conf, else this machine."),
        "idle": "Seconds after which a worker without job and dispatcher ends; default: 43200.",
        "cwd": "Where relative programs of job files are looked for; default: the current folder.",
        **FORM,
    },
)
@command
def hire(
    c: Context,
    count: str | None = None,
    hosts: str | None = None,
    hosts_file: str | None = None,
    accept_new: bool = False,
    project: str = "default",
    idle: str | None = None,
    cwd: str | None = None,
    json: bool = False,
    quiet: bool = False,
    debug: bool = False,
) -> int:
    """Start workers that run a project's jobs, under screen.

    inv hire 4

    inv hire --hosts lab1*8,me@lab2:2222*8 --project sweep"""
    from . import arguments, job_report

    helps(count, "hire")
    done = _project(project, hosts_file, accept_new).hire(
        arguments.positive(count, "hire"), hosts, idle=arguments.seconds(idle, "--idle"), cwd=cwd
    )
    if json:
        emit_json(done.json())
    elif not quiet:
        emit(job_report.hire_summary(done))
        plain = len(done.hosts) == 1 and not any(row.note or row.left for row in done.hosts)
        if not plain:
            emit(job_report.hire_table(done, width()))
    if all(row.hired is None for row in done.hosts):
        return 3
    return 1 if any(row.hired is None or row.left for row in done.hosts) else 0


# --- the sweep ---------------------------------------------------------------------------------


@task(
    auto_shortflags=False,
    iterable=["grid", "env"],
    optional=["hire"],
    help={
        **JOBS,
        **_places("For --hire, and for the workers to fire; default: where they were hired."),
        "hire": "Hire first; a number of workers may follow.",
        "keep": "Stay when all jobs are done, and wait for more.",
        "fire": "Whether the workers end with the last job.",
        "callback": "A line for sh, run when all jobs are done.",
        "halt": "now,fail=1 | soon,fail=10% | now,success=1 | never: when to stop early.",
        "order": "name, age or priority: which jobs come first.",
        "reduce": "A module with reduce(a, b): folds what the jobs printed (JSON or text), in "
        "their order, and prints it.",
        **FORM,
    },
)
@command
def dispatch(
    c: Context,
    exe: str | None = None,
    parameters: str | None = None,
    parameters_from: str | None = None,
    colsep: str | None = None,
    repeat: str | None = None,
    grid: list[str] | None = None,
    shell: bool = False,
    retries: str | None = None,
    timeout: str | None = None,
    priority: str | None = None,
    cwd: str | None = None,
    logfile: str | None = None,
    env: list[str] | None = None,
    resume: bool = False,
    resume_failed: bool = False,
    hire: str | None = None,
    hosts: str | None = None,
    hosts_file: str | None = None,
    accept_new: bool = False,
    project: str = "default",
    keep: bool = False,
    fire: bool = True,
    callback: str | None = None,
    joblog: str | None = None,
    halt: str = "never",
    order: str | None = None,
    reduce: str | None = None,
    json: bool = False,
    quiet: bool = False,
    debug: bool = False,
) -> int:
    """Watch a project until all its jobs are done, then fire the workers and say how it went.

    inv dispatch

    inv dispatch --exe 'gzip -k $1' --parameters a.txt,b.txt --hire 2"""
    from . import arguments, report
    from .job_progress import JobProgress

    flags = dict(locals())
    target = arguments.reducer(reduce) if reduce else None
    count = None if hire in (None, True) else arguments.positive(hire, "--hire")
    jobs = _jobs(flags)
    made = _project(project, hosts_file, accept_new)
    if order is not None:
        made.order(order)
    if exe is not None or resume_failed:
        submitted = made.submit(**jobs, joblog=joblog)
        if not quiet and submitted.skipped:
            note(f"{report.counted(submitted.skipped, 'job')} had been run or waits already")
    else:
        _check_no_jobs(flags)
    if hire is not None:
        _hire(made, count, hosts, quiet)
    shown = JobProgress()
    try:
        with contextlib.nullcontext() if quiet else shown:
            done = made.dispatch(
                callback,
                keep=keep,
                fire=fire,
                halt=halt,
                joblog=joblog,
                joblog_append=resume or resume_failed,
                reduce=target,
                progress=shown,
                say=note,
            )
    except KeyboardInterrupt:
        _ask_to_fire(made)
        raise
    _show_dispatch(done, target, reduce, json, quiet)
    return done.exit_code


def _check_no_jobs(flags: dict[str, Any]) -> None:
    """Raise UsageError if something is said about jobs that are not there."""
    from .errors import UsageError

    for name in "parameters parameters_from colsep repeat grid shell retries timeout priority cwd \
            logfile env".split():
        if flags[name]:
            flag = "--" + name.replace("_", "-")
            raise UsageError(
                f"{flag} is about new jobs, and --exe is missing",
                "jobs that wait already have their own; see: inv --help dispatch",
            )


def _hire(project: Project, count: int | None, hosts: str | None, quiet: bool) -> None:
    """Hire before a sweep. Raises NoHostsError if there is nobody to work."""
    from . import job_report
    from .errors import NoHostsError

    hired = project.hire(count, hosts)
    if not hired.running:
        why = "; ".join(f"{row.name}: {row.note}" for row in hired.hosts if row.note)
        raise NoHostsError(f"no worker could be hired: {why}", "the jobs wait in the queue")
    if not quiet:
        note(job_report.hire_summary(hired))
        for row in hired.hosts:
            if row.note:
                note(f"{row.name}: {row.note}")


def _ask_to_fire(project: Project) -> None:
    """After Ctrl-C. Without a terminal nobody is asked, and workers go on."""
    from . import job_report

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    sys.stderr.write("\nFire the workers? [y/N] ")
    sys.stderr.flush()
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        answer = ""
        note("")
    if answer.strip().lower() in ("y", "yes"):
        note(job_report.fired_summary(project.fire()))
    else:
        note("They go on; `inv dispatch` shows how far they are, `inv fire` ends them.")


def _show_dispatch(
    done: DispatchReport, target: Any, name: str | None, json: bool, quiet: bool
) -> None:
    from . import job_report, report

    if json:
        value = done.json()
        if target is not None:
            value["result"] = report.jsonable(done.value)
        emit_json(value)
    elif target is not None and done.reduced:
        show_result(done.value, getattr(target, "report", None), str(name))
    if quiet:
        return
    # the result is on stdout: where jobs make none, how it went is the result
    say = note if json or target is not None else emit
    table = job_report.failures_table(done, width())
    if table:
        say(table)
    for line in done.notes:
        note(line)
    say(job_report.dispatch_summary(done))


# --- looking -----------------------------------------------------------------------------------


@task(auto_shortflags=False, help={**PROJECT, **FORM, "quiet": "Print nothing but the counts."})
@command
def status(
    c: Context,
    project: str = "default",
    json: bool = False,
    quiet: bool = False,
    debug: bool = False,
) -> int:
    """Say how far jobs and map calls are, what each worker does and each slice waits for.

    inv status --project sweep

    Of map calls those of this machine are shown."""
    import time

    from . import call_report, job_report, presence

    found = _project(project).status()
    calls = presence.running(project)
    if json:
        emit_json({**found.json(), **({"calls": calls} if calls else {})})
    else:
        text = job_report.status_table(found, width(), time.time())
        emit(text.partition("\n")[0] if quiet else text)
        if calls and not quiet:
            emit("\n" + call_report.calls(calls, time.time(), width()))
    return 0


@task(
    klass=WordTask,
    positional=["name"],
    auto_shortflags=False,
    help={
        "name": "A job, by its number or file name (17, job17, job3.ini), or a worker (w3).",
        **PROJECT,
        "err": "What it wrote to stderr, not to stdout.",
        "follow": "Go on as it grows, until the job ends.",
        "debug": FORM["debug"],
    },
)
@command
def logs(
    c: Context,
    name: str | None = None,
    project: str = "default",
    err: bool = False,
    follow: bool = False,
    debug: bool = False,
) -> int:
    """Print what a job or a worker wrote.

    inv logs job17 --err

    inv logs w3 --follow"""
    from . import job_logs

    helps(name, "logs")
    return job_logs.show(_project(project), name, "err" if err else "out", follow)


@task(
    klass=WordTask,
    positional=["name"],
    auto_shortflags=False,
    help={
        "name": "w3, or lab1-w3 where several hosts have one.",
        "hosts-file": HOSTS["hosts-file"],
        **PROJECT,
        "debug": FORM["debug"],
    },
)
@command
def attach(
    c: Context,
    name: str | None = None,
    hosts_file: str | None = None,
    project: str = "default",
    debug: bool = False,
) -> int:
    """Join the screen of a worker; Ctrl-a d leaves it. Where there is no screen, follow its log.

    inv attach w3"""
    from . import job_logs

    helps(name, "attach")
    return job_logs.attach(_project(project, hosts_file), name, hosts_file)


@task(
    klass=WordTask,
    positional=["how"],
    auto_shortflags=False,
    help={
        "how": "name (of the files), age (oldest first) or priority (highest first, then oldest).",
        **PROJECT,
        "debug": FORM["debug"],
    },
)
@command
def order(c: Context, how: str | None = None, project: str = "default", debug: bool = False) -> int:
    """Say in which order jobs are taken, or change it, also while they are.

    inv order name"""
    helps(how, "order")
    now = _project(project).order(how)
    emit(now or "priority (nothing else was said)")
    return 0


TASKS = (submit, hire, dispatch, status, logs, attach, order)
