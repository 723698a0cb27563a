"""What the schedulers want sent, on its way to the hosts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from worker_payload import wire
from worker_payload.wire import Buffer

from . import scheduler as plan
from .answering import Answering, take_back
from .calls import Call
from .link import Link
from .session import Session

HOLDS_MAX = 200_000  # digests per host, remembered so that slices go back to where they are
SEND_AFTER_BYTES = 1 << 20  # of slices hashed: a host need not wait for the digests of all its own


class Sending(Answering):
    """The engine, as far as it speaks. lock: guards all its state."""

    lock: threading.Lock

    def dispatch(self) -> None:
        """Send what the schedulers want sent. Called without the lock, from any thread."""
        todo: list[tuple[Call, Link, Session, plan.Action]] = []
        flush: dict[int, tuple[Link, Session]] = {}
        with self.lock:
            now = time.monotonic()
            for call in self.calls.values():
                if call.settled or call.round is not None:
                    continue
                for action in call.scheduler.actions(now, call.head_only):
                    link = self.links[str(action.host)]
                    if link.session is not None:
                        todo.append((call, link, link.session, action))
            busy = {id(link) for _, link, _, action in todo if isinstance(action, plan.Assign)}
            for link in self.links.values():
                session = link.session
                if session is not None and session.has_control() and id(link) not in busy:
                    flush[id(link)] = (link, session)
        for call, link, session, action in todo:
            try:
                self._send(call, link, session, action)
            except Exception as error:  # a dataset's own slice() raised
                with self.lock:
                    call.error = call.error or error
                    self.changed.notify_all()
            if not isinstance(action, plan.Assign):
                flush[id(link)] = (link, session)
        for link, session in flush.values():
            link.flush(session)

    def _send(self, call: Call, link: Link, session: Session, action: plan.Action) -> None:
        if isinstance(action, plan.Assign) and call.spans is not None:
            self._send_spans(call, link, session, action)
            return
        if not isinstance(action, plan.Assign):
            with self.lock:
                if link.session is not session or call.over:
                    return
                if isinstance(action, plan.Yield):
                    self._begin(call, link, session)  # its tasks may still be on their way to us
                    session.send(wire.Yield(call.id))
                else:
                    call.asked_back = True
                    tasks_back = list(action.tasks)
                    if isinstance(action, plan.Revoke):
                        session.send(wire.Revoke(call.id, tasks_back))
                    else:
                        session.send(wire.Cancel(call.id, tasks_back))
                        take_back(call, link, tasks_back)
            return
        if call.inline:
            self._send_with_slices(call, link, session, action)
            return
        tasks: list[list[Any]] = []
        refs: list[Any] = []
        hashed = 0
        for task, worker in zip(action.tasks, action.workers, strict=True):
            ref = call.slice_of(task) if call.slice_of is not None else None
            # digests are made here, without the lock, while earlier slices are on their way
            tasks.append([task, ref.digest if ref is not None else None, worker])
            if ref is not None:
                refs.append(ref)
                hashed += ref.size
            if hashed > SEND_AFTER_BYTES:
                self._send_tasks(call, link, session, tasks, refs)
                tasks, refs, hashed = [], [], 0
        self._send_tasks(call, link, session, tasks, refs, action.last)

    def _send_tasks(
        self,
        call: Call,
        link: Link,
        session: Session,
        tasks: list[list[Any]],
        refs: list[Any],
        last: bool = False,
    ) -> None:
        if not tasks and not last:
            return
        with self.lock:
            if link.session is not session or call.over:
                return
            self._begin(call, link, session)
            for ref in refs:
                if self._offer(call, link, session, ref.digest, ref.size, ref.parts):
                    link.holds[ref.digest] = None
            while len(link.holds) > HOLDS_MAX:
                del link.holds[next(iter(link.holds))]
            session.send(wire.Task(call.id, tasks))
            call.given.setdefault(link.label, []).extend([task[0] for task in tasks])
            if last:
                session.send(wire.Yield(call.id))
        link.flush(session)

    def _send_with_slices(
        self, call: Call, link: Link, session: Session, action: plan.Assign
    ) -> None:
        """Tasks with the bytes of their slices, which are tiny."""
        assert call.slice_of is not None
        segments: list[Buffer] = [
            b"".join(call.slice_of(task).parts())  # without the lock: this may take a while
            for task in action.tasks
        ]
        tasks: list[list[Any]] = [[task, i, None] for i, task in enumerate(action.tasks)]
        with self.lock:
            if link.session is not session or call.over:
                return
            self._begin(call, link, session)
            self._send_inline(call, link, session, tasks, segments, sum(map(len, segments)))
            if action.last:
                session.send(wire.Yield(call.id))
        link.flush(session)

    def _send_spans(self, call: Call, link: Link, session: Session, action: plan.Assign) -> None:
        """Tasks with the bytes of their slices, unless these are many."""
        with self.lock:
            if link.session is not session or call.over or call.spans is None:
                return
            self._begin(call, link, session)
            tasks: list[list[Any]] = []
            segments: list[Buffer] = []
            size = 0
            for task in action.tasks:
                span = call.spans.of.get(task)
                if span is None:
                    continue
                given: Any = len(segments)
                if span.digest is None:
                    segments.extend(span.parts)
                    size += span.size
                else:
                    given = span.digest
                    self._offer(call, link, session, span.digest, span.size, span.blob)
                tasks.append([task, given, None])
                if size > SEND_AFTER_BYTES:
                    self._send_inline(call, link, session, tasks, segments, size)
                    tasks, segments, size = [], [], 0
            if tasks:
                self._send_inline(call, link, session, tasks, segments, size)
        link.flush(session)

    def _send_inline(
        self,
        call: Call,
        link: Link,
        session: Session,
        tasks: list[list[Any]],
        segments: list[Buffer],
        size: int,
    ) -> None:
        session.send(wire.Task(call.id, tasks, segments))
        call.named[link.label] = call.named.get(link.label, 0) + size
        sent = session.bytes_sent
        sent[call.id] = sent.get(call.id, 0) + size

    def _begin(self, call: Call, link: Link, session: Session) -> None:
        if session not in call.begun:
            call.begun.add(session)
            for digest, size, parts in call.blobs:
                self._offer(call, link, session, digest, size, parts)
            session.send(call.begin)

    def _offer(
        self,
        call: Call,
        link: Link,
        session: Session,
        digest: str,
        size: int,
        parts: Callable[[], Sequence[Buffer]],
    ) -> bool:
        """The next message names this blob, which the host may have. True the first time."""
        new = session.offer(call.id, digest, size, parts)
        if new:
            call.named[link.label] = call.named.get(link.label, 0) + size
        return new
