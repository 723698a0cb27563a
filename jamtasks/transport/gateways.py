"""The way to a host through its jump hosts, at each of which one login serves all."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from jamtasks.settings import Settings
from jamtasks.transport.base import Attempt, Ended, patiently
from jamtasks.transport.login import Login
from jamtasks.transport.ssh_config import Hop


@dataclass(eq=False)
class Way:
    """A login, and the shared one that it goes through."""

    login: Login
    gateway: _Gateway | None

    def close(self) -> None:
        self.login.close()
        gateway, self.gateway = self.gateway, None
        if gateway is not None:
            _give_back(gateway)


@dataclass(eq=False)
class _Gateway:
    """The way to a jump host, shared by all that go on from there."""

    key: Any
    way: Way
    users: int = 0


_gateways: dict[Any, Future[_Gateway]] = {}
_gateways_lock = threading.Lock()


def reach(
    hops: tuple[Hop, ...], settings: Settings, attempt: Attempt, *, with_session: bool = False
) -> Way:
    """Log in to the last of these hops through the others. Raises HostError.

    with_session: as `Login` takes it."""
    gateway = _borrow(hops[:-1], settings, attempt) if hops[:-1] else None
    through = gateway.way.login if gateway else None
    try:
        login = patiently(
            lambda: Login(hops[-1], settings, attempt, through, with_session=with_session),
            settings.connect_timeout,
            attempt,
        )
    except BaseException:
        if gateway is not None:
            _give_back(gateway)
        raise
    return Way(login, gateway)


def _borrow(hops: tuple[Hop, ...], settings: Settings, attempt: Attempt) -> _Gateway:
    """The one login at the last of these jump hosts. Whoever waits for it shares its failure."""
    key = tuple((hop.user, hop.host, hop.port, hop.spec.key) for hop in hops)
    while True:
        with _gateways_lock:
            future = _gateways.get(key)
            mine = future is None
            if future is None:
                future = _gateways[key] = Future()
        if mine:
            try:
                way = reach(hops, settings, attempt)
            except BaseException as error:
                with _gateways_lock:
                    del _gateways[key]
                future.set_exception(error)
                raise
            future.set_result(_Gateway(key, way))
        try:
            gateway = attempt.wait(future)
        except Ended:
            attempt.check()  # else it was somebody else's attempt: now it is ours
            continue
        with _gateways_lock:
            if _gateways.get(key) is future:
                if gateway.way.login.transport.is_active():
                    gateway.users += 1
                    return gateway
                del _gateways[key]  # it has died meanwhile; those who use it will notice


def _give_back(gateway: _Gateway) -> None:
    with _gateways_lock:
        gateway.users -= 1
        if gateway.users > 0:
            return
        future = _gateways.get(gateway.key)
        if future is not None and future.done() and future.result() is gateway:
            del _gateways[gateway.key]
    gateway.way.close()
