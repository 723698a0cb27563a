"""`combine="host"`: hosts join what they computed; the bits depend on how the data is cut alone."""

from __future__ import annotations

import dataclasses

import numpy
import pytest
from faults import Running, agent, wait_state
from sshd import kill, wait_until
from test_treefold import without

from jamtasks import DataSet, Master, session
from jamtasks.errors import ReduceError, TaskFailed, UsageError
from jamtasks.reduction import default_reduce
from jamtasks.treefold import TreeFold
from worker_payload import codec

PAIRS = """
def mapfunc(params, items):
    return str(items[0])
def reduce(a, b):
    return "(%s%s)" % (a, b)
"""
SINES = """
import numpy
def mapfunc(params, rows):
    return numpy.sin(rows * params).sum(axis=0)
"""


@pytest.fixture
def master(host):
    with Master([dataclasses.replace(host, workers=2)], on_output=lambda *line: None) as made:
        yield made


@pytest.fixture
def received(monkeypatch):
    """A list of the lengths of what came back."""
    found = []
    real = session.Session.receive

    def receive(self, data, now):
        found.append(len(data))
        return real(self, data, now)

    monkeypatch.setattr(session.Session, "receive", receive)
    return found


def along_the_tree(answers):
    with TreeFold(default_reduce, len(answers)) as fold:
        for index, answer in enumerate(answers):
            fold.add(index, codec.encode(answer), codec.decode, 1)
        return fold.result()


# --- the answer --------------------------------------------------------------------------------


def test_one_answer_comes_back_and_not_eight(master, module, received):
    name = module("import numpy\ndef mapfunc(n, items):\n    return numpy.full(n, items[0] / 3)\n")
    numbers = [float(number) for number in range(8)]
    total = master.run(name, 20_000, numbers, slice_size=1)
    assert sum(received) > 8 * 160_000
    for _ in range(3):
        received.clear()
        combined = master.run(name, 20_000, numbers, slice_size=1, combine="host")
        assert 160_000 < sum(received) < 165_000
        expected = along_the_tree([numpy.full(20_000, number / 3) for number in numbers])
        assert combined.tobytes() == expected.tobytes() and combined.flags.writeable
        assert numpy.allclose(combined, total)
    report = master.last_run
    assert report.slices == 8 == sum(one.tasks for one in report.hosts) and report.retried == 0


def test_the_pairs_are_those_of_the_tree(master, module):
    name = module(PAIRS)
    for count in (1, 2, 3, 8, 13, 33):
        for _ in range(3):  # at first nobody knows how long a slice takes
            result = master.run(name, None, list(range(count)), slice_size=1, combine="host")
            assert result == without(count, ())


@pytest.mark.parametrize("workers", [(1,), (4,), (1, 1), (2, 3)])
def test_the_bits_are_the_same_whatever_the_hosts(lab, transport, module, workers):
    rows = numpy.random.default_rng(1).normal(size=(130, 50))
    data, name = DataSet(rows), module(SINES)
    expected = along_the_tree([numpy.sin(rows[i : i + 6] * 0.3).sum(axis=0) for i in
                               range(0, 130, 6)])  # fmt: skip
    for number in range(len(workers)):
        lab.host(f"lab{number + 1}", key=f"host{number + 1}")
    specs = [lab.spec(f"lab{n + 1}", workers=count) for n, count in enumerate(workers)]
    with Master(specs) as master:
        for _ in range(3):
            result = master.run(name, 0.3, data, slice_size=6, combine="host")
            assert result.tobytes() == expected.tobytes()


def test_the_same_call_again_and_again(lab, host, module, received):
    rows = numpy.random.default_rng(2).normal(size=(64, 5000))
    data, name = DataSet(rows), module(SINES)
    with Master([dataclasses.replace(host, workers=3)]) as master:
        for step in range(8):
            received.clear()
            scale = step / 7.0
            result = master.run(name, scale, data, slice_size=4, combine="host")
            answers = [numpy.sin(rows[i : i + 4] * scale).sum(axis=0) for i in range(0, 64, 4)]
            assert result.tobytes() == along_the_tree(answers).tobytes()
            assert 40_000 < sum(received) < 44_000
            assert master.last_run.slices == 16 == master.last_run.hosts[0].tasks
        assert master.last_run.bytes_sent == 0


def test_large_answers_pass_through_files(master, module, received):
    """Also those of the first call, of which nobody knows that they are large."""
    name = module(
        "import numpy\ndef mapfunc(n, items):\n    return numpy.arange(float(n)) * items[0]\n"
        "def reduce(a, b):\n    a += b\n    return a\n"
    )
    for count in (7, 16, 64):
        received.clear()
        result = master.run(name, 300_000, list(range(count)), slice_size=1, combine="host")
        assert (result == numpy.arange(3e5) * (count * (count - 1) // 2)).all()
        assert sum(received) < 3 * 2_400_000 + 20_000


def test_without_a_dataset_the_calls_of_a_host_are_combined(lab, host, module):
    name = module(
        "import os\ndef mapfunc(params, _):\n    return [os.getpid()]\n"
        "def reduce(a, b):\n    a.extend(b)\n    return a\n"
    )
    with Master([dataclasses.replace(host, workers=3)]) as master:
        answers = master.run(name, combine="host")
        assert len(answers) == 3 == len(set(answers)) and master.last_run.slices == 3


def test_very_many_tiny_slices(master, module, received):
    name = module("def mapfunc(params, items):\n    return [items[0] * params]\n"
                  "def reduce(a, b):\n    return a + b\n")  # fmt: skip
    numbers = list(range(3000))
    assert master.run(name, 3, numbers, slice_size=1, combine="host") == [3 * n for n in numbers]
    report = master.last_run
    assert report.slices == 3000 == sum(one.tasks for one in report.hosts)
    assert report.bytes_sent < 1_000_000


def test_values_of_any_kind_and_a_reduce_that_uses_one_buffer_again(master, module):
    name = module(
        """
        import numpy
        from jamtasks import default_reduce
        BUFFER = numpy.zeros(3)
        class Sums:
            def __init__(self, values):
                self.values = values
            def __add__(self, other):
                return Sums(default_reduce(self.values, other.values))
        def mapfunc(params, items):
            BUFFER[:] = items[0]
            return Sums([BUFFER, {items[0]: BUFFER}, BUFFER[::2], len(items)])
        def reduce(a, b):
            a.values[1].update(b.values.pop(1))
            b.values.insert(1, {})
            kept = a.values.pop(1)
            b.values.pop(1)
            total = a + b
            total.values.insert(1, kept)
            numpy.add(total.values[0], 0.0, out=BUFFER)
            total.values[0] = BUFFER
            return total
        """
    )
    for _ in range(3):
        made = master.run(name, None, list(range(21)), slice_size=1, combine="host").values
        assert made[0].tolist() == [210.0] * 3 and made[2].tolist() == [210.0] * 2
        assert {key: value.tolist() for key, value in made[1].items()} == {
            number: [float(number)] * 3 for number in range(21)
        }


def test_what_is_printed_is_shown_with_its_slice(host, module):
    lines = []
    name = module(
        """
        def mapfunc(params, items):
            if items[0] == params:
                print("here is %d" % items[0])
            return str(items[0])
        def reduce(a, b):
            return "(%s%s)" % (a, b)
        """
    )
    two = dataclasses.replace(host, workers=2)
    with Master([two], on_output=lambda *line: lines.append(line)) as master:
        for quiet in (-1, -1, 21):
            result = master.run(name, quiet, list(range(40)), slice_size=1, combine="host")
            assert result == without(40, ())
    assert [text for _, _, _, text in lines] == ["here is 21"]


# --- what breaks -------------------------------------------------------------------------------


def test_failed_slices_are_left_out(master, host, module):
    name = module(
        """
        def mapfunc(bad, items):
            if items[0] in bad:
                raise ValueError("not %d" % items[0])
            return str(items[0])
        def reduce(a, b):
            return "(%s%s)" % (a, b)
        """
    )
    numbers = list(range(21))
    with pytest.raises(TaskFailed, match=f"slice 5 on {host.label}: ValueError: not 5"):
        master.run(name, [5], numbers, slice_size=1, combine="host")
    for bad in ([5], [0, 1, 2, 3], [20], [4, 6, 7, 12]):
        for _ in range(2):
            result = master.run(name, bad, numbers, slice_size=1, combine="host", keep_going=True)
            assert result == without(21, set(bad))
            assert [one.slice for one in master.last_run.failed] == bad
    with pytest.raises(TaskFailed):
        master.run(name, numbers, numbers, slice_size=1, combine="host", keep_going=True)


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_reduce_that_raises_there_names_host_and_slices(master, module, keep_going):
    name = module(
        """
        def mapfunc(params, items):
            return list(range(3 if items[0] == params else 2))
        """
    )
    for bad in (5, 6):
        with pytest.raises(TaskFailed) as caught:
            master.run(name, bad, list(range(8)), slice_size=1, combine="host",
                       keep_going=keep_going)  # fmt: skip
        error = caught.value
        assert error.joined > 1 and error.slice <= bad < error.slice + error.joined
        assert f"slices {error.slice} to {error.slice + error.joined - 1} on " in error.message
        assert error.type == "ReduceError" and "cannot add a list of" in error.detail
    own = module((PAIRS + "    raise KeyError(a)\n").replace('return "(', '"('))
    with pytest.raises(TaskFailed, match=", reduce: KeyError: ") as caught:
        master.run(own, None, list(range(8)), slice_size=1, combine="host", keep_going=keep_going)
    assert "raise KeyError(a)" in caught.value.traceback
    assert master.run(module(PAIRS), None, [0, 1], slice_size=1, combine="host") == "(01)"


def test_a_reduce_that_raises_here_is_a_reduce_error(lab, transport, module):
    lab.host("lab1")
    name = module(
        """
        import os
        HERE = os.environ["JAM_TEST"].endswith("/here")
        def mapfunc(params, items):
            return os.path.basename(os.environ["JAM_TEST"])
        def reduce(a, b):
            if a != b:
                raise ValueError("not from one host")
            return a
        """
    )
    specs = [lab.spec("localhost", "local", workers=1), lab.spec("lab1", workers=1)]
    with Master(specs) as master, pytest.raises(ReduceError, match="not from one host"):
        master.wait(60)
        master.run(name, None, list(range(8)), slice_size=1, combine="host")


def test_a_reduce_that_kills_or_hangs(master, module):
    kills = module(PAIRS.replace('    return "(', '    import os; os._exit(3)\n    return "('))
    with pytest.raises(TaskFailed) as caught:
        master.run(kills, None, list(range(3)), slice_size=1, combine="host")
    assert "3 workers died of it" in caught.value.message
    assert "exit code 3" in caught.value.message
    hangs = module(PAIRS.replace('    return "(', '    import time; time.sleep(60)\n    return "('))
    with pytest.raises(TaskFailed, match=r"still running after 0\.3 s"):
        master.run(hangs, None, list(range(3)), slice_size=1, combine="host", task_timeout=0.3)


def test_what_reduce_returns_has_to_travel(master, module):
    name = module(PAIRS.replace('return "(%s%s)" % (a, b)', "return lambda: 0"))
    with pytest.raises(TaskFailed, match="what reduce returned cannot travel"):
        master.run(name, None, list(range(8)), slice_size=1, combine="host")


def test_a_worker_that_dies_changes_nothing(master, module, tmp_path):
    name = module(
        """
        import os, signal, time
        def mapfunc(folder, items):
            time.sleep(0.002)
            if items[0] in (3, 11, 12):
                try:
                    os.close(os.open("%s/%d" % (folder, items[0]), os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    pass
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
            return str(items[0])
        def reduce(a, b):
            return "(%s%s)" % (a, b)
        """
    )
    numbers = list(range(40))
    assert master.run(name, str(tmp_path), numbers, slice_size=1, combine="host") == without(40, ())
    assert master.last_run.retried == 3


GATED = """
import os, time
def mapfunc(folder, items):
    deadline = time.time() + 60
    while items[0] % 8 == 7 and not os.path.exists(folder + "/go") and time.time() < deadline:
        time.sleep(0.01)
    return str(items[0])
def reduce(a, b):
    return "(%s%s)" % (a, b)
"""


def kept(master, host):
    with master._engine.lock:
        calls = list(master._engine.calls.values())
        return len(calls[0].combining._kept.get(host, ())) if calls else 0


@pytest.mark.parametrize("victim", ["agent", "keeper"])
def test_what_a_lost_host_kept_is_done_again(hosts, lab, module, tmp_path, victim):
    with Master([dataclasses.replace(one, workers=2) for one in hosts]) as master:
        master.wait(60)
        numbers = list(range(32))
        run = Running(
            master.run, module(GATED), str(tmp_path), numbers, slice_size=1, combine="host"
        )
        wait_until(lambda: kept(master, "lab1") >= 4, "lab1 keeps answers")
        assert master._engine.calls, "nothing is answered before all is done"
        kill(agent(lab.hosts["lab1"].run_dir)["pid" if victim == "agent" else "keeper"])
        wait_state(master, "lab1", "lost", 10)
        wait_state(master, "lab1", "up", 10)
        (tmp_path / "go").touch()
        assert run.result() == without(32, ())
        report = master.last_run
        assert report.retried >= 4 and sum(one.tasks for one in report.hosts) == 32
        assert master.run(module(PAIRS), None, [0, 1], slice_size=1, combine="host") == "(01)"


def test_a_host_that_leaves_answers_what_it_keeps(hosts, module, tmp_path):
    with Master([dataclasses.replace(one, workers=2) for one in hosts]) as master:
        master.wait(60)
        run = Running(
            master.run, module(GATED), str(tmp_path), list(range(32)), slice_size=1, combine="host"
        )
        wait_until(lambda: kept(master, "lab1") >= 4, "lab1 keeps answers")
        master._engine.leave("lab1", "it was ended")
        (tmp_path / "go").touch()
        assert run.result() == without(32, ()) and master.last_run.retried == 0
        wait_state(master, "lab1", "left")


def test_other_words_are_refused(master, module):
    with pytest.raises(UsageError, match="combine='worker' means nothing"):
        master.run(module(PAIRS), None, [1], combine="worker")
