"""Every name in a project's directory, and the one place that makes or reads them; no I/O.

A pod is a file of jobs. Its name says all that a claim, a count or a sweep needs, so that none of
them opens it::

    jobqueue/<pod>~<jobs>~<attempt>~<cut>                       waits
    jobpods/<pod>~<jobs>~<attempt>~<cut>~<owner>[+<child>]      claimed by exactly this owner
    jobpods/<pod>~<jobs>~<attempt>~<cut>~<owner>[+<child>]~<sweeper>   being taken from it
    done/<pod>~<jobs>~<attempt>~<cut>~<owner>[+<child>]         committed
    tails/<child>~<jobs>~<pod>~<attempt>~<owner>                made for a tail, not yet visible
    submitted/[.]<submission>/<pod>~<jobs>~0~-                  of a submission; with a dot: half

<child> in a claim is `<ticket>.<jobs>`: a child differs from its pod only in its ticket.

`<pod>` begins with what orders the queue. Anything else in jobqueue was dropped by people: their
names never become part of ours.
"""

import os
import re
from typing import Mapping, NamedTuple, Optional, Tuple

from worker_payload import layout

QUEUE = "jobqueue"
CLAIMED = "jobpods"
TICKETS = "jobs"
CUTS = "cuts"
TAILS = "tails"
SUBMITTED = "submitted"
RESULTS = "results"
DATA = os.path.join(RESULTS, "data")
DONE = "done"
PAST = "past"
OWNERS = "workerqueue"
LOGS = "logs"
FOLDERS = (
    QUEUE, CLAIMED, TICKETS, CUTS, TAILS, SUBMITTED, RESULTS, DATA, DONE, PAST, OWNERS, LOGS
)  # fmt: skip
ORDER = "order"
IDENTITY = "id"
HIRED = "hired.json"
DISPATCHER = "dispatcher"
NO_CUT = "-"  # nothing of the pod was run before

PRIORITIES = (-999, 999)
_POD = r"[pd][0-9]{4}\.[0-9]{13}\.[0-9]{6}\.[0-9a-f]{12}"
_OWNER = r"[A-Za-z0-9_.-]{1,64}-w[0-9]{1,4}-[0-9a-f]{12}"
_WAITING = (
    r"(?P<pod>%s)~(?P<jobs>[0-9]{1,9})~(?P<attempt>[0-9]{1,6})~(?P<cut>-|[0-9a-f]{16})" % _POD
)
_CLAIM = _WAITING + r"~(?P<owner>%s)(?:\+(?P<child>[0-9a-f]{12}\.[0-9]{1,9}))?" % _OWNER
_WAITING_NAME = re.compile(_WAITING + r"\Z")
_CLAIM_NAME = re.compile(_CLAIM + r"(?:~(?P<sweeper>[0-9a-f]{16}))?\Z")
_OWNER_NAME = re.compile(r"(?P<host>.+)-w(?P<number>[0-9]+)-(?P<nonce>[0-9a-f]{12})\Z")
_TAIL_NAME = re.compile(
    r"(?P<child>%s)~(?P<jobs>[0-9]{1,9})~(?P<pod>%s)~(?P<attempt>[0-9]{1,6})~(?P<owner>%s)\Z"
    % (_POD, _POD, _OWNER)
)
_ASIDE = re.compile(r"\.[A-Za-z.]+\.[0-9a-f]{16}\.tmp\Z")  # layout.aside of a hidden name
_EDITORS = (".tmp", "~", ".swp", ".part")


def is_aside(name):
    # type: (str) -> bool
    """Whether this is a file that was to become another, by a link or rename."""
    return _ASIDE.match(name) is not None


class Pod(NamedTuple):
    """What a name in jobqueue, jobpods or done says of a pod.

    pod: its identity, for all its life. jobs: the first so many of its lines are its jobs, the rest
    was given to others; 0 for the token of a dropped file that has not arrived. attempt: how often
    it was taken from somebody. cut: what is known of earlier attempts. owner, child, sweeper: ""
    where the name has none; what child says tells tail()."""

    pod: str
    jobs: int
    attempt: int
    cut: str
    owner: str = ""
    child: str = ""
    sweeper: str = ""

    @property
    def dropped(self):
        # type: () -> bool
        """Whether it stands for one file that people dropped."""
        return self.pod.startswith("d")

    @property
    def ticket(self):
        # type: () -> str
        """12 hex digits; of a dropped job, the folder in jobs/ where its file is."""
        return self.pod[-12:]

    def name(self):
        # type: () -> str
        """The file's name, as far as this record goes."""
        text = "%s~%d~%d~%s" % (self.pod, self.jobs, self.attempt, self.cut)
        if self.owner:
            text += "~" + self.owner
            if self.child:
                text += "+" + self.child
            if self.sweeper:
                text += "~" + self.sweeper
        return text

    def waiting(self):
        # type: () -> Pod
        return self._replace(owner="", child="", sweeper="")

    def tail(self):
        # type: () -> Optional[Tail]
        """What the owner gave back last; None if nothing."""
        if not self.child:
            return None
        ticket, _, jobs = self.child.partition(".")
        return Tail(self.pod[:-12] + ticket, int(jobs), self.pod, self.attempt, self.owner)


def read_pod(name):
    # type: (str) -> Optional[Pod]
    """What the name says; None if it is none of ours."""
    match = _WAITING_NAME.match(name) or _CLAIM_NAME.match(name)
    if match is None:
        return None
    found = match.groupdict()
    return Pod(
        found["pod"],
        int(found["jobs"]),
        int(found["attempt"]),
        found["cut"],
        found.get("owner") or "",
        found.get("child") or "",
        found.get("sweeper") or "",
    )


def new_pod(milliseconds, priority=0, number=0, dropped=False, ticket=None):
    # type: (int, int, int, bool, Optional[str]) -> str
    """An identity that sorts behind those of higher priority, then behind older ones, then behind
    lower numbers of the same submission. Raises ValueError for a priority out of PRIORITIES."""
    if not PRIORITIES[0] <= priority <= PRIORITIES[1]:
        raise ValueError("priority %d is not within %d and %d" % ((priority,) + PRIORITIES))
    return "%s%04d.%013d.%06d.%s" % (
        "d" if dropped else "p",
        5000 - priority,
        max(0, milliseconds) % 10**13,
        number % 10**6,
        ticket or new_ticket(),
    )


def child_of(pod):
    # type: (str) -> str
    """An identity for a part of a pod, at the pod's place in the queue."""
    return pod[:-12] + new_ticket()


def priority_of(pod):
    # type: (str) -> int
    return 5000 - int(pod[1:5])


def age_of(pod):
    # type: (str) -> Tuple[int, int]
    """(milliseconds since the epoch, number): older is smaller."""
    return int(pod[6:19]), int(pod[20:26])


def new_ticket():
    # type: () -> str
    return layout.nonce()[:12]


def new_cut():
    # type: () -> str
    return layout.nonce()


def new_owner(host, number):
    # type: (str, int) -> str
    """host: any name of the machine; number: which worker of the host, 1 or more."""
    return "%s-w%d-%s" % (host_part(host), number, new_ticket())


def host_part(host):
    # type: (str) -> str
    """The host's name with only what a part of our names may hold."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", host)[:64].lstrip(".-") or "host"


def read_owner(owner):
    # type: (str) -> Tuple[str, int]
    """(host, number) of an owner. Raises ValueError."""
    match = _OWNER_NAME.match(owner)
    if match is None:
        raise ValueError("%r is no owner" % owner)
    return match.group("host"), int(match.group("number"))


class Tail(NamedTuple):
    """A name in tails/: the child that owner made of the end of a pod in this attempt."""

    child: str
    jobs: int
    pod: str
    attempt: int
    owner: str

    def name(self):
        # type: () -> str
        return "%s~%d~%s~%d~%s" % self

    def short(self):
        # type: () -> str
        """What the claim of the parent says of it."""
        return "%s.%d" % (self.child[-12:], self.jobs)


def read_tail(name):
    # type: (str) -> Optional[Tail]
    match = _TAIL_NAME.match(name)
    if match is None:
        return None
    found = match.groupdict()
    return Tail(
        found["child"], int(found["jobs"]), found["pod"], int(found["attempt"]), found["owner"]
    )


def is_dropped(name):
    # type: (str) -> bool
    """Whether a name in jobqueue is one that people may have given to a job: editors' and copiers'
    files in the making are not."""
    return not name.startswith(".") and not name.endswith(_EDITORS) and read_pod(name) is None


# --- paths -------------------------------------------------------------------------------------
# All relative to the project's folder: `jobqueue/...`.


def queued(pod):
    # type: (Pod) -> str
    return os.path.join(QUEUE, pod.waiting().name())


def dropped(name):
    # type: (str) -> str
    return os.path.join(QUEUE, name)


def claimed(pod):
    # type: (Pod) -> str
    return os.path.join(CLAIMED, pod.name())


def done(pod):
    # type: (Pod) -> str
    return os.path.join(DONE, pod._replace(sweeper="").name())


def past(pod):
    # type: (Pod) -> str
    return os.path.join(PAST, pod._replace(sweeper="").name())


def tail(found):
    # type: (Tail) -> str
    return os.path.join(TAILS, found.name())


def map_call(ticket):
    # type: (str) -> str
    """The folder of a map call that job workers do."""
    return os.path.join(DATA, ticket)


def submitted(ticket):
    # type: (str) -> str
    return os.path.join(SUBMITTED, ticket)


def within(folder, name):
    # type: (str, str) -> str
    return os.path.join(folder, name)


def ticket_folder(ticket):
    # type: (str) -> str
    return os.path.join(TICKETS, ticket)


def cut(name):
    # type: (str) -> str
    return os.path.join(CUTS, name)


def results(owner):
    # type: (str) -> str
    return os.path.join(RESULTS, owner + ".jsonl")


def heartbeat(owner):
    # type: (str) -> str
    return os.path.join(OWNERS, owner)


def output(owner, stream):
    # type: (str, str) -> str
    """Where the jobs of this owner write. stream: "out" or "err"."""
    return os.path.join(LOGS, "%s.%s" % (owner, stream))


def job_output(ticket, stream):
    # type: (str, str) -> str
    """Where a dropped job writes."""
    return os.path.join(LOGS, "%s.%s" % (ticket, stream))


def worker_log(host, number):
    # type: (str, int) -> str
    return os.path.join(LOGS, "%s-w%d.log" % (host_part(host), number))


def home(project, environ=os.environ):
    # type: (str, Mapping[str, str]) -> str
    """The project's folder. JAM_HOME overrides ~/.jam."""
    top = environ.get("JAM_HOME")
    if not top:
        top = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".jam")
    return os.path.join(top, project)
