"""Tiny slices that travel many to a task."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from jamtasks import spans
from jamtasks.spans import Span, Spans


def test_the_first_go_alone_then_as_many_as_take_some_milliseconds():
    cut = Spans(100_000)
    assert cut.size(2) == 1
    sizes = []
    for task in range(6):
        size = cut.size(2)
        sizes.append(size)
        cut.add(task, Span(cut.cut, size))
        cut.cut += size
        cut.answered(task, size, size * 1e-6, size * 8)
    assert sizes == [1, 8, 64, 512, 4096, 8192]


def test_long_slices_go_alone():
    cut = Spans(1000)
    cut.add(0, Span(0, 1))
    cut.answered(0, 1, 0.1, 8)
    assert cut.size(2) == 1


def test_the_last_ones_are_shared():
    cut = Spans(1000)
    cut.add(0, Span(0, 1000))
    cut.answered(0, 1000, 1e-3, 8)
    cut.cut = 920
    assert cut.size(2) == 80 // (spans.SHARES * 2)
    cut.cut = 999
    assert cut.size(2) == 1


@pytest.mark.parametrize(("slice_bytes", "answer_bytes"), [(1 << 15, 0), (0, 1 << 15)])
def test_large_slices_and_large_answers_make_small_spans(slice_bytes, answer_bytes):
    cut = Spans()
    cut.add(0, Span(0, 8))
    cut.answered(0, 8, 1e-6, 8 * answer_bytes)
    assert cut.size(2, slice_bytes) == 2


def test_what_is_left_undone_gets_other_tasks():
    cut = Spans(10)
    cut.cut = 10
    cut.add(0, Span(0, 10))
    assert cut.answered(0, 4, 0.1, 10) == Span(0, 4)
    assert list(cut.again) == [Span(4, 6)] and not cut.exhausted
    cut.add(1, cut.again.popleft())
    assert cut.task_at(4) == 1 and cut.first(1) == 4 and cut.first(0) == -1
    assert cut.failed(1, 2) == 6
    assert list(cut.again) == [Span(4, 2), Span(7, 3)]
    cut.add(2, cut.again.popleft())
    cut.scatter(2)
    assert list(cut.again) == [Span(7, 3), Span(4, 1), Span(5, 1)]
    assert cut.done == 5


@pytest.mark.parametrize("count", [-1, 0, 11])
def test_counts_that_cannot_be_are_refused(count):
    cut = Spans(10)
    cut.add(0, Span(0, 10))
    with pytest.raises(ValueError):
        cut.answered(0, count, 0.1, 10)
    with pytest.raises(ValueError):
        cut.failed(0, count if count else 10)
    assert cut.of


@given(st.integers(1, 500), st.data())
def test_every_slice_is_answered_or_fails_once(total, data):
    cut = Spans(total)
    tasks, ended = 0, []
    for _ in range(20 * total + 20):
        if cut.again:
            cut.add(tasks, cut.again.popleft())
        elif not cut.exhausted:
            size = min(data.draw(st.integers(1, 50)), total - cut.cut)
            cut.add(tasks, Span(cut.cut, size))
            cut.cut += size
        else:
            break
        task = tasks
        tasks, span = tasks + 1, cut.of[task]
        event = data.draw(st.sampled_from(["whole", "part", "fail", "die"]))
        if event == "whole" or (span.count == 1 and event == "die"):
            ended += range(span.first, span.first + cut.answered(task, span.count, 1, 1).count)
        elif event == "part":
            count = data.draw(st.integers(1, span.count))
            ended += range(span.first, span.first + cut.answered(task, count, 1, 1).count)
        elif event == "fail":
            ended.append(cut.failed(task, data.draw(st.integers(0, span.count - 1))))
        else:
            cut.scatter(task)
    assert sorted(ended) == list(range(total))
    assert cut.exhausted and cut.done == total and not cut.of
