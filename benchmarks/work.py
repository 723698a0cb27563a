"""What the workers of all peers are asked to do: functions of params and of what a worker holds.

Peers that start from nothing are timed too, so this module imports nothing at its top.
"""

from __future__ import annotations

from typing import Any

HELD: list[Any] = []  # in a worker's process: its parts of the data


def plus_one(params: int, held: list[Any]) -> int:
    """A round: as little as there is to do."""
    return params + 1


def total(params: Any, held: list[Any]) -> float:
    """The sum of all numbers held."""
    return float(sum(part.sum() for part in held))


def linger(params: float, held: list[Any]) -> float:
    """The same, and then hold on to the data for so many seconds."""
    import time

    found = total(None, held)
    time.sleep(params)
    return found


def pid(params: Any, held: list[Any]) -> int:
    import os

    return os.getpid()


def last(params: Any, held: list[Any]) -> float:
    """Of params that are one large array."""
    return float(params[-1])


def evaluate(theta: Any, held: list[Any]) -> Any:
    """qjam's experiment."""
    from examples.sparse_autoencoder import mapfunc

    return mapfunc(theta, held[0])


def answer(params: Any, held: list[Any]) -> Any:
    """Big answers: what is held, as it is."""
    return held[0]


def call(function: str, params: Any) -> Any:
    return globals()[function](params, HELD)


def call_with(function: str, params: Any, *held: Any) -> Any:
    return globals()[function](params, list(held))


def hold(part: Any) -> None:
    HELD.append(part)


def forget() -> None:
    HELD.clear()
