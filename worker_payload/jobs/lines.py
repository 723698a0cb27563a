"""What stands in the files of a project: lines of JSON with a checksum, pods, cuts; no I/O.

A line is `<crc32 as 8 hex digits> <JSON>\\n`. A torn line, or one that a full disk cut short, fails
its checksum and is no line. Three kinds of lines stand in an owner's results; all name their pod,
its attempt and the job's index in it::

    {"p", "k", "i", "begin": seconds since the epoch}
    {"p", "k", "i", "x": exit status or -1, "s": signal or 0, "t": begin, "r": seconds, ...}
                                        a result; see Result
    {"p", "k", "i", "gave": true}       let go on purpose: no result, and no loss
"""

import json
import zlib
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from worker_payload.jobs.names import Pod

LOSSES = 3  # after so many a job fails instead of being run once more

Line = Dict[str, Any]
_dumps = json.JSONEncoder(separators=(",", ":")).encode
_quoted = json.encoder.encode_basestring_ascii  # a third of the time that _dumps takes


def line(value):
    # type: (Any) -> bytes
    data = _dumps(value).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(data) & 0xFFFFFFFF, data)


def read_line(data):
    # type: (bytes) -> Optional[Any]
    """The value of one line, without or with its end; None if it is torn."""
    if len(data) < 10 or data[8:9] != b" ":
        return None
    body = data[9:].rstrip(b"\n")
    try:
        if int(data[:8], 16) != zlib.crc32(body) & 0xFFFFFFFF:
            return None
        return json.loads(body.decode("ascii"))
    except ValueError:
        return None


def read_lines(data):
    # type: (bytes) -> Iterator[Any]
    """The values of the whole lines in data, in order; what is torn is left out."""
    for part in data.split(b"\n"):
        value = read_line(part)
        if value is not None:
            yield value


def results_of(data, pod):
    # type: (bytes, str) -> Iterator[Any]
    """As lines_of, but only lines of jobs that ended: all that a record needs."""
    mark = pod.encode("ascii")
    for part in data.split(b"\n"):
        if b',"x":' in part and mark in part:
            value = read_line(part)
            if value is not None:
                yield value


def lines_of(data, pod):
    # type: (bytes, str) -> Iterator[Any]
    """The values of the whole lines in data that speak of this pod; reads no others."""
    mark = pod.encode("ascii")
    for part in data.split(b"\n"):
        if mark in part:
            value = read_line(part)
            if value is not None:
                yield value


class Tally(object):
    """What an owner's results say of one attempt of a pod. start, end: where in the file these
    lines stand. results: jobs that ended; failed, retried: of these. begun: index of the job that
    runs, in digits; b"" if none does."""

    __slots__ = ("begun", "end", "failed", "results", "retried", "start")

    def __init__(self, start):
        # type: (int) -> None
        self.start = start
        self.end = start
        self.results = self.failed = self.retried = 0
        self.begun = b""


def tally_key(pod):
    # type: (Pod) -> bytes
    return b'%s","k":%d' % (pod.pod.encode("ascii"), pod.attempt)


def tally(data, start, tallies):
    # type: (bytes, int, Dict[bytes, Tally]) -> None
    """Adds what whole lines of results say to the tallies of their pods, by tally_key. start: where
    in the file data begins. Five times quicker than reading the lines, and without the proof of
    their checksums: good for progress, not for the record."""
    for part in data.split(b"\n"):
        end = start + len(part) + 1
        index = part.find(b',"i":', _POD_AT)
        kind = part.find(b",", index + 5) + 2
        if index > 0 and kind > 1:
            key = part[_POD_AT:index]
            found = tallies.get(key)
            if found is None:
                found = tallies[key] = Tally(start)
            found.end = end
            if part.startswith(b"b", kind):
                found.begun = part[index + 5 : kind - 2]
            else:
                if found.begun == part[index + 5 : kind - 2]:
                    found.begun = b""
                if part.startswith(b"x", kind):
                    found.results += 1
                    if not part.startswith(b'0,"s":0,', kind + 3) or b',"why":"' in part:
                        found.failed += 1
                    if b',"a":' in part:
                        found.retried += 1
        start = end


_POD_AT = len('01234567 {"p":"')


def whole(data):
    # type: (bytes) -> int
    """How many bytes of data are ended lines: where to go on reading a file that grows."""
    return data.rfind(b"\n") + 1


def begin(pod, index, when):
    # type: (Pod, int, float) -> bytes
    return line({"p": pod.pod, "k": pod.attempt, "i": index, "begin": round(when, 3)})


def gave(pod, index):
    # type: (Pod, int) -> bytes
    return line({"p": pod.pod, "k": pod.attempt, "i": index, "gave": True})


class Result(NamedTuple):
    """How one job ended. The names of its line are short, because there may be millions.

    exit: its status, -1 if it has none. signal: what it died of, or 0. began: seconds since the
    epoch, at the host. seconds: of its last try. memory: its peak, bytes. cpu: seconds of user and
    system time. tries: how often it was run because it failed, 1 or more. reason: "" | "timeout" |
    "lost" (with its worker, LOSSES times) | "spawn" (it could not be started). out, err: first and
    last byte of what it wrote, in the files that names.output or names.job_output tell; both ends
    0 if it wrote to a log file of its own. last: last line of stderr of a job that failed.
    data: digest of the result file, of a job that has one. owner: who ran it."""

    exit: int
    signal: int
    began: float
    seconds: float
    memory: int = 0
    cpu: float = 0.0
    tries: int = 1
    reason: str = ""
    out: Tuple[int, int] = (0, 0)
    err: Tuple[int, int] = (0, 0)
    last: str = ""
    data: str = ""
    owner: str = ""

    @property
    def failed(self):
        # type: () -> bool
        return self.exit != 0 or self.signal != 0 or bool(self.reason)


def result(pod, index, found):
    # type: (Pod, int, Result) -> bytes
    value = {
        "p": pod.pod, "k": pod.attempt, "i": index,
        "x": found.exit, "s": found.signal, "t": round(found.began, 3),
        "r": round(found.seconds, 4), "m": found.memory, "c": round(found.cpu, 4),
    }  # type: Dict[str, Any]  # fmt: skip
    for key, item, usual in (
        ("a", found.tries, 1), ("why", found.reason, ""), ("o", list(found.out), [0, 0]),
        ("e", list(found.err), [0, 0]), ("l", found.last, ""), ("d", found.data, ""),
        ("w", found.owner, ""),
    ):  # fmt: skip
        if item != usual:
            value[key] = item
    return line(value)


def read_result(value, owner=""):
    # type: (Line, str) -> Optional[Result]
    """The result in a line; None if the line is of another kind. owner: whose file it stands in;
    a line that was copied into a cut says so itself."""
    if "x" not in value:
        return None
    return Result(
        value["x"],
        value["s"],
        value["t"],
        value["r"],
        value.get("m", 0),
        value.get("c", 0.0),
        value.get("a", 1),
        value.get("why", ""),
        tuple(value.get("o", (0, 0))),
        tuple(value.get("e", (0, 0))),
        value.get("l", ""),
        value.get("d", ""),
        value.get("w", "") or owner,
    )


class Cut(NamedTuple):
    """What earlier attempts of a pod left. results: lines of jobs that ended, by index. lost: how
    often a job went with its worker, by index."""

    results: Dict[int, Line]
    lost: Dict[int, int]


EMPTY = Cut({}, {})


def read_cut(data):
    # type: (bytes) -> Cut
    results = {}  # type: Dict[int, Line]
    lost = {}  # type: Dict[int, int]
    for value in read_lines(data):
        if "x" in value:
            results.setdefault(value["i"], value)
        elif "lost" in value:
            lost[value["i"]] = value["lost"]
    return Cut(results, lost)


def write_cut(before, pod, found):
    # type: (Cut, Pod, Iterable[Line]) -> bytes
    """The cut of a pod that is taken from its owner. found: the lines in the owner's results."""
    results = dict(before.results)
    lost = dict(before.lost)
    running = set()
    for value in found:
        if value.get("p") != pod.pod or value.get("k") != pod.attempt:
            continue
        index = value["i"]
        if "begin" in value:
            running.add(index)
        else:
            running.discard(index)
            if "x" in value and index < pod.jobs:
                results.setdefault(index, dict(value, w=value.get("w") or pod.owner))
    for index in running - set(results):
        lost[index] = lost.get(index, 0) + 1
    parts = [line(results[index]) for index in sorted(results)]
    parts += [line({"i": index, "lost": lost[index]}) for index in sorted(lost)]
    return b"".join(parts)


def record(pod, before, found):
    # type: (Pod, Cut, Iterable[Line]) -> Dict[int, Result]
    """The results of a pod in done/, by index: those of its cut, then its last owner's. Nothing
    else counts. found: the lines in the owner's results, which may be those of other pods too.

    Fewer than pod.jobs: what was read was not yet all; read again."""
    answers = {}  # type: Dict[int, Result]
    for index, value in before.results.items():
        answer = read_result(value)
        if answer is not None and index < pod.jobs:
            answers[index] = answer
    for value in found:
        if value.get("p") == pod.pod and value.get("k") == pod.attempt:
            answer = read_result(value, pod.owner)
            if answer is not None and value["i"] < pod.jobs:
                answers.setdefault(value["i"], answer)
    return answers


# --- pods --------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """The head of a pod: what its jobs have in common.

    submission: 12 hex digits, shared by the pods of one submit. first: number of the first job in
    its submission, from 1. words: the command, with placeholders, as words. shell: it is one word,
    a text for `sh -c`. names: of the parameters, for {name}. cwd: where jobs run. timeout: seconds,
    or 0. tries: how often a job may be run. env: of the jobs. logfile: where output goes instead,
    with placeholders, "" for jam's own logs. kind: "command" | "drop" (one file of people's; `name`
    is its name, as os.fsencode gave it, in hex) | "map" (a slice of a map call)."""

    submission: str
    first: int = 1
    words: Tuple[str, ...] = ()
    shell: bool = False
    names: Tuple[str, ...] = ()
    cwd: str = ""
    timeout: float = 0.0
    tries: int = 1
    env: Tuple[Tuple[str, str], ...] = ()
    logfile: str = ""
    kind: str = "command"
    name: str = ""
    percent: float = 0.0
    total: int = 1


def write_pod(plan, jobs):
    # type: (Plan, Iterable[List[str]]) -> bytes
    """jobs: for each its parameters."""
    return pod_of(plan, map(write_job, jobs))


def write_job(parameters):
    # type: (Sequence[str]) -> bytes
    return ("[%s]\n" % ",".join(map(_quoted, parameters))).encode("ascii")


def pod_of(plan, jobs):
    # type: (Plan, Iterable[bytes]) -> bytes
    """jobs: what write_job made of each."""
    return line(dict(plan._asdict(), jam=1)) + b"".join(jobs)


def read_plan(data):
    # type: (bytes) -> Plan
    """Of the beginning of a pod that holds its first line. Raises ValueError."""
    return read_pod(data[: data.find(b"\n") + 1])[0]


def read_pod(data):
    # type: (bytes) -> Tuple[Plan, List[List[str]]]
    """Raises ValueError if this is no whole pod."""
    head, _, rest = data.partition(b"\n")
    value = read_line(head)
    if type(value) is not dict or value.pop("jam", None) != 1:
        raise ValueError("no pod of this version of jam")
    known = dict((key, value[key]) for key in Plan._fields if key in value)
    for key in ("words", "names"):
        known[key] = tuple(known.get(key, ()))
    known["env"] = tuple(tuple(pair) for pair in known.get("env", ()))
    text = rest.decode("ascii")
    jobs = json.loads("[%s]" % ",".join(text.splitlines())) if text else []
    return Plan(**known), jobs
