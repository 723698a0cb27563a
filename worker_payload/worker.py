"""A worker: one process that calls one map function, task after task.

It reads commands from its agent and writes answers back, on blocking sockets. Commands are
lists of tuples (see `Worker._do`); for answers see `answers`.
"""

import io
import marshal
import mmap
import os
import pickle
import select
import struct
import sys
import time
import traceback
from typing import Any, Dict, List, Optional, Tuple

from worker_payload import answers, calls, codec, links, partials, procs, shared, wire

PLACE = 24  # bytes of a worker on the board
TICKET = struct.Struct("=Q")
RANGE = struct.Struct("=QQ")

# commands of the agent
CODE, BEGIN, TASK, END, DROP, RELEASE, AGAIN, PART, LAP = range(9)

_BUFFER = 65536
_SHARE_SECONDS = 0.02  # params that take longer to read are read once per call, not once per task
_SPAN_SECONDS = 0.05  # after which a worker ends a span early: others may be idle
_REAP_EVERY = 256  # tasks
_SHORT = 1024  # bytes of an answer that is sent in the shortest way
_STRANGERS = 64  # zombies that may be left in our care
_PLAIN = (int, float, str, bytes, bool, type(None))


class _Marks(object):
    """touched: something was done to a stream. wrote: it has written."""

    touched = wrote = False


class _Raw(io.FileIO):
    """Standard output or error."""

    def __init__(self, fd, marks):
        # type: (int, _Marks) -> None
        super().__init__(fd, "w", closefd=False)
        self._marks = marks

    def write(self, data):
        # type: (Any) -> int
        self._marks.touched = self._marks.wrote = True
        return super().write(data)

    def close(self):
        # type: () -> None
        self._marks.touched = True
        super().close()


class _Buffer(io.BufferedWriter):
    """In front of it. What is written, flushed or taken off passes here, so that nobody has to look
    at streams to which nothing was done."""

    def __init__(self, raw, marks):
        # type: (_Raw, _Marks) -> None
        super().__init__(raw)
        self._marks = marks

    def write(self, data):
        # type: (Any) -> int
        self._marks.touched = True
        return super().write(data)

    def flush(self):
        # type: () -> None
        self._marks.touched = True
        super().flush()


class _Streams(object):
    """stdout and stderr of this process, put right again after each task."""

    def __init__(self):
        # type: () -> None
        self._kept = [os.dup(fd) for fd in (1, 2)]
        self._marks = _Marks()
        poller = select.poll()
        for fd in (1, 2):
            poller.register(fd, 0)
        self._poll = poller.poll  # tells in one go of both whether something is wrong with them
        self._open()

    def _open(self):
        # type: () -> None
        self.out, self.err = (
            io.TextIOWrapper(
                _Buffer(_Raw(fd, self._marks), self._marks),
                encoding="utf-8",
                errors="backslashreplace",
                line_buffering=True,
                write_through=True,
            )
            for fd in (1, 2)
        )
        sys.stdout, sys.stderr = self.out, self.err
        sys.__stdout__, sys.__stderr__ = self.out, self.err  # type: ignore[misc]

    def settle(self):
        # type: () -> int
        """Flush; 1 if anything was written since the last time. Undoes closing and replacing."""
        try:
            whole = sys.stdout is self.out and sys.stderr is self.err and not self._marks.touched
            if whole and not self._poll(0):
                return 0
        except AttributeError:  # sys has none
            pass
        return self._put_right()

    def _put_right(self):
        # type: () -> int
        ours = self.out, self.err
        for other in _there():
            if other is not self.out and other is not self.err:
                _flush(other)
        sys.stdout, sys.stderr = ours
        broken = not all([_flush(stream) for stream in ours])
        wrote = self._marks.wrote
        if broken or any(event & select.POLLNVAL for _, event in self._poll(0)):
            broken = True
            for fd, kept in zip((1, 2), self._kept):
                os.dup2(kept, fd)
        if broken or not all(getattr(stream, "write_through", True) for stream in ours):
            self._open()
        self._marks.touched = self._marks.wrote = False
        return 1 if wrote else 0


def _flush(stream):
    # type: (Any) -> bool
    try:
        stream.flush()
        return True
    except BaseException:  # closed, or not a file at all
        return False


def _there():
    # type: () -> List[Any]
    """What stands for the streams now: user code may have taken them away."""
    return [getattr(sys, "stdout", None), getattr(sys, "stderr", None)]


def _flush_what_is_there():
    # type: () -> None
    for stream in _there():
        _flush(stream)


class _Call(object):
    """What tasks of one call share: params and how to hand out slices. total: of slices, if their
    answers are combined, else 0."""

    def __init__(self, id_, module, params, writable, spans, function, total):
        # type: (int, str, Any, bool, bool, Optional[str], int) -> None
        self.id = id_
        self.module = module
        self.params = params
        self.writable = writable
        self.spans = spans
        self.function = function
        self.partials = partials.Partials(total) if total else None
        self.special = spans or self.partials is not None  # a task is not just a slice
        self.shared = None  # type: Optional[List[Any]]
        self.map = None  # type: Any  # the function itself, once it was loaded

    def again(self, id_, params):
        # type: (int, bytes) -> None
        """It is another one from now on, with these params."""
        self.id, self.params, self.shared = id_, params, None

    def get_params(self):
        # type: () -> Any
        """A fresh object for each task, so that a task cannot see what another one changed;
        except where reading takes long."""
        if type(self.params) is bytes and not self.spans:  # read once, and soon
            data = bytearray(self.params) if self.writable else self.params
            return codec.decode_blob(data, self.writable)
        if self.shared is not None:
            return self.shared[0]
        began = time.perf_counter()
        value = read_blob(self.params, self.writable)
        if type(value) in _PLAIN or time.perf_counter() - began > _SHARE_SECONDS:
            self.shared = [value]
        return value


def map_file(fd, writable):
    # type: (int, bool) -> Any
    access = mmap.ACCESS_COPY if writable else mmap.ACCESS_READ
    return mmap.mmap(fd, 0, access=access)


def read_blob(source, writable):
    # type: (Any, bool) -> Any
    """The object in a blob given as bytes, as a mapping, or as a descriptor to map privately."""
    if isinstance(source, Held):
        data = map_file(source.fd, True) if writable else source.mapping()
    else:
        data = bytearray(source) if writable else source
    return codec.decode_blob(data, writable)


class Held(object):
    """A blob in a file that this worker has open."""

    def __init__(self, fd):
        # type: (int) -> None
        self.fd = fd
        self._mapping = None  # type: Any

    def mapping(self):
        # type: () -> Any
        if self._mapping is None:
            self._mapping = map_file(self.fd, False)
        return self._mapping

    def close(self):
        # type: () -> None
        """The mapping itself lives as long as an array that uses it."""
        os.close(self.fd)
        self._mapping = None


class Worker(object):
    """board: shared memory with PLACE bytes of ours at `place`: the ticket being worked on, so that
    the agent knows which task killed us, and the two between which we shall begin none."""

    def __init__(self, sock, replies, board, place):
        # type: (Any, Any, Any, int) -> None
        self._sock = sock
        self._replies = replies
        # the ticket we work on, and the two between which we begin none
        self._place = memoryview(board)[place : place + PLACE].cast("Q")
        self._pid = os.getpid()
        self._home = os.open(".", os.O_RDONLY | os.O_CLOEXEC)
        self._streams = _Streams()
        self._reader = links.Reader()
        self._code = None  # type: Any
        self._functions = {}  # type: Dict[Any, Any]
        self._at = 0  # type: Any  # which slice of a span; the block that reduce could not join
        self._calls = {}  # type: Dict[int, _Call]
        self._last = None  # type: Any  # what a LAP repeats: call, ticket less its number, source
        self._slices = {}  # type: Dict[str, Held]

    def run(self):
        # type: () -> None
        """Until the agent closes the socket."""
        buffer = bytearray(_BUFFER)
        view = memoryview(buffer)
        while True:
            if self._last is None or not self._reader.at_boundary:
                count, ancillary, _, _ = self._sock.recvmsg_into([buffer], links.SPACE)
            else:
                count, ancillary = self._laps(buffer, view)
            if not count:
                return
            frames = self._reader.feed(view[:count], links.descriptors(ancillary))
            for commands, files in frames:
                if type(commands) is tuple:
                    self._lap(commands)
                    continue
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
                        self._task(again, ticket, source)
                    else:
                        self._do(command, files)

    def _laps(self, buffer, view):
        # type: (bytearray, memoryview) -> Tuple[int, Any]
        """The last task again and again, with other params each time, until something else comes:
        what was received then.

        All goes as in `_task`, but with everything within reach and written out: others had the
        processor since the last lap, and whatever is looked up here comes from far away."""
        call, offset, source = self._last
        function, writable, lap = call.map, call.writable, None
        receive, into, space = self._sock.recvmsg_into, [buffer], links.SPACE
        unpack, head, loads = links.FRAME.unpack_from, links.FRAME.size, marshal.loads
        place, home, pid, settle = self._place, self._home, self._pid, self._streams.settle
        unpickle, decode, encode = pickle.loads, codec.decode_blob, codec.encode_result
        clock, getpid, fchdir = time.perf_counter, os.getpid, os.fchdir
        pack, write = answers.ONE_SEGMENT.pack, self._replies.sendall
        value = piece = segments = data = None  # type: Any
        while True:
            count, ancillary, _, _ = receive(into, space)
            length, files = unpack(buffer)
            alone = length == count - head and not files and not ancillary
            command = loads(view[head:count]) if alone else None
            if type(command) is not tuple:
                if lap is not None:
                    self._went(call, lap)
                return count, ancillary
            lap = command
            _, number, params, bare = lap
            place[0] = ticket = number + offset
            if place[1] < ticket < place[2]:
                place[0] = 0
                continue  # withdrawn
            kind, began = answers.RESULT, clock()
            try:
                piece = None
                if source is not None:
                    piece = shared.load(read_blob(source, writable), writable)
                if bare:
                    value = unpickle(params)
                else:
                    value = decode(bytearray(params) if writable else params, writable)
                segments = encode(function(value, piece))
            except BaseException as error:
                kind, segments = answers.FAILURE, self._failure(call, error)
            seconds = clock() - began
            if getpid() != pid:
                self._leave()
            wrote = settle()
            fchdir(home)
            if not ticket % _REAP_EVERY:
                procs.reap_strangers(_STRANGERS)
            place[0] = 0
            if len(segments) == 1 and len(segments[0]) < _SHORT:
                data = segments[0]
                write(pack(kind, wrote, ticket, seconds, 1, len(data)) + data)
            else:
                answers.send(self._replies, kind, wrote, ticket, seconds, segments)
            value = piece = segments = data = None  # which may be large, and we may wait for long

    def _lap(self, command):
        # type: (Any) -> None
        """One that came together with something else."""
        call, offset, source = self._last
        self._went(call, command)
        self._task(call, call.id + offset, source)

    def _went(self, call, lap):
        # type: (_Call, Any) -> None
        """A call has come to this lap."""
        _, number, params, bare = lap
        self._calls[number] = self._calls.pop(call.id)
        call.again(number, b"".join(codec.blob_parts([params])) if bare else params)

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
            self._calls[call] = _Call(call, module, source, writable, spans, function, total)
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
        elif kind == PART:
            self._calls[command[1]].partials.prepare(command, files)  # type: ignore[union-attr]
        elif kind == RELEASE:
            calls.release_memory()
            procs.reap_strangers(_STRANGERS)

    def _task(self, call, ticket, source):
        # type: (_Call, int, Any) -> None
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
        if not ticket % _REAP_EVERY:
            procs.reap_strangers(_STRANGERS)
        place[0] = 0
        if segments:
            answers.send(self._replies, kind, wrote, ticket, seconds, segments)
            return
        if wrote:  # what it printed belongs to this ticket, and its answer is one of several
            answers.send(self._replies, answers.RESULT, wrote, ticket, seconds, [partials.LATER])
        if call.partials.wait(ticket, seconds) or wrote:  # type: ignore[union-attr]
            self._give_out(call)

    def _failure(self, call, error):
        # type: (_Call, BaseException) -> List[Any]
        """What is said of it; nothing by a fork of us."""
        if os.getpid() != self._pid:
            return []
        self._give_out(call)
        at = self._at if call.special else 0
        return [marshal.dumps(calls.describe(error) + (at,))]

    @staticmethod
    def _leave():
        # type: () -> None
        """End a fork of us that came back from the user's code: what it says is nobody's answer."""
        _flush_what_is_there()
        os._exit(0)

    def _give_out(self, call):
        # type: (_Call) -> None
        """Answer what we keep of a call, if it is one whose answers are combined."""
        if call.partials is not None and call.partials.waiting:
            ticket, seconds, segments = call.partials.give_out()
            answers.send(self._replies, answers.RESULT, 0, ticket, seconds, segments)

    def _load(self, call):
        # type: (_Call) -> Any
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
        # type: (_Call, Any, Any, float) -> List[Any]
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
        # type: (_Call, Any, List[Any], float) -> List[Any]
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


def main(sock, replies, board, place):
    # type: (Any, Any, Any, int) -> None
    """The life of a worker process, from fork to exit. Never returns."""
    pid, status = os.getpid(), 1
    try:
        Worker(sock, replies, board, place).run()
        status = 0
    except (KeyboardInterrupt, ConnectionError):
        pass  # told to end, or the agent is gone
    except BaseException:
        if os.getpid() == pid:
            traceback.print_exc()
    finally:
        _flush_what_is_there()
        os._exit(status)
