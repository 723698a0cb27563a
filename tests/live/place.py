"""A directory for an agent of one test, without SSH, and clients that speak to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from agent_client import Client, environment

from jamtasks import archive, loader
from worker_payload import procs


def installed(tmp: Path, payload: archive.Payload) -> Path:
    """A folder that `python` runs."""
    loader.install(str(tmp), payload.build, payload.data)
    return tmp / "payload" / payload.build


class Place:
    """A host-private directory of one test, and the processes that were started with it."""

    def __init__(self, tmp: Path, payload: Path | None = None):
        tmp.mkdir(exist_ok=True)
        self.run = tmp / "run"
        self.cache = tmp / "cache"
        self.build = archive.payload().build
        self.payload = payload or installed(tmp, archive.payload())
        # a SCREENDIR that is not there: screen fails, and a plain session takes its place
        self.env = environment(
            self.run, self.cache, SCREENDIR=str(tmp / "no" / "where"), JAM_TEST=str(tmp)
        )
        self.mark = f"JAM_TEST={tmp}".encode()
        self.clients: list[Client] = []

    def attach(self, **more: object) -> Client:
        more.setdefault("build", self.build)
        client = Client(self.payload, self.env, **more)  # type: ignore[arg-type]
        self.clients.append(client)
        return client

    def verb(self, verb: str, *args: str, python: str = sys.executable) -> str:
        done = subprocess.run(
            [python, str(self.payload), verb, "m", *args],
            env=self.env, capture_output=True, text=True, timeout=30)  # fmt: skip
        assert "\nm:R\n" in done.stdout, done
        return done.stdout.partition("\nm:R\n")[2]

    def processes(self) -> list[int]:
        """All that run with this test's mark in their environment."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                try:
                    marked = self.mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                if marked and procs.is_alive(int(name)):
                    found.append(int(name))
        return found

    def log(self) -> str:
        return "".join(path.read_text() for path in self.run.glob("*.log"))
