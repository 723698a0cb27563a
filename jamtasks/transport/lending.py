"""Reading in the place of Paramiko's thread.

Paramiko reads in a thread of its own. Who waits for an answer waits for that thread, and to change
threads takes as long as many an answer. So reading can be lent: then one who waits reads from the
socket itself, and Paramiko's thread waits in front of the next message. What is not for the
borrower goes to that thread, and reading with it.
"""

from __future__ import annotations

import functools
import select
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from jamtasks.transport.sealing import MSG_CHANNEL_DATA, Sealing
from jamtasks.transport.wakeful import Wakeful

if TYPE_CHECKING:
    import paramiko
    from paramiko.packet import Packetizer
else:
    Packetizer = object  # until somebody logs in: see `packetizer`

LOOK_SECONDS = 0.1  # between looks whether all is over; Paramiko looks as often


@functools.lru_cache(maxsize=1)
def packetizer() -> type[Lending]:
    """What Paramiko is to read and write packets with."""
    from paramiko.packet import Packetizer

    return type("Lending", (Lending, Sealing, Packetizer), {})


class Lending(Packetizer):
    """Paramiko's packets, and whose turn it is to read them.

    Its thread calls `read_message`. One other calls `borrow`, `wait` and `read_for`; any may call
    `end_lending`, `asked` and `close`."""

    def __init__(self, sock: Any):
        super().__init__(sock)
        self._turn = threading.Condition()
        self._lending = False  # it may be borrowed: Paramiko's thread must not sleep in a read
        self._lent = False
        self._idle = False  # Paramiko's thread has done all that it has read
        self._busy = False  # the borrower is in the midst of a message
        self._kept: deque[Any] = deque()  # what the borrower read: messages, or an exception
        self._wakeful = Wakeful()
        self.asked = self._wakeful.asked
        self.can_lend = isinstance(sock, socket.socket)  # and not a tunnel
        if self.can_lend:
            self._here, self._there = select.poll(), select.poll()  # each for one thread
            self._here.register(sock, select.POLLIN)
            self._there.register(sock, select.POLLIN)

    # --- Paramiko's thread -------------------------------------------------------------------

    def read_message(self) -> tuple[int, paramiko.Message]:
        while not self.closed:
            with self._turn:
                self._idle = True
                if self._lent or self._busy:
                    self._turn.wait(LOOK_SECONDS)
                    continue
                if self._kept:
                    self._idle = False
                    kept = self._kept.popleft()
                    if isinstance(kept, Exception):
                        raise kept
                    return kept
                if not self._lending:
                    self._idle = False
                    break
            found = self._there.poll(1000 * LOOK_SECONDS)
            with self._turn:
                if self._lent or self._busy or self._kept:  # what was found is taken
                    continue
                self._idle = False
            if found:
                break
            self._at_rest()
        return super().read_message()

    def _at_rest(self) -> None:
        """What else Paramiko does when nothing comes for a while."""
        from paramiko.packet import NeedRekeyException

        if self.need_rekey():
            raise NeedRekeyException
        self._check_keepalive()

    def close(self) -> None:
        super().close()
        self.end_lending()

    # --- the borrower ------------------------------------------------------------------------

    def borrow(self) -> bool:
        """Whether reading is lent now. The first time it is not: the thread reads already."""
        with self._turn:
            self._lending = self.can_lend
            if self._idle and not self._kept and not self.closed and not self.need_rekey():
                self._lent = True
            return self._lent

    def end_lending(self) -> None:
        """Paramiko's thread reads from now on, as if there were no others."""
        with self._turn:
            self._lending = self._lent = False
            self._turn.notify_all()

    def wait(self, seconds: float) -> bool:
        """Whether something comes within so many seconds."""
        return self._wakeful.wait(self._here.poll, seconds)

    def read_for(self, channel: paramiko.Channel) -> bool:
        """Read a message, which has begun to come. False if it was not lent, or is not any more,
        because the message was not for this channel, or was the end."""
        with self._turn:
            if not self._lent:
                return False
            self._busy = True
        # Ctrl-C may come anywhere: in the midst of a message there is no going on after it
        kept: Any = EOFError("reading was interrupted")
        try:
            kind, message = super().read_message()
            if kind == MSG_CHANNEL_DATA and message.get_int() == channel.chanid:
                channel._feed(message)
                kept = None
            else:
                message.rewind()
                kept = kind, message
        except Exception as error:
            kept = error
        finally:
            with self._turn:
                self._busy = False
                if kept is not None:
                    self._kept.append(kept)
                if kept is not None or self.need_rekey():
                    self._lent = False
                if not self._lent:
                    self._turn.notify_all()
        return self._lent
