"""How far a sweep is, on stderr: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

from .job_report import Progress, progress_line
from .progress import Display

_NOTHING = Progress(0, 0, 0, 0, 0, 0)


class JobProgress(Display):
    """`shown(progress)` may be called from any thread, as often as one likes."""

    _state = _NOTHING

    def __call__(self, progress: Progress) -> None:
        self._state = progress

    def text(self) -> str:
        return progress_line(self._state)

    def amount(self) -> tuple[int, int]:
        return self._state.done + self._state.failed, self._state.total
