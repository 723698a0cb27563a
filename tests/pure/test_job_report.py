"""The records of the job plane: their JSON, to the key, and what people read."""

from __future__ import annotations

import doctest
import json

import pytest

from jamtasks import folding, job_report, parameters, report
from jamtasks.job_report import (
    KEPT_FAILURES,
    DispatchReport,
    Failures,
    HireReport,
    HireRow,
    JobRecord,
    Progress,
    StatusReport,
    Submitted,
    WorkerRow,
)
from jamtasks.report import FireReport, FireRow


def record(number: int = 1, **changes) -> JobRecord:
    given = {
        "submission": "a" * 12, "name": "", "command": "gzip -k a.txt", "host": "lab1",
        "worker": "w3", "owner": "lab1-w3-x", "began": 1.0, "seconds": 2.5, "exit": 3, "signal": 0,
        "tries": 2, "stderr": "gzip: a.txt: No such file",
    }  # fmt: skip
    return JobRecord(number, **{**given, **changes})


def dispatched(*failed: JobRecord, **changes) -> DispatchReport:
    found = Failures()
    for one in failed:
        found.add(one)
    given = {"project": "default", "done": 10, "failed": len(failed), "retried": 0, "seconds": 2.14}
    return DispatchReport(
        **{**given, **changes}, failures=tuple(found.kept), groups=found.groups()
    )  # fmt: skip


def value(text: str) -> object:
    """As any parser reads it."""
    return json.loads(text.encode("utf-8").decode("utf-8"))


# --- JSON --------------------------------------------------------------------------------------


def test_json_of_a_submission():
    assert Submitted("p", 10, "a" * 12, 3).json() == {"project": "p", "jobs": 10}


def test_json_of_hiring():
    found = HireReport("p", (HireRow("lab1", 2, 4), HireRow("lab2", None, None, None, "refused")))
    assert found.json() == {
        "project": "p",
        "hosts": [
            {"name": "lab1", "hired": 2, "left": 0},
            {"name": "lab2", "hired": None, "left": None},
        ],
    }


def test_json_of_a_status():
    worker = WorkerRow("w3", "lab1", 77, "running", "job 1.ini", 12.5, label="me@lab1", note="x")
    found = StatusReport("p", 1, 2, 1, 4, 5, (worker,), "lab1, process 7", "age", ("note",))
    assert found.json() == {
        "project": "p", "queued": 1, "claimed": 2, "running": 1, "done": 4, "failed": 5,
        "workers": [
            {"name": "w3", "host": "lab1", "pid": 77, "state": "running", "job": "job 1.ini",
             "since": 12.5}
        ],
    }  # fmt: skip


def test_json_of_a_sweep():
    found = dispatched(record(17)).json()
    assert found == {
        "project": "default", "done": 10, "failed": 1, "retried": 0, "seconds": 2.14,
        "failures": [
            {"job": "job17", "command": "gzip -k a.txt", "exit": 3, "signal": 0, "attempts": 2,
             "host": "lab1", "stderr": "gzip: a.txt: No such file"}
        ],
    }  # fmt: skip


def test_names_that_are_no_text_make_valid_json():
    found = dispatched(record(name="caf\udce9", command="cat 'caf\udce9'", stderr="\udcff"))
    read = value(report.dumps(found.json()))
    assert read["failures"][0]["job"] == "caf\\xe9"
    worker = WorkerRow("w1", "h", 1, "running", "\udce9", 0.0)
    assert value(report.dumps(StatusReport("p", 0, 0, 0, 0, 0, (worker,)).json()))


# --- text --------------------------------------------------------------------------------------


def test_what_a_hired_crew_is_told_like():
    rows = [HireRow("lab1", 4, 4), HireRow("lab2", 0, 8)]
    assert job_report.hire_summary(HireReport("default", (rows[0],))) == (
        'Hired 4 workers in project "default".'
    )
    assert job_report.hire_summary(HireReport("p", tuple(rows))) == (
        'Hired 4 workers in project "p"; 8 were there already.'
    )
    bad = (HireRow("lab1", 1, 1, 2), HireRow("lab3", None, None, None, "no route"))
    text = job_report.hire_summary(HireReport("p", bad))
    assert "missing: 2 on lab1" in text
    assert "could not reach lab3" in text
    assert "no route" in job_report.hire_table(HireReport("p", bad))


def test_how_a_sweep_went_in_one_line():
    fired = FireReport("default", (FireRow("localhost", 4, 0, "", 4),))
    assert job_report.dispatch_summary(dispatched(fired=fired)) == (
        '10 jobs done, 0 failed, 2.1 s. Fired 4 workers in project "default".'
    )
    text = job_report.dispatch_summary(
        dispatched(record(), retried=2, left=7, halted="1 job failed", seconds=75.0)
    )
    assert text == "10 jobs done, 1 failed, 2 retried, 7 left, 1 min 15 s. Halted: 1 job failed."


def test_what_was_not_proven_of_a_host_is_not_claimed():
    rows = (FireRow("lab1", 2, 1, "", 2), FireRow("lab2", None, None, "no route", None))
    text = job_report.fired_summary(FireReport("p", rows))
    assert text == (
        'Fired 2 workers in project "p"; 1 of their processes left on lab1; not proven for lab2.'
    )


def test_failures_stand_by_how_they_ended_and_what_they_said():
    failed = [record(n, stderr=f"gzip: run-{n}4.txt: No such file") for n in range(1, 6)]
    failed += [record(6, exit=-1, signal=9, stderr="")]
    failed += [record(7, exit=-1, signal=15, reason="timeout", stderr="", name="long job")]
    table = job_report.failures_table(dispatched(*failed)).splitlines()
    assert table[0].split() == ["JOBS", "ENDED", "STDERR", "EXAMPLE", "COMMAND"]
    assert table[1].split()[:3] == ["5", "exit", "3"]
    assert "No such file" in table[1]
    assert "job1 on lab1" in table[1]
    rest = "\n".join(table[2:])
    assert "signal 9" in rest
    assert "timeout" in rest
    assert "long job on lab1" in rest
    assert job_report.failures_table(dispatched()) == ""


def test_a_terminal_is_safe_from_what_jobs_print():
    text = job_report.failures_table(dispatched(record(stderr="\x1b[31mred\x07", command="a\nb")))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert len(text.splitlines()) == 2


def test_a_million_failures_fit_into_memory():
    found = Failures()
    for number in range(KEPT_FAILURES + 500):
        found.add(record(number, stderr=f"word{'abcdefgh'[number % 8]}" * (number % 97 + 1)))
    assert len(found.kept) == KEPT_FAILURES
    assert found.count == KEPT_FAILURES + 500
    assert sum(group.count for group in found.groups()) == found.count


def test_a_status_for_people():
    worker = WorkerRow("w3", "lab1", 77, "running", "job17", 100.0, note="slow disk")
    found = StatusReport("p", 5, 3, 1, 2, 1, (worker,), notes=("'README' in the queue is no job",))
    text = job_report.status_table(found, now=112.3).splitlines()
    assert text[0] == "5 queued, 2 taken by workers, 1 running, 2 done, 1 failed"
    assert text[1] == "'README' in the queue is no job"
    assert text[-1].split() == "w3 lab1 77 running job17 12.3 s slow disk".split()


@pytest.mark.parametrize(
    ("changes", "ending"),
    [
        ({}, "exit 3"), ({"exit": -1, "signal": 9}, "signal 9"), ({"reason": "timeout"}, "timeout"),
        ({"reason": "lost"}, "lost with its worker"), ({"reason": "spawn"}, "could not be started"),
        ({"exit": 0}, "exit 0"),
    ],
)  # fmt: skip
def test_how_a_job_ended(changes, ending):
    assert record(**changes).ending == ending
    assert record(**changes).failed is (ending != "exit 0")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 0), ({"failed": 1}, 1), ({"left": 1}, 1),
        ({"left": 5, "halted": "1 job failed", "failed": 1}, 1),
        ({"left": 5, "halted": "1 job ended with success"}, 0),
    ],
)  # fmt: skip
def test_exit_codes_of_a_sweep(changes, code):
    assert dispatched(**changes).exit_code == code


def test_progress_in_one_line():
    text = job_report.progress_line(Progress(50, 10, 4, 38, 2, 4, rate=12.5, eta=90.0))
    assert (
        text == "56 queued, 4 running, 38 done, 2 failed, 4 workers, 12.5/s, about 1 min 30 s to go"
    )
    assert job_report.progress_line(Progress(0, 0, 0, 0, 0, 0)) == (
        "0 queued, 0 running, 0 done, 0 failed, 0 workers"
    )


def test_a_job_in_one_line():
    line = job_report.record_line(record(17, memory=2_000_000))
    assert line == (
        "job17: exit 3, 2.50 s, 2.0 MB at most, 2 tries, w3 on lab1: gzip -k a.txt"
    )  # fmt: skip


@pytest.mark.parametrize("tested", [job_report, folding, parameters], ids=lambda m: m.__name__)
def test_doctests(tested):
    failed, attempted = doctest.testmod(tested)
    assert attempted
    assert not failed
