"""How long to look for an answer without sleeping."""

from __future__ import annotations

AWAKE_SECONDS = 0.0006  # of each wait: as long as some wake-ups, and no longer than many a round
ASLEEP = 15  # waits in a row


class Wakeful:
    """Somebody who waits for answers, again and again. Not to sleep meanwhile saves the time that
    it takes a processor to wake up, where answers come that soon; elsewhere it is tried now and
    then, to see whether they do by now."""

    def __init__(self) -> None:
        self._asleep = 0  # so many times from now on

    @property
    def seconds(self) -> float:
        """In which to look again and again, before sleeping."""
        return 0.0 if self._asleep else AWAKE_SECONDS

    def took(self, seconds: float) -> None:
        """From what was asked to what came of it, or to the end of patience."""
        if seconds < AWAKE_SECONDS:
            self._asleep = 0
        else:
            self._asleep = self._asleep - 1 if self._asleep else ASLEEP
