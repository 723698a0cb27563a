"""Waiting for answers, with or without sleep."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

AWAKE_SECONDS = 0.0006  # of each wait: as long as some wake-ups, and no longer than many a round
TRY = 32  # waits: the first of all take turns, then one of so many goes the other way
STEP = 1 / 16  # by which a wait changes what is known: single ones that take long say little

_let_others_run = getattr(os, "sched_yield", lambda: time.sleep(0))


class Wakeful:
    """Somebody who waits for answers, again and again. Not to sleep meanwhile saves the time that
    it takes a processor to wake up, where answers come that soon and there are processors to spare;
    so both is tried, and what is quicker is done.

    One thread waits at a time."""

    def __init__(self) -> None:
        self._awake = True  # the next time
        self._takes: dict[bool, float] = {}  # seconds, nearly the median, by whether we slept not
        self._waits = 0
        self._asked = self._came = 0.0  # when something was asked, and when a wait ended

    def wait(self, look: Callable[[float], Any], seconds: float) -> bool:
        """Until something has come, or for so long. look: as `select.poll`'s poll."""
        awake = self._asked + self.seconds
        found = look(0)
        while not found and time.perf_counter() < awake:
            _let_others_run()
            found = look(0)
        found = found or look(1000 * seconds)
        self._came = time.perf_counter()
        return bool(found)

    def asked(self, when: float) -> None:
        """Something was written just now, which was begun then: look back at the wait before, while
        the other end has something to do."""
        before, self._asked = self._asked, when
        if self._came > before:
            self.took(self._came - before)

    @property
    def seconds(self) -> float:
        """In which to look again and again, before sleeping."""
        return AWAKE_SECONDS if self._awake else 0.0

    def took(self, seconds: float) -> None:
        """From what was asked to what came of it, or to the end of patience."""
        takes = self._takes.get(self._awake, min(seconds, 2 * AWAKE_SECONDS))
        takes *= 1 - STEP if seconds < takes else 1 + STEP
        self._takes[self._awake] = min(takes, 2 * AWAKE_SECONDS)
        self._waits += 1
        awake = self._takes.get(True, 0.0)
        quicker = awake < AWAKE_SECONDS and awake < self._takes.get(False, AWAKE_SECONDS)
        other = self._waits % (2 if self._waits < TRY else TRY) == 0
        self._awake = quicker != other
