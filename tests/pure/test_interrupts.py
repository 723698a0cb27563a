"""What Ctrl-C does before, in and after a task."""

import signal

import pytest

from jamtasks import interrupts
from jamtasks.console import command


@pytest.fixture
def handler():
    """Sets the handler of SIGINT, and says what it is."""

    def set_it(new):
        signal.signal(signal.SIGINT, new)

    was = signal.getsignal(signal.SIGINT)
    set_it(signal.default_int_handler)
    yield set_it
    set_it(was)


def now():
    return signal.getsignal(signal.SIGINT)


def test_a_task_gets_keyboard_interrupt(handler):
    interrupts.end_at_once()
    ours = now()
    assert ours is not signal.default_int_handler
    found = []
    command(lambda: found.append(now()))()
    assert found == [signal.default_int_handler]
    assert now() is ours


def test_also_after_one_that_was_interrupted(handler):
    interrupts.end_at_once()
    ours = now()
    with pytest.raises(KeyboardInterrupt), interrupts.raised():
        signal.raise_signal(signal.SIGINT)
    assert now() is ours


def test_who_did_not_ask_keeps_what_they_have(handler):
    for theirs in (signal.default_int_handler, signal.SIG_IGN, lambda number, frame: None):
        handler(theirs)
        with interrupts.raised():
            assert now() is theirs
        assert now() is theirs


def test_ignored_stays_ignored(handler):
    """As a shell starts what shall run in the background."""
    for theirs in (signal.SIG_IGN, lambda number, frame: None):
        handler(theirs)
        interrupts.end_at_once()
        assert now() is theirs
