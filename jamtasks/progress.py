"""How far a call is, on stderr: a bar on a terminal, now and then a line elsewhere.

Nothing is shown, and rich is not imported, until a run has taken a while.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO, TypeVar

from .report import counted, duration

D = TypeVar("D", bound="Display")
BAR_AFTER = 0.5  # seconds: a shorter run shows its summary only
LINE_AFTER = 10.0
LINE_EVERY = 30.0  # a log of an hour gets 120 lines


class Display:
    """Shows `text()` on stderr while it is open: beside a bar of `amount()` on a terminal.

    Use as a context manager; nothing is left on a terminal afterwards."""

    def __init__(self, stream: TextIO | None = None, *, terminal: bool | None = None):
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty() if terminal is None else terminal
        self._began = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, name="jam progress", daemon=True)

    def text(self) -> str:
        """How far it is, in one line."""
        raise NotImplementedError

    def amount(self) -> tuple[int, int]:
        """(done, of how many); 0 for what is not known yet."""
        raise NotImplementedError

    def __enter__(self: D) -> D:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away. May be called twice."""
        self._over.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _show(self) -> None:
        if self._over.wait(BAR_AFTER if self._terminal else LINE_AFTER):
            return
        if self._terminal:
            self._show_bar()
        else:
            self._show_lines()

    def _show_lines(self) -> None:
        while True:
            print(self.text(), file=self._stream, flush=True)
            if self._over.wait(LINE_EVERY):
                return

    def _show_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        # what hosts print meanwhile goes to sys.stderr, which rich shows above the bar
        bar = Bar(
            BarColumn(bar_width=30),
            TextColumn("{task.description}", markup=False),
            console=Console(file=self._stream),
            transient=True,
            redirect_stdout=False,
        )
        with bar:
            shown = bar.add_task("", total=None)
            while True:
                done, total = self.amount()
                bar.update(shown, completed=done, total=total or None, description=self.text())
                if self._over.wait(0.1):
                    return


class Progress(Display):
    """`progress(done, total, failed)` may be called from any thread, as often as one likes."""

    _state = (0, 0, 0)

    def __call__(self, done: int, total: int, failed: int) -> None:
        self._state = (done, total, failed)  # one store: no lock, no half-updated line

    def text(self) -> str:
        return line(*self._state, time.monotonic() - self._began)

    def amount(self) -> tuple[int, int]:
        return self._state[:2]


def line(done: int, total: int, failed: int, seconds: float) -> str:
    """
    >>> line(0, 0, 0, 1.0)
    'connecting, 1.00 s'
    >>> line(0, 16, 0, 12.0)
    '0 of 16 slices, 12.0 s'
    >>> line(8, 16, 1, 12.0)
    '8 of 16 slices, 0.67/s, 12.0 s left, 1 failed'
    """
    if not total:
        return f"connecting, {duration(seconds)}"
    parts = [f"{done} of {counted(total, 'slice')}"]
    if done:
        rate = done / max(seconds, 1e-9)
        parts.append(f"{rate:.2f}/s" if rate < 10 else f"{rate:.0f}/s")
        if done < total:
            parts.append(f"{duration((total - done) / rate)} left")
    else:
        parts.append(duration(seconds))
    if failed:
        parts.append(f"{failed} failed")
    return ", ".join(parts)
