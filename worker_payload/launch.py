"""Start an agent that outlives the connection: under screen where that works, else by setsid."""

import os
import shutil
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List

from worker_payload import layout, procs

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
    """Returns when the agent listens, or when that is no longer to be expected."""
    owner = layout.owner(run, project, build)
    name = layout.screen_name(project)
    screen = shutil.which("screen")
    # the mark is for the agent, not for screen's own process, which ends by itself
    if screen and shutil.which("env"):
        line = [screen, "-dmS", name, "env", "%s=%s" % (procs.OWNER, owner)]
        started = _run(_scope() + line + command() + ["serve", project])
        if started and _wait(listens, _SCREEN_WITHIN, lambda: _screen_lives(screen, name)):
            return
        if listens():
            return
    last = ["last"] if "local" in options and "keep" not in options else []
    environment = dict(os.environ)
    environment[procs.OWNER] = owner
    log = os.open(
        run.file(layout.log_name(project, build)),
        os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW,
        0o600,
    )
    try:
        process = subprocess.Popen(
            command() + ["serve", project] + last,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    finally:
        os.close(log)
    _wait(listens, _WITHIN, lambda: process.poll() is None)
    process.returncode = 0  # it lives on: no complaint from Popen's destructor


def _wait(listens, seconds, lives):
    # type: (Callable[[], bool], float, Callable[[], bool]) -> bool
    deadline = time.monotonic() + seconds
    pause = 0.004
    while time.monotonic() < deadline:
        if listens():
            return True
        if not lives():
            return listens()
        time.sleep(pause)
        pause = min(pause * 1.2, 0.05)
    return False


_looked = {}  # type: Dict[str, Any]


def _screen_lives(screen, name):
    # type: (str, str) -> bool
    """Whether a session of exactly this name exists; asked rarely, because it takes a process."""
    now = time.monotonic()
    if now - _looked.get("when", now - 0.2) < 0.5:
        return True
    _looked["when"] = now
    try:
        listing = subprocess.run(
            [screen, "-ls"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, timeout=5)  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return False
    for line in listing.stdout.decode("utf-8", "replace").splitlines():
        words = line.split()
        if words and words[0].partition(".")[2] == name:
            return True
    return False


def _run(line):
    # type: (List[str]) -> bool
    try:
        return (
            subprocess.run(
                line,
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
    run = shutil.which("systemd-run")
    if os.getuid() == 0 or not lingers or not run:
        return []
    line = [run, "--user", "--scope", "--quiet", "--"]
    return line if _run(line + ["true"]) else []
