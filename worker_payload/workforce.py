"""The agent's workers: what they are given, print and answer, and how they end.

A worker whose master does not read is not read either, and one with a large answer waits for its
turn (see turns.py).
"""

import functools
import os
import signal
import socket
import time
from typing import Any, Dict, Optional

from worker_payload import codec, procs, records, shelf
from worker_payload.board import AFTER, BEFORE, PLACES, Bell, Board
from worker_payload.channel import Channel
from worker_payload.lost import Obituary
from worker_payload.orders import AGAIN
from worker_payload.poller import WRITE as WRITABLE
from worker_payload.watching import Watching
from worker_payload.workerio import WorkerIO


class Workforce(Watching):
    """The agent, as far as it has workers."""

    def __init__(self, board, *args):
        # type: (Board, *Any) -> None
        Watching.__init__(self, *args)
        self._board = board
        self._bell = Bell()
        self._places = list(range(PLACES - 1, -1, -1))
        self._silent = {}  # type: Dict[int, float]  # workers that closed their end, and since when
        self._obituary = Obituary()

    # --- which of them are read ------------------------------------------------------------------

    def _watch_worker(self, io):
        # type: (WorkerIO) -> None
        if io.watched:
            return
        io.watched = True
        for stream in io.streams:
            if not stream.ended:
                self._watch(stream.fd, functools.partial(self._on_output, io, stream), True)
        self._watch(io.replies, lambda: self._on_worker(io))
        if not io.sender.idle:
            self._watch_out(io)

    def _unwatch_worker(self, io):
        # type: (WorkerIO) -> None
        if io.watched:
            io.watched = False
            for fd in [stream.fd for stream in io.streams] + [io.sock, io.replies]:
                self._unwatch(fd)

    def _pause(self, channel):
        # type: (Channel) -> None
        for number in self._host.workers_of(channel.number):
            io = self._workers.get(number)
            if io is not None and number not in channel.paused:
                channel.paused.add(number)
                self._unwatch_worker(io)

    def _resume(self, channel):
        # type: (Channel) -> None
        for number in channel.paused:
            io = self._workers.get(number)
            if io is not None:
                self._watch_worker(io)
        channel.paused.clear()

    # --- what they print and answer --------------------------------------------------------------

    def _on_output(self, io, stream, ticket=0):
        # type: (WorkerIO, Any, int) -> None
        data = stream.read()
        if data is None:
            return
        if not data:
            self._unwatch(stream.fd)
        for piece in stream.admit(data, self._host.ticket_of(io.number), self._current(io)):
            self._host.output(io.number, ticket, stream.number, piece)

    def _drain(self, io, ticket):
        # type: (WorkerIO, int) -> None
        """All that a worker printed so far."""
        current = self._current(io)
        for stream in io.streams:
            for _ in range(64):
                data = stream.read()
                if not data:
                    break
                for piece in stream.admit(data, ticket, current):
                    self._host.output(io.number, ticket, stream.number, piece)
            for piece in stream.finish():
                self._host.output(io.number, ticket, stream.number, piece)

    def _current(self, io):
        # type: (WorkerIO) -> int
        """The ticket that a worker works on, as it says itself; 0 if there is none."""
        return self._board.ticket(io.place)

    def _on_worker(self, io):
        # type: (WorkerIO) -> None
        try:
            answers = io.answers()  # type: Any
        except MemoryError as error:
            answers = error
        self._take_answers(io, answers)

    def _take_answers(self, io, answers):
        # type: (WorkerIO, Any) -> None
        """What WorkerIO.answers gave, or raised."""
        if isinstance(answers, MemoryError):
            self._log("worker %d: no memory for its answer" % io.number)
            io.note = "the agent has no memory for its answer"
            self._kill(io)
            return
        if answers is None:
            self._unwatch(io.replies)
            if not io.retired and io.number in self._workers:
                self._silent[io.number] = time.monotonic()
            return
        for ok, wrote, ticket, seconds, payload in answers:
            if wrote or io.streams[0].dropped or io.streams[1].dropped:
                self._drain(io, ticket)
            self._host.answered(io.number, ticket, ok, bool(wrote), seconds, payload)
        if io.asks is not None:
            self._on_large(io)
        elif io.waits_for is not None and answers:
            self._end_turn(io)

    def _on_large(self, io):
        # type: (WorkerIO) -> None
        """A worker has a large answer, and waits."""
        ticket, size = io.asks  # type: ignore[misc]
        io.asks = None
        master, order = self._host.asked(io.number, ticket)
        channel = self._channels.get(master)
        if channel is None:
            io.go_on()  # its answer stays here, or nobody wants it
        else:
            io.waits_for = channel
            channel.turns.ask(io.number, order, size)
            self._dirty.add(channel)

    def _end_turn(self, io):
        # type: (WorkerIO) -> None
        channel, io.waits_for = io.waits_for, None
        if channel is not None:
            channel.turns.leave(io.number)
            self._dirty.add(channel)

    # --- what they are given ---------------------------------------------------------------------

    def _do_give(self, action):
        # type: (records.Give) -> None
        io = self._workers.get(action.worker)
        if io is None:
            return
        try:
            done = io.sender.send(action.commands, action.fds)
        except OSError:
            return  # it is gone: its template will tell
        if not done:
            self._watch_out(io)

    def _do_repeat(self, action):
        # type: (records.Repeat) -> None
        before, call, params, given = action
        for number, ticket, digest, inline in given:
            io = self._workers.get(number)
            if io is None:
                continue  # it died meanwhile, which was told
            try:
                if not io.sender.send([(AGAIN, ticket, before, call, digest, inline, params)]):
                    self._watch_out(io)
            except OSError:
                pass  # it is gone: its template will tell

    def _watch_out(self, io):
        # type: (WorkerIO) -> None
        """Go on sending when the worker takes more."""
        if io.watched and io.sock not in self._poller:
            self._poller.register(io.sock, WRITABLE, (True, lambda: self._more(io)))

    def _more(self, io):
        # type: (WorkerIO) -> None
        try:
            done = io.sender.flush()
        except OSError:
            done = True  # it is gone: its template will tell
        if done:
            self._unwatch(io.sock)

    def _at_work(self, number):
        # type: (int) -> int
        """The ticket that a worker works on."""
        io = self._workers.get(number)
        return self._current(io) if io is not None else 0

    def _do_withdraw(self, action):
        # type: (records.Withdraw) -> None
        io = self._workers.get(action.worker)
        if io is not None:
            place = self._board.place(io.place)
            place[AFTER], place[BEFORE] = action.after, action.before

    def _do_shelve(self, action):
        # type: (records.Shelve) -> None
        for _ in range(action.files):
            fd = shelf.make(self.run_dir.path)
            if fd is None:
                break  # answers come through the sockets then
            self._host.shelved(fd)

    def _do_fill(self, action):
        # type: (records.Fill) -> None
        part = action.part
        fd = shelf.make(self.run_dir.path)
        if fd is not None and shelf.put(fd, codec.blob_parts(part.segments or [])):
            part = part._replace(segments=None, fd=fd)
        elif fd is not None:
            os.close(fd)
        self._host.filled(action.call, part)

    # --- how they end ----------------------------------------------------------------------------

    def _do_interrupt(self, action):
        # type: (records.Interrupt) -> None
        io = self._workers.get(action.worker)
        if io is None:
            return
        if io.pid:
            procs.kill([io.pid], signal.SIGINT)
        else:
            io.sender.close()

    def _do_kill(self, action):
        # type: (records.Kill) -> None
        io = self._workers.get(action.worker)
        if io is not None:
            self._kill(io)

    def _kill(self, io):
        # type: (WorkerIO) -> None
        """The worker and all that came of it. Its template reaps it and tells."""
        io.killed = True
        if io.pid:
            io.family |= procs.descendants([io.pid])
            procs.kill_group(io.pid)
        else:
            io.retired = True
            self._unwatch_worker(io)
            io.sender.close()

    def _do_retire(self, action):
        # type: (records.Retire) -> None
        io = self._workers.get(action.worker)
        if io is not None:
            io.retired = True
            try:
                io.sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    def _worker_gone(self, number, exit_, signal_, note):
        # type: (int, Optional[int], Optional[int], str) -> None
        io = self._workers.get(number)
        if io is None:
            return
        if io.replies.fileno() >= 0:
            for _ in range(1 << 16):  # what it answered before it died still counts
                try:
                    answers = io.answers()
                except MemoryError:
                    break
                if not answers:
                    break
                for ok, wrote, ticket, seconds, payload in answers:
                    self._drain(io, ticket)
                    self._host.answered(number, ticket, ok, bool(wrote), seconds, payload)
        ticket = self._current(io)
        self._drain(io, ticket)
        if not io.retired:
            # what it left behind: still its children, or those that carry its mark
            family = io.family | procs.marked(lambda m: m.get(procs.WORKER) == io.nonce)
            procs.kill(pid for pid in family if procs.is_alive(pid))
        if io.deserted and signal_ == signal.SIGKILL:
            note = note or "it closed its connection to the agent, which then ended it"
        note = note or io.note or self._obituary.note(signal_, io.killed)
        self._host.gone(number, exit_, signal_, ticket, io.last_words(ticket), note)
        del self._workers[number]
        self._silent.pop(number, None)
        io.kind.workers.discard(number)
        for channel in self._channels.values():
            channel.paused.discard(number)
        self._end_turn(io)
        self._unwatch_worker(io)
        io.close()
        self._places.append(io.place)
