"""From a host's name to a channel to its agent: one connection, one command, warm one round trip.

The command is a line of sh that starts the payload's verb. What it lacks for that it asks for, by
lines behind a marker that no start-up file can know; the master sends nothing unasked::

    <marker>:P          the text of `prepare:`, for sh
    <marker>:L          the loader, for any Python from 3.6 on
    <marker>:N          the payload; N with a z: as zlib packs it
    <marker>:W          (asks for nothing: Python and payload were here, and start)
    <marker>:X<hex>     it cannot: JSON with message and hint
    <marker>:R          the verb is ready; what follows is its own
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jamtasks import archive, loader, remembered, transport
from jamtasks.errors import HostError
from jamtasks.settings import HostSpec, Settings
from jamtasks.transport import Attempt, Channel
from jamtasks.transport.base import patiently

MAX_NOISE = 64 << 10  # a start-up file may print before the marker; past this it is something else
MAX_COMMAND = 900
STAGE_TIMEOUT = 60.0  # seconds for each answer: start-up files, `prepare:`, a slow home
LOGIN_TIMEOUT = 180.0  # for a person who is asked for a second factor; sshd gives them two minutes

# Only characters that mean the same within single quotes in sh, csh, tcsh and fish. Words are not
# split (IFS is empty), so nothing needs quotes. 1 2: the marker's halves, so that an echoed command
# line does not hold it. 3: bytes of `prepare:`. 4: build. 5: which cached Python. 6: its options.
# 7: verb. 8: project. 9 and 10: Python texts. The rest: Pythons to try.
SCRIPT = (
    "IFS=;set -f;jam(){ eval $x </dev/null >&2;};"
    "[ $3 = 0 ]||{ echo $2$1:P;x=$(dd bs=1 count=$3 2>/dev/null);jam;};"
    "IFS=;set -f;m=$2$1;c=${JAM_CACHE_DIR:-$HOME/.cache/jam};p=$c/payload/$4/__main__.py;"
    "q=;{ read h </proc/sys/kernel/hostname||h=$(uname -n);read q <$c/python/$h-$5;} 2>/dev/null;"
    "case $q in /*)[ -x $q ]&&[ -f $p ]&&{ echo $m:W;exec $q $6 $p $7 $m $8;};;esac;"
    "shift 8;t=$1;l=$2;shift 2;"
    "for q do $q -S -c $t </dev/null >&2 2>/dev/null&&{ echo $m:L;exec $q -S -c $l;};done;"
    "echo $m:X;exit 69"
)
NEW_ENOUGH = "import sys;1/(sys.version_info>=(3,6))"  # by zero, else
RUN_LOADER = "import io;exec(io.BufferedReader(io.FileIO(0,closefd=False)).read(%d))"
PYTHONS = (
    "python3 /usr/bin/python3 python /usr/libexec/platform-python python3.12 python3.11 python3.9 "
    "python3.8 python3.6 pypy3"
).split()
_SAFE = re.compile(r"[A-Za-z0-9_./+:@%=, ~()<>;*\[\]-]*")
# without site: half the start-up time
_OPTIONS = {"attach": ["-S"], "fire": ["-S"], "hire": ["-S"], "probe": []}


@dataclass(frozen=True)
class Attached:
    """A channel to an agent. Closing the channel closes its connection too.

    head: what has already been read of the agent's bytes. payload: `sent` or `present`.
    noise: what start-up files printed. seconds: what it all took."""

    channel: Channel
    head: bytes
    payload: str
    noise: str
    seconds: float


def attach(
    spec: HostSpec, settings: Settings, project: str, attempt: Attempt | None = None
) -> Attached:
    """Connect, install what the host lacks, start the project's agent unless it runs, join it.

    attempt: by which another thread can end this at once, and the channel later. Raises HostError,
    HostKeyError or AuthenticationError with the true reason."""
    attached = _start(spec, settings, project, "attach", attempt or Attempt(spec.label))
    remembered.remember(project, spec)
    return attached


def command(
    spec: HostSpec,
    settings: Settings,
    project: str,
    verb: str,
    request: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Run a verb that answers with one line of JSON (`fire`, `hire`, `probe`), and end. Raises
    HostError.

    request: what exactly `fire` or `hire` is to do. To its answer are added payload (`sent` or
    `present`), noise and seconds. `probe` chooses the host's Python anew."""
    started = _start(spec, settings, project, verb, Attempt(spec.label))
    channel, answer = started.channel, started.head
    timer = _Watch(channel, STAGE_TIMEOUT)
    try:
        if verb != "probe":
            with contextlib.suppress(OSError):  # what it says before it ends explains more
                channel.write([json.dumps(dict(request or {})).encode("ascii") + b"\n"])
        while b"\n" not in answer and len(answer) < 1 << 20:
            data = channel.read(1 << 16)
            if not data:
                break
            answer += data
        found = json.loads(answer)
        if not isinstance(found, dict):
            raise ValueError
    except ValueError:
        told = channel.stderr_tail().strip().splitlines() or ["it ended without an answer"]
        reason = "no answer in time" if timer.late else told[-1]
        raise channel.cause() or HostError(spec.label, f"{verb}: {reason}") from None
    finally:
        timer.stop()
        channel.close()
    if "error" in found:
        raise HostError(spec.label, str(found["error"]), str(found.get("hint") or "") or None)
    return {
        **found,
        "payload": started.payload,
        "noise": started.noise,
        "seconds": started.seconds,
    }


def _start(
    spec: HostSpec, settings: Settings, project: str, verb: str, attempt: Attempt
) -> Attached:
    began = time.monotonic()
    fresh = verb == "probe"
    over = _here if spec.transport == "local" else _there
    try:
        talk = patiently(
            lambda: over(spec, settings, project, verb, fresh, False, attempt),
            settings.connect_timeout,
            attempt,
        )
    except _WarmStartFailed:  # a Python or payload that was here once: look again, send again
        talk = over(spec, settings, project, verb, True, True, attempt)
    seconds = time.monotonic() - began
    noise = bytes(talk.noise).decode("utf-8", "replace").strip()
    payload = "sent" if talk.sent else "present"
    return Attached(talk.channel, bytes(talk.buffer), payload, noise, seconds)


class _WarmStartFailed(HostError):
    """The Python that was chosen here earlier ended before it said anything."""


# --- over SSH ----------------------------------------------------------------------------------


def _there(
    spec: HostSpec,
    settings: Settings,
    project: str,
    verb: str,
    fresh: bool,
    repair: bool,
    attempt: Attempt,
) -> _Talk:
    connection = transport.connect(spec, settings, attempt)
    try:
        marker, line, answers = _words(spec, verb, project, fresh, repair)
        with attempt.during(connection.cut):
            channel = connection.exec(line)
        channel.owned = connection
        attempt.ends_with(channel.close)
    except BaseException:
        connection.close()
        raise
    return _Talk(spec, channel, marker, answers).run()


def _words(
    spec: HostSpec, verb: str, project: str, fresh: bool, repair: bool
) -> tuple[str, str, dict[str, bytes]]:
    """The marker, the command line, and what is answered to what it may ask for."""
    payload = archive.payload()
    halves = os.urandom(8).hex(), os.urandom(8).hex()
    marker = halves[1] + halves[0]
    told = {
        "marker": marker,
        "build": payload.build,
        "size": len(payload.data),
        "verb": verb,
        "project": project,
        "python": spec.python,
        "prepared": bool(spec.prepare),
        "key": _key(spec, payload.build),
        "options": _OPTIONS[verb],
        "repair": repair,
    }
    source = Path(loader.__file__).read_text(encoding="utf-8")
    answers = {
        "P": prepare_text(spec.prepare),
        "L": f"{source}\nTOLD = {told!a}\nmain()\n".encode(),
        "N": payload.data,
    }
    line = command_line(spec, halves, payload.build, verb, project, answers, fresh)
    return marker, line, answers


def command_line(
    spec: HostSpec,
    halves: tuple[str, str],
    build: str,
    verb: str,
    project: str,
    answers: dict[str, bytes],
    fresh: bool = False,
) -> str:
    """The one line for the login shell, whichever that is. fresh: look for a Python again."""
    words = [
        *halves,
        str(len(answers["P"])),
        build,
        "-" if fresh else _key(spec, build),
        *(_OPTIONS[verb] or [""]),
        verb,
        project,
        NEW_ENOUGH,
        RUN_LOADER % len(answers["L"]),
    ]
    pythons = [] if spec.python is None else [spec.python]
    quoted = [_quoted(word) for word in (SCRIPT, "jam", *words)]
    line = "exec sh -c " + " ".join(word for word in quoted if word is not None)
    for word in (_quoted(python) for python in (*pythons, *PYTHONS)):
        # one that cannot be written here is left to the loader, which another Python runs
        if word is not None and len(line) + 1 + len(word) < MAX_COMMAND:
            line += f" {word}"
    return line


def _quoted(word: str) -> str | None:
    """The word for any login shell; None if it has characters that some of them would change."""
    if word.startswith("~/") and _SAFE.fullmatch(word):
        return f"\"$HOME\"'{word[1:]}'"
    return f"'{word}'" if word == SCRIPT or _SAFE.fullmatch(word) else None


def prepare_text(prepare: str) -> bytes:
    """What sh gets of `prepare:`: first the settings that it expects, which ours are not."""
    return f"unset IFS;set +f\n{prepare.strip()}\n".encode() if prepare.strip() else b""


def _key(spec: HostSpec, build: str) -> str:
    """Names the choice of a Python: another wish or another build is another choice."""
    text = json.dumps([spec.python, spec.prepare, build])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# --- here --------------------------------------------------------------------------------------


def _here(
    spec: HostSpec,
    settings: Settings,
    project: str,
    verb: str,
    fresh: bool,
    repair: bool,
    attempt: Attempt,
) -> _Talk:
    payload = archive.payload()
    cache = os.environ.get("JAM_CACHE_DIR") or os.path.expanduser("~/.cache/jam")
    main = os.path.join(cache, "payload", payload.build, "__main__.py")
    sent = repair or not loader.is_installed(os.path.dirname(main))
    if sent:
        try:
            loader.install(cache, payload.build, payload.data, repair)
        except OSError as error:
            place = error.filename or cache
            message = f"cannot write to {place}: {error.strerror}"
            raise HostError(spec.label, message, "set JAM_CACHE_DIR to another place") from None
    marker = os.urandom(16).hex()
    python = os.path.expanduser(spec.python) if spec.python else sys.executable
    argv = [python, *_OPTIONS[verb], main, verb, marker, project]
    if verb == "attach":
        argv += ["local", "keep"] if spec.keep else ["local"]
    if spec.prepare.strip():
        script = f'jam() {{\n{spec.prepare.strip()}\n}}\njam </dev/null >&2\nexec "$@"'
        argv = ["/bin/sh", "-c", script, "jam", *argv]
    channel = transport.connect(spec, settings, attempt).exec(argv)
    attempt.ends_with(channel.close)
    attempt.waits.set()
    talk = _Talk(spec, channel, marker, {}).run()
    talk.sent = sent
    return talk


# --- until the marker says R -------------------------------------------------------------------


class _Watch:
    """Closes a channel that takes too long; a blocked read then ends."""

    def __init__(self, channel: Channel, seconds: float):
        self.late = False
        self._channel = channel
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def _expire(self) -> None:
        self.late = True
        self._channel.close()

    def stop(self) -> None:
        self._timer.cancel()


class _Talk:
    """The conversation on a new channel, up to R."""

    def __init__(self, spec: HostSpec, channel: Channel, marker: str, answers: dict[str, bytes]):
        self.channel = channel
        self.noise = bytearray()
        self.buffer = bytearray()
        self.sent = False
        self._spec = spec
        self._mark = f"{marker}:".encode()
        self._answers = dict(answers)
        self._stage = ""

    def run(self) -> _Talk:
        """Return when the verb is ready, its first bytes in buffer. Raises HostError."""
        try:
            timeout = LOGIN_TIMEOUT if self._spec.transport == "openssh" else STAGE_TIMEOUT
            while self._stage != "R":
                timer = _Watch(self.channel, timeout)
                try:
                    stage, argument = self._next(timer, timeout)
                    self._act(stage, argument)
                finally:
                    timer.stop()
                timeout = STAGE_TIMEOUT
        except BaseException:
            self.channel.close()
            raise
        return self

    def _act(self, stage: str, argument: bytes) -> None:
        if stage == "X":
            raise self._unable(argument)
        if stage in ("P", "L", "N"):
            data = self._answers.pop(stage, None)
            if data is None:
                raise HostError(self._spec.label, f"it asks for {stage} twice")
            if argument == b"z":
                import zlib

                data = zlib.compress(data, 1)
            self.channel.write([data])
            self.sent = self.sent or stage == "N"
        elif stage not in ("R", "W"):
            raise HostError(self._spec.label, f"it says {stage!r}, which means nothing here")
        self._stage = stage

    def _next(self, timer: _Watch, timeout: float) -> tuple[str, bytes]:
        while True:
            at = self.buffer.find(self._mark)
            end = self.buffer.find(b"\n", at) if at >= 0 else -1
            if end >= 0:
                self.noise += self.buffer[:at]
                line = bytes(self.buffer[at + len(self._mark) : end])
                del self.buffer[: end + 1]
                return chr(line[0]) if line else "", line[1:]
            if len(self.noise) + len(self.buffer) > MAX_NOISE + (1 << 16) * (at >= 0):
                raise HostError(
                    self._spec.label,
                    f"its start-up files print more than {MAX_NOISE >> 10} kB before they let a "
                    f"command run: {_excerpt(self.noise + self.buffer)}",
                    "see what `ssh HOST true` prints, and make start-up files quiet without a tty",
                )
            data = self.channel.read(1 << 16)
            if not data:
                raise self._ended(f"no answer within {timeout:g} s" if timer.late else "")
            self.buffer += data

    def _ended(self, late: str) -> HostError:
        label = self._spec.label
        if late:
            doing = {"": "logging in", "P": "`prepare:`", "L": "looking for a Python",
                     "N": "installing the payload", "W": "starting"}[self._stage]  # fmt: skip
            return HostError(label, f"{late} while {doing}", retry=True)
        cause = self.channel.cause()
        if cause is not None and self._stage == "":
            return cause
        status = self.channel.exit_status()
        told = _excerpt(self.channel.stderr_tail() or self.noise + self.buffer)
        if self._stage == "W":
            return _WarmStartFailed(label, f"its Python ended with {status}: {told}", retry=True)
        what = {"": "its login shell", "P": "`prepare:`"}.get(self._stage, "its Python")
        if cause is not None:
            return HostError(label, cause.reason, cause.hint, retry=True)
        return HostError(label, f"{what} ended with {status} before jam was ready: {told}")

    def _unable(self, argument: bytes) -> HostError:
        label = self._spec.label
        try:
            reason = json.loads(bytes.fromhex(argument.decode("ascii"))) if argument else {}
            message, hint = str(reason["message"]), str(reason.get("hint") or "") or None
        except (ValueError, KeyError, TypeError, AttributeError):
            looked = [self._spec.python] if self._spec.python else []
            tried = ", ".join([*looked, *PYTHONS])
            message = f"no Python 3.6 or newer found; tried {tried}"
            hint = "set `python:` for this host, or load one with `prepare:`"
        return HostError(label, message, hint)


def _excerpt(text: bytes | bytearray | str) -> str:
    """The end of what was printed, on one line."""
    if not isinstance(text, str):
        text = bytes(text).decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    shown = " | ".join(lines[-3:]) or "nothing was printed"
    shown = "".join(letter if letter.isprintable() else "?" for letter in shown)
    return shown if len(shown) <= 300 else "…" + shown[-300:]
