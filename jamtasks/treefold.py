"""The fold of answers that were combined on their hosts: along a tree over the slices.

Which slices a host answers for together depends on who did what; with what a result is joined does
not: always with its sibling in the tree (`worker_payload.tree`), here as on the hosts. So the bits
of the result depend on how the data was cut, and on nothing else. They may differ from those of the
ordinary fold, ((r0 + r1) + r2) + ..., because addition of floats is not associative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from worker_payload import codec, sums
from worker_payload.tree import Tree
from worker_payload.wire import Buffer

from .errors import JamError, ReduceError
from .reduction import Decode, OrderedFold

_NOTHING = object()  # of slices that were skipped


class TreeFold(OrderedFold):
    """Folds the results of blocks of slices, as they come; `span` of `add` is how many slices a
    block has.

    Blocks ahead of the first that is missing wait as they came, as in the ordinary fold; behind it
    there are never more values than the tree is high."""

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self._tree = Tree(self._count, self._join)

    def result(self) -> Any:
        """What all slices came to. Raises ReduceError if one is missing, or all were skipped."""
        if self.next < self._count:
            raise ReduceError(f"slice {self.next} of {self._count} has no result")
        ((_, value),) = self._tree.blocks.values()
        if value is _NOTHING:
            raise ReduceError("there are no results to reduce")
        return value

    def close(self) -> None:
        self._tree.blocks.clear()
        super().close()

    def _leave_out(self) -> None:
        self._add(1, _NOTHING)

    def _take(self, segments: Sequence[Buffer], decode: Decode, span: int) -> None:
        self._add(span, decode(segments))

    def _add(self, count: int, value: Any) -> None:
        first = self.next
        self.next += count
        self._tree.add(first, count, value)

    def _join(self, left: Any, right: Any, first: int, count: int) -> Any:
        if left is _NOTHING or right is _NOTHING:
            return right if left is _NOTHING else left
        try:
            value = self._reduce(left, right)
            return codec.settled(value, ours=count < self._count)
        except Exception as error:  # whatever the user's reduce raises
            hint = None
            if isinstance(error, JamError):
                message, hint = error.message, error.hint
            elif isinstance(error, codec.EncodeError):
                message = f"what reduce returned cannot travel: {error}"
            else:
                message = f"reduce raised {sums.kind(error)}: {error}"
            where = f"slices {first} to {first + count - 1} do not fit together"
            raise ReduceError(f"{where}: {message}", hint) from error
