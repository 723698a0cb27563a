"""What the agent's state wants done, and what it knows: records without behaviour."""

from collections import OrderedDict, deque
from typing import Any, Deque, Dict, List, NamedTuple, Optional, Set, Tuple

from worker_payload import wire
from worker_payload.kept import Join, Kept, Part

Key = Tuple[int, int, Tuple[Tuple[str, str], ...]]  # threads, nice, environment


class Handle(NamedTuple):
    """A blob to hand out: its bytes if there are few, else a descriptor."""

    inline: Optional[bytes]
    fd: Optional[int]


# --- what the agent is to do ---------------------------------------------------------------------


class Send(NamedTuple):
    master: int
    message: Any


class Close(NamedTuple):
    """End a master: it gets what is queued for it, then `code` is its attach's exit status."""

    master: int
    code: int
    reason: str


class Prepare(NamedTuple):
    """Workers of this kind will be wanted."""

    key: Key


class Spawn(NamedTuple):
    worker: int
    key: Key


class Give(NamedTuple):
    """Commands for a worker, and the descriptors they need, in order."""

    worker: int
    commands: List[Any]
    fds: List[int]


class Repeat(NamedTuple):
    """Give these workers a task that each did before, with other params: (worker, ticket, digest of
    its slice, its blob unless the worker has it as a file) each. before, call: serials of the call,
    as it was and as it is."""

    before: int
    call: int
    params: bytes
    given: List[Any]


class Withdraw(NamedTuple):
    """Tell a worker not to begin with the tickets between these two."""

    worker: int
    after: int
    before: int


class Interrupt(NamedTuple):
    worker: int


class Kill(NamedTuple):
    worker: int


class Retire(NamedTuple):
    """Let an idle worker end by itself."""

    worker: int


class Look(NamedTuple):
    """Is this blob in the store? Answer by blob_here or blob_absent."""

    digest: str


class Keep(NamedTuple):
    """Bytes of a blob. Answer by blob_here, blob_damaged or blob_full when it is complete."""

    digest: str
    offset: int
    total: int
    data: Any


class Abandon(NamedTuple):
    """The rest of this blob will not come."""

    digest: str


class Spool(NamedTuple):
    """Put params into a file without a name. Answer by spooled."""

    call: int
    data: Any


class Unpin(NamedTuple):
    """Close the handle; drop: and delete the blob."""

    digest: str
    handle: Handle
    drop: bool


class Require(NamedTuple):
    """Ask a template of this kind which modules cannot be imported. Answer by lacks."""

    master: int
    key: Key
    request: int
    names: List[str]


class Shelve(NamedTuple):
    """Make so many empty files for answers. Answer by shelved, once for each."""

    files: int


class Fill(NamedTuple):
    """Put an answer into a file. Answer by filled."""

    call: int
    part: Part


class Hand(NamedTuple):
    """Send a `Combined` with these parts, whose files may then be closed."""

    master: int
    call: int
    slices: List[List[Any]]
    parts: List[Part]


class Stop(NamedTuple):
    """End the agent."""

    reason: str


# --- records -------------------------------------------------------------------------------------


class Master(object):
    def __init__(self, number, now):
        # type: (int, float) -> None
        self.number = number
        self.name = ""  # the same over all its connections
        self.greeted = False
        self.key = (1, 0, ())  # type: Key
        self.workers = 0
        self.calls = OrderedDict()  # type: OrderedDict[int, Call]
        self.heard = now
        self.said = now
        self.credit = 0
        self.credited = float("-inf")  # when it was last told of credit
        self.turn = 0
        self.told = set()  # type: Set[str]


class Call(object):
    def __init__(self, serial, master, begin):
        # type: (int, Master, wire.Begin) -> None
        self.serial = serial
        self.master = master
        self.id = begin.call
        self.code = begin.code
        self.module = begin.module
        self.params = begin.params
        self.params_handle = None  # type: Optional[Handle]
        self.spooled = False
        self.writable = bool(begin.options.get("writable"))
        self.timeout = begin.options.get("timeout")
        self.spans = bool(begin.options.get("spans"))
        self.function = begin.options.get("function")
        total = begin.options.get("combine")
        self.combine = Kept(total) if total else None  # type: Optional[Kept]
        self.missing = 0  # blobs without which nothing can begin
        self.pins = []  # type: List[str]
        self.refused = False
        self.tasks = {}  # type: Dict[int, Task]
        self.told = []  # type: List[Task]  # all that there ever were, unless these are too many
        self.queued = 0
        self.ready = deque()  # type: Deque[Task]
        self.bound = {}  # type: Dict[int, Deque[Task]]
        self.estimate = None  # type: Optional[float]
        self.talks = False  # its tasks print: then one at a time, so that we know which one did


WAITING, QUEUED, HANDED, OVER = "waiting", "queued", "handed", "over"


class Task(object):
    """inline: its blob, if it came with the task. join: this instead of a slice is to be done; the
    id is below zero then."""

    __slots__ = (
        "call", "digest", "done_by", "id", "inline", "join", "slot", "state", "ticket", "told",
        "worker",
    )  # fmt: skip

    def __init__(self, call, id_, digest, slot, inline=None):
        # type: (Call, int, Optional[str], Optional[int], Optional[bytes]) -> None
        self.inline = inline
        self.call = call
        self.id = id_
        self.digest = digest
        self.slot = slot
        self.state = WAITING
        self.ticket = 0
        self.worker = None  # type: Optional[Worker]
        self.done_by = None  # type: Optional[Worker]
        self.told = False
        self.join = None  # type: Optional[Join]


class Ghost(NamedTuple):
    """A task under a ticket under which it was taken back."""

    ticket: int
    task: Task


class Worker(object):
    def __init__(self, number, slot, key, now):
        # type: (int, int, Key, float) -> None
        self.number = number
        self.slot = slot
        self.key = key
        self.code = None  # type: Optional[str]
        self.calls = set()  # type: Set[int]
        self.ended = []  # type: List[int]
        self.held = OrderedDict()  # type: OrderedDict[str, None]
        self.hand = OrderedDict()  # type: OrderedDict[int, Task]
        self.files = {}  # type: Dict[int, int]  # for answers, by ticket
        self.since = now  # when the first task in hand came to be first, or the hand empty
        self.withdrawn = {}  # type: Dict[int, Ghost]  # what was just taken back, by ticket
        self.released = True
        self.waits = False  # it is through with its task, and waits for its turn to answer
        self.dying = None  # type: Optional[float]
        self.killed = False
        self.last = None  # type: Optional[Call]


class Slot(object):
    def __init__(self, index):
        # type: (int) -> None
        self.index = index
        self.workers = []  # type: List[Worker]
        self.busy = None  # type: Optional[Worker]
        self.stillborn = 0


LOOKING, AWAITED, HERE = "looking", "awaited", "here"


class Blob(object):
    def __init__(self, digest):
        # type: (str) -> None
        self.digest = digest
        self.state = LOOKING
        self.handle = None  # type: Optional[Handle]
        self.users = 0
        self.waiters = []  # type: List[Any]
        self.asked = None  # type: Optional[Master]
        self.damaged = 0
