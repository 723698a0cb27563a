"""A worker: one process that calls one map function, task after task.

It reads commands from its agent and writes answers back, on blocking sockets. Commands are
lists of tuples (see `Worker._do`); for answers see `answers`.
"""

import io
import marshal
import mmap
import operator
import os
import pickle
import select
import sys
import time
import traceback
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from worker_payload import answers, board, calls, codec, links, partials, procs, shared, wire
from worker_payload.called import REAP_EVERY, STRANGERS, Called, Share
from worker_payload.known import Held, KnownCall, read_blob
from worker_payload.orders import AGAIN, BEGIN, CODE, DROP, END, PART, RELEASE, SHARE, TASK
from worker_payload.streams import flush_what_is_there

_BUFFER = 65536
_SPAN_SECONDS = 0.05  # after which a worker ends a span early: others may be idle


class Worker(Called):
    """One that takes commands."""

    def __init__(self, sock, replies, bell, wall, place):
        # type: (Any, Any, List[int], board.Board, int) -> None
        Called.__init__(self, sock, replies, bell, wall, place)
        self._reader = links.Reader()
        self._code = None  # type: Any
        self._functions = {}  # type: Dict[Any, Any]
        self._at = 0  # type: Any  # which slice of a span; the block that reduce could not join
        self._slices = {}  # type: Dict[str, Held]

    def run(self):
        # type: () -> None
        """Until the agent closes the socket."""
        buffer = bytearray(_BUFFER)
        view = memoryview(buffer)
        while True:
            if self._last is not None and self._reader.at_boundary:
                self._laps()
            count, ancillary, _, _ = self._sock.recvmsg_into([buffer], links.SPACE)
            if not count:
                return
            frames = self._reader.feed(view[:count], links.descriptors(ancillary))
            for commands, files in frames:
                files.reverse()
                for command in commands:
                    if command[0] == TASK:
                        _, ticket, call, digest, inline = command
                        if inline is True:
                            assert digest is not None
                            self._slices[digest] = Held(files.pop())
                        self._task(self._calls[call], ticket, self._source(digest, inline))
                    elif command[0] == AGAIN:
                        _, ticket, before, call, digest, inline, params = command
                        if call not in self._calls:  # the first of its tasks for us
                            self._calls[call] = self._calls.pop(before)
                            self._calls[call].again(call, params)
                        again, source = self._calls[call], self._source(digest, inline)
                        self._last = None if again.special else (again, ticket - call, source)
                        self._seen = self._board.changes()
                        self._share = None
                        self._task(again, ticket, source)
                    else:
                        self._do(command, files)

    def _source(self, digest, inline):
        # type: (Optional[str], Any) -> Any
        """Of a task's slice. inline: its blob, unless we hold it as a file, or there is no
        slice."""
        if type(inline) is bytes:
            return inline
        return None if digest is None else self._slices[digest]

    def _do(self, command, files):
        # type: (Any, List[int]) -> None
        kind = command[0]
        if kind == BEGIN:
            _, call, module, params, writable, spans, function, total = command
            source = Held(files.pop()) if params is None else params
            self._calls[call] = KnownCall(call, module, source, writable, spans, function, total)
        elif kind == CODE:
            if command[1] is None:
                held = Held(files.pop())
                self._code = read_blob(held, False)
                held.close()
            else:
                self._code = read_blob(command[1], False)
        elif kind == END:
            call = self._calls.pop(command[1], None)
            if self._last is not None and call is self._last[0]:
                self._last = None
            if call is not None and isinstance(call.params, Held):
                call.params.close()
            if call is not None and call.partials is not None:
                call.partials.close()
        elif kind == DROP:
            dropped = self._slices.pop(command[1], None)
            if dropped is not None:
                dropped.close()
        elif kind == SHARE:
            _, number, self._expects, beyond, tasks, peers, self._seen = command
            self._last = self._calls[number], 0, None
            found = [(slice_, self._source(digest, inline)) for slice_, digest, inline in tasks]
            self._share = Share(beyond, found, peers)
        elif kind == PART:
            self._calls[command[1]].partials.prepare(command, files)  # type: ignore[union-attr]
        elif kind == RELEASE:
            calls.release_memory()
            procs.reap_strangers(STRANGERS)

    def _task(self, call, ticket, source):
        # type: (KnownCall, int, Any) -> None
        """source: of the slice, None if there is none."""
        place = self._place
        place[0] = ticket
        if place[1] < ticket < place[2]:
            place[0] = 0
            self._give_out(call)
            return  # withdrawn: another worker does it
        kind, began = answers.RESULT, time.perf_counter()
        try:
            function = call.map or self._load(call)
            if call.special:
                segments = self._special(call, function, source, began)
            else:
                piece = None
                if source is not None:
                    piece = shared.load(read_blob(source, call.writable), call.writable)
                segments = codec.encode_result(function(call.get_params(), piece))
        except BaseException as error:  # user code may raise KeyboardInterrupt and SystemExit too
            kind, segments = answers.FAILURE, self._failure(call, error)
        seconds = time.perf_counter() - began
        if os.getpid() != self._pid:
            self._leave()
        wrote = self._streams.settle()
        os.fchdir(self._home)
        if not ticket % REAP_EVERY:
            procs.reap_strangers(STRANGERS)
        place[0] = 0
        if segments:
            self._say(kind, wrote, ticket, seconds, segments)
            return
        if wrote:  # what it printed belongs to this ticket, and its answer is one of several
            self._say(answers.RESULT, wrote, ticket, seconds, [partials.LATER])
        if call.partials.wait(ticket, seconds) or wrote:  # type: ignore[union-attr]
            self._give_out(call)

    def _failure(self, call, error):
        # type: (KnownCall, BaseException) -> List[Any]
        """What is said of it; nothing by a fork of us."""
        if os.getpid() != self._pid:
            return []
        self._give_out(call)
        at = self._at if call.special else 0
        return [marshal.dumps(calls.describe(error) + (at,))]

    def _give_out(self, call):
        # type: (KnownCall) -> None
        """Answer what we keep of a call, if it is one whose answers are combined."""
        if call.partials is not None and call.partials.waiting:
            ticket, seconds, segments = call.partials.give_out()
            self._say(answers.RESULT, 0, ticket, seconds, segments)

    def _say(self, *answer):
        # type: (*Any) -> None
        """Answer, as `answers.send` does; or keep that for the board."""
        if self._said is None:
            answers.send(self._replies, *answer)
        else:
            self._said.append(answer)

    def _load(self, call):
        # type: (KnownCall) -> Any
        function = self._functions.get((call.module, call.function))
        if function is None:
            if isinstance(self._code, BaseException):
                raise self._code
            try:
                function = calls.load(self._code, call.module, call.function)
            except BaseException as error:
                self._code = error  # half-imported modules are not tried again in this process
                raise
            self._functions[call.module, call.function] = function
        call.map = function
        return function

    def _special(self, call, function, source, began):
        # type: (KnownCall, Any, Any, float) -> List[Any]
        """A span, or something whose answer is combined with others; then [] is: not yet."""
        self._at = 0
        if call.spans:
            return self._span(call, function, read_blob(source, call.writable), began)
        partials = call.partials
        assert partials is not None
        if partials.reduce is None:
            partials.reduce = calls.reduction(self._code, call.module)
        try:
            if partials.parts is not None:
                return partials.joined()
            piece = None if source is None else read_blob(source, call.writable)
            result = function(call.get_params(), shared.load(piece, call.writable))
            return partials.mapped(result)
        except BaseException:
            if partials.at is not None:
                self._at = partials.at
                partials.waiting = []  # the call is over
            raise

    def _span(self, call, function, pieces, began):
        # type: (KnownCall, Any, List[Any], float) -> List[Any]
        """Map each of these; what is not done in good time is left to others."""
        results = []  # type: List[Any]
        for piece in pieces:
            piece = shared.load(piece, call.writable)
            if call.function is not None:
                results.append(function(piece))
            else:
                params = call.shared[0] if call.shared is not None else call.get_params()
                results.append(function(params, piece))
            self._at += 1
            if time.perf_counter() - began > _SPAN_SECONDS:
                break
        try:
            segments = codec.encode(results)
        except codec.EncodeError:
            for self._at, one in enumerate(results):
                codec.encode_result(one)
            raise
        return [wire.SPAN.pack(len(results))] + segments


def main(sock, replies, bell, wall, place):
    # type: (Any, Any, List[int], board.Board, int) -> None
    """The life of a worker process, from fork to exit. Never returns."""
    pid, status = os.getpid(), 1
    try:
        Worker(sock, replies, bell, wall, place).run()
        status = 0
    except (KeyboardInterrupt, ConnectionError):
        pass  # told to end, or the agent is gone
    except BaseException:
        if os.getpid() == pid:
            traceback.print_exc()
    finally:
        flush_what_is_there()
        os._exit(status)
