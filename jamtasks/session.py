"""The master's end of one host: messages in, messages out. No I/O, no thread, no clock.

A session answers by itself what needs no decision (a `Missing` blob is streamed within the credit
window); everything else it hands on. `pending()` gives the bytes to write next: small messages
first, blobs behind them, never more of these unacknowledged than a second's worth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from worker_payload import wire
from worker_payload.frames import Decoder, encode
from worker_payload.shortcuts import write_again
from worker_payload.wire import Buffer, ProtocolError

WINDOW_MIN = 256 << 10  # unacknowledged blob bytes before the rate is known
WINDOW_MAX = 16 << 20  # enough for 1 Gbit/s over 100 ms
BURST = 1 << 20  # bytes handed out by one pending(): a cancel waits behind no more than these


class State(Enum):
    GREETING = "greeting"  # our Hello is under way, the Welcome is not here
    READY = "ready"
    ENDING = "ending"  # the agent takes no more work


TRANSITIONS: dict[tuple[State, type], State] = {
    (State.GREETING, wire.Welcome): State.READY,
    (State.GREETING, wire.Beat): State.GREETING,
    (State.GREETING, wire.Ending): State.ENDING,
    **{
        (State.READY, kind): State.READY
        for kind in (
            wire.Lacks, wire.Missing, wire.Credit, wire.Started, wire.Result, wire.Failure,
            wire.Lost, wire.Revoked, wire.Output, wire.Note, wire.Refused, wire.Beat,
            wire.Combined, wire.Broken,
        )
    },
    (State.READY, wire.Ending): State.ENDING,
    **{
        (State.ENDING, kind): State.ENDING
        for kind in (wire.Result, wire.Failure, wire.Lost, wire.Revoked, wire.Output, wire.Note,
                     wire.Credit, wire.Beat, wire.Combined, wire.Broken)
    },
}  # fmt: skip

OF_A_CALL = (
    wire.Started, wire.Result, wire.Failure, wire.Lost, wire.Revoked, wire.Refused, wire.Output,
    wire.Combined, wire.Broken,
)  # fmt: skip


@dataclass
class Source:
    """A blob this host may ask for. parts: makes its buffers, when they are needed."""

    size: int
    parts: Callable[[], Sequence[Buffer]]
    calls: set[int]


class Session:
    """The conversation with one agent over one channel. The caller guards it with a lock."""

    def __init__(self, hello: wire.Hello):
        self.state = State.GREETING
        self.welcome: wire.Welcome | None = None
        self._hello = hello
        self._decoder = Decoder(wire.FROM_AGENT)
        self._control: deque[Buffer] = deque()
        self._sources: dict[str, Source] = {}
        self._calls: set[int] = set()
        self._firsts: dict[int, int] = {}  # of calls that repeat others: the first of all
        self._streams: deque[Iterator[tuple[wire.Blob, int]]] = deque()
        self._unacked = 0
        self._window = WINDOW_MIN
        self._credited: deque[tuple[float, int]] = deque()
        self._credited_sum = 0
        self.bytes_sent: dict[int, int] = {}  # of blobs, by call
        self.send(hello)

    # --- in --------------------------------------------------------------------------------

    def receive(self, data: Buffer, now: float) -> list[wire.Message]:
        """The messages for the engine in these bytes. Raises ProtocolError."""
        return [
            message for message in self._decoder.feed(data) if self._take(message, now) is not None
        ]

    def at_boundary(self) -> bool:
        """Whether what was received so far ends with a message."""
        return self._decoder.at_boundary()

    def room(self) -> memoryview | None:
        """Where the next bytes may be put instead, if much of a long answer is to come. For whoever
        calls `receive`, as is `put`; they need no lock."""
        return self._decoder.room()

    def put(self, count: int) -> None:
        """So many bytes were put there. No message ends with them."""
        self._decoder.put(count)

    def _take(self, message: Any, now: float) -> Any:
        state = TRANSITIONS.get((self.state, type(message)))
        if state is None:
            raise ProtocolError(f"{type(message).__name__} while {self.state.value}")
        self.state = state
        if isinstance(message, wire.Welcome):
            if (message.version, message.build) != (self._hello.version, self._hello.build):
                raise ProtocolError(
                    f"the agent is of build {message.build}, this is {self._hello.build}"
                )
            self.welcome = message
        elif isinstance(message, wire.Missing):
            return message if self._missing(message) else None
        elif isinstance(message, wire.Credit):
            self._credit(message.bytes, now)
            return None
        elif isinstance(message, wire.Beat):
            return None
        elif isinstance(message, OF_A_CALL) and message.call not in self._calls:
            return None  # late: the call is over
        return message

    def _missing(self, message: wire.Missing) -> bool:
        """Send what is asked for. False if none of it is wanted any more."""
        gone = []
        for digest in message.digests:
            source = self._sources.get(digest)
            if source is None:
                if message.call in self._calls:
                    raise ProtocolError(f"asks for a blob it was not told of: {digest}")
                gone.append(digest)  # its call ended while it asked
                continue
            for call in source.calls:
                self.bytes_sent[call] = self.bytes_sent.get(call, 0) + source.size
                break
            self._streams.append(self._chunks(digest, source))
        if gone:
            self.send(wire.Gone(message.call, gone))
        return len(gone) < len(message.digests)

    def _credit(self, count: int, now: float) -> None:
        if count > self._unacked:
            raise ProtocolError(f"credit for {count} bytes, {self._unacked} were sent")
        self._unacked -= count
        self._credited.append((now, count))
        self._credited_sum += count
        while self._credited and now - self._credited[0][0] > 1.0:
            self._credited_sum -= self._credited.popleft()[1]
        # doubles each round trip, up to a second's worth of what really went through
        if self._window < max(WINDOW_MIN, self._credited_sum):
            self._window = min(WINDOW_MAX, self._window + count)
        elif self._window > 2 * max(WINDOW_MIN, self._credited_sum):
            self._window = max(WINDOW_MIN, self._credited_sum)

    # --- out -------------------------------------------------------------------------------

    def send(self, message: wire.Message) -> None:
        """Queue a message; `pending` gives its bytes."""
        if isinstance(message, wire.Begin):
            self._calls.add(message.call)
        elif isinstance(message, wire.End):
            self._end(message.call)
        self._control.extend(encode(message))

    def again(self, call: int, like: int, params: bytes) -> None:
        """Queue an Again. What was offered for the call that it repeats stands."""
        self._calls.discard(like)
        self._calls.add(call)
        self._firsts[call] = self._firsts.pop(like, like)
        self._control.append(write_again(call, like, params))

    def offer(
        self, call: int, digest: str, size: int, parts: Callable[[], Sequence[Buffer]]
    ) -> bool:
        """The next message of this call names this blob. True if it was not offered before."""
        source = self._sources.get(digest)
        if source is None:
            self._sources[digest] = Source(size, parts, {call})
            return True
        new = call not in source.calls
        source.calls.add(call)
        return new

    def sent_blobs(self, call: int) -> int:
        """Bytes that were asked for since the last time, in this call."""
        return self.bytes_sent.pop(self._firsts.get(call, call), 0)

    def _end(self, call: int) -> None:
        self._calls.discard(call)
        call = self._firsts.pop(call, call)
        for digest in [d for d, source in self._sources.items() if call in source.calls]:
            self._sources[digest].calls.discard(call)
            if not self._sources[digest].calls:
                del self._sources[digest]

    def has_pending(self) -> bool:
        return bool(self._control) or self.has_blobs()

    def has_blobs(self) -> bool:
        """There is more of a blob to write, and room in the window for it."""
        return bool(self._streams) and self._unacked < self._window

    def has_control(self) -> bool:
        return bool(self._control)

    def control(self) -> list[Buffer]:
        """The bytes of all small messages queued so far."""
        buffers = list(self._control)
        self._control.clear()
        return buffers

    def pending(self) -> list[Buffer]:
        """The bytes to write next: all small messages, then blobs as far as the window allows."""
        buffers = self.control()
        budget = BURST
        while self._streams and self._unacked < self._window and budget > 0:
            try:
                blob, size = next(self._streams[0])
            except StopIteration:
                self._streams.popleft()
                continue
            buffers.extend(encode(blob))
            self._unacked += size
            budget -= size
        return buffers

    def _chunks(self, digest: str, source: Source) -> Iterator[tuple[wire.Blob, int]]:
        """The blob in frames of at most CHUNK bytes; once begun it is sent to its end."""
        offset = 0
        small: list[bytes] = []
        for part in source.parts():
            view = memoryview(part).cast("B")
            if len(view) < 4096:
                small.append(bytes(view))
                continue
            if small:
                joined = b"".join(small)
                small.clear()
                yield wire.Blob(digest, offset, source.size, [joined]), len(joined)
                offset += len(joined)
            start = 0
            while start < len(view):
                step = min(wire.CHUNK, max(32 << 10, self._window // 4))
                chunk = view[start : start + step]
                yield wire.Blob(digest, offset, source.size, [chunk]), len(chunk)
                offset += len(chunk)
                start += len(chunk)
        if small:
            joined = b"".join(small)
            yield wire.Blob(digest, offset, source.size, [joined]), len(joined)
