"""What one job after the other gets as its parameters: from words, files, grids, repeats.

Nothing here opens a file. Rows are made one at a time: there may be millions.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from worker_payload.jobs import commands

from .errors import UsageError

Row = list[str]

_RANGE = re.compile(r"(-?[0-9]+)\.\.(-?[0-9]+)(?:\.\.(-?[0-9]+))?")
_NAME = re.compile(r"[^\W\d]\w*")
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<unit>[dhms]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Parameters:
    """rows: the parameters of each job. names: of the columns, where they have names."""

    rows: Iterable[Row]
    names: tuple[str, ...] = ()


def one() -> Parameters:
    """A single job without parameters."""
    return Parameters([[]])


def from_text(text: str) -> Parameters:
    """As on the command line: jobs separated by commas, the parameters of one job by `#`.

    >>> list(from_text("a,b#c").rows)
    [['a'], ['b', 'c']]
    """
    return Parameters([job.split("#") for job in text.split(",")])


def from_values(values: Iterable[object]) -> Parameters:
    """From a program: each value is a job, a list or tuple one with several parameters."""

    def rows() -> Iterator[Row]:
        for value in values:
            row = value if isinstance(value, (list, tuple)) else [value]
            yield [_text(item) for item in row]

    return Parameters(rows())


def from_lines(lines: Iterable[str], colsep: str | None = None) -> Parameters:
    """Each line is a job; empty lines are none. colsep: a regular expression that cuts a line into
    columns, as in GNU parallel. Raises UsageError."""
    try:
        cut = re.compile(colsep) if colsep else None
    except re.error as error:
        raise UsageError(f"--colsep {colsep!r} is no regular expression: {error}") from None
    bare = (line.rstrip("\r\n") if cut is not None else line.rstrip("\n") for line in lines)
    return Parameters(cut.split(line) if cut is not None else [line] for line in bare if line)


def times(given: Parameters, count: int) -> Parameters:
    """Each job so often, one after the other. Raises UsageError."""
    if count < 1:
        raise UsageError(f"--repeat must be 1 or more, not {count}")
    return Parameters((row for row in given.rows for _ in range(count)), given.names)


def grid(axes: Mapping[str, object] | Sequence[str], repeat: int | None = None) -> Parameters:
    """The product of all axes in the order given; the last one changes fastest.

    axes: `name=1,2,3` or `name=0..9` (whole numbers, both ends included; `0..100..5` in steps,
    `01..10` keeps the zeros), or {name: values}. repeat: each combination so often in a row.
    Raises UsageError."""
    if isinstance(axes, Mapping):
        pairs = [(str(name), _values(name, given)) for name, given in axes.items()]
    else:
        pairs = [_axis(text) for text in axes]
    if not pairs:
        raise UsageError("the grid has no axis", "write --grid name=1,2,3")
    names = tuple(name for name, _ in pairs)
    for name in names:
        if not _NAME.fullmatch(name):
            raise UsageError(f"a grid cannot have the name {name!r}", "use letters, digits and _")
        if names.count(name) > 1:
            raise UsageError(f"the grid has {name} twice")
    product = itertools.product(*(values for _, values in pairs))
    return times(Parameters(map(list, product), names), 1 if repeat is None else repeat)


def _axis(text: str) -> tuple[str, Sequence[str]]:
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise UsageError(f"{text!r} is no axis of a grid", "write name=1,2,3 or name=0..9")
    return name.strip(), list(itertools.chain.from_iterable(map(_span, values.split(","))))


def _values(name: object, given: object) -> Sequence[str]:
    if isinstance(given, str):
        return list(itertools.chain.from_iterable(map(_span, given.split(","))))
    if not isinstance(given, Iterable):
        return [_text(given)]
    values = [_text(value) for value in given]
    if not values:
        raise UsageError(f"the grid's axis {name} has no values")
    return values


def _span(text: str) -> Iterable[str]:
    """
    >>> list(_span("8..10")), list(_span("9..1..-4")), list(_span("08..10")), list(_span("x"))
    (['8', '9', '10'], ['9', '5', '1'], ['08', '09', '10'], ['x'])
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        return [text]
    first, last = int(match[1]), int(match[2])
    step = abs(int(match[3])) if match[3] else 1
    if step == 0:
        raise UsageError(f"{text}: a step of 0 never ends")
    zeros = any(re.match(r"-?0[0-9]", end) for end in match.group(1, 2))
    width = max(len(match[1]), len(match[2])) if zeros else 0
    down = last < first
    numbers = range(first, last + (-1 if down else 1), -step if down else step)
    return (f"{number:0{width}d}" for number in numbers)


def _text(value: object) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


# --- checks ------------------------------------------------------------------------------------


def checked(words: Sequence[str], parameters: Parameters, shell: bool = False) -> Iterator[Row]:
    """The rows, each of which has what the command asks for; else UsageError, at that row.

    A row without any parameter is well: then nothing but `{#}` is replaced in the command."""
    _check_names(words, parameters.names)
    if shell:  # its $1 is sh's own business
        words = [re.sub(r"\$[0-9]", "", word) for word in words]
    needed = commands.highest(words, parameters.names)
    for number, row in enumerate(parameters.rows, 1):
        if row and len(row) < needed:
            raise UsageError(
                f"job {number} has {len(row)} of the {needed} parameters that the command asks for",
                f"its parameters: {' '.join(map(repr, row))[:200]}",
            )
        for value in row:
            if "\0" in value:
                raise UsageError(f"job {number}: a parameter holds a NUL byte, which no word can")
        yield row


def _check_names(words: Sequence[str], names: Sequence[str]) -> None:
    """`{sed}` beside a grid over `seed` is a slip, unlike the braces of awk or JSON."""
    import difflib

    for word in words if names else ():
        for found in re.findall(r"\{([^\W\d]\w*)\}", word):
            close = difflib.get_close_matches(found, names, 1)
            if found not in names and close:
                raise UsageError(
                    f"the grid has no {found!r}, which the command asks for",
                    f"did you mean {{{close[0]}}}?",
                )


# --- numbers -----------------------------------------------------------------------------------


def timeout(given: float | str | None) -> tuple[float, float]:
    """(seconds, percent of the median) of a time limit; (0, 0) if there is none.

    As in GNU parallel: `90`, `1.5h`, `2m30s`, `300%`. Raises UsageError."""
    if given is None:
        return 0.0, 0.0
    text = str(given).strip().lower()
    wrong = UsageError(
        f"a timeout cannot be {given!r}", "write seconds, or 90s, 10m, 1.5h, 2d, or 300%"
    )
    if text.endswith("%"):
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text[:-1]) or not float(text[:-1]):
            raise wrong
        return 0.0, float(text[:-1])
    seconds, at = 0.0, 0
    while at < len(text):
        match = _DURATION.match(text, at)
        if match is None or (not match["unit"] and (at, match.end()) != (0, len(text))):
            raise wrong
        seconds += float(match.group().rstrip("dhms")) * _SECONDS[match["unit"]]
        at = match.end()
    if not seconds:
        raise wrong
    return seconds, 0.0


def pod_size(jobs: int) -> int:
    """How many jobs go into one pod: about a thousand pods, none of more than a thousand jobs."""
    return max(1, min(1000, jobs // 1024))
