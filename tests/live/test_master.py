"""Map calls through Master, over real channels, agents and workers; each over every transport."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import venv
from pathlib import Path

import numpy
import pytest
from sshd import kill, wait_until

from jamtasks import DataSet, Master, NumpyMatrixDataSet, TaskFailed, TaskLost
from jamtasks.errors import EncodingError, JamError, ModuleError, NoHostsError, UsageError


@pytest.fixture
def master(host):
    with Master([host]) as made:
        yield made


SUM = "def mapfunc(params, items):\n    return sum(items) * params\n"


def test_mistakes_of_callers_are_told_in_a_sentence(lab, module):
    name, items = module(SUM), [1]
    with Master([lab.spec("lab1", "local")]) as master:
        run, each = master.run, master.map
        mistakes = {
            "unexpected keyword argument 'combine'": lambda: each(abs, items, combine="host"),
            "unexpected keyword argument 'slicesize'": lambda: run(name, 1, items, slicesize=1),
            "combine='hosts' means nothing": lambda: run(name, 1, items, combine="hosts"),
            "combine=True means nothing": lambda: run(name, 1, items, combine=True),
            "slice_size 0 is not": lambda: run(name, 1, items, slice_size=0),
            "slice_size '3' is not": lambda: run(name, 1, items, slice_size="3"),
            "task_timeout must be": lambda: run(name, 1, items, task_timeout="soon"),
            "is no module but of type int": lambda: run(3, 1, items),
            "<lambda>' cannot be sent": lambda: each(lambda item: item, items),
            "'posixpath.join' cannot be sent": lambda: each("posixpath.join", items),
            "'int' object is not iterable": lambda: each(textwrap.dedent, 3),
            "5 is no host": lambda: Master(5),
            "unexpected keyword argument 'workers'": lambda: Master("localhost", workers=2),
        }
        for sentence, mistake in mistakes.items():
            with pytest.raises((JamError, TypeError)) as raised:
                mistake()
            said, *hint = str(raised.value).splitlines()
            assert sentence in said and len(said) < 160 and len(hint) < 2
        assert run(name, 3, items) == 3


# --- data --------------------------------------------------------------------------------------


def test_a_list_is_mapped_and_reduced(master, module):
    assert master.run(module(SUM), 2, list(range(1000))) == 999000
    report = master.last_run
    assert report.slices >= report.workers >= 1
    assert sum(one.tasks for one in report.hosts) == report.slices


def test_without_a_dataset_each_worker_is_called_once(lab, host, module):
    name = module(
        """
        import os
        def mapfunc(params, slice):
            assert slice is None
            return [(os.getpid(), params)]
        def reduce(a, b):
            return a + b
        """
    )
    with Master([dataclasses.replace(host, workers=3)]) as master:
        answers = master.run(name, "p")
    assert len({pid for pid, _ in answers}) == 3 and {p for _, p in answers} == {"p"}


def test_arrays_of_a_map_function_are_made_in_memory_that_is_there(master, module):
    """And not in new pages each time, 1,536 here."""
    name = module(
        """
        import resource
        import numpy
        def compute():
            first = numpy.ones(1 << 18)
            second = first + 1
            return (first * second).sum()
        def mapfunc(params, piece):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(20):
                compute()
            return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20
        """
    )
    assert 0 < master.run(name, None, [0], slice_size=1) < 150


def test_a_matrix_is_sent_once_and_never_again(master, host, module):
    name = module("def mapfunc(params, rows):\n    return rows.sum()\n")
    matrix = numpy.arange(40000.0).reshape(400, 100)
    data = DataSet(matrix)
    assert master.run(name, None, data) == matrix.sum()
    first = master.last_run
    assert first.bytes_sent >= matrix.nbytes and first.bytes_cached == 0
    assert master.run(name, None, data) == matrix.sum()
    assert (master.last_run.bytes_sent, master.last_run.bytes_cached) == (0, first.bytes_sent)
    with Master([host]) as another:
        assert another.run(name, None, numpy.array(matrix)) == matrix.sum()
        assert another.last_run.bytes_sent == 0


def test_workers_of_a_host_share_the_memory_of_data(master, module):
    name = module(
        """
        def mapfunc(params, rows):
            at = rows.ctypes.data
            for line in open("/proc/self/maps"):
                area, access, _, device, inode = line.split()[:5]
                begin, end = [int(number, 16) for number in area.split("-")]
                if begin <= at < end:
                    return [(access, device, inode)]
        def reduce(a, b):
            return a + b
        """
    )
    one_slice = numpy.arange(40000.0).reshape(400, 100)
    slices = DataSet(numpy.concatenate([one_slice] * 8), slice_size=400)
    master.run(name, None, slices)
    places = master.run(name, None, slices)
    assert len(places) == 8 and len(set(places)) == 1, "one file for all, whoever maps it"
    assert places[0][0] == "r--s"


def test_long_params_and_code_count_as_sent(master, module):
    name = module("def mapfunc(params, item):\n    return len(params)\n")
    params = os.urandom(100_000)
    assert master.run(name, params, [1, 2, 3], slice_size=1) == 300_000
    first = master.last_run
    assert first.bytes_sent in range(100_200, 110_000) and first.bytes_cached == 0
    assert master.run(name, params, [1, 2, 3], slice_size=1) == 300_000
    again = master.last_run
    assert again.bytes_cached in range(1, 10_000), "the code is there, params are not kept"
    assert again.bytes_sent + again.bytes_cached == first.bytes_sent


def test_changing_one_element_sends_one_slice(master, module):
    name = module("def mapfunc(params, rows):\n    return rows.sum()\n")
    matrix = numpy.arange(40000.0).reshape(400, 100)
    master.run(name, None, matrix.copy(), slice_size=100)
    matrix[399, 99] += 1.0
    assert master.run(name, None, matrix, slice_size=100) == matrix.sum()
    assert 80000 <= master.last_run.bytes_sent < 85000
    data = NumpyMatrixDataSet(matrix)
    master.run(name, None, data, slice_size=100)
    matrix.flags.writeable = True
    matrix[0, 0] = 7.0
    data.changed()
    assert master.run(name, None, data, slice_size=100) == matrix.sum()
    assert 80000 <= master.last_run.bytes_sent < 85000


def test_another_slicing_of_the_same_data_is_other_data(master, module):
    name = module(
        "def mapfunc(params, items):\n    return [items]\n\ndef reduce(a, b):\n    return a + b\n"
    )
    data = DataSet(list(range(100)))
    fifty = master.run(name, None, data, slice_size=50)
    twenty_five = master.run(name, None, data, slice_size=25)
    assert fifty == [list(range(50)), list(range(50, 100))]
    assert twenty_five == [list(range(n, n + 25)) for n in (0, 25, 50, 75)]


def test_objects_with_arrays_anywhere_go_both_ways(master, module):
    name = module(
        """
        def mapfunc(params, items):
            return [{"p": params["deep"][1] * 2, "items": items, "n": params["n"]}]
        def reduce(a, b):
            return a + b
        """
    )
    params = {"deep": (1, numpy.arange(3000.0).reshape(30, 100)), "n": numpy.float32(2.5)}
    (answer,) = master.run(name, params, [[1, "x", None]], slice_size=1)
    assert (answer["p"] == params["deep"][1] * 2).all() and answer["p"].flags.writeable
    assert answer["items"] == [[1, "x", None]] and answer["n"] == numpy.float32(2.5)


def test_params_of_many_megabytes_go_once_per_host(master, module):
    name = module("def mapfunc(params, items):\n    return float(params[-1]) + len(items)\n")
    assert master.run(name, numpy.arange(2e6), list(range(8)), slice_size=2) == 4 * 1999999.0 + 8


def test_large_answers_come_back_whole(master, module):
    name = module(
        "import numpy\ndef mapfunc(n, items):\n    return numpy.full(n, float(items[0]))\n"
    )
    total = master.run(name, 500_000, [1, 2, 3, 4, 5, 6], slice_size=1)
    assert total.shape == (500_000,) and (total == 21.0).all()


def test_slices_are_read_only_and_the_error_says_how_to_write(master, module):
    name = module("def mapfunc(params, rows):\n    rows += 1\n    return rows.sum()\n")
    matrix = numpy.zeros((100, 100))
    with pytest.raises(TaskFailed, match="writable=True"):
        master.run(name, None, matrix)
    assert master.run(name, None, matrix, writable=True) == 10000.0
    assert master.run(name, None, matrix, writable=True) == 10000.0, "a private copy each time"


# --- code --------------------------------------------------------------------------------------


def test_a_module_that_was_edited_runs_in_its_new_form(master, module, tmp_path):
    name = module(
        "from {0} import factor\ndef mapfunc(p, i):\n    return sum(i) * factor\n", "jt_e"
    )
    source = (tmp_path / "jt_e.py").read_text().format("jt_helper")
    (tmp_path / "jt_e.py").write_text(source)
    module("factor = 1\n", "jt_helper")
    assert master.run(name, None, [1, 2, 3]) == 6
    module("factor = 10\n", "jt_helper")
    assert master.run(name, None, [1, 2, 3]) == 60
    module("from jt_helper import factor\ndef mapfunc(p, i):\n    return -sum(i)\n", "jt_e")
    assert master.run(name, None, [1, 2, 3]) == -6


@pytest.fixture
def bare(lab, ssh, tmp_path):
    """A host whose Python has nothing installed."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    lab.host("lab1")
    return lab.spec("lab1", python=str(tmp_path / "bare/bin/python"))


def test_what_a_host_lacks_is_named_before_anything_is_sent(bare, module):
    name = module("import hypothesis\ndef mapfunc(p, i):\n    return 1\n")
    with Master([bare]) as master:
        with pytest.raises(ModuleError, match="hypothesis is missing on lab1"):
            master.run(name, None, [1, 2, 3])
        with pytest.raises(ModuleError, match="numpy is missing on lab1"):
            master.run(module(SUM), None, numpy.ones((100, 100)))
        assert master.run(module(SUM), 1, [1, 2, 3]) == 6, "what needs neither works"


def test_classes_of_the_mapped_module_come_back(master, module):
    name = module(
        """
        class Point:
            def __init__(self, x):
                self.x = x
            def __add__(self, other):
                return Point(self.x + other.x)
        def mapfunc(params, items):
            return Point(sum(items))
        """
    )
    assert master.run(name, None, list(range(10)), slice_size=2).x == 45


def test_a_result_of_a_class_that_was_not_shipped_is_refused(master, module):
    name = module("import datetime\ndef mapfunc(p, i):\n    return datetime.date(2020, 1, 1)\n")
    with pytest.raises(TaskFailed, match=r"datetime\.date is not accepted"):
        master.run(name, None, [1])


# --- what goes wrong ---------------------------------------------------------------------------


def test_an_exception_arrives_with_host_slice_and_source_line(master, host, module):
    name = module(
        """
        def mapfunc(params, items):
            if 42 in items:
                raise KeyError("forty-two")  # the line to see
            return 1
        """
    )
    with pytest.raises(TaskFailed) as caught:
        master.run(name, None, list(range(100)), slice_size=10)
    error = caught.value
    assert (error.host, error.slice, error.type) == (host.label, 4, "KeyError")
    assert error.detail == "'forty-two'" and "# the line to see" in error.traceback
    assert master.run(module(SUM), 1, [1, 2]) == 3, "and the master is still good"


def test_keep_going_leaves_out_what_failed(master, module):
    name = module("def mapfunc(p, items):\n    return 1 // (items[0] % 5) * 0 + len(items)\n")
    assert master.run(name, None, list(range(20)), slice_size=1, keep_going=True) == 16
    failed = master.last_run.failed
    assert [one.slice for one in failed] == [0, 5, 10, 15]
    assert {one.type for one in failed} == {"ZeroDivisionError"}


def test_what_a_mapfunc_prints_is_shown_with_host_and_slice(host, module):
    name = module(
        """
        import os, sys
        def mapfunc(params, items):
            print("out", items[0])
            print("err", items[0], file=sys.stderr)
            os.write(1, b"raw\\n")
            os.write(2, b"no end")
            return 0
        """
    )
    lines = []
    with Master([host], on_output=lambda *line: lines.append(line)) as master:
        master.run(name, None, [7, 8], slice_size=1)
    where = host.label
    for index, item in ((0, 7), (1, 8)):
        assert (where, index, 1, f"out {item}") in lines
        assert (where, index, 2, f"err {item}") in lines
        assert (where, index, 1, "raw") in lines
        assert (where, index, 2, "no end") in lines


@pytest.mark.parametrize(
    "misdeed",
    [
        "sys.stderr.write('x' * 100_000_000)",
        "sys.stdout.close(); os.close(1)",
        "os.chdir('/')",
        "os.fork() and os.wait()",
        "os.dup2(2, 0)",
        "sys.stdout = None",
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "sys.setrecursionlimit(50)",
    ],
)
def test_a_mapfunc_harms_nothing_but_itself(lab, host, module, misdeed):
    name = module(
        f"""
        import os, signal, sys
        def mapfunc(params, items):
            if items[0] == 3:
                {misdeed}
            return sum(items)
        """
    )
    with Master([host], on_output=lambda *line: None) as master:
        for _ in range(2):
            assert master.run(name, None, list(range(8)), slice_size=1) == 28


def test_a_slice_that_kills_every_worker_is_named(master, module):
    name = module(
        """
        import os, sys
        def mapfunc(params, items):
            if items[0] == 5:
                sys.stderr.write("last words\\n")
                os._exit(3)
            return 1
        """
    )
    with pytest.raises(TaskLost) as caught:
        master.run(name, None, list(range(10)), slice_size=1)
    error = caught.value
    assert error.slice == 5 and "exit code 3" in error.detail and "last words" in error.traceback
    kept = master.run(name, None, list(range(10)), slice_size=1, keep_going=True)
    assert kept == 9 and [one.slice for one in master.last_run.failed] == [5]


def test_a_worker_killed_once_loses_nothing(master, module, tmp_path):
    name = module(
        f"""
        import os, signal
        def mapfunc(params, items):
            if items[0] == 5:
                try:
                    os.close(os.open({str(tmp_path / "once")!r}, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    pass
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
            return items[0]
        """
    )
    assert master.run(name, None, list(range(10)), slice_size=1) == 45
    assert master.last_run.retried == 1
    assert any("SIGKILL" in note for note in master.last_run.notes)


def test_a_slice_that_hangs_is_begun_anew(master, module, tmp_path):
    """task_timeout kills a worker that hangs, and its children, and the slice runs again."""
    name = module(
        f"""
        import os, signal, subprocess, time
        def mapfunc(params, items):
            hangs = items[0] == 5 and not os.path.exists({str(tmp_path / "once")!r})
            if hangs or items[0] == params["always"]:
                open({str(tmp_path / "once")!r}, "w").close()
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                subprocess.Popen(["sleep", "300"], start_new_session=True)
                time.sleep(300)
            return items[0]
        """
    )
    items = list(range(10))
    assert master.run(name, {"always": -1}, items, slice_size=1, task_timeout=0.5) == 45
    assert master.last_run.retried == 1
    assert any("still running after 0.5 s" in note for note in master.last_run.notes)
    with pytest.raises(TaskLost) as caught:
        master.run(name, {"always": 7}, items, slice_size=1, task_timeout=0.3)
    assert caught.value.slice == 7
    assert caught.value.detail.startswith("3 workers died of it; ")
    assert caught.value.detail.endswith(": still running after 0.3 s (3 times)")
    with pytest.raises(UsageError):
        master.run(name, {"always": -1}, items, task_timeout=0)


def test_bad_input_is_named(master, module):
    with pytest.raises(ModuleError):
        master.run("no_such_module_xyz", None, [1])
    with pytest.raises(ModuleError, match="mapfunc"):
        master.run(module("x = 1\n"), None, [1])
    with pytest.raises(EncodingError, match="params"):
        master.run(module(SUM), lambda: 0, [1])
    with pytest.raises(UsageError):
        master.run(module(SUM), 1, [])
    with pytest.raises(UsageError):
        master.run(module(SUM), 1, 17)
    assert master.run(module(SUM), 1, [1, 2]) == 3, "and the master is still good"


def test_a_closed_master_says_so(host, module):
    master = Master([host])
    master.run(module(SUM), 1, [1])
    master.close()
    master.close()
    with pytest.raises(UsageError, match="closed"):
        master.run(module(SUM), 1, [1])


# --- several hosts -----------------------------------------------------------------------------


def test_two_hosts_share_the_work(hosts, module):
    name = module(
        """
        import os
        def mapfunc(params, items):
            return {os.environ["HOME"]: len(items)}
        def reduce(a, b):
            for key, value in b.items():
                a[key] = a.get(key, 0) + value
            return a
        """
    )
    with Master(list(hosts)) as master:
        homes = master.run(name, None, list(range(64)), slice_size=1)
    assert len(homes) == 2 and sum(homes.values()) == 64


def test_a_second_run_over_two_hosts_sends_nothing_again(hosts, module):
    name = module("def mapfunc(params, rows):\n    return rows.sum()\n")
    matrix = numpy.arange(400_000.0).reshape(4000, 100)
    with Master(list(hosts)) as master:
        data = DataSet(matrix)
        assert master.run(name, None, data) == matrix.sum()
        assert master.last_run.bytes_sent >= matrix.nbytes
        for _ in range(3):
            assert master.run(name, None, data) == matrix.sum()
            assert master.last_run.bytes_sent == 0


def test_another_master_leaves_slices_where_they_were_moved_to(hosts, lab, module):
    name = module(
        """
        import os, time
        def mapfunc(slow, rows):
            if os.environ["HOME"] == slow:
                time.sleep(0.3)
            return rows.sum()
        """
    )
    matrix = numpy.arange(400_000.0).reshape(4000, 100)
    slow = lab.hosts["lab1"].env["HOME"]
    with Master(list(hosts)) as master:
        assert master.run(name, slow, matrix, slice_size=100) == matrix.sum()
        first = [host.tasks for host in master.last_run.hosts]
        assert first[0] < 20 < first[1], "lab2 has taken over what was to be lab1's"
    with Master(list(hosts)) as master:
        assert master.run(name, "", matrix.copy(), slice_size=100) == matrix.sum()
        assert master.last_run.bytes_sent == 0
        matrix[0, 0] = 7
        assert master.run(name, "", matrix, slice_size=100) == matrix.sum()
        assert 80_000 <= master.last_run.bytes_sent < 85_000, "one slice"


def test_a_dead_host_is_named_and_the_others_do_the_work(lab, ssh, module):
    lab.host("lab1")
    gone = lab.host("lab2", key="host2")
    gone.stop()
    with Master([lab.spec("lab1"), lab.spec("lab2")]) as master:
        assert master.run(module(SUM), 1, list(range(10))) == 45
        states = {one.name: (one.state, one.note) for one in master.hosts()}
    assert states["lab1"][0] == "up"
    assert states["lab2"][0] == "unreachable" and "refused" in states["lab2"][1].lower()


def test_a_host_that_is_silent_delays_neither_the_others_nor_the_end(lab, ssh, module, monkeypatch):
    monkeypatch.setattr("jamtasks.engine.PATIENCE_MIN", 0.5)
    shown = []
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls, and never says a word
        lab.write_ssh_config(f"Host mute\n  HostName 127.0.0.1\n  Port {silent.getsockname()[1]}\n")
        began = time.monotonic()
        with Master(
            [lab.spec("localhost", "local", workers=1), lab.spec("mute")],
            settings=lab.settings(connect_timeout=30.0),
            progress=lambda *state: shown.append(state),
        ) as master:
            assert master.run(module(SUM), 2, list(range(10))) == 90
            mute = next(one for one in master.hosts() if one.name == "mute")
            assert (mute.state, mute.note) == ("connecting", "no answer yet")
            closing = time.monotonic()
            master.close()
            assert time.monotonic() - closing < 4.0
        assert time.monotonic() - began < 25.0
    assert shown[0][:2] == (0, master.last_run.slices)  # said before the first answer


def test_no_host_at_all_is_an_error_with_every_reason(lab, ssh, module):
    for name, key in (("lab1", "host1"), ("lab2", "host2")):
        lab.host(name, key=key).stop()
    with (
        Master([lab.spec("lab1"), lab.spec("lab2")]) as master,
        pytest.raises(NoHostsError) as caught,
    ):
        master.run(module(SUM), 1, [1])
    assert "lab1" in str(caught.value) and "lab2" in str(caught.value)
    assert caught.value.exit_code == 3


def test_work_of_a_host_that_is_lost_goes_elsewhere(lab, ssh, module, tmp_path):
    lab.host("lab1")
    second = lab.host("lab2", key="host2")
    name = module(
        f"""
        import os, time
        def mapfunc(params, items):
            open(os.path.join({str(tmp_path)!r}, "at-" + os.path.basename(os.environ["JAM_TEST"])),
                 "a").close()
            deadline = time.time() + 30
            while not os.path.exists({str(tmp_path / "go")!r}) and time.time() < deadline:
                time.sleep(0.01)
            return sum(items)
        """
    )
    specs = [lab.spec("lab1", workers=2), lab.spec("lab2", workers=2)]
    with Master(specs) as master:
        answer = []
        thread = threading.Thread(
            target=lambda: answer.append(master.run(name, None, list(range(8)), slice_size=1))
        )
        thread.start()
        wait_until(lambda: (tmp_path / "at-lab2").exists(), "the second host works")
        second.stop()
        wait_until(
            lambda: {one.name: one.state for one in master.hosts()}["lab2"] == "lost", "it is lost"
        )
        (tmp_path / "go").touch()
        thread.join(30)
        assert answer == [28]
        assert master.last_run.retried >= 2
        assert any("lab2 was lost" in note for note in master.last_run.notes)
        second.start()
        wait_until(
            lambda: {one.name: one.state for one in master.hosts()}["lab2"] == "up", "it is back"
        )
        assert master.run(module(SUM), 1, list(range(10))) == 45


def test_a_killed_agent_is_started_again(lab, host, module):
    name = module("import os\ndef mapfunc(p, i):\n    return [os.getppid()]\n")
    with Master([host]) as master:
        master.run(module(SUM), 1, [1])
        agents = [
            pid
            for pid, line in lab.left_behind().items()
            if "serve" in line and "SCREEN" not in line
        ]
        assert agents
        for pid in agents:
            kill(pid)
        wait_until(lambda: master.hosts()[0].state == "lost", "it is lost")
        wait_until(lambda: master.hosts()[0].state == "up", "it is back")
        assert master.run(name, None, [1])


def test_the_same_answer_to_the_last_bit_whatever_the_workers(lab, host, module):
    name = module(
        """
        import random, time
        def mapfunc(params, rows):
            time.sleep(random.random() * 0.01)
            return (rows * params).sum(axis=0)
        """
    )
    matrix = numpy.random.default_rng(1).random((640, 50)) * 1e10
    answers = set()
    for workers in (1, 3, 5):
        with Master([dataclasses.replace(host, workers=workers)], f"p{workers}") as master:
            answers.add(master.run(name, 1.1, matrix, slice_size=20).tobytes())
    assert len(answers) == 1


def test_a_script_maps_itself(lab, host, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from jamtasks import Master, HostSpec

            class Pair:
                def __init__(self, a):
                    self.a = a

            def mapfunc(params, items):
                return Pair(params.a * sum(items)).a

            if __name__ == "__main__":
                spec = HostSpec(sys.argv[1], transport=sys.argv[2],
                                ssh_config=sys.argv[3] or None)
                with Master([spec]) as master:
                    print(master.run(sys.modules["__main__"], Pair(3), list(range(10))))
            """
        )
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, str(script), host.name, host.transport, host.ssh_config or ""],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "135\n", "")
