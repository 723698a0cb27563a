"""Whether to sleep until an answer comes."""

from __future__ import annotations

AWAKE_SECONDS = 0.0006  # of each wait: as long as some wake-ups, and no longer than many a round
TRY = 32  # waits, of which one tries the other way
LONGEST = 2 * AWAKE_SECONDS  # what takes longer says no more than that it takes long


class Wakeful:
    """Somebody who waits for answers, again and again. Not to sleep meanwhile saves the time that
    it takes a processor to wake up, where answers come that soon and there are processors to spare;
    so both is tried, and what is quicker is done."""

    def __init__(self) -> None:
        self._awake = True  # the next time
        self._takes: dict[bool, float] = {}  # seconds, by whether we stayed awake
        self._waits = 0

    @property
    def seconds(self) -> float:
        """In which to look again and again, before sleeping."""
        return AWAKE_SECONDS if self._awake else 0.0

    def took(self, seconds: float) -> None:
        """From what was asked to what came of it, or to the end of patience."""
        seconds = min(seconds, LONGEST)
        before = self._takes.get(self._awake, seconds)
        self._takes[self._awake] = before + (seconds - before) / 4
        self._waits += 1
        awake = self._takes.get(True, 0.0)
        quicker = awake < AWAKE_SECONDS and awake < self._takes.get(False, LONGEST)
        self._awake = quicker != (self._waits % TRY == 0)
