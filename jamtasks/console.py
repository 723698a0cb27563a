"""How every task speaks and ends: results on stdout, all else on stderr, errors as exit codes."""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from invoke.exceptions import Exit

from . import interrupts
from .errors import JamError, TaskFailed, UsageError


def command(body: Callable[..., int | None]) -> Callable[..., None]:
    """The body as a task: errors become one or two lines on stderr, and exit codes.

    The body returns its exit code, None for 0."""

    @functools.wraps(body)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            with interrupts.raised():
                _check_streams()
                _print_anything()
                code = body(*args, **kwargs) or 0
        except KeyboardInterrupt:
            note(interrupts.WORD)
            code = interrupts.INTERRUPTED
        except Exit:
            raise
        except Exception as error:
            code = complain(error, debug=bool(kwargs.get("debug")))
        if code:
            raise Exit(code=code)

    return wrapper


def _check_streams() -> None:
    """Python has None for what is closed, and the next file opened would take its number.

    Raises UsageError if results had nowhere to go."""
    there = sys.stdin, sys.stdout, sys.stderr
    for number, stream in enumerate(there):
        if stream is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        raise UsageError("stdout is closed", "send results that nobody wants to /dev/null")


def _print_anything() -> None:
    """Let stdout take any text: a result is not lost for a character that its encoding lacks."""
    out = sys.stdout
    if not isinstance(out, io.TextIOWrapper):
        return
    if out.errors == "strict":
        out.reconfigure(errors="backslashreplace")
    elif out.errors == "surrogateescape":  # without a locale: undecoded bytes as they were
        codecs.register_error("jam.bytes", _bytes_or_escapes)
        out.reconfigure(errors="jam.bytes")


def _bytes_or_escapes(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError:
        return codecs.backslashreplace_errors(error)


def complain(error: Exception, *, debug: bool = False) -> int:
    """Say on stderr what went wrong; returns the exit code."""
    from .report import clean

    if debug:
        import traceback

        traceback.print_exception(error)
        if isinstance(error, TaskFailed) and error.traceback:
            note(f"\non {error.host}:\n{error.traceback.rstrip()}\n")
    if not isinstance(error, JamError):
        note(f"jam: {clean(f'{type(error).__name__}: {error}')}")
        note("  this should not happen; --debug shows where, please report it")
        return 1
    note(f"jam: {clean(error.message)}")
    hint = error.hint
    if not hint and isinstance(error, TaskFailed):
        hint = innermost(error.traceback)
    if hint:
        note(f"  {clean(hint)}")
    return error.exit_code


def innermost(traceback: str) -> str | None:
    """The last place in a traceback and its source line, as a hint.

    >>> innermost('''Traceback (most recent call last):
    ...   File "/x/task.py", line 3, in mapfunc
    ...     return 1 / 0
    ... ZeroDivisionError: division by zero
    ... ''')
    'at /x/task.py:3 in mapfunc: return 1 / 0 (--debug: all of the traceback)'
    """
    import re

    places = re.findall(
        r'^  File "(.+)", line (\d+)(?:, in (.+))?$(?:\n    (.*))?', traceback, re.MULTILINE
    )
    if not places:
        return None
    path, number, function, source = places[-1]
    where = f"at {path}:{number}" + (f" in {function}" if function else "")
    return f"{where}: {source.strip()} (--debug: all of the traceback)"


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def emit(text: str) -> None:
    """A result, to stdout."""
    with stdout_may_close():
        print(text)


def emit_json(value: Any) -> None:
    """A result as JSON, to stdout: in UTF-8 if that is stdout's encoding, else in ASCII."""
    from .report import dumps

    encoding = sys.stdout.encoding or "utf-8"
    emit(dumps(value, ascii=codecs.lookup(encoding).name != "utf-8"))


def show_result(result: Any, report: Any, name: str) -> None:
    """A result for a person: as the report of the module of that name prints it, or plainly."""
    from .arguments import guarded

    if callable(report):
        with stdout_may_close():
            guarded(f"{name}.report", report, result)
    else:
        import pprint

        plain = isinstance(result, (dict, list, tuple, set, frozenset))
        emit(pprint.pformat(result, width=100, compact=True) if plain else str(result))


@contextlib.contextmanager
def stdout_may_close() -> Iterator[None]:
    """A reader that has gone (`| head`) has seen what it wanted: no error, and no more output."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def width() -> int | None:
    if not sys.stdout.isatty():
        return None
    import shutil  # it takes a while to import, and most of what we do needs nothing of it

    return shutil.get_terminal_size().columns
