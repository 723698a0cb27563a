"""The Invoke tasks: flags in, one call, one report out.

Results go to stdout, everything else to stderr. Exit codes: 0 all well, 1 some of the user's work
failed, 2 wrong use or settings, 3 no host could be reached, 130 interrupted.

`namespace` is the collection; `program` is that of the command `jam`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from invoke import Collection, Context, Program, task
from invoke.exceptions import Exit, ParseError

from . import checkout, jobs_cli
from .console import command, emit, emit_json, note, show_result, stdout_may_close, width
from .errors import UsageError
from .words import FORM, HOSTS, helps

if TYPE_CHECKING:
    from .arguments import Output
    from .report import RunReport

# A command is over soon. Looking for cycles while modules are imported, and once more when the
# interpreter ends, takes a tenth of the time of a short one.
gc.set_threshold(20_000, 10, 10)
atexit.register(gc.freeze)

# --- map ---------------------------------------------------------------------------------------


@task(
    name="map",
    positional=["module"],
    auto_shortflags=False,
    help={
        "module": "Dotted name of a module with mapfunc(params, dataset).",
        **HOSTS,
        "dataset": "module.attr, a .npy, .csv or .txt file, or a quoted glob; default: the "
        "module's `dataset`.",
        "shared": "The hosts see the dataset's files under the same paths, and read them there.",
        "params": "JSON, @file or module.attr; default: the module's `params`.",
        "slice-size": "Items (rows, lines, files) per slice; default: chosen by size and workers.",
        "output": "Write the result to a .npy, .json or .pkl file.",
        "keep-going": "Do not stop at the first slice that fails; list all that did.",
        "writable": "Let mapfunc write to its slice (a private copy).",
        "speculate": "Compute a slow slice on a second host too, near the end.",
        "via": "agents (results stream back), or jobs (files in the shared home, by the workers of "
        "`inv hire`).",
        "combine": "Reduce on each host first, so that fewer answers come back: for a reduce that "
        "is associative.",
        "task-timeout": "Seconds after which a slice is killed and begun anew, at most 3 times.",
        **FORM,
    },
)
@command
def map_(
    c: Context,
    module: str,
    hosts: str | None = None,
    hosts_file: str | None = None,
    project: str = "default",
    accept_new: bool = False,
    dataset: str | None = None,
    shared: bool = False,
    params: str | None = None,
    slice_size: str | None = None,
    output: str | None = None,
    keep_going: bool = False,
    writable: bool = False,
    speculate: bool = True,
    task_timeout: str | None = None,
    combine: bool = False,
    via: str = "agents",
    json: bool = False,
    quiet: bool = False,
    debug: bool = False,
) -> int:
    """Map a function over data on the hosts, and print the reduced result."""
    from . import arguments

    helps(module, "map")
    size = arguments.positive(slice_size, "--slice-size")
    timeout = arguments.seconds(task_timeout, "--task-timeout")
    place = arguments.Output(output) if output else None
    arguments.local_imports()
    arguments.check_module_name(module)
    if via not in ("agents", "jobs"):
        raise UsageError(f"--via {via}: there is no such way", "write agents or jobs")
    if combine and via == "jobs":
        raise UsageError("--combine: each job answers for itself", "leave out --via jobs")
    tell = functools.partial(_tell, module, place, json, quiet)
    if via == "jobs":
        from . import via_jobs
        from .progress import Progress
        from .project import Project

        shown = Progress()
        target = arguments.module(module)
        with contextlib.nullcontext() if quiet else shown:
            result, ran = via_jobs.run(
                Project(project, hosts_file=hosts_file, accept_new=accept_new),
                target,
                arguments.params(params, target),
                arguments.dataset(dataset, target, shared),
                hosts=hosts,
                slice_size=size,
                keep_going=keep_going,
                writable=writable,
                task_timeout=timeout,
                progress=shown,
                say=None if quiet else note,
            )
        return tell(target, result, ran)
    from .logins import Logins

    with Logins.begin(hosts, project, hosts_file=hosts_file, accept_new=accept_new) as logins:
        logins.send_off()  # they go on in the background while we import the rest
        from .master import Master
        from .progress import Progress

        shown = Progress()
        mute = (lambda text: None) if quiet else None
        with Master(hosts, project, progress=shown, on_notice=mute, logins=logins) as master:
            target = arguments.module(module)
            data = arguments.dataset(dataset, target, shared)
            values = arguments.params(params, target)
            with contextlib.nullcontext() if quiet else shown:
                result = master.run(
                    target,
                    values,
                    data,
                    slice_size=size,
                    keep_going=keep_going,
                    writable=writable,
                    speculate=None if speculate else False,
                    task_timeout=timeout,
                    combine="host" if combine else None,
                )
            # shown now, not after the connections have been closed
            return tell(target, result, master.last_run)


def _tell(
    module: str,
    place: Output | None,
    json: bool,
    quiet: bool,
    target: ModuleType,
    result: Any,
    ran: RunReport,
) -> int:
    """Print the result and what is to be said of the run; the exit code."""
    from . import report

    if json:
        emit_json(ran.json(result))
    else:
        custom = getattr(target, "report", None)
        if place is None or callable(custom):
            show_result(result, custom, module)
    if place is not None:
        written = place.write(result)
        if not quiet:
            note(f"result: {place.path}, {report.size(written)}")
    if not quiet:
        for line in [report.summary(ran), *report.run_notes(ran)]:
            note(line)
    for line in report.failures(ran.failed):
        note(line)
    return 1 if ran.failed else 0


# --- hosts -------------------------------------------------------------------------------------


@task(auto_shortflags=False, help={**HOSTS, **FORM})
@command
def bootstrap(
    c: Context,
    hosts: str | None = None,
    hosts_file: str | None = None,
    project: str = "default",
    accept_new: bool = False,
    json: bool = False,
    quiet: bool = False,
    debug: bool = False,
) -> int:
    """Connect to the hosts, put there what is missing, and say what each host is.

    Not needed before `map`, which does the same by itself."""
    from . import fleet, report, settings

    loaded = settings.load(hosts_file, accept_new=accept_new)
    settings.check_project(project)
    done = fleet.bootstrap(loaded, loaded.select(hosts), project)
    if json:
        emit_json(done.json())
    else:
        emit(report.bootstrap_table(done, width()))
    down = [row for row in done.hosts if row.state != "up"]
    if down and not quiet:
        note(f"{len(down)} of {report.counted(len(done.hosts), 'host')} could not be used")
    if len(down) == len(done.hosts):
        return 3
    return 1 if down else 0


@task(
    auto_shortflags=False,
    help={
        **HOSTS,
        "hosts": "Names with commas; default: where workers were hired, all of hosts.yaml, else "
        "this machine, and where map calls from here have been.",
        "jobs": "Only the workers that run jobs.",
        "map": "Only the agents of map calls.",
        "drain": "Let each worker end the job it runs.",
        **FORM,
    },
)
@command
def fire(
    c: Context,
    hosts: str | None = None,
    hosts_file: str | None = None,
    project: str = "default",
    accept_new: bool = False,
    jobs: bool = False,
    map: bool = False,
    drain: bool = False,
    json: bool = False,
    quiet: bool = False,
    debug: bool = False,
) -> int:
    """End what the project runs on the hosts, and say that nothing is left.

    Jobs that ran wait again.

    inv fire --project sweep --drain"""
    from . import report
    from .project import Project

    both = jobs == map
    done = Project(project, hosts_file=hosts_file, accept_new=accept_new).fire(
        hosts, drain=drain, workers=jobs or both, agents=map or both
    )
    if json:
        emit_json(done.json())
    else:
        emit(report.fire_table(done, width()))
    if not quiet:
        note(report.fire_summary(done))
    if all(row.left is None for row in done.hosts):
        return 3
    return 0 if all(row.clean for row in done.hosts) else 1


# --- the collection and the program ------------------------------------------------------------


class JamProgram(Program):
    """Invoke's program, but wrong use exits with 2, as all of jam does, and a reader of its lists
    and help texts may go."""

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:
        try:
            with stdout_may_close():
                super().run(argv, exit)
        finally:  # what Invoke has printed before it leaves may be in the buffer still
            with contextlib.suppress(OSError), stdout_may_close():
                pass

    def parse_core(self, argv: list[str] | None) -> None:
        with _wrong_use_is_2():
            super().parse_core(argv)

    def parse_tasks(self) -> None:
        with _wrong_use_is_2():
            super().parse_tasks()

    def parse_cleanup(self) -> None:
        with _wrong_use_is_2():
            super().parse_cleanup()


@contextlib.contextmanager
def _wrong_use_is_2() -> Iterator[None]:
    try:
        yield
    except ParseError as error:
        raise Exit(message=f"jam: {error}", code=2) from None


def _namespace() -> Collection:
    collection = Collection(
        "jam", map_, bootstrap, *jobs_cli.TASKS, fire, checkout.test, checkout.bench
    )
    collection.add_collection(checkout.dev)
    return collection


namespace = _namespace()


def program() -> JamProgram:
    from . import __version__

    return JamProgram(name="jam", binary="jam", namespace=namespace, version=__version__)
