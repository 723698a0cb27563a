"""Who is dead: judged by change, on the reader's own clock; no I/O.

Clocks of hosts differ, so nothing that a heartbeat says of time is believed. A heartbeat that has
not changed for a lease is that of a dead owner. One that changes, but does not list a claim, three
times running, is that of an owner who has forgotten it.

A reader may have been stopped himself, or cut off, while others went on. So a time in which he did
not look counts for little: it takes three looks at least to find somebody dead.
"""

import json
from typing import Any, Dict, Iterable, Optional, Set

from worker_payload.jobs.names import Pod

LEASE = 90.0  # seconds; a worker gives up by itself after half of it
MISSES = 3


class _Seen(object):
    """An owner. beat: its last heartbeat. looked: when it was last looked at. quiet: for how long
    it is known not to have changed. missed: how often in a row it did not list a claim, by name of
    the claim."""

    def __init__(self, beat, now):
        # type: (Optional[bytes], float) -> None
        self.beat = beat
        self.looked = now
        self.quiet = 0.0
        self.missed = {}  # type: Dict[str, int]


class Leases(object):
    def __init__(self, lease=LEASE, misses=MISSES):
        # type: (float, int) -> None
        self._lease = lease
        self._misses = misses
        self._owners = {}  # type: Dict[str, _Seen]

    def look(self, owner, heartbeat, claims, now):
        # type: (str, Optional[bytes], Iterable[Pod], float) -> Set[Pod]
        """The claims to be taken from the owner. heartbeat: the file's content, freshly read; None
        if there is none. claims: that stand under its name now. now: monotonic.

        To be called again and again, a few times in a lease, with all claims of the owner each
        time. A heartbeat that is gone, or was read while it was written, tells nothing."""
        claims = set(claims)
        if not claims:
            self._owners.pop(owner, None)
            return set()
        seen = self._owners.get(owner)
        if seen is None:
            seen = self._owners[owner] = _Seen(heartbeat, now)
            self._count(seen, claims)
        elif heartbeat is not None and heartbeat != seen.beat:
            seen.beat, seen.quiet = heartbeat, 0.0
            self._count(seen, claims)
        else:
            seen.quiet += min(max(0.0, now - seen.looked), self._lease / 3)
        seen.looked = now
        if seen.quiet >= self._lease:
            return claims
        return set(claim for claim in claims if seen.missed.get(claim.name(), 0) >= self._misses)

    def forget(self, owners):
        # type: (Iterable[str]) -> None
        """Forget all owners but these."""
        for owner in set(self._owners).difference(owners):
            del self._owners[owner]

    def _count(self, seen, claims):
        # type: (_Seen, Set[Pod]) -> None
        listed = _listed(seen.beat)
        missed = {}  # type: Dict[str, int]
        for claim in claims:
            if listed is not None and claim.pod not in listed:
                missed[claim.name()] = seen.missed.get(claim.name(), 0) + 1
        if listed is not None:
            seen.missed = missed


def _listed(beat):
    # type: (Optional[bytes]) -> Optional[Set[str]]
    """The pods that a heartbeat lists; None if it was read while it was written."""
    try:
        told = json.loads((beat or b"").decode("ascii"))  # type: Any
        return set(told["claims"])
    except (ValueError, TypeError, KeyError):
        return None
