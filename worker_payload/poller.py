"""Which descriptors can be read or written: `selectors`, with less between us and the system.

A round of a map call takes a few tenths of a millisecond; `selectors` made up a tenth of it.
"""

import select
import selectors
from typing import Any, Dict, List

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class _Epoll(object):
    """poll: descriptors that are ready, with what they are ready for, after so many seconds."""

    def __init__(self):
        # type: () -> None
        self._epoll = select.epoll()
        self.poll = self._epoll.poll
        self._data = {}  # type: Dict[int, Any]
        self._things = {}  # type: Dict[Any, int]  # what was registered, and its descriptor

    def __contains__(self, thing):
        # type: (Any) -> bool
        return thing in self._things

    def register(self, thing, events, data):
        # type: (Any, int, Any) -> None
        """thing: a descriptor, or something with `fileno`. Raises OSError, ValueError if it cannot
        be waited for."""
        if thing in self._things:
            raise ValueError("%r is registered" % (thing,))
        fd = thing if type(thing) is int else thing.fileno()
        self._epoll.register(fd, select.EPOLLIN if events == READ else select.EPOLLOUT)
        self._data[fd], self._things[thing] = data, fd

    def unregister(self, thing):
        # type: (Any) -> None
        """Also of what was closed since. Raises KeyError."""
        fd = self._things.pop(thing)
        del self._data[fd]
        try:
            self._epoll.unregister(fd)
        except OSError:
            pass  # closed: the system forgot it

    def wait(self, seconds):
        # type: (float) -> List[Any]
        """The data of what is ready; none after so many seconds."""
        data = self._data
        ready = self._epoll.poll(seconds)
        return [data[fd] for fd, _ in ready if fd in data]


class _Selector(object):
    """The same where there is no epoll."""

    def __init__(self):
        # type: () -> None
        self._selector = selectors.DefaultSelector()
        self.register = self._selector.register
        self.unregister = self._selector.unregister

    def __contains__(self, thing):
        # type: (Any) -> bool
        return thing in self._selector.get_map()

    def poll(self, seconds):
        # type: (float) -> List[Any]
        return [(key.fd, events) for key, events in self._selector.select(seconds)]

    def wait(self, seconds):
        # type: (float) -> List[Any]
        return [key.data for key, _ in self._selector.select(seconds)]


Poller = _Epoll if hasattr(select, "epoll") else _Selector  # type: Any
