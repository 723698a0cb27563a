# ruff: noqa: UP031, RUF005, B904 (it has to run on Python 3.6)
"""What a host runs before it has jam's payload: choose a Python, install the payload, start it.

bootstrap.py sends this file's text, with a line `TOLD = {...}` behind it, to the first Python that
was found; so it is written for Python 3.6, imports nothing of jam and reads stdin by os.read only.
On this machine bootstrap.py calls `install` directly.
"""

import sys

if __name__ == "__main__":  # on a host: what lies in the home, where we are, is no module of Python
    sys.path[:] = filter(None, sys.path)

import errno
import os
import select
import time

if False:  # for type checkers: the host need not have typing, and it takes time
    from collections.abc import Callable, Iterator
    from typing import Any

    Process = tuple[int, int]
    Answer = tuple[bool, tuple[int, ...], bool, str]

# marker, build, size, verb, project, python, prepared, key, options, repair
TOLD: "dict[str, Any]" = {}

_NAMES = ("python", "python3", "pypy3")  # and the last two with .1 and so on
_PLACES = (
    "/usr/local/bin /usr/bin /bin /opt/*/bin /opt/homebrew/bin /usr/local/python*/bin "
    "~/.local/bin ~/.pyenv/versions/*/bin ~/miniconda3/bin ~/miniforge3/bin ~/mambaforge/bin "
    "~/anaconda3/bin /opt/conda/bin /usr/libexec"
)
_DAMAGED = "the payload was damaged on its way here"
_MOST = 40  # candidates that are looked at
_AT_ONCE = 4
_PATIENCE = 20.0  # seconds for a candidate to say who it is
_UNUSED = 30 * 86400.0  # seconds after which another build's payload goes
# as importlib.util.find_spec does, which takes longer to import than all of this to run
_ASK = """
import sys
v = sys.version_info
finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
numpy = any(find("numpy", None) is not None for find in finders if find)
print(v[0], v[1], v[2], sys.implementation.name, int(numpy))
"""


# in the order in which it will be imported, so that it is there by then; nothing is run
_COMPILE = """
import os, sys
from importlib.machinery import SourceFileLoader
os.chdir(os.path.join(sys.argv[1], "worker_payload"))
names = (
    "cli layout attach launch procs serve keeper agent limits records wire kept tree circuit board "
    "channel frames room fields turns repeating lap orders links answers codec arrays shelf "
    "combining blobs pool worker called known streams calls sums partials shared shortcuts "
    "workerio gate host keeping budget tiers store writing kinds template masters poller workforce "
    "lost watching"
).split()
for name in names + sorted(n[:-3] for n in os.listdir(".") if n.endswith(".py")):
    path = os.path.abspath(name + ".py")
    if os.path.isfile(path) and name not in ("fire", "probe", "restricted"):  # seldom used
        SourceFileLoader(name, path).get_code(name)
"""


class Unable(Exception):
    """(message, hint) for the person who waits for this host."""


def main() -> None:
    cache = os.environ.get("JAM_CACHE_DIR") or os.path.join(
        os.path.expanduser("~"), ".cache", "jam"
    )
    folder = os.path.join(cache, "payload", TOLD["build"])
    try:
        python = _prepare(cache, folder)
        argv = [python] + TOLD["options"] + [os.path.join(folder, "__main__.py")]
        argv += [TOLD["verb"], TOLD["marker"], TOLD["project"]]
        try:
            os.execv(python, argv)
        except OSError as error:
            raise Unable("cannot run %s: %s" % (python, error.strerror), "")
    except Unable as error:
        _fail(*error.args)
    except OSError as error:
        message = "cannot write to %s: %s" % (error.filename or cache, error.strerror)
        _fail(message, "have `prepare:` export JAM_CACHE_DIR, a directory that can be written")


def _prepare(cache: str, folder: str) -> str:
    """Install what is missing, and choose a Python: its path. Raises Unable, OSError."""
    choice = _fork(_tell_choice)
    lacking = TOLD["repair"] or not is_installed(folder)
    if lacking:
        data = _fetch()
        if digest(data) != TOLD["build"]:
            raise Unable(_DAMAGED, "")
        install(cache, TOLD["build"], data, TOLD["repair"])
        _compile(sys.executable, folder)  # most likely that is what will be chosen
    python = _chosen(choice)
    if lacking and os.path.realpath(python) != os.path.realpath(sys.executable):
        _compile(python, folder)
    _remember(cache, python)
    return python


def _say(text: str) -> None:
    os.write(1, ("%s:%s\n" % (TOLD["marker"], text)).encode("ascii"))


def _fail(message: str, hint: str) -> None:
    import json

    _say("X" + json.dumps({"message": message, "hint": hint}).encode("ascii").hex())
    sys.exit(69)


def _fetch() -> bytes:
    """Ask for the payload, packed if this Python can unpack that; raises Unable."""
    parts, size = [], 0
    try:
        import zlib
    except ImportError:
        _say("N")
        while size < TOLD["size"]:
            parts.append(_read())
            size += len(parts[-1])
        return b"".join(parts)
    _say("Nz")
    stream = zlib.decompressobj()
    while not stream.eof:
        try:
            parts.append(stream.decompress(_read()))
        except zlib.error:
            raise Unable(_DAMAGED, "")
    return b"".join(parts)


def _read() -> bytes:
    """Some of what the master sends, which is never more than was asked for."""
    data = os.read(0, 1 << 16)
    if not data:
        sys.exit(74)
    return data


# --- which Python ------------------------------------------------------------------------------


def _tell_choice() -> None:
    try:
        told = "+" + _choose()
    except Unable as error:
        told = "-" + "\0".join(error.args)
    os.write(1, os.fsencode(told))


def _chosen(choice: "Process") -> str:
    """What a process found that runs _tell_choice. Raises Unable."""
    told = os.fsdecode(_finish(choice, 1e6) or b"")
    if not told:  # it was killed
        return _choose()
    if told[0] == "-":
        raise Unable(*told[1:].split("\0"))
    return told[1:]


def _choose() -> str:
    wanted = TOLD["python"]
    if wanted:
        path = _which(os.path.expanduser(wanted))
        if path is None:
            raise Unable("there is no %s" % wanted, "set `python:` for this host")
        return os.path.abspath(_accepted(path))
    if TOLD["prepared"]:  # whoever prepares means the Python that is first in PATH then
        for name in ("python3", "python"):
            path = _which(name)
            found = _ask([path])[0] if path else None
            if path and found and found[1] >= (3, 6):
                return os.path.abspath(path)
    answers = [answer for answer in _ask(_candidates()) if answer and answer[1] >= (3, 6)]
    # numpy first, then the newest, CPython before PyPy; max() keeps the first of equals
    while any(answer[0] for answer in answers):
        best = max(answers, key=lambda answer: answer[:3])
        if _run([best[3], "-c", "import numpy"]) is not None:
            return best[3]
        answers[answers.index(best)] = (False,) + best[1:]
    if answers:
        return max(answers, key=lambda answer: answer[:3])[3]
    return sys.executable


def _accepted(path: str) -> str:
    answer = _ask([path])[0]
    if answer is None:
        raise Unable("%s does not run, or is no Python 3" % path, "set `python:` for this host")
    if answer[1] < (3, 6):
        version = ".".join(str(part) for part in answer[1])
        raise Unable(
            "%s is Python %s; jam's payload needs 3.6 or newer" % (path, version),
            "set `python:` for this host",
        )
    return path


def _which(name: str) -> "str | None":
    """As shutil.which."""
    places = [""] if os.path.dirname(name) else os.environ.get("PATH", os.defpath).split(os.pathsep)
    for place in places:
        path = os.path.join(place, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def _candidates() -> "list[str]":
    places = os.environ.get("PATH", "").split(os.pathsep)
    for pattern in _PLACES.split():
        places.extend(_folders(os.path.expanduser(pattern)))
    paths: list[str] = []
    seen: set[tuple[str, str]] = set()
    for place in places:
        try:
            names = sorted(os.listdir(place), reverse=True)
        except OSError:
            continue
        for name in names:
            if not _is_name(name) and not (name == "platform-python" and place[-7:] == "libexec"):
                continue
            path = os.path.join(place, name)
            # python3 and python3.11 of one folder are one; a venv's link is not what it links to
            identity = (os.path.realpath(place), os.path.realpath(path))
            if identity not in seen and os.access(path, os.X_OK):
                seen.add(identity)
                paths.append(os.path.abspath(path))
    return paths[:_MOST]


def _folders(pattern: str) -> "list[str]":
    """What matches it, sorted; one part of it may be a star, or begin or end with one."""
    before, star, after = pattern.partition("*")
    if not star:
        return [pattern]
    place, start = os.path.split(before)
    end, _, rest = after.partition("/")
    try:
        names = sorted(os.listdir(place))
    except OSError:
        return []
    return [
        os.path.join(place, name, rest)
        for name in names
        if name.startswith(start) and name.endswith(end) and not name.startswith(".")
    ]


def _is_name(name: str) -> bool:
    """Whether a Python may be called so: python, python3, python3.11, pypy3, pypy3.9."""
    base, dot, minor = name.partition(".")
    return base in _NAMES and (not dot or (base != "python" and minor.isdigit()))


def _ask(paths: "list[str]") -> "list[Answer | None]":
    """(has numpy, version, is CPython, path) of each, None for those that do not answer."""
    answers: list[Answer | None] = []
    for start in range(0, len(paths), _AT_ONCE):
        batch = [(path, _start([path, "-c", _ASK])) for path in paths[start : start + _AT_ONCE]]
        for path, process in batch:
            words = (_finish(process) or b"").decode("utf-8", "replace").split()
            try:
                version = tuple(int(word) for word in words[:3])
                answers.append((words[4] == "1", version, words[3] == "cpython", path))
            except (ValueError, IndexError):
                answers.append(None)
    return answers


def _run(argv: "list[str]") -> "bytes | None":
    return _finish(_start(argv))


def _start(argv: "list[str]") -> "Process":
    def become() -> None:
        os.chdir("/")  # a numpy/ in the home must not look like numpy
        os.execv(argv[0], argv)

    return _fork(become)


def _fork(work: "Callable[[], None]") -> "Process":
    """work() in a process of its own: its number, and a descriptor that reads what it prints.

    `subprocess` would do as much, but takes as long to import as Python to start."""
    reading, writing = os.pipe()
    try:
        pid = os.fork()
    except OSError as error:
        raise Unable("cannot start a process: %s" % error.strerror, "")
    if pid:
        os.close(writing)
        return pid, reading
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd, number in ((null, 0), (writing, 1), (null, 2)):
            os.dup2(fd, number)
        work()
        os._exit(0)
    finally:
        os._exit(126)


def _finish(process: "Process", seconds: float = _PATIENCE) -> "bytes | None":
    """What it printed, or None if it failed, or is not done within so many seconds."""
    pid, reading = process
    deadline = time.monotonic() + seconds
    parts = [b"-"]
    while parts[-1]:
        left = max(0.0, deadline - time.monotonic())
        parts.append(
            os.read(reading, 1 << 16) if select.select([reading], [], [], left)[0] else b""
        )
    os.close(reading)
    ended, status = os.waitpid(pid, os.WNOHANG)
    while not ended and time.monotonic() < deadline:
        time.sleep(0.0005)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if ended:
        return b"".join(parts[1:]) if status == 0 else None
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return None


def _remember(cache: str, python: str) -> None:
    """The next attach from this master runs it without looking."""
    folder = os.path.join(cache, "python")
    os.makedirs(folder, 0o700, exist_ok=True)
    path = os.path.join(folder, "%s-%s" % (os.uname()[1], TOLD["key"]))
    aside = _aside(path)
    with open(aside, "wb") as handle:
        handle.write(os.fsencode(python) + b"\n")
    os.replace(aside, path)


# --- the payload -------------------------------------------------------------------------------


def install(cache: str, build: str, data: bytes, repair: bool = False) -> None:
    """Unpack the payload to <cache>/payload/<build>, whole or not at all. Raises OSError.

    One that is there already is kept, because others may be starting from it; repair: its files
    are put in place anew, one by one, so that it never lacks any."""
    payloads = os.path.join(cache, "payload")
    os.makedirs(payloads, 0o700, exist_ok=True)
    folder = os.path.join(payloads, build)
    if repair or not is_installed(folder):
        aside = _aside(folder)
        os.mkdir(aside, 0o700)
        try:
            made = {aside}
            for name, text in unpacked(build, data):
                path = os.path.join(aside, name)
                place = os.path.dirname(path)
                if place not in made:
                    os.makedirs(place, 0o700, exist_ok=True)
                    made.add(place)
                with open(path, "wb") as file:
                    file.write(text)
            _put(aside, folder, repair)
        finally:
            _remove(aside)
    _forget_old(payloads, build)


def unpacked(build: str, data: bytes) -> "Iterator[tuple[str, bytes]]":
    """Name and content of each file of the payload that archive.py packed, and its build."""
    position = 0
    while position < len(data):
        name, size, _ = data[position : position + 300].split(b"\0", 2)
        start = position + len(name) + len(size) + 2
        position = start + int(size)
        yield name.decode("ascii"), data[start:position]
    yield "worker_payload/_build.py", ('BUILD = "%s"\n' % build).encode("ascii")


def digest(data: bytes) -> str:
    """The build of a payload."""
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]  # hashlib loads OpenSSL
    except ImportError:
        from hashlib import sha256
    return str(sha256(data).hexdigest()[:16])


def _remove(folder: str) -> None:
    if os.path.isdir(folder):
        import shutil

        shutil.rmtree(folder, ignore_errors=True)


def _compile(python: str, folder: str) -> None:
    """Have a Python compile what it is about to import, on another core while we go on."""
    argv = [python, "-S", "-c", _COMPILE, folder]

    def become() -> None:
        if not os.fork():  # nobody's child when its parent has ended, so none of ours
            os.dup2(0, 1)
            os.execv(python, argv)

    _finish(_fork(become))


def is_installed(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, "__main__.py"))


def _put(aside: str, folder: str, repair: bool) -> None:
    try:
        os.rename(aside, folder)
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
    if not repair and is_installed(folder):
        return  # another was quicker
    if not os.path.isdir(folder):
        os.unlink(folder)
    # bottom-up: __main__.py, which says that all is there, comes last
    for place, _, names in os.walk(aside, topdown=False):
        target = os.path.normpath(os.path.join(folder, os.path.relpath(place, aside)))
        os.makedirs(target, 0o700, exist_ok=True)
        _remove(os.path.join(target, "__pycache__"))
        for name in names:
            os.replace(os.path.join(place, name), os.path.join(target, name))


def _aside(path: str) -> str:
    place, name = os.path.split(path)
    return os.path.join(place, ".%s.%s" % (name, os.urandom(8).hex()))


def _forget_old(payloads: str, build: str) -> None:
    for name in os.listdir(payloads):
        path = os.path.join(payloads, name)
        try:
            if name != build and os.stat(path).st_mtime < time.time() - _UNUSED:
                _remove(path)
        except OSError:
            pass
