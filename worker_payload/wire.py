"""What master and agent say to each other: a record for each message, and its number.

How a message becomes bytes is the business of `frames`, what its fields may hold that of `fields`.
Builds never speak to each other (the build is part of every socket's name), so a message may change
with any release.
"""

import struct
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Union

VERSION = 1
SPAN = struct.Struct(">Q")  # the first segment of a span's answer
AGAIN_MAX = 1024  # tasks of a call at one host, so that it can be repeated in one message
CHUNK = 256 << 10  # blobs travel in pieces of this size, so that a small message never waits long

Buffer = Union[bytes, bytearray, memoryview]


class ProtocolError(Exception):
    """The other end sent what no jam of this build sends. Says which message, and why not."""


# --- messages: master to agent -----------------------------------------------------------------


class Hello(NamedTuple):
    """First message of a master. `settings`: threads (int or None), nice (int), env (dict of str).

    master: its name; a second one of this name is the same, over a new connection. workers: how
    many it wants here; 0 leaves it to the agent (all CPUs it may use)."""

    version: int
    build: str
    project: str
    master: str
    workers: int
    settings: Dict[str, Any]


class Require(NamedTuple):
    """Which of these top-level modules can a worker here not import? Answered by `Lacks`."""

    request: int
    names: List[str]


class Begin(NamedTuple):
    """A map call. `code` is the digest of a module bundle, `module` the name to call in it.

    params: digest of the params blob, or "" when the blob is this frame's only segment.
    options: writable (bool): hand out private copy-on-write arrays instead of read-only ones.
    timeout (float or None): seconds after which a task is ended. spans (bool): a task is a list of
    slices, each of which is mapped by itself; its answer begins with a segment that says how many
    of the first were (SPAN), then comes the list of theirs. function: qualified name of a function
    of one argument to map instead of mapfunc(params, slice). combine (int): the call has so many
    slices, a task is the slice of its number, and answers are kept here, joined along the tree over
    the slices (`tree`), until a `Yield` asks for them."""

    call: int
    code: str
    module: str
    params: str
    options: Dict[str, Any]
    segments: Sequence[Buffer] = ()


class Task(NamedTuple):
    """Work for a call: [id, slice, index of the worker it is for or None] each.

    slice: its digest, or the number of the segment that is its blob, or None."""

    call: int
    tasks: List[List[Any]]
    segments: Sequence[Buffer] = ()


class Blob(NamedTuple):
    """Bytes [offset, offset + len(segment)) of a blob of `total` bytes."""

    digest: str
    offset: int
    total: int
    segments: Sequence[Buffer] = ()


class Gone(NamedTuple):
    """These blobs, asked for on behalf of a call that is over, do not come."""

    call: int
    digests: List[str]


class Revoke(NamedTuple):
    """Give back those of these tasks that have not started. Answered by `Revoked`."""

    call: int
    ids: List[int]


class Cancel(NamedTuple):
    """End these tasks, started or not; an empty list means all of the call. Not answered."""

    call: int
    ids: List[int]


class Yield(NamedTuple):
    """From now on answer with what is kept of this call whenever nothing of it is to be done."""

    call: int


class Again(NamedTuple):
    """Call `like` once more, as `call`, with the params that are the only segment: the same code,
    options and tasks, each by the worker that did it if that one is free. `like` is over with it.

    Allowed if every task of `like` was answered, there were AGAIN_MAX at most, none of them a span,
    and its params came in its Begin."""

    call: int
    like: int
    segments: Sequence[Buffer] = ()


class End(NamedTuple):
    """The call is over: its params and pins may go."""

    call: int


# --- messages: agent to master -----------------------------------------------------------------


class Welcome(NamedTuple):
    """First message of an agent. numpy: its version or "". free: bytes of memory free here.

    hostname: as the host calls itself. store: bytes the blob store may still take.
    notes: things the user should know about this host."""

    version: int
    build: str
    python: str
    implementation: str
    numpy: str
    pid: int
    workers: int
    cpus: int
    free: int
    store: int
    hostname: str
    notes: List[str]


class Lacks(NamedTuple):
    """Answer to `Require`: the names that cannot be imported, in the order asked."""

    request: int
    names: List[str]


class Missing(NamedTuple):
    """Blobs that a Begin or Task named and this host lacks. Answered by `Blob`s, or `Gone`."""

    call: int
    digests: List[str]


class Credit(NamedTuple):
    """So many more bytes of `Blob` segments have been taken in."""

    bytes: int


class Started(NamedTuple):
    """These tasks are running: [id, worker] each. Sent for tasks that take a while, not for all."""

    call: int
    tasks: List[List[int]]


class Result(NamedTuple):
    """Answers: [id, worker, number of segments, seconds] each; the segments follow in order."""

    call: int
    tasks: List[List[Any]]
    segments: Sequence[Buffer] = ()


class Combined(NamedTuple):
    """Slices [id, worker, seconds] each that were computed since the last of these, and are kept;
    and blocks of slices [first, count, number of segments] each that are answered: their answer is
    in the segments, which follow in order, and is kept no longer."""

    call: int
    slices: List[List[Any]]
    blocks: List[List[int]]
    segments: Sequence[Buffer] = ()


class Broken(NamedTuple):
    """The answers of so many slices from the first on cannot be joined: reduce raised."""

    call: int
    first: int
    slices: int
    type: str
    message: str
    traceback: str


class Failure(NamedTuple):
    """The map function raised (its worker is well), or its answer could not be encoded.

    type: the exception's qualified name. traceback: as text, with source lines. at: which slice of
    its span it was."""

    call: int
    id: int
    worker: int
    type: str
    message: str
    traceback: str
    at: int = 0


class Lost(NamedTuple):
    """A worker died with this task. exit and signal: one of them, or neither if unknown.

    stderr: the last of what it wrote. note: a hint such as out of memory, or ""."""

    call: int
    id: int
    worker: int
    exit: Optional[int]
    signal: Optional[int]
    stderr: str
    note: str


class Revoked(NamedTuple):
    """These tasks have not been started here and will not be."""

    call: int
    ids: List[int]


class Output(NamedTuple):
    """What a task wrote. id: the task, or -1 between tasks. stream: 1 or 2."""

    call: int
    id: int
    worker: int
    stream: int
    segments: Sequence[Buffer] = ()


class Note(NamedTuple):
    """Something for the run's report, such as a store that fell back to disk."""

    text: str


class Refused(NamedTuple):
    """The call cannot be done on this host at all (no room for its params, for example)."""

    call: int
    reason: str


class Ending(NamedTuple):
    """The agent ends and takes no more work."""

    reason: str


# --- both ways ---------------------------------------------------------------------------------


class Beat(NamedTuple):
    """Nothing to say, and alive."""


Message = Any  # one of the NamedTuples above

KINDS = {
    1: Hello, 2: Require, 3: Begin, 4: Task, 5: Blob, 6: Revoke, 7: Cancel, 8: End,
    9: Again, 10: Yield, 11: Gone,
    32: Welcome, 33: Lacks, 34: Missing, 35: Credit, 36: Started, 37: Result, 38: Failure,
    39: Lost, 40: Revoked, 41: Output, 42: Note, 43: Refused, 44: Ending,
    45: Combined, 46: Broken,
    64: Beat,
}  # type: Dict[int, Any]  # fmt: skip
KIND_OF = dict((cls, kind) for kind, cls in KINDS.items())
WITH_SEGMENTS = frozenset(cls for cls in KINDS.values() if "segments" in cls._fields)
FROM_MASTER = frozenset(
    [Hello, Require, Begin, Task, Blob, Gone, Revoke, Cancel, Yield, End, Again, Beat]
)
FROM_AGENT = frozenset(KINDS.values()) - FROM_MASTER | {Beat}
