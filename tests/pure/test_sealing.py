"""Packets made some at a time are those that Paramiko makes, to the byte, and so are the counts by
which keys are changed; what is not AES-GCM without compression goes Paramiko's own way."""

from __future__ import annotations

import itertools
import os
import random
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import paramiko
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from paramiko.packet import Packetizer

from jamtasks.transport import sealing
from jamtasks.transport.lending import packetizer
from jamtasks.transport.sealing import AT_ONCE, Data, Sealing

Ours = type("Ours", (Sealing, Packetizer), {})
KEY, NONCE = bytes(range(16)), bytes(range(11)) + b"\xfe"  # it carries soon
SIZES = [1, 2, 11, 12, 13, 27, 28, 29, 1000, 32703, 32704]
SECRETS = ("iv_out", "sequence_number_out", "sent_bytes", "sent_packets", "need_rekey")


class Wire:
    """A socket that keeps what is sent, and takes some of it at a time."""

    def __init__(self) -> None:
        self.data = bytearray()

    def send(self, data: bytes) -> int:
        self.data += data[:40000]
        return min(40000, len(data))

    def close(self) -> None:
        return


def gcm(packets: Packetizer) -> None:
    packets.set_outbound_cipher(AESGCM(KEY), 16, None, 16, None, aead=True, iv_out=NONCE)


def ctr(packets: Packetizer) -> None:
    engine = Cipher(algorithms.AES(KEY), modes.CTR(KEY)).encryptor()
    packets.set_outbound_cipher(engine, 16, sha256, 32, KEY, sdctr=True)


def etm(packets: Packetizer) -> None:
    engine = Cipher(algorithms.AES(KEY), modes.CTR(KEY)).encryptor()
    packets.set_outbound_cipher(engine, 16, sha256, 32, KEY, sdctr=True, etm=True)


def compressed(packets: Packetizer) -> None:
    gcm(packets)
    engine = zlib.compressobj()
    compress = lambda data: engine.compress(data) + engine.flush(zlib.Z_FULL_FLUSH)  # noqa: E731
    packets.set_outbound_compressor(compress)


def plain(packets: Packetizer) -> None:
    return


def made(kind: type, cipher: Callable[[Packetizer], None] = gcm) -> tuple[Any, Wire]:
    wire = Wire()
    packets = kind(wire)
    cipher(packets)
    packets._initial_kex_done = True
    return packets, wire


def bursts(seed: int, count: int) -> Iterator[Data]:
    """Data in packets of some parts each, for two channels."""
    chance = random.Random(seed)
    for _ in range(count):
        packets = []
        for _ in range(chance.randrange(1, AT_ONCE + 1)):
            data = memoryview(chance.randbytes(chance.choice(SIZES)))
            cuts = sorted(chance.choices(range(len(data) + 1), k=chance.randrange(3)))
            edges = [0, *cuts, len(data)]
            packets.append([data[begin:end] for begin, end in itertools.pairwise(edges)])
        yield Data(chance.choice([0, 7]), packets)


def state(packets: Packetizer) -> list[Any]:
    return [getattr(packets, f"_Packetizer__{name}") for name in SECRETS]


@pytest.fixture
def padding(monkeypatch):
    """The same for all."""
    monkeypatch.setattr(os, "urandom", lambda count: bytes(range(count)))


@pytest.mark.parametrize("cipher", [gcm, ctr, etm, compressed, plain])
def test_the_bytes_are_those_of_paramiko(cipher, padding):
    ours, sent = made(Ours, cipher)
    theirs, expected = made(Packetizer, cipher)
    for number, data in enumerate(bursts(number_of(cipher), 20)):
        ours.send_message(data)
        for message in data.messages():
            theirs.send_message(message)
        if number % 3 == 0:  # others send on the same connection
            for packets in (ours, theirs):
                packets.send_message(ignored(b"a word" * number))
        assert state(ours) == state(theirs)
    assert sent.data == expected.data


def number_of(cipher: Callable[[Packetizer], None]) -> int:
    return zlib.crc32(cipher.__name__.encode())


def ignored(text: bytes) -> paramiko.Message:
    message = paramiko.Message()
    message.add_byte(bytes([2]))
    message.add_string(text)
    return message


def test_nothing_but_this_case_is_done_here(monkeypatch):
    """And this case is done here."""
    done = []
    seal = Data.seal
    monkeypatch.setattr(Data, "seal", lambda *all: done.append(all) or seal(*all))
    data = Data(0, [[memoryview(b"some")]])
    for cipher in (ctr, etm, compressed, plain):
        made(Ours, cipher)[0].send_message(data)
    logged, _ = made(Ours)
    logged.set_hexdump(True)
    logged.send_message(data)
    assert not done
    made(Ours)[0].send_message(data)
    assert len(done) == 1


@pytest.mark.parametrize("name", sealing._SECRETS)
def test_another_paramiko_goes_its_own_way(monkeypatch, name, padding):
    """One that has not the attributes that we know."""

    class Other(Packetizer):
        def __getattribute__(self, asked: str) -> Any:
            if known and asked == f"_Packetizer__{name}":
                raise AttributeError(asked)
            return super().__getattribute__(asked)

    known = True
    ours, sent = made(type("Ours", (Sealing, Other), {}), plain)
    known = False
    gcm(ours)
    theirs, expected = made(Packetizer)
    monkeypatch.setattr(Data, "seal", None)
    for data in bursts(1, 3):
        ours.send_message(data)
        for message in data.messages():
            theirs.send_message(message)
    assert sent.data == expected.data


@pytest.mark.parametrize("limit", ["REKEY_BYTES", "REKEY_PACKETS"])
def test_keys_are_to_be_changed_after_the_same_packet(monkeypatch, limit, padding):
    monkeypatch.setattr(Packetizer, limit, 100_000 if limit == "REKEY_BYTES" else 30)
    ours, sent = made(Ours)
    theirs, expected = made(Packetizer)
    asked = 0
    for data in bursts(5, 60):
        ours.send_message(data)
        for message in data.messages():
            theirs.send_message(message)
        assert state(ours) == state(theirs)
        if ours.need_rekey():  # a few more follow, then both ends have the new ones
            asked += 1
            if asked % 3 == 0:
                for packets in (ours, theirs):
                    gcm(packets)
                    packets.set_inbound_cipher(AESGCM(KEY), 16, None, 16, None, aead=True)
                    assert not packets.need_rekey()
    assert asked > 6 and sent.data == expected.data


def test_the_numbers_of_packets_begin_anew():
    ours, _ = made(Ours)
    theirs, _ = made(Packetizer)
    for packets in (ours, theirs):
        packets._Packetizer__sequence_number_out = (1 << 32) - 3
    for data in bursts(6, 3):
        ours.send_message(data)
        for message in data.messages():
            theirs.send_message(message)
        assert state(ours) == state(theirs)


def test_many_threads_send_at_a_time():
    """Paramiko reads it, which checks every seal, and so the order."""
    here, there = socket.socketpair()
    reader = Packetizer(there)
    reader.set_inbound_cipher(AESGCM(KEY), 16, None, 16, None, aead=True, iv_in=NONCE)
    ours = Ours(here)
    gcm(ours)
    expected: dict[int, bytes] = {}

    def talk(channel: int) -> None:
        for data in bursts(channel, 20):
            data = Data(channel, data.packets)
            expected[channel] += b"".join(part for parts in data.packets for part in parts)
            ours.send_message(data)
            ours.send_message(ignored(b"a word"))

    threads = [threading.Thread(target=talk, args=[number]) for number in range(4)]
    expected.update(dict.fromkeys(range(4), b""))
    got, words = dict.fromkeys(expected, b""), 0
    for thread in threads:
        thread.start()
    while words < 80:
        kind, message = reader.read_message()
        if kind == sealing.MSG_CHANNEL_DATA:
            channel = message.get_int()
            got[channel] += message.get_string()
        else:
            words += 1
    for thread in threads:
        thread.join(10)
    here.close()
    there.close()
    assert got == expected


# --- with all of Paramiko at both ends -----------------------------------------------------------


class Door(paramiko.ServerInterface):
    def check_auth_none(self, username: str) -> int:
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED


@pytest.fixture
def ends() -> Iterator[tuple[paramiko.Channel, paramiko.Channel]]:
    """A channel over a connection of ours, and its other end, which is Paramiko's alone."""
    here, there = socket.socketpair()
    server = paramiko.Transport(there)
    server.add_server_key(paramiko.ECDSAKey.generate())
    server.start_server(threading.Event(), Door())
    client = paramiko.Transport(here, packetizer_class=packetizer())
    client.get_security_options().ciphers = ["aes128-gcm@openssh.com"]
    client.start_client(timeout=10)
    client.auth_none("nobody")
    ours = client.open_session()
    yield ours, server.accept(10)
    client.close()
    server.close()


def test_keys_change_on_the_way(monkeypatch, ends):
    """And what is sent in between arrives as it was, whoever sends."""
    ours, theirs = ends
    changes = []
    negotiate = paramiko.Transport._send_kex_init
    monkeypatch.setattr(
        paramiko.Transport, "_send_kex_init", lambda self: changes.append(self) or negotiate(self)
    )
    transport = ours.get_transport()
    transport.packetizer.REKEY_BYTES = 500_000
    data = random.Random(1).randbytes(3_000_000)
    pieces = [struct.pack(">I", 5), memoryview(data)[:5], data[5:70_000], data[70_000:]]
    thread = threading.Thread(target=sealing.send, args=[ours, pieces])
    thread.start()
    got = bytearray()
    while len(got) < 4 + len(data):
        got += theirs.recv(1 << 20)
        transport.send_ignore(100)
    thread.join(10)
    assert got[4:] == data
    assert transport in changes


def test_a_frame_is_as_few_packets_as_can_be(monkeypatch, ends):
    ours, theirs = ends
    sizes: list[list[int]] = []
    seal = Data.seal

    def note(self: Data, *args: Any) -> tuple[bytes, bytes]:
        sizes.append([sum(map(len, parts)) for parts in self.packets])
        return seal(self, *args)

    monkeypatch.setattr(Data, "seal", note)
    pieces = [b"a", b"", bytes(100_000), memoryview(struct.pack("2I", 3, 4)).cast("I"), b"z"]
    sealing.send(ours, pieces)
    data, full = b"".join(pieces), ours.out_max_packet_size - 64
    assert sizes == [[full] * 3 + [len(data) - 3 * full]]
    got = b""
    while len(got) < len(data):
        got += theirs.recv(1 << 20)
    assert got == data
    sealing.send(ours, [])
    assert len(sizes) == 1, "nothing is sent for nothing"


@pytest.mark.parametrize(
    ("of", "name"),
    [(paramiko.Channel, "_wait_for_send_window"), (paramiko.Transport, "_send_user_message")],
)
def test_another_paramiko_sends_it_all_by_itself(monkeypatch, ends, of, name):
    ours, _ = ends
    sent = []
    monkeypatch.setattr(ours, "sendall", sent.append)
    monkeypatch.delattr(of, name)
    sealing.send(ours, [b"this ", memoryview(b"and that")])
    monkeypatch.undo()
    assert sent == [b"this and that"]


def test_a_closed_channel_takes_no_more(ends):
    ours, theirs = ends
    error: list[Exception] = []

    def talk() -> None:
        try:
            sealing.send(ours, [bytes(50_000_000)])  # more than the window
        except OSError as raised:
            error.append(raised)

    thread = threading.Thread(target=talk)
    thread.start()
    theirs.recv(1)
    theirs.close()
    thread.join(10)
    assert error and not thread.is_alive()
    with pytest.raises(OSError, match="closed"):
        sealing.send(ours, [b"more"])
