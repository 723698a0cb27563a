"""A worker's part in combining answers: it joins those of the tasks in its hand, and others' too.

What is joined here is what would be joined elsewhere: values as they are when they have travelled
(`codec.settled`), so that nobody can tell from the result where it was done.
"""

import marshal
import os
import time
from typing import Any, Dict, List, Optional, Tuple

from worker_payload import codec, shelf
from worker_payload.kept import LARGE
from worker_payload.tree import Tree

LATER = marshal.dumps(None)  # in place of an answer that comes with others
_WAIT_SECONDS = 0.002  # of our work, after which answers do not wait for others any longer


class Partials(object):
    """Of one call. Usage: `prepare`, then `mapped` or `joined`; if that gives no answer, `wait`.

    reduce: joins two values. parts: what the task is to join, or None for a slice. at: the block
    that could not be joined, once reduce raised. waiting: there are answers to give out."""

    def __init__(self, total):
        # type: (int) -> None
        self.total = total
        self.reduce = None  # type: Any
        self.parts = None  # type: Optional[List[Any]]
        self.at = None  # type: Optional[Tuple[int, int]]
        self.waiting = []  # type: List[Tuple[int, float]]  # tickets, seconds
        self._tree = Tree(total, self._join)
        self._ticket = self._slice = 0
        self._more = False
        self._since = 0.0
        self._files = {}  # type: Dict[int, int]  # for answers, by ticket
        self.patience = _WAIT_SECONDS
        self._pid = os.getpid()
        self._goal = 0  # so many slices has what is to be joined

    def prepare(self, command, files):
        # type: (Any, List[int]) -> None
        """What the next task is: the command PART. files: descriptors, the first one last."""
        _, _, self._ticket, self._slice, self.parts, writes, self._more = command
        if self.parts is not None:
            self.parts = [
                (first, count, shelf.take(files.pop()) if segments is None else segments)
                for first, count, segments in self.parts
            ]
        if not self.waiting:
            self.close()
        if writes:
            self._files[self._ticket] = files.pop()

    def mapped(self, value):
        # type: (Any) -> List[Any]
        """The answer of a slice; none yet, if others are to come."""
        try:
            if not self._more and not self.waiting:
                return self._pack([(self._slice, 1, codec.encode(value))])
            value = codec.settled(value, True)
        except codec.EncodeError as error:
            raise codec.EncodeError("the result of mapfunc cannot travel: %s" % (error,)) from None
        self._tree.add(self._slice, 1, value)
        return []

    def joined(self):
        # type: () -> List[Any]
        """The answer of a join: one block, or as many as `parts` make up."""
        assert self.parts is not None
        parts, self.parts = self.parts, None
        self._goal = sum(count for _, count, _ in parts)
        tree = Tree(self.total, self._join)
        for first, count, segments in parts:
            if type(segments[0]) is bytes:
                segments = [bytearray(segment) for segment in segments]
            tree.add(first, count, codec.decode(segments, writable=True))
        blocks = []
        for first, (count, value) in sorted(tree.blocks.items()):
            try:
                blocks.append((first, count, codec.encode(value)))
            except codec.EncodeError as error:
                raise self._cannot_travel(first, count, error) from None
        return self._pack(blocks)

    def _join(self, left, right, first, count):
        # type: (Any, Any, int, int) -> Any
        self.at = (first, count)
        value = self.reduce(left, right)
        if count != self._goal:  # else it is encoded anyway
            try:
                value = codec.settled(value, True)
            except codec.EncodeError as error:
                raise self._cannot_travel(first, count, error) from None
        self.at = None
        return value

    def _cannot_travel(self, first, count, error):
        # type: (int, int, Any) -> Exception
        self.at = (first, count)
        return codec.EncodeError("what reduce returned cannot travel: %s" % (error,))

    def wait(self, ticket, seconds):
        # type: (int, float) -> bool
        """A slice was mapped, and its answer waits. True if it has waited long enough."""
        now = time.process_time()
        if not self.waiting:
            self._since = now
        self.waiting.append((ticket, seconds))
        return not self._more or now - self._since > self.patience

    def give_out(self):
        # type: () -> Tuple[int, float, List[Any]]
        """The first ticket that waits, its seconds, and the answer for all of them.

        The first, because it is the one that nobody can have taken back meanwhile."""
        ticket, seconds = self.waiting.pop(0)
        blocks, self._tree.blocks = self._tree.blocks, {}
        answer = self._pack(
            [(first, count, codec.encode(value)) for first, (count, value) in blocks.items()]
        )
        return ticket, seconds, answer

    def _pack(self, blocks):
        # type: (List[Tuple[int, int, List[Any]]]) -> List[Any]
        """An answer, with all that waits: in our files where they are large, else as it is."""
        answer, rows = [b""], []  # type: List[Any], List[Any]
        files = sorted(self._files)
        for first, count, segments in blocks:
            size, ticket = sum(map(len, segments)), 0
            if size >= LARGE and files and self._put(files[0], segments):
                ticket, segments = files.pop(0), []
            rows.append((first, count, size, len(segments), ticket))
            answer += segments
        answer[0] = marshal.dumps((self.waiting, rows))
        self.waiting = []
        self.close()
        return answer

    def _put(self, ticket, segments):
        # type: (int, List[Any]) -> bool
        if os.getpid() != self._pid:
            return False  # a fork of us that came back from the user's code: the file is not its
        return shelf.put(self._files[ticket], codec.blob_parts(segments))

    def close(self):
        # type: () -> None
        """Let go of our files."""
        for fd in self._files.values():
            os.close(fd)
        self._files = {}
