"""What each field of a message may hold: nothing that comes from elsewhere is taken unseen."""

import re
from typing import Any, Dict, Tuple

from worker_payload import wire


def _int(value):
    return type(value) is int


def _count(value):
    return type(value) is int and 0 <= value < 1 << 63


def _str(value):
    return type(value) is str


_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


def _digest(value):
    return type(value) is str and _DIGEST.match(value) is not None


def _digest_or_empty(value):
    return value == "" or _digest(value)


def _dict(value):
    return type(value) is dict


def _optional_int(value):
    return value is None or type(value) is int


def _list_of(check):
    def checked(value):
        return type(value) is list and all(map(check, value))

    return checked


# Lists with an entry per task are checked column by column, which C does; entry by entry it took
# longer than all the rest of a round.

_INT, _LIST, _NUMBER = {int}, {list}, {int, float}


def _counts(values):
    return set(map(type, values)) <= _INT and (
        not values or (min(values) >= 0 and max(values) < 1 << 63)
    )


def _list_of_counts(value):
    return type(value) is list and _counts(value)


def _columns(value, width):
    """The columns of a list of lists of this width; None if it is something else."""
    if type(value) is not list or not set(map(type, value)) <= _LIST:
        return None
    if not value:
        return [()] * width
    if set(map(len, value)) != {width}:
        return None
    return list(zip(*value))


def _tasks(value):
    columns = _columns(value, 3)
    return (
        columns is not None
        and _counts(columns[0])
        and all(one is None or _digest(one) or _count(one) for one in columns[1])
        and _counts([worker for worker in columns[2] if worker is not None])
    )


def _started(value):
    columns = _columns(value, 2)
    return columns is not None and all(map(_counts, columns))


def _results(value):
    columns = _columns(value, 4)
    if columns is None or not all(map(_counts, columns[:3])):
        return False
    seconds = columns[3]
    # a NaN is neither smaller nor larger than anything, but it spoils a sum
    return set(map(type, seconds)) <= _NUMBER and (
        not seconds or (min(seconds) >= 0 and sum(seconds) < float("inf"))
    )


def _kept(value):
    columns = _columns(value, 3)
    return columns is not None and _results([[*row[:2], 0, row[2]] for row in value])


def _blocks(value):
    columns = _columns(value, 3)
    return columns is not None and all(map(_counts, columns))


CHECKS = {
    wire.Hello: (_int, _str, _str, _str, _count, _dict),
    wire.Require: (_count, _list_of(_str)),
    wire.Begin: (_count, _digest, _str, _digest_or_empty, _dict),
    wire.Task: (_count, _tasks),
    wire.Blob: (_digest, _count, _count),
    wire.Gone: (_count, _list_of(_digest)),
    wire.Revoke: (_count, _list_of_counts),
    wire.Cancel: (_count, _list_of_counts),
    wire.Yield: (_count,),
    wire.End: (_count,),
    wire.Again: (_count, _count),
    wire.Welcome: (_int, _str, _str, _str, _str, _count, _count, _count, _count, _count, _str,
                   _list_of(_str)),
    wire.Lacks: (_count, _list_of(_str)),
    wire.Missing: (_count, _list_of(_digest)),
    wire.Credit: (_count,),
    wire.Started: (_count, _started),
    wire.Result: (_count, _results),
    wire.Combined: (_count, _kept, _blocks),
    wire.Broken: (_count, _count, _count, _str, _str, _str),
    wire.Failure: (_count, _count, _count, _str, _str, _str, _count),
    wire.Lost: (_count, _count, _count, _optional_int, _optional_int, _str, _str),
    wire.Revoked: (_count, _list_of_counts),
    wire.Output: (_count, _int, _count, _count),
    wire.Note: (_str,),
    wire.Refused: (_count, _str),
    wire.Ending: (_str,),
    wire.Beat: (),
}  # type: Dict[Any, Tuple[Any, ...]]  # fmt: skip
