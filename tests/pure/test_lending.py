"""Reading in the place of Paramiko's thread: nothing is lost, whoever reads, or overtakes."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from jamtasks.transport.lending import MSG_CHANNEL_DATA, Lending

OURS, OTHER, SOMETHING_ELSE = 3, 4, 93
HEAD = struct.Struct(">BIi")


class Message:
    def __init__(self, channel: int, number: int):
        self.number = number
        self._ints = [channel]
        self._read = 0

    def get_int(self) -> int:
        self._read += 1
        return self._ints[self._read - 1]

    def rewind(self) -> None:
        self._read = 0


class Packets:
    """As far as `Lending` needs Paramiko's: one thread at a time may be in `read_message`."""

    def __init__(self, sock: socket.socket):
        self._sock = sock
        self.closed = False
        self._inside = threading.Lock()

    def read_message(self) -> tuple[int, Message]:
        assert self._inside.acquire(blocking=False), "two threads read at a time"
        try:
            data = b""
            while len(data) < HEAD.size:
                more = self._sock.recv(HEAD.size - len(data))
                if not more:
                    raise EOFError
                data += more
            kind, channel, number = HEAD.unpack(data)
            return kind, Message(channel, number)
        finally:
            self._inside.release()

    def need_rekey(self) -> bool:
        return False

    def _check_keepalive(self) -> None:
        return

    def close(self) -> None:
        self.closed = True
        self._sock.shutdown(socket.SHUT_RDWR)


class Channel:
    chanid = OURS

    def __init__(self) -> None:
        self.data: list[int] = []
        self.interrupted = False

    def _feed(self, message: Message) -> None:
        self.data.append(message.number)
        if self.interrupted:
            raise KeyboardInterrupt


class Place:
    """A connection, and Paramiko's thread."""

    def __init__(self) -> None:
        here, self.there = socket.socketpair()
        self.packets = type("Lending", (Lending, Packets), {})(here)
        self.channel = Channel()
        self.others: list[tuple[int, int]] = []
        self.by_thread = 0
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            while True:
                kind, message = self.packets.read_message()
                self.by_thread += 1
                channel = message.get_int()
                if (kind, channel) == (MSG_CHANNEL_DATA, OURS):
                    self.channel._feed(message)
                else:
                    self.others.append((kind, message.number))
        except Exception as error:
            self.error = error

    def say(self, number: int, kind: int = MSG_CHANNEL_DATA, channel: int = OURS) -> None:
        self.there.sendall(HEAD.pack(kind, channel, number))

    def lend(self) -> None:
        """Paramiko's thread sits in a read until something comes."""
        self.packets.borrow()
        self.say(0)
        until(lambda: self.packets.borrow())

    def close(self) -> None:
        self.there.close()
        self.packets.close()
        self.thread.join(10)
        assert not self.thread.is_alive()


def until(holds, seconds: float = 10.0) -> None:
    done = threading.Event()
    for _ in range(int(seconds / 0.001)):
        if holds():
            return
        done.wait(0.001)
    raise AssertionError("it never came to that")


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.close()


def test_the_borrower_reads_and_the_thread_does_not(place):
    place.lend()
    before = place.by_thread
    for number in range(1, 100):
        place.say(number)
        assert place.packets.wait(10) and place.packets.read_for(place.channel)
    assert place.channel.data == list(range(100)) and place.by_thread == before


def test_nothing_comes_while_nothing_is_said(place):
    place.lend()
    assert not place.packets.wait(0.01)


@pytest.mark.parametrize(("kind", "channel"), [(SOMETHING_ELSE, OURS), (MSG_CHANNEL_DATA, OTHER)])
def test_what_is_not_for_the_borrower_is_for_the_thread_which_then_reads(place, kind, channel):
    place.lend()
    place.say(7, kind, channel)
    place.say(1)
    assert place.packets.wait(10) and not place.packets.read_for(place.channel)
    until(lambda: place.others == [(kind, 7)] and place.channel.data == [0, 1])
    assert not place.packets.read_for(place.channel), "it is not lent"


def test_it_is_given_back_in_the_midst_of_a_message(place):
    place.lend()
    whole = HEAD.pack(MSG_CHANNEL_DATA, OURS, 1)
    place.there.sendall(whole[:4])
    borrower = threading.Thread(target=place.packets.read_for, args=[place.channel])
    borrower.start()
    until(lambda: place.packets._busy)
    place.packets.end_lending()
    place.there.sendall(whole[4:])
    borrower.join(10)
    place.say(2)
    until(lambda: place.channel.data == [0, 1, 2])


def test_an_interrupted_read_ends_the_connection(place):
    place.lend()
    place.channel.interrupted = True
    place.say(1)
    with pytest.raises(KeyboardInterrupt):
        place.packets.read_for(place.channel)
    place.thread.join(10)
    assert isinstance(place.error, EOFError) and place.channel.data == [0, 1]


def test_the_end_is_told_to_the_thread(place):
    place.lend()
    place.there.close()
    assert place.packets.wait(10) and not place.packets.read_for(place.channel)
    place.thread.join(10)
    assert isinstance(place.error, EOFError)
    assert not place.packets.borrow()


def test_closing_ends_the_thread_while_it_waits(place):
    place.lend()
    place.packets.close()
    place.thread.join(10)
    assert isinstance(place.error, EOFError)


def test_a_tunnel_is_not_lent():
    packets = type("Lending", (Lending, Packets), {})(None)
    assert not packets.borrow()


@pytest.mark.parametrize("seed", range(8))
def test_whoever_reads_the_order_stays(place, seed):
    chance = random.Random(seed)
    said: list[int] = []
    others: list[tuple[int, int]] = []

    def talk(count: int) -> None:
        for number in range(len(said) + len(others), len(said) + len(others) + count):
            if chance.random() < 0.1:
                others.append((SOMETHING_ELSE, number))
                place.say(number, SOMETHING_ELSE)
            else:
                said.append(number)
                place.say(number)

    read = 0
    for _ in range(60):
        if chance.random() < 0.5:
            place.packets.end_lending()
            talk(chance.randrange(4))
            continue
        if not place.packets.borrow():
            talk(1)  # Paramiko's thread may sit in a read
            if chance.random() < 0.5:
                until(place.packets.borrow)
        talk(chance.randrange(1, 8))
        for _ in range(chance.randrange(8)):
            if not place.packets.wait(0.001) or not place.packets.read_for(place.channel):
                break
            read += 1
    place.packets.end_lending()
    until(lambda: len(place.channel.data) + len(place.others) == len(said) + len(others))
    assert place.channel.data == said and place.others == others
    assert 0 < read < len(said), "both have read"
