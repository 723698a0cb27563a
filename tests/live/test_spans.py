"""Many tiny slices: they travel together, and are answered, folded and blamed one by one."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import threading

import pytest
from faults import Running
from sshd import wait_until

from jamtasks import Master
from jamtasks.errors import EncodingError, TaskFailed, TaskLost, UsageError

ORDER = """
def mapfunc(params, items):
    return [items[0] * params]
def reduce(a, b):
    a.extend(b)
    return a
"""


@pytest.fixture
def master(host):
    with Master([dataclasses.replace(host, workers=2)], on_output=lambda *line: None) as master:
        yield master


def test_many_tiny_slices_are_answered_in_order(master, module):
    name = module(ORDER)
    numbers = list(range(20_000))
    for _ in range(2):
        assert master.run(name, 3, numbers, slice_size=1) == [3 * n for n in numbers]
        report = master.last_run
        assert report.slices == 20_000 == sum(host.tasks for host in report.hosts)
        assert report.bytes_sent < 1_000_000 and report.retried == 0


def test_an_exception_is_that_of_its_slice(master, module):
    name = module(
        """
        def mapfunc(bad, items):
            if items[0] in bad:
                raise ValueError("not %d" % items[0])
            return 1
        """
    )
    numbers = list(range(3000))
    with pytest.raises(TaskFailed) as caught:
        master.run(name, [1234], numbers, slice_size=1)
    assert caught.value.slice == 1234 and caught.value.detail == "not 1234"
    bad = [0, 7, 1500, 1501, 2999]
    assert master.run(name, bad, numbers, slice_size=1, keep_going=True) == 2995
    assert [one.slice for one in master.last_run.failed] == bad
    assert [one.message for one in master.last_run.failed] == [f"not {n}" for n in bad]


def test_an_answer_that_cannot_travel_is_that_of_its_slice(master, module):
    name = module("def mapfunc(_, items):\n    return (lambda: 0) if items[0] == 1234 else 1\n")
    with pytest.raises(TaskFailed) as caught:
        master.run(name, None, list(range(3000)), slice_size=1)
    assert caught.value.slice == 1234 and caught.value.type == "EncodeError"
    assert caught.value.detail.startswith("the result of mapfunc cannot travel: ")
    name = module("def mapfunc(_, items):\n    return len if items[0] == 1234 else 1\n")
    with pytest.raises(TaskFailed, match=r"is refused: builtins\.len is not accepted") as caught:
        master.run(name, None, list(range(3000)), slice_size=1)
    assert caught.value.slice <= 1234


def test_a_slice_that_kills_is_found_among_many(master, module, tmp_path):
    name = module(
        """
        import os
        def mapfunc(params, items):
            if items[0] == 1234:
                os._exit(3)
            return 1
        """
    )
    numbers = list(range(3000))
    with pytest.raises(TaskLost) as caught:
        master.run(name, None, numbers, slice_size=1)
    assert caught.value.slice == 1234 and "3 workers died of it" in caught.value.detail
    assert master.run(name, None, numbers, slice_size=1, keep_going=True) == 2999
    assert [one.slice for one in master.last_run.failed] == [1234]


def test_a_long_slice_among_tiny_ones_holds_up_only_those_of_its_span(master, module, tmp_path):
    """Its worker leaves the rest of the span to others as soon as it is through."""
    name = module(
        """
        import os, time
        def mapfunc(folder, items):
            if items[0] >= 2000:
                open("%s/%d-%d" % (folder, items[0], os.getpid()), "w").close()
                time.sleep(0.06)
            return [items[0]]
        """
    )
    name = module((tmp_path / f"{name}.py").read_text() + "\ndef reduce(a, b):\n    return a + b\n")
    numbers = list(range(2040))
    marks = tmp_path / "marks"
    marks.mkdir()
    assert master.run(name, str(marks), numbers, slice_size=1) == numbers
    done = [path.name.split("-") for path in marks.iterdir()]
    assert {int(number) for number, _ in done} == set(range(2000, 2040))
    workers = [pid for _, pid in done]
    assert all(workers.count(pid) >= 10 for pid in set(workers)) and len(set(workers)) == 2


def test_what_slices_print_is_shown(host, module):
    lines = []
    name = module(
        """
        def mapfunc(params, items):
            if items[0] % 1000 == 0:
                print("at", items[0])
            return 1
        """
    )
    two = dataclasses.replace(host, workers=2)
    with Master([two], on_output=lambda *line: lines.append(line)) as master:
        assert master.run(name, None, list(range(4000)), slice_size=1) == 4000
    assert sorted(text for _, _, _, text in lines) == ["at 0", "at 1000", "at 2000", "at 3000"]
    assert all(0 <= index <= int(text.split()[1]) for _, index, _, text in lines)


# --- Master.map --------------------------------------------------------------------------------


def imported(name):
    __import__(name)
    return sys.modules[name]


def test_map_gives_results_in_order(master, module):
    double = imported(module("def double(x):\n    return [x, x + x]\n")).double
    items = list(range(5000))
    assert list(master.map(double, items)) == [[x, 2 * x] for x in items]
    assert sorted(master.map(double, items, ordered=False)) == [[x, 2 * x] for x in items]
    assert list(master.map(double, [])) == []
    assert list(master.map(double, ["a"])) == [["a", "aa"]]
    assert master.last_run.slices == 1


def test_an_endless_iterator_is_read_only_a_little_ahead(master, module):
    half = imported(module("def half(x):\n    return x / 2\n")).half
    read = []

    def numbers():
        for number in itertools.count():
            read.append(number)
            yield number

    results = master.map(half, numbers())
    assert read == []
    assert list(itertools.islice(results, 1000)) == [n / 2 for n in range(1000)]
    results.close()
    assert 1000 <= len(read) < 400_000
    assert list(master.map(half, [1])) == [0.5]


def test_map_in_order_waits_for_the_first(master, module, tmp_path):
    wait = imported(
        module(
            """
            import os, time
            def wait(item):
                number, gate = item
                deadline = time.time() + 60
                while number == 0 and not os.path.exists(gate) and time.time() < deadline:
                    time.sleep(0.01)
                return number
            """
        )
    ).wait
    gate = str(tmp_path / "gate")
    items = [(number, gate) for number in range(100)]
    came = []
    late = Running(lambda: came.extend(master.map(wait, items)))
    threading.Event().wait(0.3)
    assert came == []
    (tmp_path / "gate").touch()
    late.result()
    assert came == list(range(100))
    (tmp_path / "gate").unlink()
    some = master.map(wait, items, ordered=False)
    assert sorted(itertools.islice(some, 99)) == list(range(1, 100))
    (tmp_path / "gate").touch()
    assert list(some) == [0]


def test_an_exception_in_map_names_its_item(master, module):
    invert = imported(module("def invert(x):\n    return 1 / x\n")).invert
    with pytest.raises(TaskFailed) as caught:
        list(master.map(invert, [3, 2, 1, 0, 1]))
    assert caught.value.slice == 3 and caught.value.type == "ZeroDivisionError"
    results = master.map(invert, [1, 2, lambda: 0])
    with pytest.raises(EncodingError, match="item 2 cannot travel"):
        list(results)
    assert list(master.map(invert, [4])) == [0.25]


def test_large_items_travel_too(master, module):
    import numpy

    total = imported(module("def total(x):\n    return float(x.sum())\n")).total
    items = [numpy.full(100_000, float(n)) for n in range(12)]
    assert list(master.map(total, iter(items))) == [n * 1e5 for n in range(12)]


def test_what_has_no_name_is_refused(master):
    with pytest.raises(UsageError, match="cannot be sent by name"):
        master.map(lambda x: x, [1])

    def inner(x):
        return x

    with pytest.raises(UsageError, match="cannot be sent by name"):
        master.map(inner, [1])


def test_a_host_that_dies_loses_no_item(lab, ssh, module, tmp_path):
    slow = imported(module("import time\ndef slow(x):\n    time.sleep(0.002)\n    return x\n")).slow
    host = lab.host("lab1")
    specs = [lab.spec("lab1", workers=2), lab.spec("localhost", "local", workers=2)]
    with Master(specs, settings=lab.settings()) as master:
        master.wait()
        results = master.map(slow, iter(range(3000)))
        came = list(itertools.islice(results, 200))
        host.stop()
        came += results
        assert came == list(range(3000))
        wait_until(lambda: not host.process or host.process.poll() is not None, "sshd is gone")
