"""What map functions print, line by line, as it is shown here."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable

from worker_payload import wire

OnOutput = Callable[[str, int, int, str], None]  # host, slice, stream, line


def print_notice(text: str) -> None:
    sys.stderr.write(f"jam: {text}\n")
    sys.stderr.flush()


def print_output(host: str, index: int, stream: int, line: str) -> None:
    where = f"{host} slice {index}" if index >= 0 else host
    sys.stderr.write(f"[{where}] {line}\n")
    sys.stderr.flush()


class Printer:
    """Cuts what tasks print into lines; a last line without an end comes when the call is over."""

    MAX_LINE = 64 << 10

    def __init__(self, show: OnOutput):
        self._show = show
        self._lock = threading.Lock()
        self._open: dict[tuple[str, int, int, int, int], bytearray] = {}

    def feed(self, host: str, message: wire.Output) -> None:
        key = (host, message.call, message.id, message.worker, message.stream)
        with self._lock:
            # a worker that has gone on to another task will not end the line of the last one
            self._close(
                open_
                for open_ in self._open
                if (open_[0], open_[3]) == (host, message.worker) and open_[1:3] != key[1:3]
            )
            kept = self._open.setdefault(key, bytearray())
            for segment in message.segments:
                kept += segment
            *lines, rest = kept.split(b"\n")
            if len(rest) > self.MAX_LINE:
                lines.append(rest)
                rest = bytearray()
            if rest:
                self._open[key] = rest
            else:
                del self._open[key]
            for line in lines:
                self._show(host, message.id, message.stream, line.decode("utf-8", "replace"))

    def end(self, call: int) -> None:
        with self._lock:
            self._close(key for key in self._open if key[1] == call)

    def _close(self, keys: Iterable[tuple[str, int, int, int, int]]) -> None:
        for key in list(keys):
            line = self._open.pop(key)
            self._show(key[0], key[2], key[4], line.decode("utf-8", "replace"))
