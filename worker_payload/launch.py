"""Start what outlives the connection, an agent or a job worker: under screen where that works, else
in a session of its own."""

import os
import subprocess
import sys
import time

from worker_payload import layout, procs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional

_WITHIN = 15.0
_SCREEN_WITHIN = 5.0  # after which a screen that shows no agent is taken for a broken one


def command():
    # type: () -> List[str]
    """How to run this payload again."""
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.isdir(top) and not os.path.exists(os.path.join(top, "__main__.py")):  # a checkout
        program = "import sys; sys.path.insert(0, %r); from worker_payload import cli; cli.exit()"
        return [sys.executable, "-c", program % top]
    return [sys.executable, top]


def start(run, project, build, options, listens):
    # type: (layout.RunDir, str, str, List[str], Callable[[], bool]) -> None
    """Start the project's agent. Returns when it listens, or when that is hopeless."""
    last = ["last"] if "local" in options and "keep" not in options else []
    started = Started(
        layout.screen_name(project),
        ["serve", project],
        layout.owner(run, project, build),
        run.file(layout.log_name(project, build)),
    )
    started.wait(listens, last)


class Started(object):
    """A payload that begins to run in the background. name: of its screen session. arguments: of
    the payload. mark: procs.OWNER of it and of all that it starts. log: a file for what it prints
    without screen. environ: in which it runs."""

    def __init__(self, name, arguments, mark, log, environ=None):
        # type: (str, List[str], str, str, Optional[Dict[str, str]]) -> None
        self._name = name
        self._arguments = arguments
        self._mark = mark
        self._log = log
        self._environ = dict(os.environ if environ is None else environ)
        self._screen = _which("screen")
        self._looked = 0.0
        self._begun = False
        # the mark is for the payload, not for screen's own process, which ends by itself
        if self._screen and _which("env"):
            line = [self._screen, "-dmS", name, "env", "%s=%s" % (procs.OWNER, mark)]
            line = _scope() + line + command() + arguments
            self._begun = _run(line, self._environ)
            self._looked = time.monotonic() + 0.2

    def wait(self, ready, more=()):
        # type: (Callable[[], bool], Any) -> bool
        """Until it is ready, or until that is no longer to be expected; whether it is. more: what
        it is told besides if it has to do without screen."""
        if self._begun and _wait(ready, _SCREEN_WITHIN, self._screen_lives):
            return True
        if ready():
            return True
        process = self._alone(list(more))
        found = _wait(ready, _WITHIN, lambda: process.poll() is None)
        process.returncode = 0  # it lives on: no complaint from Popen's destructor
        return found

    def _alone(self, more):
        # type: (List[str]) -> subprocess.Popen
        log = os.open(
            self._log,
            os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
        )
        try:
            return subprocess.Popen(
                command() + self._arguments + more,
                env=dict(self._environ, **{procs.OWNER: self._mark}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)

    def _screen_lives(self):
        # type: () -> bool
        """Whether a session of exactly this name exists; asked rarely, as it takes a process."""
        now = time.monotonic()
        if now - self._looked < 0.5:
            return True
        self._looked = now
        try:
            listing = subprocess.run(
                [self._screen or "screen", "-ls"], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5)  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return False
        for line in listing.stdout.decode("utf-8", "replace").splitlines():
            words = line.split()
            if words and words[0].partition(".")[2] == self._name:
                return True
        return False


def _wait(listens, seconds, lives):
    # type: (Callable[[], bool], float, Callable[[], bool]) -> bool
    deadline = time.monotonic() + seconds
    begun = now = time.monotonic()
    while now < deadline:
        if listens():
            return True
        if not lives():
            return listens()
        time.sleep(min(max((now - begun) / 20, 0.003), 0.05))
        now = time.monotonic()
    return False


def _which(name):
    # type: (str) -> Optional[str]
    """As shutil.which, which takes longer to import than to run."""
    for place in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(place, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def _run(line, environ=None):
    # type: (List[str], Optional[Dict[str, str]]) -> bool
    try:
        return (
            subprocess.run(
                line,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=10,
            ).returncode
            == 0
        )
    except (OSError, subprocess.SubprocessError):
        return False


def _scope():
    # type: () -> List[str]
    """Out of the login session's scope, which systemd may kill at logout; but only for users who
    linger: without that, the user's manager would end it even sooner."""
    try:
        import pwd

        user = pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        return []
    lingers = os.path.exists("/var/lib/systemd/linger/" + user)
    run = _which("systemd-run")
    if os.getuid() == 0 or not lingers or not run:
        return []
    line = [run, "--user", "--scope", "--quiet", "--"]
    return line if _run(line + ["true"]) else []
