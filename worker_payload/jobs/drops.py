"""Job files that people drop into the queue: whether one is whole, and which job it is.

An INI file with `executable` in its section [control] or [fjd], or a program (it may be executed,
or begins with #!). Everything else is left alone, and said to be no job.
"""

import binascii
import configparser
import errno
import fcntl
import os
import shlex
import shutil
import stat
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from worker_payload.jobs import lines, names

SETTLED = 5.0  # seconds for which size and time stay equal, where nobody can be asked for writers
_INI_MAX = 1 << 20
_SECTIONS = ("control", "fjd")


class NoJob(Exception):
    """Why a file is none."""


class Drop(NamedTuple):
    """A dropped file that is whole. born: when it came here, milliseconds since the epoch."""

    plan: lines.Plan
    priority: int
    born: int


class Drops(object):
    """The dropped files of a queue. folder: of the queue. network: whether other machines may write
    to it. hired: the directory in which the workers were hired.

    seen: what is known of files that nobody can be asked about: {name: [state, since when]}."""

    def __init__(self, folder, network, hired, environ=os.environ):
        # type: (str, bool, str, Mapping[str, str]) -> None
        self._folder = folder
        self._network = network
        self._hired = hired
        self._path = environ.get("PATH")
        self._home = environ.get("HOME") or "/"
        self.seen = {}  # type: Dict[str, List[Any]]

    def read(self, name, now):
        # type: (str, float) -> Optional[Drop]
        """None while it is being written, or if it is gone. now: monotonic. Raises NoJob."""
        path = os.path.join(self._folder, name)
        try:
            # not blocking: it may be a pipe
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                if os.path.islink(path):
                    raise NoJob("it is a link to nothing")
                return None
            raise NoJob(error.strerror or str(error))
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise NoJob("it is no file")
            if not self._is_whole(fd, name, found, now):
                return None
            data = os.read(fd, _INI_MAX)
        except OSError as error:
            if error.errno == errno.ESTALE:
                return None
            raise NoJob(error.strerror or str(error))
        finally:
            os.close(fd)
        plan, priority = self._job(name, data, bool(found.st_mode & 0o111))
        return Drop(plan, priority, int(found.st_ctime * 1000))

    # --- whole? ----------------------------------------------------------------------------

    def _is_whole(self, fd, name, found, now):
        # type: (int, str, os.stat_result, float) -> bool
        if not self._network:
            written = _has_writer(fd)
            if written is not None:
                return not written
        state = [found.st_ino, found.st_size, found.st_mtime_ns]
        before = self.seen.get(name)
        if before is None or before[0] != state:
            self.seen[name] = [state, now]
            return False
        return now - before[1] >= SETTLED and found.st_size > 0

    # --- which job -------------------------------------------------------------------------

    def _job(self, name, data, executable):
        # type: (str, bytes, bool) -> Tuple[lines.Plan, int]
        plan = lines.Plan(
            submission="",
            cwd=self._hired,
            kind="drop",
            name=binascii.hexlify(os.fsencode(name)).decode("ascii"),
        )
        script = data.startswith(b"#!")
        control = None if script else _control(data)
        if control is not None:
            return self._control(plan, control)
        if executable:
            return plan, 0
        if script:
            return plan._replace(words=_interpreter(data)), 0
        raise NoJob("no section [control] or [fjd] with `executable`, and no program")

    def _control(self, plan, control):
        # type: (lines.Plan, Mapping[str, str]) -> Tuple[lines.Plan, int]
        try:
            words = shlex.split(control["executable"])
        except ValueError as error:
            raise NoJob("executable: %s" % error)
        if not words:
            raise NoJob("executable is empty")
        words[0] = self._program(words[0])
        cwd = os.path.join(self._hired, self._expanded(control.get("cwd") or ""))
        priority = int(_number(control, "priority", int, 0))
        if not names.PRIORITIES[0] <= priority <= names.PRIORITIES[1]:
            raise NoJob("priority: %d is not within %d and %d" % ((priority,) + names.PRIORITIES))
        plan = plan._replace(
            words=tuple(words),
            cwd=os.path.normpath(cwd),
            logfile=self._expanded(control.get("logfile") or ""),
            timeout=max(_number(control, "timeout", float, 0.0), 0.0),
            tries=max(int(_number(control, "retries", int, 1)), 1),
        )
        return plan, priority

    def _program(self, word):
        # type: (str) -> str
        word = self._expanded(word)
        beside = os.path.join(self._hired, word)
        if "/" in word:
            return os.path.normpath(beside)
        if shutil.which(word, path=self._path) is None and os.access(beside, os.X_OK):
            return beside
        return word

    def _expanded(self, path):
        # type: (str) -> str
        return self._home + path[1:] if path == "~" or path.startswith("~/") else path


def _has_writer(fd):
    # type: (int) -> Optional[bool]
    """Whether somebody has the file open for writing; None if the system will not say."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except AttributeError:
        return None
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        pass  # closing ends it too
    return False


def _control(data):
    # type: (bytes) -> Optional[Mapping[str, str]]
    """The section that says what to run; None if this is no such file."""
    if b"\0" in data[:4096]:
        return None
    parser = configparser.ConfigParser(interpolation=None, strict=False, allow_no_value=True)
    try:
        parser.read_string(os.fsdecode(data))
    except configparser.Error:
        return None
    for section in _SECTIONS:
        if parser.has_section(section) and parser.has_option(section, "executable"):
            return dict((key, value or "") for key, value in parser.items(section))
    return None


def _interpreter(data):
    # type: (bytes) -> Tuple[str, ...]
    """What its first line names, as the kernel reads it: a program and at most one word for it."""
    words = os.fsdecode(data[2:].split(b"\n", 1)[0][:4096]).strip().split(None, 1)
    if not words:
        raise NoJob("its first line names no program after #!")
    return tuple(words)


def _number(control, key, kind, default):
    # type: (Mapping[str, str], str, Any, Any) -> Any
    text = control.get(key)
    if not text:
        return default
    try:
        return kind(text)
    except ValueError:
        raise NoJob("%s: %r is no number" % (key, text))
