"""Params on their way to the hosts, and answers on their way back: objects and their bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from worker_payload import codec
from worker_payload.wire import Buffer

from .errors import EncodingError, TaskFailed

if TYPE_CHECKING:
    from .modules import Bundle

INLINE_PARAMS = 32 << 10  # bytes: larger params travel as a blob, one copy per host


class Params:
    """Encoded params: inline in the Begin, or a blob of their own."""

    def __init__(self, segments: list[Buffer]):
        self.parts = codec.blob_parts(segments)
        self.size = codec.blob_size(self.parts)
        self.needs_numpy = codec.needs_numpy(segments)
        self.begin_digest = ""
        self.inline: list[Buffer] = []
        if self.size <= INLINE_PARAMS:
            self.inline = [b"".join(self.parts)]
        else:
            self.begin_digest = codec.blob_digest(self.parts)


def encode_params(params: Any) -> Params:
    """Raises EncodingError."""
    try:
        return Params(codec.encode(params))
    except codec.EncodeError as error:
        raise EncodingError(f"params cannot travel: {error}") from None
    except MemoryError:
        raise EncodingError("params cannot travel: not enough memory here to encode them") from None


def decoder(bundle: Bundle, host: str, first: int, count: int) -> Callable[[Sequence[Buffer]], Any]:
    """What decodes an answer of a host. count: of how many slices it is a list, from the first one
    on; 0 if it is the answer to one, and no list."""
    if not count:
        return functools.partial(decode, bundle.modules, host, first)
    return functools.partial(_decode_span, bundle.modules, host, first, count)


def _decode_span(
    modules: dict[str, ModuleType], host: str, first: int, count: int, segments: Sequence[Buffer]
) -> list[Any]:
    whose = f"the answer of one of slices {first} to {first + count - 1}"
    values = decode(modules, host, first, segments[1:], "its answer" if count == 1 else whose)
    if type(values) is not list or len(values) != count:
        raise TaskFailed(
            host=host, slice=first, type="DecodeError",
            message=f"not the {count} answers that it said it would be",
        )  # fmt: skip
    return values


def decode_all(
    modules: dict[str, ModuleType],
    hosts: Sequence[str],
    slices: Sequence[int],
    answers: Sequence[Sequence[Buffer]],
) -> list[Any]:
    """What these answers are. answers: the segments of each. hosts, slices: that it is of. Raises
    TaskFailed."""
    single = [answer[0] for answer in answers if len(answer) == 1]
    values = codec.numbers(single) if len(single) == len(answers) else None
    if values is not None:
        return values
    return [decode(modules, *one) for one in zip(hosts, slices, answers, strict=True)]


def decode(
    modules: dict[str, ModuleType],
    host: str,
    task: int,
    segments: Sequence[Buffer],
    what: str = "its answer",
) -> Any:
    """An answer, restored with the classes of these modules alone. Raises TaskFailed."""
    try:
        return codec.decode_untrusted(segments, modules)
    except codec.DecodeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        message = f"{what} is refused: {error}"
        raise TaskFailed(host=host, slice=task, type="DecodeError", message=message) from None
