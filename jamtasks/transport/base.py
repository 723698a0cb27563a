"""What the transports have in common: connections, byte channels, and the limits on connecting."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from jamtasks.errors import HostError
from jamtasks.transport.wakeful import Wakeful

if TYPE_CHECKING:
    from worker_payload.wire import Buffer

STDERR_KEPT = 64 << 10
CONNECTS_AT_ONCE = 8  # sshd drops unauthenticated connections at random from ten on (MaxStartups)
ATTEMPTS = 20
LONGEST_PAUSE = 4.0  # seconds
LOOK_SECONDS = 0.1  # between looks whether a wait is to end
_SMALL = 32 << 10
_SHORT, _LONG = 60 << 10, 1 << 20  # bytes to be read at a time: of this and that, and of much
_IOV_MAX = 512  # the least of all systems' limits is 1024


class Channel(ABC):
    """Bytes both ways to one command. One thread may read while others write."""

    def __init__(self, host: str):
        self.host = host
        self.owned: Connection | None = None  # a connection of its own, which ends with it

    @abstractmethod
    def read(self, size: int) -> bytes:
        """Up to size bytes, at least one; b"" when the other end, or close(), has ended it."""

    def read_into(self, room: memoryview) -> int:
        """The same, into there: how many bytes."""
        data = self.read(len(room))
        room[: len(data)] = data
        return len(data)

    @abstractmethod
    def poll(self, seconds: float) -> bool:
        """Whether there is something to read, or the end, within so many seconds or little more.
        For one thread at a time."""

    @abstractmethod
    def write(self, buffers: Sequence[Buffer]) -> None:
        """Return when all of it has been taken over; other writers wait. Raises HostError."""

    @abstractmethod
    def stderr_tail(self) -> str:
        """The last 64 KiB of what the command, or ssh, wrote to stderr."""

    @abstractmethod
    def close(self) -> None:
        """End it, whatever state it is in; a read in another thread returns b""."""

    @abstractmethod
    def cause(self) -> HostError | None:
        """After read() gave b"": why, if it was the connection and not the command that ended."""

    @abstractmethod
    def exit_status(self, timeout: float = 2.0) -> int | None:
        """The command's, as far as it is known within timeout; -n when signal n ended it."""

    def lend(self, lent: bool) -> None:
        """From now on (or no longer) one thread alone calls `poll` and then `read`, and calls
        `poll` whenever it waits for something. Does not wait."""
        return

    def fileno(self) -> int | None:
        """A descriptor that polls readable when read() would not block, or None."""
        return None


class Connection(ABC):
    """A way to a host that can run commands."""

    def __init__(self, host: str):
        self.host = host

    @abstractmethod
    def exec(self, command: str | Sequence[str]) -> Channel:
        """Run a command line for the login shell there; on this machine, an argument vector."""

    def cut(self) -> None:
        """End what waits for a host that stands still; `close` is still to come."""
        return

    def close(self) -> None:
        """End it and its channels."""
        return


def say(error: BaseException) -> str:
    """What it says, as the end of a message: no number, no full stop, never nothing."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().rstrip(".") or type(error).__name__


class Tail:
    """The last bytes of a stream. Written by one thread, read by any."""

    def __init__(self, size: int = STDERR_KEPT):
        self._size = size
        self._data = bytearray()
        self._lock = threading.Lock()

    def add(self, data: bytes) -> None:
        with self._lock:
            self._data += data
            if len(self._data) > 2 * self._size:
                del self._data[: -self._size]

    def text(self) -> str:
        with self._lock:
            return bytes(self._data[-self._size :]).decode("utf-8", "replace")


class ProcessChannel(Channel):
    """A process of this machine behind a socket; its stderr behind another, always drained.

    Sockets, because a shutdown ends a read in another thread, and because ssh makes its
    descriptors non-blocking, which must not happen to ours."""

    def __init__(
        self, host: str, argv: Sequence[str], env: dict[str, str] | None = None, grace: float = 0.0
    ):
        super().__init__(host)
        self._grace = grace  # seconds that the process gets to end by itself after close()
        self._socket, theirs = socket.socketpair()
        self._errors, their_errors = socket.socketpair()
        try:
            for end in (self._socket, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            self.process = subprocess.Popen(
                argv,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=their_errors.fileno(),
                env=env,
            )
        except OSError as error:
            self._socket.close()
            self._errors.close()
            raise HostError(host, f"cannot run {argv[0]}: {error.strerror}") from None
        finally:
            theirs.close()
            their_errors.close()
        self._tail = Tail()
        self._expected = _SHORT
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._write_lock = threading.Lock()
        self._close_lock = threading.Lock()
        self._closed = False
        self._wakeful = Wakeful()
        name = f"{host} stderr"
        self._drain = threading.Thread(target=self._drain_stderr, name=name, daemon=True)
        self._drain.start()

    def _drain_stderr(self) -> None:
        with self._errors as errors, contextlib.suppress(OSError):
            while data := errors.recv(1 << 16):
                self._tail.add(data)

    def read(self, size: int) -> bytes:
        # memory for the largest piece is mapped and unmapped, which takes longer than a short one
        size = min(size, self._expected)
        try:
            data = self._socket.recv(size)
        except OSError:
            return b""
        self._expected = _SHORT if len(data) < size else min(_LONG, 2 * size)
        return data

    def read_into(self, room: memoryview) -> int:
        try:
            return self._socket.recv_into(room)
        except OSError:
            return 0

    def poll(self, seconds: float) -> bool:
        return self._wakeful.wait(self._poll.poll, seconds) or self._closed

    def write(self, buffers: Sequence[Buffer]) -> None:
        try:
            with self._write_lock:
                began = time.perf_counter()
                if len(buffers) == 1 and len(buffers[0]) <= _SMALL:
                    self._socket.sendall(buffers[0])  # as nearly always
                    self._wakeful.asked(began)
                    return
                left = [memoryview(part).cast("B") for part in buffers if len(part)]
                while left:
                    sent = self._socket.sendmsg(left[:_IOV_MAX])
                    done = 0
                    while done < len(left) and sent >= len(left[done]):
                        sent -= len(left[done])
                        done += 1
                    del left[:done]
                    if sent:
                        left[0] = left[0][sent:]
        except OSError as error:
            raise self._broken(error) from None

    def _broken(self, error: OSError) -> HostError:
        message = f"the connection is broken ({error.strerror})"
        return self.cause() or HostError(self.host, message, retry=True)

    def stderr_tail(self) -> str:
        return self._tail.text()

    def exit_status(self, timeout: float = 2.0) -> int | None:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def cause(self) -> HostError | None:
        return None

    def close(self) -> None:
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            if self._grace:
                self.exit_status(self._grace)
            if self.process.poll() is None:
                self.process.terminate()
                if self.exit_status(2.0) is None:
                    self.process.kill()
                    self.process.wait()
            with contextlib.suppress(OSError):
                self._errors.shutdown(socket.SHUT_RDWR)  # a ControlPersist master may hold it open
            self._drain.join(2.0)
            self._socket.close()
        if self.owned is not None:
            self.owned.close()

    def settle(self) -> None:
        """Wait until stderr has been read to its end, or a little while."""
        self._drain.join(0.5)

    def fileno(self) -> int | None:
        number = self._socket.fileno()
        return number if number >= 0 else None


# --- connecting --------------------------------------------------------------------------------

T = TypeVar("T")


class Ended(HostError):
    """Nobody wants this connection any more: `Attempt.end` was called."""


class Attempt:
    """One try to reach a host, which any thread may end, whatever it waits for just then.

    What waits says how its wait is ended (`during`), or does so where it can be left alone
    (`aside`), or asks now and then (`check`)."""

    def __init__(self, host: str = ""):
        self.host = host
        self._changed = threading.Condition()
        self._ended = False
        self._ends: list[Callable[[], object]] = []
        self.waits = threading.Event()  # for the host, or nothing: no more work before it answers

    def end(self) -> None:
        """End what is under way; all that is begun for this attempt from now on raises Ended."""
        with self._changed:
            self._ended = True
            ends, self._ends = self._ends, []
            self._changed.notify_all()
        for end in reversed(ends):
            with contextlib.suppress(Exception):
                end()

    def check(self) -> None:
        if self._ended:
            raise Ended(self.host, "the attempt to reach it was ended", retry=True)

    def ends_with(self, end: Callable[[], object]) -> None:
        """`end` is to call this, from another thread, from now on. If it is too late for that, it
        is called here, and Ended raised."""
        with self._changed:
            if not self._ended:
                self._ends.append(end)
                return
        end()
        self.check()

    @contextlib.contextmanager
    def during(self, end: Callable[[], object]) -> Iterator[None]:
        """`end` is to call this while the block runs."""
        self.ends_with(end)
        try:
            yield
        finally:
            with self._changed, contextlib.suppress(ValueError):
                self._ends.remove(end)

    def wait(self, future: Future[T]) -> T:
        """Its result, or what it raises."""
        future.add_done_callback(lambda _: self._wake())
        with self._changed:
            self._changed.wait_for(lambda: self._ended or future.done())
        if not future.done():
            self.check()
        return future.result()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def aside(self, work: Callable[[], T], discard: Callable[[T], object] = lambda _: None) -> T:
        """work() in a thread of its own, because nothing can end it. If this attempt ends first,
        the thread goes on alone, and what it finds is discarded."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name=f"jam {self.host} aside", daemon=True).start()
        try:
            return self.wait(future)
        except Ended:
            future.add_done_callback(lambda _: future.exception() or discard(future.result()))
            raise

    def pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended, seconds)
        self.check()

    def enter(self, door: threading.BoundedSemaphore) -> None:
        """Acquire it."""
        while not door.acquire(timeout=LOOK_SECONDS):
            self.check()
        if self._ended:
            door.release()
            self.check()


_gates: dict[tuple[str, int], threading.BoundedSemaphore] = {}
_gates_lock = threading.Lock()


def gate(host: str, port: int) -> threading.BoundedSemaphore:
    """Held while connecting to that sshd: it turns away crowds of the unauthenticated."""
    with _gates_lock:
        return _gates.setdefault((host, port), threading.BoundedSemaphore(CONNECTS_AT_ONCE))


class Crowded(HostError):
    """sshd hung up before saying who it is: too many were at its door. Worth another try."""

    def __init__(self, host: str, message: str, hint: str | None = None):
        super().__init__(host, message, hint, retry=True)


def patiently(work: Callable[[], T], timeout: float, attempt: Attempt) -> T:
    """work(), again after Crowded, with growing pauses of random length, for so many seconds."""
    until = time.monotonic() + timeout
    for number in range(ATTEMPTS):
        try:
            return work()
        except Crowded as error:
            import random

            pause = random.uniform(0.5, 1.0) * min(LONGEST_PAUSE, 0.2 * 2**number)
            if number == ATTEMPTS - 1 or time.monotonic() + pause > until:
                raise HostError(error.host, error.reason, error.hint, retry=True) from None
            attempt.pause(pause)
    raise AssertionError("not reached")
