"""Much data to a channel, for little of the processor's time.

Paramiko makes a packet of 32 KiB at a time, copies it six times on its way to the socket, and asks
there each time whether there is room. Here some packets at a time are copied into place, sealed
with AES-GCM and sent together. Whatever is not that very case is left to Paramiko: other ciphers,
compression, and the packet with which keys are to be changed.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import paramiko
    from paramiko.packet import Packetizer

    from worker_payload.wire import Buffer
else:
    Packetizer = object  # until somebody logs in: see `lending.packetizer`

AT_ONCE = 8  # packets: more are no quicker, and others who want to send wait for all of them
MSG_CHANNEL_DATA = 94  # RFC 4254
_HEAD = struct.Struct(">BBII")  # bytes of padding; then the message: kind, channel, bytes of data
_LENGTH = struct.Struct(">I")
_BLOCK = 16  # of AES
_SECRETS = (
    "aead_out", "block_engine_out", "block_size_out", "compress_engine_out", "dump_packets",
    "iv_out", "sent_bytes", "sent_packets", "sequence_number_out", "write_lock",
)  # fmt: skip


def send(channel: paramiko.Channel, buffers: Sequence[Buffer]) -> None:
    """All of it, as `Channel.sendall` does, and with its errors; the connection's packets are
    `Sealing`. One thread at a time, or what they send gets mixed."""
    left, transport = _Run(buffers), channel.get_transport()
    if not (hasattr(channel, "_wait_for_send_window") and hasattr(transport, "_send_user_message")):
        channel.sendall(b"".join(buffers))
        return
    while left.size:
        packets: list[list[memoryview]] = []
        with channel.lock:
            if channel.closed:
                raise OSError(errno.EPIPE, "the channel is closed")
            while left.size and len(packets) < AT_ONCE:
                if packets and not channel.out_window_size:
                    break  # only the first waits
                size = channel._wait_for_send_window(left.size)
                if not size:
                    raise OSError(errno.EPIPE, "the channel is closed")
                packets.append(left.take(size))
        transport._send_user_message(Data(channel.remote_chanid, packets))


class _Run:
    """Buffers as one run of bytes, of which some are taken at a time."""

    def __init__(self, buffers: Sequence[Buffer]):
        self._left = deque(memoryview(part).cast("B") for part in buffers if len(part))
        self.size = sum(map(len, self._left))

    def take(self, size: int) -> list[memoryview]:
        taken: list[memoryview] = []
        self.size -= size
        while size:
            part = self._left.popleft()
            if len(part) > size:
                self._left.appendleft(part[size:])
                part = part[:size]
            taken.append(part)
            size -= len(part)
        return taken


@dataclass(frozen=True)
class Data:
    """What follows each other in a channel, by packets."""

    channel: int
    packets: list[list[memoryview]]

    def most(self) -> int:
        """Bytes on the wire, or a few more."""
        return sum(len(part) for parts in self.packets for part in parts) + 64 * len(self.packets)

    def seal(self, engine: Any, nonce: bytes) -> tuple[bytes, bytes]:
        """The bytes on the wire (RFC 5647), and the nonce of what follows them."""
        fixed, counter = nonce[:4], int.from_bytes(nonce[4:], "big")
        sealed: list[bytes] = []
        for parts in self.packets:
            size = sum(map(len, parts))
            padding = 4 + -(_HEAD.size + size + 4) % _BLOCK
            head = _HEAD.pack(padding, MSG_CHANNEL_DATA, self.channel, size)
            packet = b"".join((head, *parts, os.urandom(padding)))
            length = _LENGTH.pack(len(packet))  # goes in the clear, and under the seal
            sealed += length, engine.encrypt(nonce, packet, length)
            counter += 1
            nonce = fixed + counter.to_bytes(8, "big")
        return b"".join(sealed), nonce

    def messages(self) -> Iterator[paramiko.Message]:
        """The same for Paramiko."""
        import paramiko

        for parts in self.packets:
            message = paramiko.Message()
            message.add_byte(bytes([MSG_CHANNEL_DATA]))
            message.add_int(self.channel)
            message.add_string(b"".join(parts))
            yield message


class Sealing(Packetizer):
    """Paramiko's packets, which are also sent some at a time. Any thread may send."""

    _Packetizer__iv_out: bytes
    _Packetizer__sequence_number_out: int
    _Packetizer__sent_packets: int

    def __init__(self, sock: Any):
        super().__init__(sock)
        # of another Paramiko than those that we know we use nothing but its methods
        self._known = all(hasattr(self, f"_Packetizer__{name}") for name in _SECRETS)

    def send_message(self, data: paramiko.Message | Data) -> None:
        if not isinstance(data, Data):
            super().send_message(data)
        elif not self._known or not self._send(data):
            for message in data.messages():
                super().send_message(message)

    def _send(self, data: Data) -> bool:
        """False if that is for Paramiko to do."""
        with self._Packetizer__write_lock:
            sequence = self._Packetizer__sequence_number_out + len(data.packets)
            count = self._Packetizer__sent_packets + len(data.packets)
            total = self._Packetizer__sent_bytes + data.most()
            if (
                not self._Packetizer__aead_out
                or self._Packetizer__block_size_out != _BLOCK
                or self._Packetizer__compress_engine_out is not None
                or self._Packetizer__dump_packets
                or count >= self.REKEY_PACKETS
                or total >= self.REKEY_BYTES
                or sequence >= 1 << 32
            ):
                return False
            nonce = self._Packetizer__iv_out
            sealed, nonce = data.seal(self._Packetizer__block_engine_out, nonce)
            self._Packetizer__iv_out = nonce  # before anything can fail: none is used twice
            self._Packetizer__sequence_number_out = sequence
            self.write_all(memoryview(sealed))  # which may take it in parts
            self._Packetizer__sent_bytes += len(sealed)
            self._Packetizer__sent_packets = count
        return True
