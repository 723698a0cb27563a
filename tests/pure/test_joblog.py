"""The joblog: GNU parallel's columns, and its ways to say how a job ended."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jamtasks import joblog
from jamtasks.errors import UsageError
from jamtasks.job_report import JobRecord
from jamtasks.joblog import Entry, Numbers


def record(number: int = 1, *, submission: str = "a" * 12, total: int = 5, **changes) -> JobRecord:
    given = {"exit": 0, "signal": 0, "command": "true", **changes}
    return JobRecord(
        number=number, submission=submission, name="", host="lab1", worker="w1", owner="lab1-w1-x",
        began=1360490623.0671, seconds=3.4451, total=total, **given,
    )  # fmt: skip


def test_a_line_is_as_gnu_parallel_writes_it():
    line = joblog.write(joblog.entry(record(4, command="gzip a.txt"), Numbers()))
    assert line == "4\tlab1\t1360490623.067\t     3.445\t0\t0\t0\t0\tgzip a.txt\n"
    assert joblog.HEADING == (
        "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"
    )


@pytest.mark.parametrize(
    ("ended", "columns"),
    [
        ({"exit": 3}, (3, 0)),
        ({"exit": -1, "signal": 9}, (0, 9)),
        ({"exit": -1, "signal": 15, "reason": "timeout"}, (-1, 15)),
        ({"exit": -1, "signal": 9, "reason": "timeout"}, (-1, 9)),
        ({"exit": 4, "reason": "timeout"}, (4, 15)),  # it caught TERM, and said 4
        ({"exit": 0, "reason": "timeout"}, (-1, 15)),
        ({"exit": -1, "reason": "spawn"}, (127, 0)),
        ({"exit": 126, "reason": "spawn"}, (126, 0)),
        ({"exit": -1, "reason": "lost"}, (-1, 0)),
    ],
)
def test_ends_as_gnu_parallel_says_them(ended, columns):
    found = joblog.entry(record(**ended), Numbers())
    assert (found.exit, found.signal) == columns
    assert found.failed


def test_what_gnu_parallel_wrote_is_read():
    written = [
        "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n",
        "2\t:\t1795330138.254\t     0.003\t0\t0\t0\t9\tkill -9 $$\n",
        "1\t:\t1795330138.251\t     1.917\t0\t0\t-1\t15\techo 'a\tb\0c'\n",
    ]
    first, second = joblog.read(written)
    assert (first.seq, first.host, first.exit, first.signal) == (2, ":", 0, 9)
    assert first.failed
    assert second.command == "echo 'a\tb\nc'"
    assert second.seconds == pytest.approx(1.917)


def test_a_line_that_was_cut_short_is_left_out():
    line = joblog.write(joblog.entry(record(), Numbers()))
    assert len(list(joblog.read([joblog.HEADING, line, line[:20]]))) == 1


def test_what_is_no_joblog_is_named_with_its_line():
    with pytest.raises(UsageError, match=r"runs\.tsv, line 2 is none"):
        list(joblog.read([joblog.HEADING, "hello\n"], "runs.tsv"))


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8")), st.integers(-1, 255))
def test_any_command_comes_back(command, status):
    given = Entry(7, "h", 1.5, 2.25, status, 0, command)
    line = joblog.write(given)
    assert line.count("\n") == 1
    assert list(joblog.read([line])) == [given]


def test_numbers_of_several_submissions_never_meet():
    numbers = Numbers()
    one = [numbers.seq("a", number, 5) for number in (4, 1)]
    two = [numbers.seq("b", number, 3) for number in (1, 3)]
    drops = [numbers.seq(ticket, 1, 1) for ticket in ("x", "y")]
    late = numbers.seq("a", 5, 5)
    assert (one, two, drops, late) == ([4, 1], [6, 8], [9, 10], 5)
