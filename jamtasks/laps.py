"""A call of one host that is repeated all the time: the shortest way there and back.

All there is to it is one message to the host and one back, both read by whoever waits for them; see
`worker_payload/repeating.py` for the host's part. Nobody else knows of it. As soon as anybody looks
at the engine's calls, or anything comes but the one answer, it is a call like any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from worker_payload.shortcuts import read_result
from worker_payload.wire import Buffer, ProtocolError

from .link import POLL_SECONDS, READ_SIZE

if TYPE_CHECKING:
    from .calls import Call
    from .engine import Engine
    from .rounds import Standing

SHORT = 16 << 10  # bytes of all answers: what is longer comes in pieces, and takes its time


class Lap:
    """call: the last one, which is over and was itself the repetition of another. tasks, hosts: of
    its answers, in the order in which `go` gives these."""

    def __init__(self, engine: Engine, call: Call, standing: Standing):
        self._engine = engine
        self._standing = standing
        self._link, self._session = standing.links[0]
        self.tasks = sorted(standing.given[self._link.label])
        self.hosts = [self._link.label] * len(self.tasks)
        self._rows: list[tuple[bytes, bytes]] = []  # of the last answer, and where its parts are
        self._parts: list[slice] = []
        self.call = call
        self.under_way: tuple[int, list[Buffer], float] = 0, [], 0.0  # number, params, since when
        self.became: Call | None = None  # what a lap under way has become

    def go(self, params: list[Buffer], wanted: Callable[[], bool]) -> list[list[bytearray]] | None:
        """The segments of each answer to the call with these params. None: it is now what it
        `became`; or nothing has happened, and it has to be called in the ordinary way.

        wanted: asked while the host is at work; if not, it is now a call as well."""
        engine, link, session = self._engine, self._link, self._session
        self.became = None
        with engine.lock:
            ready = link.lent and session.at_boundary()
            ident = engine.begin_lap(self, params, time.monotonic()) if ready else 0
            if not ident:
                return None
            session.again(ident, self.call.id, bytes(params[0]))
        link.flush(session)
        if not wanted():
            self._give_up()
            return None
        return self._hear(ident)

    def _hear(self, ident: int) -> list[list[bytearray]] | None:
        link, attached, unheard = self._link, self._link.attached, False
        if attached is None:
            self._give_up()
            return None
        channel = attached.channel
        try:
            link.reading = True
            while not channel.poll(POLL_SECONDS):
                if self.became is not None:
                    return None
            unheard = True  # what is read from here on must be heard to its end
            data = channel.read(READ_SIZE)
            link.last_heard = now = time.monotonic()
            answers = self._answers(data, ident)
            with self._engine.lock:
                if answers is not None and self._engine.end_lap(self, ident, now):
                    link.answered += 1
                    unheard = False
                    return answers
            self._give_up()
            if data:  # else the host's own thread will see it, too
                link.receive(self._session, data)
            unheard = False
        except ProtocolError as error:
            link.given_up = f"protocol error: {error}"
        finally:
            link.reading = False
            if unheard:
                channel.close()
        return None

    def _answers(self, data: Buffer, ident: int) -> list[list[bytearray]] | None:
        """In the order of tasks; None if these bytes are anything but all of them."""
        found = read_result(data, ident)
        if found is None:
            return None
        rows, segments = found
        if rows != self._rows and not self._learn(rows, len(segments)):
            return None
        return [segments[part] for part in self._parts]

    def _learn(self, rows: list[tuple[bytes, bytes]], segments: int) -> bool:
        """Where the answers are that these rows are of: as in the last one, nearly always."""
        parts, end = {}, 0
        for task, count in rows:
            begin, end = end, end + int(count)
            parts[int(task)] = slice(begin, end)
        if len(parts) != len(rows) or sorted(parts) != self.tasks or end != segments:
            return False
        self._rows, self._parts = rows, [parts[task] for task in self.tasks]
        return True

    def _give_up(self) -> None:
        with self._engine.lock:
            _ = self._engine.calls

    def become_call(self) -> Call:
        """Under the lock."""
        ident, params, began = self.under_way
        self.became = self.call.again(ident, params, self._standing, began)
        return self.became
