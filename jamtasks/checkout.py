"""Tasks for people who work on jam itself; they need its checkout."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from invoke import Collection, Context, task

from .console import command, note
from .errors import UsageError

# What the live tests run, and the Debian package it is in.
PROGRAMS = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "screen": "screen",
    "pypy3": "pypy3",
    "zsh": "zsh",
    "tcsh": "tcsh",
    "fish": "fish",
}
SOME_FAILED = 1  # pytest's exit status
PYTHONS = ("3.6", "3.7", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13")
MODULES = ("pytest", "pytest_timeout", "xdist", "hypothesis", "scipy", "sklearn", "ruff", "mypy")


@task(
    auto_shortflags=False,
    help={
        "select": "Only tests whose names match this expression (as pytest -k).",
        "debug": "Show the traceback of an error.",
    },
)
@command
def test(c: Context, select: str | None = None, debug: bool = False) -> int:
    """Install what the tests need, then run all of them."""
    return _pytest(find_root(), ["tests/pure", "tests/live"], select)


@task(auto_shortflags=False, help={"select": "As pytest -k."})
@command
def pure(c: Context, select: str | None = None) -> int:
    """The tests that start no process."""
    return _pytest(find_root(), ["tests/pure"], select)


@task(auto_shortflags=False, help={"select": "As pytest -k."})
@command
def live(c: Context, select: str | None = None) -> int:
    """The tests with real processes and real sshd."""
    return _pytest(find_root(), ["tests/live"], select)


@task(auto_shortflags=False, help={"fix": "Change what can be changed by itself."})
@command
def lint(c: Context, fix: bool = False) -> int:
    """Format and style, by ruff."""
    root = find_root("ruff and mypy")
    check = ["ruff", "check"] + (["--fix"] if fix else [])
    form = ["ruff", "format"] + ([] if fix else ["--check"])
    return _tool(root, check) | _tool(root, form)


@task(auto_shortflags=False)
@command
def types(c: Context) -> int:
    """Types, by mypy."""
    return _tool(find_root("ruff and mypy"), ["mypy"])


PEERS = ("execnet", "mitogen", "distributed", "asyncssh", "ipyparallel", "joblib")

BENCHMARKS = {
    "rounds": "a round of tiny calls",
    "tasks": "20,000 tiny tasks",
    "push": "256 MB to a host, the same again, and the memory it takes",
    "autoencoder": "qjam's experiment",
    "startup": "from nothing to the first result",
    "answers": "256 MB back, and 10,000 answers of 1 MB",
    "params": "10 MB of params to 16 workers",
    "crowd": "30 hosts: connecting, and a round",
    "idle": "what 16 idle workers cost",
    "distance": "50 ms away",
    "simulator": "the scheduler against 2,000 simulated hosts",
    "jobs": "jobs per second, a million jobs, idle workers",
    "shared_home": "640 simulated workers on one directory",
}


@task(
    positional=[],  # Invoke knows no positional word that may be left out
    auto_shortflags=False,
    help={
        "name": "One of "
        + ", ".join(f"{name} ({what})" for name, what in BENCHMARKS.items())
        + "; default: all.",
        "debug": "Show the traceback of an error.",
    },
)
@command
def bench(c: Context, name: str | None = None, debug: bool = False) -> int:
    """Measure against other tools, on an sshd of its own; print tables for RESULTS.md."""
    if name is not None and name not in BENCHMARKS:
        raise UsageError(f"there is no benchmark {name!r}", f"known are {', '.join(BENCHMARKS)}")
    root = find_root("benchmarks")
    install_missing()
    absent = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if absent:
        note(
            f"not here, so their rows will say so: {', '.join(absent)} "
            f"({sys.executable} -m pip install '.[bench]')"
        )
    names = [name] if name else list(BENCHMARKS)
    return max(_tool(root, [f"benchmarks.{one}"]) for one in names)


dev = Collection("dev", pure, live, lint, types)


def find_root(what: str = "tests") -> Path:
    """The checkout this code is in, or the one around the current folder.

    Raises UsageError: what needs one."""
    here = Path.cwd()
    for folder in (Path(__file__).parent.parent, here, *here.parents):
        if (folder / "tests" / "pure").is_dir() and (folder / "jamtasks").is_dir():
            return folder
    raise UsageError(
        f"{what} need a checkout of jam, and this is none", "go to one: they are not installed"
    )


def install_missing() -> None:
    """Install the programs that tests run, where that needs no question: Debian, as root.

    Elsewhere raises UsageError with the one line that does."""
    modules = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if modules:
        raise UsageError(
            f"the tests need {', '.join(modules)}", f"{sys.executable} -m pip install '.[test]'"
        )
    packages = [package for program, package in PROGRAMS.items() if not find_program(program)]
    if not packages:
        return
    names = " ".join(packages)
    apt = which("apt-get")
    if apt and os.geteuid() == 0:
        note(f"installing what the tests need: {names}")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (["update", "-qq"], ["install", "-y", "-qq", *packages]):
            done = subprocess.run(
                [apt, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            if done.returncode:
                tail = done.stdout.strip().splitlines()[-1:]
                raise UsageError(f"apt-get {' '.join(arguments)} failed: {' '.join(tail)}")
        return
    if apt:
        line = f"sudo apt-get install -y {names}"
    elif which("dnf"):
        line = f"sudo dnf install -y {names.replace('openssh-client', 'openssh-clients')}"
    else:
        line = f"install by this system's means: {names}"
    raise UsageError(f"the tests need {names}", line)


def which(name: str, path: str | None = None) -> str | None:
    import shutil  # every `inv` imports this module, and it takes a while

    return shutil.which(name, path=path)


def find_program(name: str) -> str | None:
    """sshd is often outside of a user's PATH."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin:/usr/sbin:/sbin"])
    return which(name, path)


def _pytest(root: Path, folders: Sequence[str], select: str | None) -> int:
    """Run pytest on these folders of the checkout; its closing line is the last of the output."""
    install_missing()
    existing = [folder for folder in folders if (root / folder).is_dir()]
    expression = ["-k", select] if select else []
    absent = absent_pythons()
    if absent and "tests/live" in folders:
        note(f"not here, so not tested as Pythons of hosts: {', '.join(absent)}")
    # side by side, and one more than there are processors: most tests wait most of the time
    beside = ["-n", str((os.cpu_count() or 1) + 1), "--dist", "worksteal"]
    code = _tool(root, ["pytest", *beside, *expression, *existing])
    if code != SOME_FAILED:
        return code
    # others' load upsets tests of what happens within a time: alone, each has to pass
    note("\nThose that failed, once more, one at a time:\n")
    again = ["--last-failed", "--last-failed-no-failures", "none"]
    return _tool(root, ["pytest", *again, *expression, *existing])


def absent_pythons() -> list[str]:
    """Those of the Pythons that hosts may have which the live tests will not find here."""
    found = [path.parent.parent.name for path in Path.home().glob(".pyenv/versions/3.*/bin/python")]
    absent = [
        f"CPython {version}"
        for version in PYTHONS
        if not which(f"python{version}")
        and not any(name.startswith(f"{version}.") for name in found)
    ]
    return absent if find_program("pypy3") else [*absent, "PyPy"]


def _tool(root: Path, words: Sequence[str]) -> int:
    """python -m words, in the checkout. 1 if it found something or could not run."""
    if importlib.util.find_spec(words[0].partition(".")[0]) is None:
        raise UsageError(f"{words[0]} is missing", f"{sys.executable} -m pip install '.[test]'")
    return 1 if subprocess.run([sys.executable, "-m", *words], cwd=root).returncode else 0
