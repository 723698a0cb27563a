"""A call that is the last one over again: same answers, whatever changed and whatever breaks."""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref

import numpy
import pytest
from sshd import wait_until

from jamtasks import DataSet, Master
from jamtasks.errors import TaskFailed, UsageError

SCALED = """
import os
import numpy
def mapfunc(params, piece):
    if isinstance(params, dict):
        if params.get("fail") == int(piece[0, 0]):
            raise ValueError("it is %d" % piece[0, 0])
        if params.get("die") == int(piece[0, 0]) and not os.path.exists(params["once"]):
            open(params["once"], "w").close()
            os._exit(3)
        params = params["scale"]
    return [float(piece.sum()) * params, os.getpid()]
def reduce(a, b):
    return [a[0] + b[0]] + a[1:] + b[1:]
"""


@pytest.fixture
def master(host):
    with Master([host], on_output=lambda *line: None) as master:
        yield master


def repeated(master):
    """Whether the last call of this Master was one message to each host and back."""
    return master._last is not None and master._last.call.round is not None


def shortly(master, *call):
    """Repeat a call until that goes the shortest way, past the engine's calls."""
    for _ in range(100):
        last = master._last.call if master._last is not None else None
        answer = master.run(*call)
        if master._last is not None and master._last.call is last:
            return answer
    raise AssertionError("it does not")


@pytest.mark.parametrize("rows", [64, 65536])  # slices in the command, and as files
def test_other_params_on_the_same_data(master, module, rows):
    name = module(SCALED)
    matrix = numpy.arange(float(rows)).reshape(-1, 4)
    data = DataSet(matrix, slice_size=len(matrix) // 2)
    for _ in range(2):  # at first one worker may do more than its share
        workers = master.run(name, 1.0, data)[1:]
    for scale in (2.0, 3.0, -1.0):
        answer = master.run(name, scale, data)
        assert answer[0] == matrix.sum() * scale
        assert answer[1:] == workers, "each slice goes to the worker that has it"
        assert repeated(master)
        report = master.last_run
        assert (report.slices, report.bytes_sent, report.retried) == (2, 0, 0)
        assert report.bytes_cached > matrix.nbytes


@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize("combine", [None, "host"])
def test_data_is_not_kept_when_it_is_of_no_more_use(master, module, calls, combine):
    name = module(SCALED)
    matrix = numpy.arange(64.0).reshape(-1, 4)
    data = DataSet(matrix, slice_size=8)
    for scale in range(calls):
        assert master.run(name, scale, data, combine=combine)[0] == matrix.sum() * scale
    kept = [weakref.ref(data), weakref.ref(data._array)]
    del data, matrix
    wait_until(lambda: not any(ref() is not None for ref in kept), "the data is let go")
    assert master.last_run.slices == 2


def test_without_data_each_worker_is_called(master, module):
    name = module(
        """
        import os
        def mapfunc(params, dataset):
            return [params, os.getpid()]
        def reduce(a, b):
            return a + b
        """
    )
    first = master.run(name, 0)
    for number in range(1, 5):
        answer = master.run(name, number)
        assert answer[::2] == [number] * (len(first) // 2)
        assert answer[1::2] == first[1::2], "in the order of the workers"
        assert repeated(master)


def test_a_worker_keeps_nothing_of_a_repeated_call(master, module):
    name = module(
        """
        import weakref
        import numpy
        kept = []
        def mapfunc(params, dataset):
            alive = sum(ref() is not None for ref in kept)
            answer = numpy.full(500, alive, float)
            kept[:] = [weakref.ref(params), weakref.ref(answer)]
            return answer
        def reduce(a, b):
            return a + b
        """
    )
    for _ in range(3):
        shortly(master, name, numpy.ones(3000))
        assert not master.run(name, numpy.zeros(3000)).any()


def test_params_of_every_kind_in_repeated_calls(master, module):
    name = module(
        """
        def mapfunc(params, dataset):
            return [params, params]
        def reduce(a, b):
            return a
        """
    )
    shortly(master, name, 0)
    array = numpy.arange(2000.0)
    for params in (
        1,
        "two",
        {"three": (3.0, None)},
        numpy.float32(4),
        array[:5],
        array,
        b"7" * 9000,
    ):
        for answer in (shortly(master, name, params), master.run(name, params)):
            assert repeated(master)
            assert type(answer[0]) is type(params)
            assert numpy.array_equal(answer[0], params)


def test_what_changed_is_noticed(master, module):
    name = module(SCALED)
    matrix = numpy.arange(64.0).reshape(-1, 4)
    data = DataSet(matrix, slice_size=8)
    for scale in (1.0, 2.0):
        assert master.run(name, scale, data)[0] == matrix.sum() * scale
    assert repeated(master)
    assert master.run(name, 2.0, data, slice_size=4)[0] == matrix.sum() * 2
    assert master.last_run.slices == 4
    other = numpy.ones((16, 4))
    assert master.run(name, 2.0, DataSet(other, slice_size=8))[0] == 128
    raw = numpy.arange(64.0).reshape(-1, 4)
    for _ in range(2):
        raw[0, 0] += 1
        assert master.run(name, 1.0, raw, slice_size=8)[0] == raw.sum()


@pytest.mark.parametrize("often", [False, True])
def test_an_exception_in_a_repeated_call(master, module, often):
    name = module(SCALED)
    data = DataSet(numpy.arange(64.0).reshape(-1, 4), slice_size=8)
    for scale in (1.0, 2.0):
        master.run(name, {"scale": scale}, data)
    assert repeated(master)
    if often:
        assert shortly(master, name, {"scale": 3.0}, data)[0] == 3 * 2016
    with pytest.raises(TaskFailed, match="it is 32") as caught:
        master.run(name, {"scale": 1.0, "fail": 32}, data)
    assert caught.value.slice == 1
    assert master.run(name, {"scale": 1.0}, data)[0] == 2016


@pytest.mark.parametrize("often", [False, True])
@pytest.mark.timeout(60)
def test_a_worker_dies_in_a_repeated_call(master, module, tmp_path, often):
    name = module(SCALED)
    data = DataSet(numpy.arange(64.0).reshape(-1, 4), slice_size=8)
    for scale in (1.0, 2.0):
        master.run(name, {"scale": scale}, data)
    if often:
        shortly(master, name, {"scale": 3.0}, data)
    dying = {"scale": 3.0, "die": 32, "once": str(tmp_path / "once")}
    assert master.run(name, dying, data)[0] == 3 * 2016
    assert not repeated(master)
    assert master.last_run.retried == 1 and "exit code 3" in master.last_run.notes[0]
    for scale in (1.0, 2.0):
        assert master.run(name, {"scale": scale}, data)[0] == scale * 2016
    assert repeated(master)


def test_a_worker_is_killed_between_calls(master, module):
    name = module(SCALED)
    data = DataSet(numpy.arange(64.0).reshape(-1, 4), slice_size=8)
    master.run(name, 1.0, data)
    answer = shortly(master, name, 2.0, data)
    os.kill(answer[1], signal.SIGKILL)
    assert master.run(name, 3.0, data)[0] == 3 * 2016


def test_the_agent_is_killed_between_calls(master, module):
    """It comes back, and is asked once more whether it has numpy, before the call goes on."""
    name = module(SCALED)
    data = DataSet(numpy.arange(64.0).reshape(-1, 4), slice_size=8)
    shortly(master, name, 2.0, data)
    (link,) = master._engine.links.values()
    os.kill(link.welcome.pid, signal.SIGKILL)
    assert master.run(name, 3.0, data)[0] == 3 * 2016


@pytest.mark.timeout(60)
def test_a_repeated_call_that_takes_long(master, module):
    """Long enough that everybody has looked at calls, and the scheduler is asked about it."""
    name = module(BREAKING)
    workers = master.run(name, ("", 0, ""))
    for _ in range(2):
        assert shortly(master, name, ("", 0, "")) == workers
        before = master.last_run
        assert master.run(name, ("wait", 1.3, "")) == workers
        assert master.last_run.seconds > 1.3 > before.seconds
        assert master.last_run.slices == before.slices == workers
    assert shortly(master, name, ("", 0, "")) == workers
    assert [host.tasks for host in master.last_run.hosts] == [workers]


@pytest.mark.timeout(60)
def test_whatever_else_happens_in_the_midst_of_repeated_calls(host, module, tmp_path):
    """Calls of which each worker does one task, again and again: output, exceptions, tasks that
    take long, large answers, deaths, and another master's calls, in between."""
    name = module(
        """
        import os, sys, time
        def mapfunc(params, dataset):
            what, number = params
            if what == "print":
                print("printed %d" % number)
            elif what == "write":
                os.write(2, b"written %d\\n" % number)
            elif what == "slow":
                time.sleep(0.05)
            elif what == "raise":
                raise ValueError("it is %d" % number)
            elif what == "large":
                return [number, bytes(300000)]
            elif what == "die" and not os.path.exists(number):
                open(number, "w").close()
                os.kill(os.getpid(), 9)
            return [number]
        def reduce(a, b):
            return a + b
        """
    )
    said = []
    with Master([host], on_output=lambda *line: said.append(line)) as master, Master([host]) as two:
        workers = len(master.run(name, ("", 0)))
        assert two.run(name, ("", -1)) == [-1] * workers  # may be repeated whenever it likes
        number = 0
        # what prints once does not go past the host's state any more: that comes last
        for what in ("", "large", "slow", "raise", "other", "die", "large", "print", "write", ""):
            for _ in range(4):  # so that it is one of many that went well
                number += 1
                assert master.run(name, ("", number)) == [number] * workers
            assert repeated(master), f"before {what}"
            number += 1
            if what == "raise":
                with pytest.raises(TaskFailed, match=f"it is {number}"):
                    master.run(name, (what, number))
            elif what == "other":
                assert two.run(name, ("", -1)) == [-1] * workers
            elif what == "die":
                once = str(tmp_path / "once")
                assert master.run(name, (what, once)) == [once] * workers
            elif what == "large":
                assert master.run(name, (what, number)) == [number, bytes(300000)] * workers
                assert not master.last_run.notes, "nothing broke"
            else:
                assert master.run(name, (what, number)) == [number] * workers
            lines = [(line, stream) for _, _, stream, line in said]
            if what in ("print", "write"):
                kind = ("printed", 1) if what == "print" else ("written", 2)
                assert lines == [(f"{kind[0]} {number}", kind[1])] * workers
            said.clear()


BREAKING = """
import os, signal, time
def first(once):
    try:
        os.close(os.open(once, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
def mapfunc(params, dataset):
    what, pid, once = params
    if what == "wait":
        time.sleep(pid)
    elif what == "signal" and first(once):
        os.kill(pid, signal.SIGINT)
        time.sleep(0.2)
    elif what == "kill" and first(once):
        os.kill(pid, signal.SIGKILL)
        time.sleep(5)
    return 1
"""


def reads(master):
    """Whether reading is lent to the thread that waits for repeated calls."""
    (link,) = master._engine.links.values()
    return link.lent


@pytest.mark.parametrize("after", [2, 8])
def test_ctrl_c_in_a_repeated_call(master, module, tmp_path, after):
    """The thread that waits reads, too: nothing of the connection's bytes may be lost on it."""
    name, once = module(BREAKING), str(tmp_path / "once")
    workers = master.run(name, ("", 0, ""))
    for _ in range(after):
        assert master.run(name, ("", 0, "")) == workers
    assert reads(master)
    with pytest.raises(KeyboardInterrupt):
        master.run(name, ("signal", os.getpid(), once))
    assert not reads(master)
    for _ in range(3):
        assert master.run(name, ("", 0, "")) == workers
    assert reads(master) and not master.last_run.notes


def test_the_agent_is_killed_in_the_midst_of_a_repeated_call(master, module, tmp_path):
    name, once = module(BREAKING), str(tmp_path / "once")
    (link,) = master._engine.links.values()
    for _ in range(4):
        workers = master.run(name, ("", 0, ""))
    assert reads(master)
    pid = link.welcome.pid
    assert master.run(name, ("kill", pid, once)) == workers
    assert link.welcome.pid != pid and master.last_run.retried
    for _ in range(4):
        assert master.run(name, ("", 0, "")) == workers
    assert repeated(master)


@pytest.mark.parametrize("before", [0, 4])
def test_a_master_is_closed_in_the_midst_of_a_call(master, module, before):
    name = module(BREAKING)
    for _ in range(before):
        master.run(name, ("", 0, ""))
    master.wait()
    assert reads(master) == (before > 0)
    closer = threading.Timer(0.2, master.close)
    closer.start()
    with pytest.raises(UsageError, match="closed during the call"):
        master.run(name, ("wait", 100, ""))
    closer.join()


def test_reading_is_taken_back_when_no_more_calls_come(master, module):
    name = module(BREAKING)
    for _ in range(4):
        master.run(name, ("", 0, ""))
    assert reads(master)
    deadline = time.monotonic() + 10
    while reads(master) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not reads(master)
    assert master.run(name, ("", 0, ""))
