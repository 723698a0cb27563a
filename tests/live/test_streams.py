"""What a worker's streams are after a task, whatever the task did to them: as before, with all that
was written on its way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# after each statement: whether it wrote, and what has come out; the answer is on a third descriptor
SCRIPT = """
import io, json, os, sys
from worker_payload.streams import Streams
reads, told = os.pipe(), os.dup(1)
for fd in (1, 2):
    os.dup2(reads[1], fd)
os.set_blocking(reads[0], False)
def come():
    try:
        return os.read(reads[0], 1 << 16).decode()
    except BlockingIOError:
        return ""
streams = Streams()
seen = []
for statement in json.loads(sys.argv[1]):
    exec(statement)
    wrote = streams.settle()
    right = sys.stdout is streams.out and sys.stderr is streams.err
    seen.append([wrote, come(), right and not streams.settle()])
os.write(told, json.dumps(seen).encode())
os._exit(0)
"""


def after(*statements):
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(statements)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, check=True,
        timeout=60,
    ).stdout  # fmt: skip
    return json.loads(out)


def test_nothing_done_is_nothing_written():
    assert after("pass", "pass") == [[0, "", True]] * 2


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("print('a line')", "a line\n"),
        ("print('half', end='')", "half"),
        ("sys.stderr.write('e')", "e"),
        ("sys.stdout.buffer.write(b'bytes')", "bytes"),
        ("sys.stdout.buffer.raw.write(b'raw')", "raw"),
        ("print('o'); print('e', file=sys.stderr)", "o\ne\n"),
        ("print('x' * 20000)", "x" * 20000 + "\n"),
        ("sys.stdout.reconfigure(write_through=False, line_buffering=False); print('r')", "r\n"),
    ],
)
def test_what_is_written_has_come_out(statement, text):
    assert after(statement, "pass", "print('more', end='')") == [
        [1, text, True], [0, "", True], [1, "more", True],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "statement",
    [
        "sys.stdout.close()", "sys.stderr.close()", "sys.stdout.detach()", "os.close(1)",
        "os.close(2)", "sys.stdout.buffer.detach()", "sys.stdout.buffer.close()",
        "sys.stdout.buffer.raw.close()", "sys.stdout = io.StringIO()", "sys.stderr = None",
        "del sys.stdout", "sys.stdout = sys.stderr", "sys.stdout, sys.stderr = None, 7",
        "sys.stdout.close(); sys.stderr.close(); os.close(1); os.close(2)",
    ],
)  # fmt: skip
def test_what_was_broken_is_whole_again(statement):
    print_both = "print('o'); print('e', file=sys.stderr)"
    assert after(statement, print_both) == [[0, "", True], [1, "o\ne\n", True]]
