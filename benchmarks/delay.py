"""A host far away: a relay to a local port that holds back all that passes, as long wires would.

`python -m benchmarks.delay PORT SECONDS` prints the port it listens on, and ends when its stdin
does. SECONDS is what one way takes. Bandwidth is not limited: up to 256 MB may be on their way.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import sys
import threading
import time

CHUNK, CHUNKS = 64 << 10, 4096


def relay(near: socket.socket, port: int, seconds: float) -> None:
    """Connecting takes a way there and a way back, too, before either end hears anything."""
    time.sleep(seconds)
    far = socket.create_connection(("127.0.0.1", port))
    for one in (near, far):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    carry(far, near, seconds)
    time.sleep(seconds)
    carry(near, far, seconds)


def carry(source: socket.socket, sink: socket.socket, seconds: float) -> None:
    """Start to carry what comes from source to sink, so many seconds late."""
    way: queue.Queue[tuple[float, bytes]] = queue.Queue(CHUNKS)

    def read() -> None:
        data = b"more"
        while data:
            try:
                data = source.recv(CHUNK)
            except OSError:
                data = b""
            way.put((time.monotonic() + seconds, data))

    def write() -> None:
        data = b"more"
        while data:
            due, data = way.get()
            time.sleep(max(0.0, due - time.monotonic()))
            with contextlib.suppress(OSError):
                if data:
                    sink.sendall(data)
                else:
                    sink.shutdown(socket.SHUT_WR)

    threading.Thread(target=read, daemon=True).start()
    threading.Thread(target=write, daemon=True).start()


def main(port: int, seconds: float) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)

    def accept() -> None:
        while True:
            near, _ = listener.accept()
            threading.Thread(target=relay, args=(near, port, seconds), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
