"""A small synchronous master, to talk to an agent in tests without the real master's machinery."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from worker_payload import codec, frames, wire

MARKER = "0123456789abcdef"


class Gone(Exception):
    """The agent closed the channel."""


class Client:
    """One attached master. `run` maps a module's source over slices and returns what came back."""

    def __init__(
        self,
        payload: Path,
        environ: Mapping[str, str],
        *,
        project: str = "default",
        python: str = sys.executable,
        workers: int = 2,
        settings: Mapping[str, Any] | None = None,
        build: str = "",
        name: str = "",
        options: Sequence[str] = (),
        timeout: float = 30.0,
    ):
        self.timeout = timeout
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [python, str(payload), "attach", MARKER, project, *options],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            env=dict(environ),
        )
        theirs.close()
        self.sock = ours
        self.decoder = frames.Decoder(wire.FROM_AGENT)
        self.inbox: list[Any] = []
        self.blobs: dict[str, list[Any]] = {}
        self.sent: list[str] = []
        self.calls = 0
        self.outputs: list[wire.Output] = []
        self.others: list[Any] = []
        self.welcome: wire.Welcome | None = None
        try:
            head = self._marker()
        except BaseException:
            self.close()
            raise
        for message in self.decoder.feed(head):
            self.inbox.append(message)
        self.send(wire.Hello(wire.VERSION, build, project, name, workers, dict(settings or {})))
        self.welcome = self.wait(wire.Welcome)

    def _marker(self) -> bytes:
        head = b""
        wanted = b"\n%s:R\n" % MARKER.encode()
        while wanted not in head:
            data = self._recv()
            if not data:
                raise Gone(head.decode(errors="replace") + self.stderr())
            head += data
        return head.partition(wanted)[2]

    def _recv(self) -> bytes:
        ready, _, _ = select.select([self.sock], [], [], self.timeout)
        if not ready:
            raise TimeoutError(f"nothing within {self.timeout} s; so far: {self.others[-5:]}")
        try:
            return self.sock.recv(1 << 20)
        except ConnectionError:
            return b""

    def stderr(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode(errors="replace")

    def send(self, *messages: Any) -> None:
        self.sock.sendall(b"".join(bytes(part) for m in messages for part in frames.encode(m)))

    def receive(self) -> Any:
        """The next message; Missing is answered and Output collected on the way."""
        while True:
            while not self.inbox:
                data = self._recv()
                if not data:
                    raise Gone("the channel is closed")
                self.inbox += self.decoder.feed(data)
            message = self.inbox.pop(0)
            if isinstance(message, wire.Missing):
                for digest in message.digests:
                    self.send_blob(digest)
            elif isinstance(message, wire.Output):
                self.outputs.append(message)
            elif not isinstance(message, (wire.Beat, wire.Credit)):
                return message

    def wait(self, kind: type, until: Callable[[Any], bool] = lambda message: True) -> Any:
        while True:
            message = self.receive()
            if isinstance(message, kind) and until(message):
                return message
            self.others.append(message)

    def send_blob(self, digest: str) -> None:
        self.sent.append(digest)
        data = b"".join(bytes(part) for part in self.blobs[digest])
        for offset in range(0, len(data), wire.CHUNK):
            piece = data[offset : offset + wire.CHUNK]
            self.send(wire.Blob(digest, offset, len(data), [piece]))

    def blob(self, obj: Any) -> str:
        parts = codec.blob_parts(codec.encode(obj))
        digest = codec.blob_digest(parts)
        self.blobs[digest] = parts
        return digest

    def begin(self, source: str, params: Any = None, name: str = "mapped", **options: Any) -> int:
        """Begin a call; its number."""
        self.calls += 1
        code = self.blob({"main": name, "modules": {name: [f"/src/{name}.py", source, False]}})
        inline = b"".join(bytes(part) for part in codec.blob_parts(codec.encode(params)))
        if len(inline) <= 65536:
            self.send(wire.Begin(self.calls, code, name, "", options, [inline]))
        else:
            self.send(wire.Begin(self.calls, code, name, self.blob(params), options))
        return self.calls

    def task(self, call: int, slices: Sequence[Any], pin: bool = False, first: int = 0) -> None:
        tasks = []
        for i, item in enumerate(slices, first):
            digest = None if item is None else self.blob(item)
            tasks.append([i, digest, i if pin else None])
        self.send(wire.Task(call, tasks))

    def collect(self, call: int, count: int) -> dict[int, Any]:
        """Answers by task: a value, or a Failure or Lost message."""
        found: dict[int, Any] = {}
        while len(found) < count:
            message = self.receive()
            if getattr(message, "call", None) != call:
                self.others.append(message)
            elif isinstance(message, wire.Result):
                rest = list(message.segments)
                for id_, _worker, segments, _seconds in message.tasks:
                    found[id_] = codec.decode(rest[:segments])
                    del rest[:segments]
            elif isinstance(message, (wire.Failure, wire.Lost)):
                found[message.id] = message
            elif isinstance(message, wire.Refused):
                raise AssertionError(message)
            else:
                self.others.append(message)
        return found

    def run(self, source: str, slices: Sequence[Any], params: Any = None, **options: Any) -> list:
        call = self.begin(source, params, **options)
        self.task(call, slices, pin=all(item is None for item in slices))
        found = self.collect(call, len(slices))
        self.send(wire.End(call))
        return [found[i] for i in range(len(slices))]

    def text(self, stream: int) -> str:
        return b"".join(bytes(o.segments[0]) for o in self.outputs if o.stream == stream).decode(
            errors="replace"
        )

    def close(self) -> int:
        """End the channel; the attach's exit status."""
        self.sock.close()
        try:
            return self.process.wait(self.timeout)
        finally:
            if self.process.stderr is not None:
                self.process.stderr.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def wait_until(condition: Callable[[], Any], seconds: float = 15.0, what: str = "") -> Any:
    """The first true value of the condition."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds} s: {what or condition}")


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def environment(run: Path, cache: Path, **more: str) -> dict[str, str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("JAM_")}
    return dict(environ, JAM_RUN_DIR=str(run), JAM_CACHE_DIR=str(cache), **more)
