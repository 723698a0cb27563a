"""Names of the files that are this host's own, and the one place that decides where they lie.

An agent is found by its socket, is alone by its lock, and explains itself in its log. All lie in
one directory per user that no other user can have prepared: it is opened without following
links and looked at through the descriptor, never by name.

Every connection begins with this module: it imports only what Python has loaded anyway.
"""

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Mapping, Optional, Tuple

_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_AGENT_LOCK = r"agent\.([A-Za-z0-9_-]{1,40})\.([A-Za-z0-9]+)\.lock\Z"
_WORKER_LOCK = r"worker\.([A-Za-z0-9_-]{1,40})\.([1-9][0-9]{0,3})\.lock\Z"
_SOCKET_PATH_MAX = 103  # of sun_path on macOS; Linux has 107


class LayoutError(Exception):
    """No directory here can be ours alone; says of each why not."""


class RunDir(object):
    """The host-private directory: its path, and a descriptor that stays on it."""

    def __init__(self, path, fd):
        # type: (str, int) -> None
        self.path = path
        self.fd = fd

    def file(self, name):
        # type: (str) -> str
        return os.path.join(self.path, name)

    def socket(self, name):
        # type: (str) -> str
        """A path for bind or connect, which take short paths only."""
        path = self.file(name)
        if len(os.fsencode(path)) > _SOCKET_PATH_MAX and os.path.isdir("/proc/self/fd"):
            return "/proc/self/fd/%d/%s" % (self.fd, name)
        return path


def run_dir(environ=os.environ):
    # type: (Mapping[str, str]) -> RunDir
    """The first candidate that is, or can be made, a directory of ours that is closed to others.

    Always tried in the same order, so that all processes of a user agree. Raises LayoutError."""
    reasons = []
    for path in candidates(environ):
        try:
            return RunDir(path, open_private(path))
        except OSError as error:
            reasons.append("%s: %s" % (path, error.strerror or error))
    raise LayoutError("no directory for jam's sockets: " + "; ".join(reasons))


def candidates(environ=os.environ):
    # type: (Mapping[str, str]) -> List[str]
    """Where the run directory may lie. JAM_RUN_DIR (several with colons between) overrides."""
    if environ.get("JAM_RUN_DIR"):
        return environ["JAM_RUN_DIR"].split(os.pathsep)
    uid = os.getuid()
    home = os.path.join(cache_dir(environ), "run", machine())
    return ["/tmp/jam-%d" % uid, "/var/tmp/jam-%d" % uid, home]


def open_private(path):
    # type: (str) -> int
    """A descriptor of the directory, made if need be. Raises OSError unless it is ours alone."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise OSError(error.errno, "is a link or no directory" + _owner(path))
        raise
    found = os.fstat(fd)
    problem = None
    if not stat.S_ISDIR(found.st_mode):
        problem = "is no directory"
    elif found.st_uid != os.getuid():
        problem = "belongs to " + user_name(found.st_uid)
    elif found.st_mode & 0o077:
        problem = "has mode %o, which lets others in" % stat.S_IMODE(found.st_mode)
    if problem is not None:
        os.close(fd)
        raise OSError(errno.EPERM, problem)
    return fd


def _owner(path):
    # type: (str) -> str
    try:
        return " of " + user_name(os.lstat(path).st_uid)
    except OSError:
        return ""


def user_name(uid):
    # type: (int) -> str
    try:
        import pwd

        return "%s (uid %d)" % (pwd.getpwuid(uid).pw_name, uid)
    except (ImportError, KeyError):
        return "uid %d" % uid


def cache_dir(environ=os.environ):
    # type: (Mapping[str, str]) -> str
    """Where payloads are kept; may be shared by many hosts."""
    return environ.get("JAM_CACHE_DIR") or os.path.join(
        environ.get("HOME") or os.path.expanduser("~"), ".cache", "jam"
    )


def placement_dir(environ=os.environ):
    # type: (Mapping[str, str]) -> str
    """Where masters keep which hosts have which data."""
    return os.path.join(cache_dir(environ), "placed")


def placement_name(slices, digest):
    # type: (int, str) -> str
    """Of data cut into so many slices, one of which has this digest."""
    return "%d.%s.json" % (slices, digest[:16])


def machine():
    # type: () -> str
    """A name that tells this host from others that share its home."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            with open(path) as handle:
                text = handle.read().strip()
            if text.isalnum():
                return "%s-%s" % (os.uname()[1], text[:16])
        except OSError:
            pass
    return os.uname()[1]


def blob_dir(run):
    # type: (RunDir) -> str
    return run.file("blobs")


def lock_name(project, build):
    # type: (str, str) -> str
    return "agent.%s.%s.lock" % (project, build)


def start_name(project, build):
    # type: (str, str) -> str
    """A lock for those who start the agent, so that only one of them does."""
    return "start.%s.%s.lock" % (project, build)


def socket_name(project, build):
    # type: (str, str) -> str
    return "agent.%s.%s.sock" % (project, build)


def log_name(project, build):
    # type: (str, str) -> str
    return "agent.%s.%s.log" % (project, build)


def master_name(project):
    # type: (str) -> str
    """A file in which a master on this machine shows what it waits for."""
    return "master.%s.%s.json" % (project, nonce())


def master_names(run, project):
    # type: (RunDir, str) -> List[str]
    import re

    wanted = re.compile(r"master\.%s\.[0-9a-f]{16}\.json\Z" % re.escape(project))
    return sorted(name for name in os.listdir(run.path) if wanted.match(name))


def news_name(project):
    # type: (str) -> str
    """What masters on this machine are told about their hosts."""
    return "news.%s.jsonl" % project


def reached_name(project, digest):
    # type: (str, str) -> str
    """A host to which a master on this machine has brought the project, and the way there."""
    return "reached.%s.%s.json" % (project, digest)


def reached_names(run, project):
    # type: (RunDir, str) -> List[str]
    import re

    wanted = re.compile(r"reached\.%s\.[0-9a-f]{16}\.json\Z" % re.escape(project))
    return sorted(name for name in os.listdir(run.path) if wanted.match(name))


def reached_digest(path):
    # type: (str) -> str
    return path.rsplit(".", 2)[1]


def screen_name(project, role="agent"):
    # type: (str, str) -> str
    return "jam.%s.%s" % (project, role)


def owner_prefix(run, project):
    # type: (RunDir, str) -> str
    """How the marks of all agents of a project begin: of those of this run directory only, because
    agents elsewhere (a container's, a test's) are not ours to end."""
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]  # hashlib loads OpenSSL
    except ImportError:
        from hashlib import sha256
    path = os.fsencode(os.path.realpath(run.path))
    return "%s.%s." % (project, sha256(path).hexdigest()[:16])


def owner(run, project, build):
    # type: (RunDir, str, str) -> str
    """A new mark, for the environment of all that an agent starts."""
    return "%s%s.%s" % (owner_prefix(run, project), build, nonce())


def aside(name):
    # type: (str) -> str
    """A name beside this one that nobody else makes."""
    return "%s.%s.tmp" % (name, nonce())


def nonce():
    # type: () -> str
    return os.urandom(8).hex()


def agent_locks(run):
    # type: (RunDir) -> List[Tuple[str, str, str]]
    """(project, build, file name) of every agent that runs or ran here."""
    import re

    found = []
    for name in sorted(os.listdir(run.path)):
        match = re.match(_AGENT_LOCK, name)
        if match:
            found.append((match.group(1), match.group(2), name))
    return found


# --- job workers -------------------------------------------------------------------------------


def worker_lock_name(project, number):
    # type: (str, int) -> str
    """Held by the keeper of the host's worker of this number."""
    return "worker.%s.%d.lock" % (project, number)


def worker_locks(run, project):
    # type: (RunDir, str) -> List[Tuple[int, str]]
    """(number, file name) of every job worker that runs or ran here."""
    import re

    found = []
    for name in os.listdir(run.path):
        match = re.match(_WORKER_LOCK, name)
        if match and match.group(1) == project:
            found.append((int(match.group(2)), name))
    return sorted(found)


def worker_log_name(project, number):
    # type: (str, int) -> str
    """What a worker without screen prints before it has its log in the project."""
    return "worker.%s.%d.log" % (project, number)


def hire_lock_name(project):
    # type: (str) -> str
    """For those who start job workers, so that two of them do not start twice as many."""
    return "hire.%s.lock" % project


def view_name(project):
    # type: (str) -> str
    """What this host knows of the queue."""
    return "view.%s.jsonl" % project


def view_lock_name(project):
    # type: (str) -> str
    return "view.%s.lock" % project


def worker_mark_prefix(run, project):
    # type: (RunDir, str) -> str
    """How the marks of all job workers of a project begin; no build begins with a w."""
    return owner_prefix(run, project) + "w"


def worker_mark(run, project, number):
    # type: (RunDir, str, int) -> str
    """A new mark, for the environment of a job worker and all that it starts."""
    return "%s%d.%s" % (worker_mark_prefix(run, project), number, nonce())


def is_project(name):
    # type: (Optional[str]) -> bool
    return name is not None and 1 <= len(name) <= 40 and _LETTERS.issuperset(name)
