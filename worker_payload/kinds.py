"""The kinds of workers that the agent has, and the templates that they are forked from."""

import os
import signal
import socket
import time
from typing import Any, Dict, List, Optional, Set

from worker_payload import layout, links, procs, records, template
from worker_payload.board import Board
from worker_payload.masters import Masters
from worker_payload.workerio import WorkerIO


class Kind(object):
    """The template of one kind of worker."""

    def __init__(self, name, key):
        # type: (str, records.Key) -> None
        self.name = name
        self.key = key
        self.sock = None  # type: Optional[socket.socket]
        self.sender = None  # type: Optional[links.Sender]
        self.reader = links.Reader()
        self.numpy = None  # type: Optional[str]
        self.crashes = 0
        self.workers = set()  # type: Set[int]


class Kinds(Masters):
    """The agent, as far as it starts workers."""

    def __init__(self, *args):
        # type: (*Any) -> None
        board = Board()
        # before anything that a fork should not have
        self._root_pid, self._root = template.fork(board)
        Masters.__init__(self, board, *args)
        self._root_sender = links.Sender(self._root)
        self._root_reader = links.Reader()
        self._kinds = {}  # type: Dict[records.Key, Kind]
        self._requests = {}  # type: Dict[int, Any]
        self._watch(self._root, self._on_root)
        self._default = (1, 0, ())  # type: records.Key
        self._kind(self._default)

    def _kind(self, key):
        # type: (records.Key) -> Kind
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = Kind("t%d" % (len(self._kinds) + 1), key)
        if kind.sock is None:
            ours, theirs = links.pair()
            ours.setblocking(False)
            kind.sock, kind.sender, kind.reader = ours, links.Sender(ours), links.Reader()
            threads, nice, env = key
            settings = {"threads": threads, "nice": nice, "env": dict(env)}
            if kind.crashes:
                settings["numpy"] = False
            self._tell(
                self._root_sender, (template.TEMPLATE, kind.name, settings), [theirs.fileno()]
            )
            theirs.close()
            self._watch(ours, lambda: self._on_kind(kind))
        return kind

    def _tell(self, sender, value, fds=()):
        # type: (Optional[links.Sender], Any, Any) -> None
        """To a template. It always reads, so what it does not take at once is taken soon."""
        if sender is None:
            return
        try:
            done = sender.send(value, fds)
            while not done:
                time.sleep(0.0005)
                done = sender.flush()
        except OSError:
            pass  # it is gone: its end is told elsewhere

    def _on_root(self):
        # type: () -> None
        frames = self._frames(self._root, self._root_reader)
        if frames is None:
            self.stop("the template process is gone")
            return
        for value in frames:
            if value[0] == template.GONE:
                for kind in list(self._kinds.values()):
                    if kind.name == value[1]:
                        self._kind_gone(kind, value)

    def _frames(self, sock, reader):
        # type: (socket.socket, links.Reader) -> Optional[List[Any]]
        try:
            data, fds = links.receive(sock)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            return None
        if not data:
            return None
        return [value for value, _ in reader.feed(data, fds)]

    def _on_kind(self, kind):
        # type: (Kind) -> None
        assert kind.sock is not None
        frames = self._frames(kind.sock, kind.reader)
        if frames is None:
            self._unwatch(kind.sock)  # the root will tell
            return
        for value in frames:
            what, name = value[:2]
            if what == template.READY:
                kind.numpy = name
                if kind.key == self._default:
                    self._numpy = name
                    self._greet()
            elif what == template.BORN:
                if name in self._workers:
                    self._workers[name].pid = value[2]
            elif what == template.GONE:
                self._worker_gone(name, value[2], value[3], value[4])
            elif what == template.LACKS:
                master, request = self._requests.pop(name)
                self._host.lacks(master, request, value[2])

    def _kind_gone(self, kind, value):
        # type: (Kind, Any) -> None
        self._log("template %s ended: exit %s, signal %s %s" % value[1:])
        if kind.sock is not None:
            self._unwatch(kind.sock)
            kind.sender.close()  # type: ignore[union-attr]
        if kind.numpy is None:
            kind.crashes += 1  # without numpy next time
        if kind.crashes > 2:
            self.stop("templates do not live")
            return
        kind.sock = kind.sender = None
        for number in list(kind.workers):
            io = self._workers.get(number)
            if io is not None and io.pid:
                procs.kill_group(io.pid)
            self._worker_gone(number, None, signal.SIGKILL, "its template ended")
        if kind.key == self._default:
            self._kind(kind.key)

    def _do_prepare(self, action):
        # type: (records.Prepare) -> None
        self._kind(action.key)

    def _do_require(self, action):
        # type: (records.Require) -> None
        self._next += 1
        self._requests[self._next] = (action.master, action.request)
        self._tell(self._kind(action.key).sender, (template.REQUIRE, self._next, action.names))

    def _do_spawn(self, action):
        # type: (records.Spawn) -> None
        kind = self._kind(action.key)
        try:
            place = self._places.pop()
        except IndexError:
            self._host.gone(action.worker, None, None, 0, "", "too many workers")
            return
        try:
            io, theirs = WorkerIO.make(action.worker, self._board, place, layout.nonce())
        except OSError as error:
            self._places.append(place)
            self._host.gone(action.worker, None, None, 0, "", "no worker: %s" % error)
            return
        self._board.clear(place)
        self._workers[action.worker] = io
        kind.workers.add(action.worker)
        io.kind = kind
        self._watch_worker(io)
        ends = theirs + self._bell.ends
        self._tell(kind.sender, (template.WORKER, action.worker, place, io.nonce), ends)
        for fd in theirs:
            os.close(fd)
