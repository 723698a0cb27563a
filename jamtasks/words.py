"""What the tasks' command lines have in common: help texts, and words that may be left out.

Invoke knows no positional word that may be left out, as in `inv hire 4` and `inv hire`::

    @task(klass=WordTask, positional=["count"], ...)
    def hire(c, count=None): ...
"""

from __future__ import annotations

import os
import sys
from typing import Any

from invoke import Argument, Task

from .errors import UsageError

HOSTS = {
    "hosts": "Names with commas, each [user@]name[:port][*workers]; default: all of hosts.yaml, "
    "else this machine.",
    "hosts-file": "Instead of hosts.yaml (also: JAM_HOSTS_FILE).",
    "project": "Projects know nothing of each other.",
    "accept-new": "Trust and record keys of hosts never seen before. Changed keys are refused.",
}
FORM = {
    "json": "Print one JSON value.",
    "quiet": "Print the result only.",
    "debug": "Show the traceback of an error.",
}

_AT_THE_END = "complete_context"  # where Invoke's parser refuses what is missing


class Word(Argument):
    """Invoke asks `value is None` for each further word, to learn whether this argument may take
    it, and once more at the end, to refuse a command line without it. Only the latter is told
    otherwise; nothing in what is asked tells the two apart but who asks."""

    @property
    def value(self) -> Any:
        if self._value is None and self.default is None and _asked_at_the_end():
            return ""
        return super().value

    @value.setter
    def value(self, word: str) -> None:
        self.set_value(word, cast=True)


class WordTask(Task[Any]):
    """A task whose positional arguments may be left out; they are None then."""

    def get_arguments(self, *args: Any, **kwargs: Any) -> list[Argument]:
        arguments: list[Argument] = super().get_arguments(*args, **kwargs)
        for argument in arguments:
            if argument.positional:
                argument.__class__ = Word
        return arguments


def helps(word: str | None, task: str) -> None:
    """Show the help of a task if that is what was asked for, and do not return: Invoke takes any
    first word for the task's own. Raises UsageError for any other flag, and if this program cannot
    be begun anew."""
    if word in ("-h", "--help"):
        program = _program(word)
        before = sys.argv[: sys.argv.index(word)]
        known_as = [name for name in before if name == task or name.endswith(f".{task}")]
        os.execv(sys.executable, [*program, "--help", (known_as or [task])[-1]])
    if word is not None and word.startswith("-"):
        raise UsageError(f"no such flag: {word}", f"the flags: inv --help {task}")


def _program(word: str) -> list[str]:
    """How this program was called, without its words, of which `word` is one: perhaps by
    `python -c`."""
    words = sys.argv[1:]
    begun = len(sys.orig_argv) - len(words)
    if begun < 2 or sys.orig_argv[begun:] != words or word not in words:  # made up by a program
        raise UsageError("the help of a task is not shown from here", "write: jam --help TASK")
    return [sys.executable, *sys.orig_argv[1:begun]]


def _asked_at_the_end() -> bool:
    frame = sys._getframe(2)
    for _ in range(3):  # a comprehension is a frame of its own until Python 3.12
        if frame.f_code.co_name == _AT_THE_END:
            return True
        if frame.f_back is None:
            break
        frame = frame.f_back
    return False
