"""What a worker knows and holds: calls, and blobs in files that it has open."""

import mmap
import os
import time
from typing import Any, List, Optional

from worker_payload import codec, partials

_SHARE_SECONDS = 0.02  # params that take longer to read are read once per call, not once per task
_PLAIN = (int, float, str, bytes, bool, type(None))


class KnownCall(object):
    """What tasks of one call share: params and how to hand out slices. total: of slices, if their
    answers are combined, else 0."""

    def __init__(self, id_, module, params, writable, spans, function, total):
        # type: (int, str, Any, bool, bool, Optional[str], int) -> None
        self.id = id_
        self.module = module
        self.params = params
        self.writable = writable
        self.spans = spans
        self.function = function
        self.partials = partials.Partials(total) if total else None
        self.special = spans or self.partials is not None  # a task is not just a slice
        self.shared = None  # type: Optional[List[Any]]
        self.map = None  # type: Any  # the function itself, once it was loaded

    def again(self, id_, params):
        # type: (int, bytes) -> None
        """It is another one from now on, with these params."""
        self.id, self.params, self.shared = id_, params, None

    def get_params(self):
        # type: () -> Any
        """A fresh object for each task, so that a task cannot see what another one changed;
        except where reading takes long."""
        if type(self.params) is bytes and not self.spans:  # read once, and soon
            data = bytearray(self.params) if self.writable else self.params
            return codec.decode_blob(data, self.writable)
        if self.shared is not None:
            return self.shared[0]
        began = time.perf_counter()
        value = read_blob(self.params, self.writable)
        if type(value) in _PLAIN or time.perf_counter() - began > _SHARE_SECONDS:
            self.shared = [value]
        return value


def map_file(fd, writable):
    # type: (int, bool) -> Any
    access = mmap.ACCESS_COPY if writable else mmap.ACCESS_READ
    return mmap.mmap(fd, 0, access=access)


def read_blob(source, writable):
    # type: (Any, bool) -> Any
    """The object in a blob given as bytes, as a mapping, or as a descriptor to map privately."""
    if isinstance(source, Held):
        data = map_file(source.fd, True) if writable else source.mapping()
    else:
        data = bytearray(source) if writable else source
    return codec.decode_blob(data, writable)


class Held(object):
    """A blob in a file that this worker has open."""

    def __init__(self, fd):
        # type: (int) -> None
        self.fd = fd
        self._mapping = None  # type: Any

    def mapping(self):
        # type: () -> Any
        if self._mapping is None:
            self._mapping = map_file(self.fd, False)
        return self._mapping

    def close(self):
        # type: () -> None
        """The mapping itself lives as long as an array that uses it."""
        os.close(self.fd)
        self._mapping = None
