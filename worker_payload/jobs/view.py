"""What waits in the queue, as the workers of one host see it: one of them looks for all.

Whoever needs work takes a lock, and takes names from a list that all workers of the host share. If
the list is used up he lists the queue anew; if nothing waits he keeps the lock and watches, while
the others wait for the lock, which costs nothing. So a host lists at most once per second and looks
at a quiet queue a few times per second, however many workers it has.

Hosts keep out of each other's way without talking: within a window of the queue each takes first
what a hash of name and host gives to it.
"""

import fcntl
import json
import os
import random
import time
import zlib
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from worker_payload import layout
from worker_payload.jobs import drops, heart, names, steps
from worker_payload.jobs.names import Pod

ORDERS = ("priority", "age", "name")
WINDOW = 32  # ranks per host within which hosts may leave the order
_LIST_EVERY = {False: 0.25, True: 1.0}  # seconds between listings, at least; by "is a network"
_LIST_SHARE = 20  # and at least so many times what a listing took
_RELIST_SHARE = 50  # the same while the list is not used up
_WATCH_EVERY = 0.25  # seconds between looks at a quiet queue on a local file system
_QUIET_MOST = 5.0  # seconds between listings of a queue on a network that stays quiet
_HOSTS_EVERY = 15.0
_OTHERS_EVERY = 10.0
_OTHERS = 8  # heartbeats of workers on other hosts that are read to find an idle one
_PEEK = {False: 5000, True: 500}  # dropped files that are opened per listing, for their priority
_COMPLAINTS = 1000
_LATE = "5000.9999999999999.999999"  # the place of what was not opened yet
_UNSURE = 50 * 10**6  # ns for which a folder's mtime may stay the same though it changed


class Taken(NamedTuple):
    """A name to be claimed. drop: of a dropped file."""

    name: str
    pod: Optional[Pod]
    drop: Optional[drops.Drop]


# --- the order ---------------------------------------------------------------------------------


def key_of(pod):
    # type: (str) -> str
    """Sorts as the queue does by default; pod: its identity."""
    return pod[1:26]


def key_of_drop(priority, born):
    # type: (int, int) -> str
    return "%04d.%013d.%06d" % (5000 - priority, born, 0)


def ordered(entries, order):
    # type: (Iterable[Tuple[str, str]], str) -> List[Tuple[str, str]]
    """(key, name) of everything that waits, in the order in which it should begin."""
    if order == "age":
        return sorted(entries, key=lambda entry: (entry[0][5:], entry[1]))
    if order == "name":  # pods have no names that people gave: they come first, by age
        return sorted(
            entries,
            key=lambda entry: (
                (0, entry[0][5:], "") if names.read_pod(entry[1]) else (1, "", entry[1])
            ),
        )
    return sorted(entries)


def home_of(name, hosts):
    # type: (str, Sequence[str]) -> str
    """The host that takes this name first: few names change theirs when a host comes or goes."""
    return hosts[_best(name, _seeds(hosts))]


def _seeds(hosts):
    # type: (Sequence[str]) -> List[int]
    return [zlib.crc32(host.encode()) for host in hosts]


def _best(name, seeds):
    # type: (str, List[int]) -> int
    value = zlib.crc32(os.fsencode(name))
    # a checksum is linear, so without the product two hosts would differ in one way for all names
    scores = [(value ^ seed) * 0x9E3779B1 & 0xFFFFFFFF for seed in seeds]
    return scores.index(max(scores))


def arranged(entries, host, hosts):
    # type: (Sequence[Tuple[str, str]], str, Sequence[str]) -> List[Tuple[bool, str, str]]
    """(mine, key, name): within each window first what is this host's."""
    if len(hosts) < 2:
        return [(True, key, name) for key, name in entries]
    found = []  # type: List[Tuple[bool, str, str]]
    seeds, me = _seeds(hosts), list(hosts).index(host)
    size = WINDOW * len(hosts)
    for start in range(0, len(entries), size):
        window = [
            (_best(name, seeds) == me, key, name) for key, name in entries[start : start + size]
        ]
        found += [entry for entry in window if entry[0]]
        found += [entry for entry in window if not entry[0]]
    return found


# --- the list ----------------------------------------------------------------------------------


class _Head(NamedTuple):
    """The first line of the list. listed: monotonic. took: seconds. mtime: of the queue just
    before. quiet: listings in a row that found nothing. hosts_at: when they were looked up.
    complaints: of what is no job, the file's state and why. seen: as in Drops."""

    token: str
    listed: float
    took: float
    mtime: int
    quiet: int
    hosts: List[str]
    hosts_at: float
    complaints: Dict[str, List[Any]]
    seen: Dict[str, List[Any]]


_NONE = _Head("", -1e9, 0.0, 0, 0, [], -1e9, {}, {})


class View(object):
    """files: of the project. host: of this one, as in owners. drops: reads what people dropped."""

    def __init__(self, run, project, files, host, dropped):
        # type: (layout.RunDir, str, Any, str, drops.Drops) -> None
        self._files = files
        self._host = names.host_part(host)
        self._drops = dropped
        self._network = files.network
        self._queue = os.path.join(files.root, names.QUEUE)
        self._path = run.file(layout.view_name(project))
        self._lock = os.open(
            run.file(layout.view_lock_name(project)),
            os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
        )
        self._head = _NONE
        self._begin = 0  # where the names begin in the list
        self._at = 0
        self._collided = 0
        self._again = False  # to be listed again though the folder has not changed

    def close(self):
        # type: () -> None
        os.close(self._lock)

    def complaints(self):
        # type: () -> Dict[str, str]
        """Files that are no jobs, as far as this worker knows: {name: why}. For any thread."""
        return dict((name, why[-1]) for name, why in list(self._head.complaints.items()))

    def claimed(self, done):
        # type: (bool) -> None
        """Tell whether a name that was taken could be claimed."""
        self._collided = 0 if done else self._collided + 1

    def take(self, most, until, meanwhile=None, every=15.0):
        # type: (int, float, Optional[Callable[[Sequence[str]], None]], float) -> List[Taken]
        """Up to so many names, in order. Waits until there are some, or until then (monotonic): 0
        does not wait at all, and finds nothing while another worker watches. meanwhile(hosts that
        have workers): called every so many seconds by the one worker of the host that watches."""
        if not self._acquire(until > 0):
            return []
        duty = time.monotonic() + random.random() * every
        try:
            while True:
                found = self._take(most)
                now = time.monotonic()
                if found or now >= until:
                    return found
                if meanwhile is not None and now >= duty:
                    meanwhile(self._head.hosts)
                    duty = now + every
                time.sleep(min(self._pause(now), until - now))
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def someone_is_idle(self):
        # type: () -> bool
        """Whether some worker has nothing to do: one of this host, or of another (looked up rarely,
        by one for all workers of this host)."""
        for pause in (0.01, 0.02, 0.0):  # who only takes names has the lock for less
            if self._acquire(False):
                break
            time.sleep(pause)
        else:
            return True
        try:
            now = time.monotonic()
            path = self._path + ".idle"
            try:
                with open(path, "rb") as handle:
                    looked, idle = json.loads(handle.read().decode("ascii"))
            except (OSError, ValueError, TypeError):
                looked, idle = -1e9, False
            if not 0 <= now - looked < _OTHERS_EVERY:
                idle = self._others_are_idle()
                with open(path, "wb") as handle:
                    handle.write(json.dumps([now, idle]).encode("ascii"))
            return bool(idle)
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _others_are_idle(self):
        # type: () -> bool
        found = []
        for name in self._files.do(steps.List(names.OWNERS)):
            try:
                if names.read_owner(name)[0] != self._host:
                    found.append(name)
            except ValueError:
                pass
        random.shuffle(found)
        for name in found[:_OTHERS]:
            data = self._files.do(steps.Read(names.heartbeat(name)))
            if heart.read(data).get("state") == "idle":
                return True
        return False

    def _acquire(self, wait):
        # type: (bool) -> bool
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            return False
        self._load()
        return True

    # --- with the lock ---------------------------------------------------------------------

    def _take(self, most):
        # type: (int) -> List[Taken]
        now = time.monotonic()
        self._refresh(now)
        found = []  # type: List[Taken]
        while len(found) < most:
            entries = self._read(most - len(found))
            if not entries:
                break
            for mine, _, name in entries:
                taken = None
                if mine or self._collided < 2:  # else its host was quicker, and will be again
                    taken = self._look(name, now)
                if taken is not None:
                    found.append(taken)
                else:
                    self._again = True
        self._save()
        return found

    def _look(self, name, now):
        # type: (str, float) -> Optional[Taken]
        pod = names.read_pod(name)
        if pod is not None:
            return Taken(name, pod, None)
        drop = self._peek(name, now)
        return Taken(name, None, drop) if drop is not None else None

    def _peek(self, name, now):
        # type: (str, float) -> Optional[drops.Drop]
        try:
            drop = self._drops.read(name, now)
        except drops.NoJob as error:
            if len(self._head.complaints) < _COMPLAINTS:
                self._head.complaints[name] = self._state(name) + [str(error)]
            return None
        if drop is None:
            self._again = True  # whoever closes it does not change the folder
        return drop

    def _state(self, name):
        # type: (str) -> List[Any]
        try:
            found = os.lstat(os.path.join(self._queue, name))
            return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode]
        except OSError:
            return [0, 0, 0, 0]

    def _pause(self, now):
        # type: (float) -> float
        if not self._network:
            return _WATCH_EVERY
        return max(self._next_listing() - now, 0.05)

    # --- listing ---------------------------------------------------------------------------

    def _next_listing(self):
        # type: () -> float
        """When the queue may be listed again, if the list is used up."""
        head = self._head
        every = _LIST_EVERY[self._network]
        if self._network and head.quiet:
            every = min(every + 0.5 * head.quiet, _QUIET_MOST)
        return head.listed + max(every, _LIST_SHARE * head.took)

    def _refresh(self, now):
        # type: (float) -> None
        head = self._head
        if self._collided >= 2:
            if now < head.listed + max(1.0, _LIST_SHARE * head.took):
                return
            time.sleep(random.random() * 0.2)  # so that hosts that met do not meet again
        elif self._used_up():
            if now < self._next_listing():
                return
        elif now < head.listed + max(1.0, _RELIST_SHARE * head.took):
            return
        if not self._network and not self._again and self._mtime() == head.mtime:
            return
        self._list()

    def _mtime(self):
        # type: () -> int
        try:
            return os.stat(self._queue).st_mtime_ns
        except OSError:
            return 0

    def _list(self):
        # type: () -> None
        began = time.monotonic()
        mtime = self._mtime()
        self._again = abs(time.time() * 10**9 - mtime) < _UNSURE
        self._drops.seen = self._head.seen
        known = self._keys()
        complaints = self._head.complaints
        entries = []  # type: List[Tuple[str, str]]
        opened = 0
        present = self._files.do(steps.List(names.QUEUE))
        for name in present:
            if names.read_pod(name) is not None:
                entries.append((key_of(name), name))
            elif names.is_dropped(name):
                if name in complaints and complaints[name][:-1] == self._state(name):
                    continue
                complaints.pop(name, None)
                key = known.get(name)
                if key is None and opened < _PEEK[self._network]:
                    opened += 1
                    drop = self._peek(name, began)
                    if drop is not None:
                        key = key_of_drop(drop.priority, drop.born)
                    elif name not in complaints:
                        continue  # it is being written
                if name not in complaints:
                    entries.append((key or _LATE, name))
        hosts, hosts_at = self._hosts(began)
        arrangement = arranged(ordered(entries, self._order()), self._host, hosts)
        there = set(present)
        self._store(
            _Head(
                layout.nonce(),
                began,
                time.monotonic() - began,
                mtime,
                0 if entries or self._again else self._head.quiet + 1,
                hosts,
                hosts_at,
                dict((name, why) for name, why in complaints.items() if name in there),
                dict((name, since) for name, since in self._drops.seen.items() if name in there),
            ),
            arrangement,
        )
        self._collided = 0

    def _order(self):
        # type: () -> str
        data = self._files.do(steps.Read(names.ORDER)) or b""
        order = data.decode("ascii", "replace").strip()
        return order if order in ORDERS else ORDERS[0]

    def _hosts(self, now):
        # type: (float) -> Tuple[List[str], float]
        """Hosts that have workers, this one among them."""
        if now - self._head.hosts_at < _HOSTS_EVERY:
            return self._head.hosts, self._head.hosts_at
        found = set([self._host])
        for name in self._files.do(steps.List(names.OWNERS)):
            try:
                found.add(names.read_owner(name)[0])
            except ValueError:
                pass
        return sorted(found), now

    # --- the shared files ------------------------------------------------------------------
    # The list: a line with the head, then one line per name. The lock's own content: which list,
    # how far it is used up. Whatever is torn or from before a reboot is as good as none. Nobody
    # reads without the lock, so the list is written in place: no half-made file can be left.

    def _load(self):
        # type: () -> None
        try:
            token, at, self._again = json.loads(os.pread(self._lock, 200, 0).decode("ascii"))
        except (ValueError, TypeError, OSError):
            token, at = "", 0
        if token != self._head.token or not token:
            self._head = _NONE
            try:
                with open(self._path, "rb") as handle:
                    head = _Head(*json.loads(handle.readline().decode("ascii")))
                    if head.token == token and head.listed <= time.monotonic():
                        self._head, self._begin = head, handle.tell()
            except (ValueError, TypeError, OSError):
                pass
        self._at = at if self._head.token else 0

    def _save(self):
        # type: () -> None
        data = json.dumps([self._head.token, self._at, self._again]).encode("ascii")
        os.pwrite(self._lock, data.ljust(80), 0)

    def _store(self, head, arrangement):
        # type: (_Head, List[Tuple[bool, str, str]]) -> None
        first = json.dumps(list(head)).encode("ascii") + b"\n"
        self._head = _NONE
        self._save()  # until we are done there is no list: a killed writer leaves a torn one only
        with open(self._path, "wb") as handle:
            handle.write(first)
            for entry in arrangement:
                handle.write(json.dumps(entry).encode("ascii") + b"\n")
        self._head, self._begin, self._at = head, len(first), len(first)

    def _used_up(self):
        # type: () -> bool
        if not self._head.token:
            return True
        try:
            return self._at >= os.stat(self._path).st_size
        except OSError:
            return True

    def _read(self, most):
        # type: (int) -> List[Tuple[bool, str, str]]
        """The next names of the list, which are then used up."""
        if not self._head.token:
            return []
        found = []  # type: List[Any]
        try:
            with open(self._path, "rb") as handle:
                handle.seek(self._at)
                while len(found) < most:
                    line = handle.readline()
                    if not line:
                        break
                    found.append(tuple(json.loads(line.decode("ascii"))))
                self._at = handle.tell()
        except (OSError, ValueError):
            self._head = _NONE
            return []
        return found

    def _keys(self):
        # type: () -> Dict[str, str]
        """The keys of dropped files that were opened for an earlier list."""
        found = {}  # type: Dict[str, str]
        if self._head.token:
            self._at = self._begin
            for _, key, name in self._read(10**9):
                if key != _LATE and names.read_pod(name) is None:
                    found[name] = key
        return found
