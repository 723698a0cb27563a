"""What map functions print, cut into lines."""

from __future__ import annotations

import pytest

from jamtasks.printing import Printer
from worker_payload.wire import Output


@pytest.fixture
def shown():
    return []


@pytest.fixture
def printer(shown):
    return Printer(lambda *line: shown.append(line))


def test_lines_come_whole_however_they_were_cut(printer, shown):
    for piece in (b"on", b"e\ntw", b"o\n", b"three\nfour\n"):
        printer.feed("h", Output(1, 7, 0, 1, [piece]))
    assert shown == [("h", 7, 1, text) for text in ("one", "two", "three", "four")]


def test_tasks_and_streams_do_not_mix(printer, shown):
    printer.feed("h", Output(1, 7, 0, 1, [b"a"]))
    printer.feed("h", Output(1, 8, 1, 1, [b"b"]))
    printer.feed("h", Output(1, 7, 0, 2, [b"c\n"]))
    printer.feed("h", Output(1, 7, 0, 1, [b"d\n"]))
    assert shown == [("h", 7, 2, "c"), ("h", 7, 1, "ad")]


def test_a_line_without_an_end_comes_when_its_worker_goes_on(printer, shown):
    printer.feed("h", Output(1, 7, 0, 1, [b"no end"]))
    printer.feed("h", Output(1, 8, 0, 1, [b"next\n"]))
    assert shown == [("h", 7, 1, "no end"), ("h", 8, 1, "next")]


def test_or_when_the_call_is_over(printer, shown):
    printer.feed("h", Output(1, 7, 0, 1, [b"no end"]))
    printer.end(2)
    assert not shown
    printer.end(1)
    printer.end(1)
    assert shown == [("h", 7, 1, "no end")]


def test_a_line_of_many_megabytes_is_shown_in_pieces(printer, shown):
    for _ in range(100):
        printer.feed("h", Output(1, 7, 0, 1, [b"x" * 4096]))
    assert shown and sum(len(line[3]) for line in shown) >= 400_000 - 2 * Printer.MAX_LINE


def test_nonsense_bytes_are_shown_as_such(printer, shown):
    printer.feed("h", Output(1, 7, 0, 1, [b"\xff\xfe\n"]))
    assert shown == [("h", 7, 1, "\ufffd\ufffd")]
