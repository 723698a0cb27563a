"""Map calls through the job plane: the same answers, to the bit, and the same errors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy
import pytest
from test_commands import Shell

from jamtasks import DataSet, Master, via_jobs
from jamtasks.errors import NoHostsError, TaskFailed, TaskLost
from jamtasks.project import Project

NORMS = """
import numpy
def mapfunc(params, rows):
    return numpy.linalg.norm(rows * params["scale"], axis=0)
"""


@pytest.fixture
def project(lab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Project("p")
    yield made
    made.fire()


def data_of(project: Project) -> list[Path]:
    return list(Path(project.path, "results", "data").iterdir())


def test_the_answer_is_that_of_the_map_plane_to_the_bit(neighbour, project, module):
    """As many slices as there, cut alike; workers hired for it, and fired."""
    name = module(NORMS)
    matrix = numpy.random.default_rng(1).normal(size=(997, 301))
    params = {"scale": numpy.linspace(0.1, 3.0, 301)}
    with Master([neighbour]) as master:
        expected = master.run(name, params, DataSet(matrix))
        slices = master.last_run.slices
    for _ in range(2):
        result, report = via_jobs.run(project, name, params, DataSet(matrix))
        assert result.tobytes() == expected.tobytes()
        assert report.slices == slices and report.bytes_sent >= matrix.nbytes
        assert sum(host.tasks for host in report.hosts) == slices
    assert data_of(project) == [] and project.status().workers == ()
    assert project.status().queued == 0


def test_workers_that_were_hired_are_used_and_kept(neighbour, project, module):
    project.hire(2)
    name = module(
        "import os\ndef mapfunc(params, _):\n    return [os.getpid()]\n"
        "def reduce(a, b):\n    return a + b\n"
    )
    answer, report = via_jobs.run(project, name)
    assert len(answer) == 2 == report.slices == report.workers, "without data: once per worker"
    assert len(project.status().workers) == 2


def test_an_exception_arrives_as_it_was_raised(project, module):
    name = module(
        """
        def mapfunc(params, items):
            if items[0] in params:
                raise ValueError("not %d" % items[0])
            return sum(items)
        """
    )
    with pytest.raises(TaskFailed) as caught:
        via_jobs.run(project, name, [3], list(range(6)), slice_size=1)
    assert (caught.value.slice, caught.value.type) == (3, "ValueError")
    assert caught.value.detail == "not 3" and "raise ValueError" in caught.value.traceback
    assert data_of(project) == [] and project.status().queued == 0
    result, report = via_jobs.run(
        project, name, [3, 5], list(range(6)), slice_size=1, keep_going=True
    )
    assert result == 0 + 1 + 2 + 4
    assert [(one.slice, one.message) for one in report.failed] == [(3, "not 3"), (5, "not 5")]


def test_a_process_that_dies_is_named(project, module):
    name = module(
        """
        import os, sys
        def mapfunc(params, items):
            if items[0] == 2:
                sys.stderr.write("last words\\n")
                sys.stderr.flush()
                os._exit(7)
            return 1
        """
    )
    with pytest.raises(TaskLost) as caught:
        via_jobs.run(project, name, None, list(range(4)), slice_size=1)
    assert caught.value.slice == 2 and "7" in caught.value.detail
    assert caught.value.traceback == "last words"


def test_a_slice_that_hangs_is_ended(project, module, tmp_path):
    name = module(
        f"""
        import os, time
        def mapfunc(params, items):
            if items[0] == 1 and not os.path.exists({str(tmp_path / "once")!r}):
                open({str(tmp_path / "once")!r}, "w").close()
                time.sleep(300)
            return items[0]
        """
    )
    result, report = via_jobs.run(
        project, name, None, list(range(3)), slice_size=1, task_timeout=2.0
    )
    assert result == 3 and report.retried == 1


def test_an_answer_that_is_not_what_its_job_said_is_refused(project, module, monkeypatch):
    name = module("def mapfunc(params, items):\n    return items[0]\n")
    fold = via_jobs._Call.fold

    def spoilt(call, keep_going):
        for path in Path(call._folder).glob("out-*"):
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        return fold(call, keep_going)

    monkeypatch.setattr(via_jobs._Call, "fold", spoilt)
    with pytest.raises(TaskFailed, match="its answer is damaged"):
        via_jobs.run(project, name, None, list(range(3)), slice_size=1)


def test_when_nobody_can_be_hired_it_says_why(project, lab, ssh, module):
    name = module("def mapfunc(params, items):\n    return 1\n")
    spec = lab.spec(lab.host("lab1", start=False))
    with pytest.raises(NoHostsError, match=r"no worker could be hired: lab1: .*[Rr]efused"):
        via_jobs.run(project, name, None, [1, 2], hosts=[spec])
    assert data_of(project) == []


def test_over_two_hosts_with_one_home_by_the_command_line(lab, ssh, tmp_path):
    shell = Shell(tmp_path, lab)
    home = os.environ["HOME"]
    for name, key in (("lab1", "host1"), ("lab2", "host2")):
        lab.host(name, key=key, env={"HOME": home})
    shell.module(
        "floats",
        """
        dataset = [0.1 * n for n in range(64)]
        def mapfunc(params, items):
            return sum(x * 1.1 for x in items)
        """,
    )
    words = ["floats", "--hosts", "lab1*2,lab2*2", "--json"]
    there = shell.jam("map", *words)
    here = shell.jam("map", *words, "--via", "jobs")
    assert there[0] == here[0] == 0, (there, here)
    there, here = json.loads(there[1]), json.loads(here[1])
    assert here["result"] == there["result"] and here["slices"] == there["slices"] == 16
    assert [host["name"] for host in here["hosts"]] == ["lab1", "lab2"]
    assert shell.jam("map", "floats", "--via", "pigeons")[0] == 2
    shell.jam("fire", "--hosts", "lab1,lab2")
