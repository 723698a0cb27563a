"""A project's folder and job workers on this machine, for tests: without the master's side."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sshd import wait_until

from worker_payload import fire, layout
from worker_payload.jobs import files, hire, lines, names, steps
from worker_payload.jobs.names import Pod

ROOT = Path(__file__).resolve().parents[2]
RUN = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from worker_payload import cli; cli.exit()"


class Project:
    """A project of this machine's HOME, and its workers here. here: where they are hired."""

    def __init__(self, here: Path, name: str = "test"):
        self.name = name
        self.here = here
        self.run = layout.run_dir()
        self.root = Path(names.home(name))
        self.identity = files.prepare(str(self.root))
        self.queue = self.root / names.QUEUE

    def close(self) -> None:
        """Ends the workers; nothing of them may be left."""
        try:
            assert self.fire()["left"] == 0
        finally:
            os.close(self.run.fd)

    # --- jobs ------------------------------------------------------------------------------

    def submit(self, words: str | Sequence[str], jobs: Iterable[Sequence[str]] = ((),),
               size: int = 1000, priority: int = 0, **plan: Any) -> str:  # fmt: skip
        """Pods of `size` jobs each; the submission."""
        ticket, now = names.new_ticket(), int(time.time() * 1000)
        words = tuple(words.split()) if isinstance(words, str) else tuple(words)
        rows = [list(job) for job in jobs]
        head = lines.Plan(ticket, words=words, cwd=str(self.here), total=len(rows), **plan)
        pods = []
        for number, at in enumerate(range(0, len(rows), size)):
            part = rows[at : at + size]
            pod = Pod(names.new_pod(now, priority, number), len(part), 0, names.NO_CUT)
            pods.append((pod, lines.write_pod(head._replace(first=at + 1), part)))
        self.do(steps.submit(pods, ticket))
        return ticket

    def drop(self, name: str | bytes, text: str, mode: int = 0o644) -> None:
        """A file in the queue, whole at once."""
        aside = self.root / names.new_ticket()
        aside.write_text(text)
        aside.chmod(mode)
        aside.rename(os.path.join(self.queue, os.fsdecode(name)))

    def done(self) -> int:
        found = (names.read_pod(name) for name in os.listdir(self.root / names.DONE))
        return sum(pod.jobs for pod in found if pod is not None)

    def wait(self, jobs: int, seconds: float = 30.0) -> list[lines.Result]:
        """Until so many jobs are recorded; their results, in the order in which they began."""
        wait_until(lambda: self.done() >= jobs, f"{jobs} jobs are done", seconds)
        found = sorted(self.records().values(), key=lambda result: result.began)
        assert len(found) == jobs
        return found

    def records(self) -> dict[tuple[str, int], lines.Result]:
        """What is recorded, by (label, try): a dropped job's label is its name, else job17."""
        found: dict[tuple[str, int], lines.Result] = {}
        for name in sorted(os.listdir(self.root / names.DONE)):
            pod = names.read_pod(name)
            assert pod is not None
            plan, _ = lines.read_pod((self.root / names.done(pod)).read_bytes())
            record = self.do(steps.read_record(pod))
            assert len(record) == pod.jobs
            for index, result in record.items():
                label = f"job{plan.first + index}"
                if plan.kind == "drop":
                    label = os.fsdecode(bytes.fromhex(plan.name))
                count = sum(1 for key in found if key[0] == label)
                found[label, count] = result
        return found

    def output(self, result: lines.Result, stream: str = "out") -> str:
        at = result.out if stream == "out" else result.err
        return (self.root / names.output(result.owner, stream)).read_text()[slice(*at)]

    def waiting(self) -> list[str]:
        return os.listdir(self.queue)

    def claimed(self) -> list[str]:
        return os.listdir(self.root / names.CLAIMED)

    def do(self, generator: Any) -> Any:
        with contextlib.closing(files.Files(str(self.root))) as here:
            return here.run(generator)

    # --- workers ---------------------------------------------------------------------------

    def hire(self, count: int | None, **request: Any) -> dict[str, Any]:
        told = {"count": count, "cwd": str(self.here), "id": self.identity, **request}
        return hire.hire(self.run, self.name, told)

    def fire(self, **how: bool) -> dict[str, Any]:
        return fire.fire(self.run, self.name, **how)

    def workers(self) -> list[dict[str, Any]]:
        return hire.workers(self.run, self.name)

    def hearts(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted((self.root / names.OWNERS).iterdir()):
            with contextlib.suppress(OSError, ValueError):
                found.append(json.loads(path.read_text()))
        return found

    def worker_pid(self, number: int = 1) -> int:
        """Of the process that runs jobs, below the keeper."""

        def look() -> int:
            found = [told["pid"] for told in self.hearts() if told["number"] == number]
            return found[0] if found else 0

        return int(wait_until(look, f"worker {number} lives"))

    def log(self, number: int = 1) -> str:
        return next((self.root / names.LOGS).glob(f"*-w{number}.log")).read_text()

    def verb(self, python: str, verb: str, request: dict[str, Any]) -> dict[str, Any]:
        """The verb as another Python runs it."""
        done = subprocess.run(
            [python, "-c", RUN, verb, "MARK", self.name],
            input=json.dumps(request) + "\n", stdout=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
        head, _, rest = done.stdout.strip().partition("\n")
        assert head == "MARK:R", done.stdout
        answer: dict[str, Any] = json.loads(rest)
        return answer


def without_screen(folder: Path) -> str:
    """A PATH on which everything is but screen."""
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        if not os.path.isdir(place):
            continue
        for name in os.listdir(place):
            if name != "screen" and not (folder / name).exists():
                (folder / name).symlink_to(os.path.join(place, name))
    assert shutil.which("screen", path=str(folder)) is None
    return str(folder)


def marks(name: str) -> set[int]:
    """Live processes with this in their environment."""
    found = set()
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            with contextlib.suppress(OSError):
                data = Path(f"/proc/{pid}/environ").read_bytes()
                state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
                if name.encode() in data and state not in "ZX":
                    found.add(int(pid))
    return found - {os.getpid()}
