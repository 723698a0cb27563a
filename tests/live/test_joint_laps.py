"""Repeated calls whose answers are combined, by the shortest way: whatever functions do there."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading

import numpy
import pytest
from doing import ONCE
from sshd import wait_until

from jamtasks import DataSet, Master
from jamtasks.errors import TaskFailed

DOING = (
    ONCE
    + """
def by_bell():
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "_joint_laps":
            return True
        frame = frame.f_back
    return False

def mapfunc(params, piece):
    what, number, path = params
    if what == "print":
        print("printed %d" % number)
    elif what == "raise":
        raise ValueError("it is %d" % number)
    elif what == "exit" and first(path):
        os._exit(3)
    elif what == "killed" and first(path):
        with open(path + ".pid", "w") as file:
            file.write("%d " % os.getpid())
        time.sleep(300)
    elif what == "one sleeps" and first(path):
        time.sleep(0.1)
    elif what == "fork and go":
        os.fork()
    elif what == "chdir":
        os.chdir("/")
    elif what == "who":
        with open(path + ".who", "a") as file:
            file.write("%d\\n" % os.getpid())
        end = time.process_time() + 0.0005
        while time.process_time() < end:
            pass
    room = 9000 if what == "large" else 500
    at = [int(piece[0])]
    return [at, numpy.full(room, number), float(piece.sum()) * number, by_bell(), what, path]

def reduce(a, b):
    what, path = a[4:]
    assert a[0][-1] < b[0][0], "in their order"
    if what == "reduce raises":
        raise ValueError("cannot join")
    elif what == "reduce exits" and first(path):
        os._exit(4)
    elif what == "reduce prints":
        print("joined")
    elif what == "reduce sleeps" and first(path):
        time.sleep(0.1)
    elif what == "reduce changes":
        a[1] += b[1]
        return [a[0] + b[0], a[1], a[2] + b[2], a[3] and b[3], what, path]
    elif what == "reduce forks" and first(path):  # or each fork would fork
        os.fork()
    return [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] and b[3], what, path]
"""
)
ITEMS = 480


class Runs:
    """Each call has a number, by which all that is added up is multiplied."""

    def __init__(self, master, name, path, slices):
        self.master, self.name, self.path, self.number = master, name, path, 0
        self.data, self.slices = DataSet(numpy.arange(float(ITEMS))), slices

    def call(self, what=""):
        """Whether it went by the bell."""
        self.number += 1
        path = str(self.path / f"once{self.number}")
        at, ones, total, by_bell, *_ = self.master.run(
            self.name, (what, self.number, path), self.data,
            slice_size=ITEMS // self.slices, combine="host",
        )  # fmt: skip
        assert at == list(range(0, ITEMS, ITEMS // self.slices)), "each slice once"
        assert ones.tolist() == [self.number * self.slices] * len(ones)
        assert total == self.number * ITEMS * (ITEMS - 1) / 2
        return by_bell

    def often(self):
        wait_until(self.call, "a call by the bell")
        for _ in range(5):
            self.call()


@pytest.fixture(params=[(1, 4), (4, 4), (5, 15), (3, 12)], ids="{0[0]} do {0[1]}".format)
def runs(request, lab, module, tmp_path):
    workers, slices = request.param
    lab.transport = "local"
    with Master([lab.spec("localhost", workers=workers)], on_output=lambda *line: None) as master:
        made = Runs(master, module(DOING), tmp_path, slices)
        made.often()
        yield made


@pytest.mark.parametrize(
    "what",
    ["print", "exit", "one sleeps", "fork and go", "chdir", "large", "reduce exits",
     "reduce prints", "reduce sleeps", "reduce changes", "reduce forks"],
)  # fmt: skip
def test_whatever_is_done_each_slice_counts_once(runs, what):
    for _ in range(3):
        runs.call(what)
    runs.often()


def test_a_failure_is_told_and_the_next_call_is_well(runs):
    for what, message in (("raise", "it is"), ("reduce raises", "cannot join")):
        with pytest.raises(TaskFailed, match=message):
            runs.call(what)
        runs.often()


def test_a_worker_is_killed_in_the_midst(runs):
    done, path = [], runs.path / f"once{runs.number + 1}.pid"

    def kill():
        text = wait_until(lambda: path.exists() and path.read_text().strip())
        os.kill(int(text), signal.SIGKILL)
        done.append(text)

    thread = threading.Thread(target=kill)
    thread.start()
    runs.call("killed")
    thread.join()
    assert done
    runs.often()


def test_masters_in_turns_go_on_with_the_workers_that_there_are(lab, module, tmp_path):
    """Shares are told anew where calls were repeated in the ordinary way meanwhile; whoever has
    not read that yet must not take a bell that is for the new ones as one for the old ones."""
    lab.transport, name, chance = "local", module(DOING), random.Random(1)
    with contextlib.ExitStack() as stack:
        runs, pids = [], set()
        for slices in (12, 24, 48):
            spec = lab.spec("localhost", workers=12)
            master = stack.enter_context(Master([spec], on_output=lambda *line: None))
            (tmp_path / str(slices)).mkdir()
            runs.append(Runs(master, name, tmp_path / str(slices), slices))
        for _ in range(60):
            one = chance.choice(runs)
            for _ in range(chance.choice([1, 3, 10])):
                one.call("who")
        for one in runs:
            for path in one.path.iterdir():
                pids.update(path.read_text().split())
        assert len(pids) == 12, "some died of it, and others took their place"
