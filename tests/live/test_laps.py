"""Calls that are repeated all the time, by the shortest way: whatever a map function does there."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy
import pytest
from doing import ONCE
from sshd import wait_until

from jamtasks import Master
from jamtasks.errors import ModuleError, TaskFailed
from worker_payload import procs

DOING = (
    ONCE
    + """
def bell():
    "Descriptors of the pipes that this process has besides its output."
    return [fd for fd in range(3, 100) if is_pipe(fd)]

def is_pipe(fd):
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode) and os.readlink("/proc/self/fd/%d" % fd) not in [
            os.readlink("/proc/self/fd/%d" % one) for one in (1, 2)]
    except OSError:
        return False

def mapfunc(params, dataset):
    what, number, path = params
    answer = [number, os.getpid(), None]
    if what == "print":
        print("printed %d" % number)
    elif what == "raise":
        raise ValueError("it is %d" % number)
    elif what == "one raises" and first(path):
        raise ValueError("it is %d" % number)
    elif what == "large":
        answer[2] = bytes([number & 255]) * 70000
    elif what == "one large" and first(path):
        answer[2] = bytes(70000)
    elif what == "huge":
        answer[2] = bytes([number & 255]) * 3000000
    elif what == "array":
        answer[2] = numpy.full(3750, number, float)
    elif what == "exit" and first(path):
        os._exit(3)
    elif what == "killed" and first(path):
        with open(path + ".pid", "w") as file:
            file.write("%d " % os.getpid())
        time.sleep(300)
    elif what == "close" and first(path):
        os.closerange(3, 100)
    elif what == "close all":
        os.closerange(3, 100)
    elif what == "close bell" and first(path):
        assert len(bell()) == 3
        for fd in bell():
            os.close(fd)
    elif what == "other bell" and first(path):
        other = os.open("/dev/zero", os.O_RDONLY)
        for fd in bell():
            os.dup2(other, fd)
    elif what == "close each bell":
        for fd in bell():
            os.close(fd)
    elif what == "sleep":
        time.sleep(0.1)
    elif what == "one sleeps" and first(path):
        time.sleep(0.1)
    elif what == "fork":
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
    elif what == "fork and go":
        os.fork()
    elif what == "chdir":
        os.chdir("/")
    elif what == "cwd":
        answer[2] = os.getcwd()
    return [answer]

def reduce(a, b):
    return a + b
"""
)

WORKERS = 5


@pytest.fixture
def master(lab):
    lab.transport = "local"
    with Master([lab.spec("localhost", workers=WORKERS)], on_output=lambda *line: None) as master:
        yield master


class Runs:
    """Repeated calls of a module, each of which has a number that all its answers must hold."""

    def __init__(self, master, name, path):
        self.master, self.name, self.path, self.number = master, name, path, 0

    def call(self, what=""):
        self.number += 1
        path = str(self.path / f"once{self.number}")
        return self.master.run(self.name, (what, self.number, path))

    def once(self, what=""):
        """One call: the third of what each worker answers, and the workers."""
        rows = self.call(what)
        assert [row[0] for row in rows] == [self.number] * len(rows)
        assert len({row[1] for row in rows}) == len(rows) or what not in ("", "print")
        return [row[2] for row in rows], [row[1] for row in rows]

    def often(self):
        """Until a call goes the shortest way, and some more."""
        for _ in range(100):
            last = self.master._last.call if self.master._last is not None else None
            self.once()
            if self.master._last is not None and self.master._last.call is last:
                break
        else:
            raise AssertionError("it does not")
        for _ in range(5):
            workers = self.once()[1]
        return workers


@pytest.fixture
def runs(master, module, tmp_path):
    made = Runs(master, module(DOING), tmp_path)
    made.often()
    yield made
    made.often()


@pytest.mark.parametrize("what", ["large", "huge", "array", "sleep", "fork", "chdir", "print"])
@pytest.mark.timeout(60)
def test_what_harms_nobody(runs, what):
    workers = runs.often()
    for times in (1, 2, 5):
        for _ in range(times):
            found, who = runs.once(what)
            assert who == workers
            if what in ("large", "huge"):
                size = 70000 if what == "large" else 3000000
                assert found == [bytes([runs.number & 255]) * size] * WORKERS
            elif what == "array":
                assert all(numpy.array_equal(a, numpy.full(3750, runs.number)) for a in found)
        assert runs.often() == workers
        assert len(set(runs.once("cwd")[0])) == 1 and runs.once("cwd")[0] != ["/"] * WORKERS


@pytest.mark.parametrize("what", ["one large", "one sleeps", "fork and go"])
@pytest.mark.timeout(60)
def test_one_that_is_not_like_the_others_keeps_nobody_from_answering(runs, what):
    for _ in range(5):
        workers = runs.often()
        found, who = runs.once(what)
        assert who == workers and sum(one is not None for one in found) == (what == "one large")


@pytest.mark.parametrize("what", ["raise", "one raises"])
@pytest.mark.timeout(60)
def test_an_exception(runs, what):
    for _ in range(3):
        runs.often()
        with pytest.raises(TaskFailed, match=f"it is {runs.number + 1}"):
            runs.call(what)


@pytest.mark.parametrize("what", ["exit", "close", "close bell", "other bell"])
@pytest.mark.timeout(90)
def test_one_that_can_go_on_no_more(runs, what):
    for _ in range(3):
        runs.often()
        runs.once(what)
        runs.once()
    assert len(runs.often()) == WORKERS


@pytest.mark.timeout(90)
def test_all_close_the_bell(runs):
    for _ in range(2):
        workers = runs.often()
        runs.once("close each bell")
        assert len(runs.once()[0]) == WORKERS
        assert not set(runs.often()) & set(workers)


@pytest.mark.timeout(60)
def test_one_is_killed_from_outside_while_others_have_answered(runs):
    for _ in range(3):
        runs.often()
        said = runs.path / f"once{runs.number + 1}.pid"

        def kill(said=said):
            wait_until(lambda: said.exists() and said.read_text().endswith(" "), "it says its pid")
            os.kill(int(said.read_text()), signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        runs.once("killed")
        killer.join()
        assert runs.master.last_run.retried == 1


@pytest.mark.timeout(60)
def test_one_is_killed_between_calls(runs):
    for _ in range(5):
        workers = runs.often()
        os.kill(workers[2], signal.SIGKILL)
        assert workers[2] not in runs.once()[1]


def switches(pid):
    """How often a process went to sleep."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("more", range(4))  # the bells are rung in turns
def test_workers_that_were_given_something_else_meanwhile_hear_the_bell_again(runs, more):
    """One is kept from working for so long that the others are told to let go of memory. It tells
    of no long task afterwards, so that calls go on by the bell."""
    workers = runs.often()
    for _ in range(more):
        runs.once()
    os.kill(workers[0], signal.SIGSTOP)
    wait_until(lambda: is_stopped(workers[0]), "it stops")
    rows = []
    caller = threading.Thread(target=lambda: rows.append(runs.once()))
    before = [switches(pid) for pid in workers[1:]]
    caller.start()
    try:
        # for its answer, and then because of the command
        wait_until(
            lambda: all(
                switches(pid) > old + 1 for pid, old in zip(workers[1:], before, strict=True)
            ),
            "they are told to let go of memory",
        )
    finally:
        os.kill(workers[0], signal.SIGCONT)
    caller.join()
    assert len(rows) == 1
    for _ in range(5):
        runs.once()


@pytest.mark.timeout(90)
def test_arrays_of_many_workers(lab, module, tmp_path):
    """More than goes into one frame."""
    lab.transport = "local"
    with Master([lab.spec("localhost", workers=16)]) as master:
        runs = Runs(master, module(DOING), tmp_path)
        runs.often()
        for _ in range(60):
            found, workers = runs.once("array")
            assert len(set(workers)) == len(found) == 16
            assert all(numpy.array_equal(a, numpy.full(3750, runs.number)) for a in found)
        runs.often()


@pytest.mark.timeout(90)
def test_two_masters_in_turns_and_at_once(runs, module, tmp_path, lab):
    folder = tmp_path / "other"
    folder.mkdir()
    with Master([lab.spec("localhost", workers=3)]) as master:
        other = Runs(master, module(DOING), folder)
        other.often()
        for times in (1, 2, 3, 10):
            for _ in range(times):
                runs.once()
            for _ in range(times):
                other.once()
        runs.often()
        other.often()
        failed = []

        def go_on(one):
            try:
                for number in range(200):
                    one.once("array" if number % 7 == 0 else "")
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=go_on, args=(one,)) for one in (runs, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        other.often()


@pytest.mark.timeout(60)
def test_modules_in_turns(runs, module, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    others = [Runs(runs.master, module(DOING), folder) for folder in folders]
    for times in (1, 1, 2, 5, 20):
        for one in (runs, *others):
            for _ in range(times):
                one.once()
    for one in others:
        one.often()


def test_the_workers_are_called_by_the_bell(runs):
    """They are woken though nothing is sent to them: the rest of these tests would be of no use."""
    workers = runs.often()
    (link,) = runs.master._engine.links.values()
    assert set(workers) <= procs.descendants([link.welcome.pid])
    shared = [line for line in Path(f"/proc/{workers[0]}/maps").read_text().splitlines()
              if "/dev/zero" in line]  # fmt: skip
    assert shared


@pytest.mark.timeout(60)
def test_nobody_works_for_a_bell_that_is_for_others(master, module, tmp_path):
    name = """
        import os
        def mapfunc(params, dataset):
            with open(params, "a") as file:
                file.write("x")
            return 1
    """
    one, two = module(name), module(name)
    mine, others = str(tmp_path / "mine"), str(tmp_path / "others")
    for times in (1, 5, 30):
        for module_name, path in ((one, mine), (two, others)):
            for _ in range(times):
                assert master.run(module_name, path) == WORKERS
    for path in (mine, others):
        assert Path(path).read_text() == "x" * 36 * WORKERS


def test_a_module_that_is_edited_between_two_laps_runs_in_its_new_form(master, module, tmp_path):
    def text(factor):
        return f"def mapfunc(p, d):\n    return p * {factor}\ndef reduce(a, b):\n    return a + b\n"

    name = module(text(1), "edited_in_laps")
    runs = Runs(master, name, tmp_path)
    runs.once = lambda: (None, [master.run(name, 2)])
    for factor in range(2, 9):
        runs.often()
        module(text(factor), "edited_in_laps")
        for number in range(5):
            assert master.run(name, number) == number * factor * WORKERS
    runs.often()
    module("def mapfunc(p, d)\n", "edited_in_laps")
    for _ in range(2):
        with pytest.raises(ModuleError, match="edited_in_laps"):
            master.run(name, 3)
    module(text(3), "edited_in_laps")
    for number in range(5):
        assert master.run(name, number) == number * 3 * WORKERS
    runs.often()
