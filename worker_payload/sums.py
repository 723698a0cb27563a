"""The default reduction: what two results come to when nobody says otherwise."""

from collections.abc import Sequence
from typing import Any, List, Optional


class CannotAdd(Exception):
    """Two results that have no sum. hint: what to do about it."""

    def __init__(self, message, hint=None):
        # type: (str, Optional[str]) -> None
        Exception.__init__(self, message)
        self.hint = hint


def default_reduce(a, b):
    # type: (Any, Any) -> Any
    """The sum of two results.

    Sequences of equal length (lists, tuples) add element by element, as `+` adds their elements.
    Arrays of equal shape, numbers, strings and anything else add with `+`. Raises CannotAdd."""
    if _is_sequence(a) and _is_sequence(b):
        if len(a) != len(b):
            raise CannotAdd(
                "cannot add a %s of %d and a %s of %d items" % (kind(a), len(a), kind(b), len(b)),
                "return equal lengths, or define reduce(a, b) in the module",
            )
        return _like(a, [_add(x, y) for x, y in zip(a, b)])
    return _add(a, b)


def _add(a, b):
    # type: (Any, Any) -> Any
    shapes = getattr(a, "shape", None), getattr(b, "shape", None)
    if all(isinstance(shape, tuple) for shape in shapes) and shapes[0] != shapes[1]:
        # numpy would stretch the smaller one, and the answer would look right
        raise CannotAdd(
            "cannot add arrays of shape %s and %s" % shapes,
            "return equal shapes, or define reduce(a, b) in the module",
        )
    try:
        return a + b
    except Exception as error:  # whatever a user's __add__ raises
        hint = "define reduce(a, b) in the module"
        if a is None and b is None:
            hint = "mapfunc returned None: add a return statement, or " + hint
        raise CannotAdd("cannot add %s and %s: %s" % (kind(a), kind(b), error), hint) from error


def _is_sequence(value):
    # type: (Any) -> bool
    return isinstance(value, Sequence) and not isinstance(
        value, (str, bytes, bytearray, memoryview)
    )


def _like(model, items):
    # type: (Any, List[Any]) -> Any
    """The items as what they were before: a list, a tuple, a named tuple; else a list."""
    if isinstance(model, tuple):
        make = getattr(type(model), "_make", None)
        return make(items) if make else tuple(items)
    return items


def kind(value):
    # type: (Any) -> str
    return type(value).__name__
