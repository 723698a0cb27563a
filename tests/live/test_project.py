"""Project, the face for programs, over real workers on this machine."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sshd import wait_until

from jamtasks import job_report, joblog, sweep
from jamtasks.errors import JamError, ReduceError, UsageError
from jamtasks.job_report import DispatchReport
from jamtasks.project import Project
from worker_payload import layout
from worker_payload.jobs import files as job_files
from worker_payload.jobs import lines, names, steps
from worker_payload.jobs.names import Pod

SOON = 30.0


@pytest.fixture
def here(lab, tmp_path, monkeypatch) -> Path:
    """A folder to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def project(lab, here) -> Iterator[Project]:
    made = Project("p")
    yield made
    made.fire()


class Told:
    """What a dispatcher says, for a test to wait for."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, text: str) -> None:
        self.texts.append(text)

    def wait(self, part: str) -> None:
        wait_until(lambda: any(part in text for text in self.texts), f"{part!r} is said", SOON)


@contextmanager
def dispatching(project: Project, **options: Any) -> Iterator[Callable[[], DispatchReport]]:
    """A dispatch in a thread; gives what waits for its report."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(project.dispatch(**options))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def report() -> DispatchReport:
        thread.join(SOON)
        assert found, "the dispatch goes on"
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    yield report
    thread.join(SOON)
    assert not thread.is_alive()


def lines_of(path: Path) -> list[str]:
    return sorted(path.read_text().splitlines()) if path.exists() else []


def test_jobs_are_run_and_told_of(project, here):
    awkward = [("a b", "1"), ("$HOME", "*"), ("caf\udce9", "'")]
    done = project.submit(["printf", "%s, %s\\n", "{1}", "{2}"], parameters=awkward)
    assert done.jobs == 3
    assert project.status().queued == 3
    assert project.hire(2).hired == 2
    assert project.hire(2).hired == 0
    seen = []
    report = project.dispatch(progress=seen.append)
    assert (report.done, report.failed, report.left) == (3, 0, 0)
    assert report.exit_code == 0
    assert job_report.dispatch_summary(report).endswith('Fired 2 workers in project "p".')
    records = list(project.results())
    assert [record.number for record in records] == [1, 2, 3]
    outputs = [project.output(record) for record in records]
    assert outputs == [b"a b, 1\n", b"$HOME, *\n", b"caf\xe9, '\n"]
    assert all(record.seconds > 0 and record.memory > 0 for record in records)
    assert seen
    assert project.status().workers == ()
    assert project.status().queued == project.status().done == 0
    assert project.find("job2") == records[1]


def test_failures_are_told_by_kind(project, here):
    project.submit("sh -c 'echo no luck >&2; exit 3' sh {}", parameters="a,b")
    project.submit("sh -c 'kill -9 $$'")
    project.submit("./is-not-there")
    project.submit("sleep 30", timeout="0.3s")
    project.hire(2)
    log = here / "log.tsv"
    report = project.dispatch(joblog=log)
    assert (report.done, report.failed, report.exit_code) == (0, 5, 1)
    table = job_report.failures_table(report)
    assert table.splitlines()[1].split()[:3] == ["2", "exit", "3"]
    assert "no luck" in table
    assert {group.ending for group in report.groups} >= {"exit 3", "signal 9", "timeout"}
    value = json.loads(json.dumps(report.json()))
    assert len(value["failures"]) == 5
    entries = list(joblog.read(log.open(newline="\n")))
    assert sorted((entry.exit, entry.signal) for entry in entries) == [
        (-1, 15), (0, 9), (3, 0), (3, 0), (127, 0),
    ]  # fmt: skip
    assert sorted(entry.seq for entry in entries) == [1, 2, 3, 4, 5]


def test_a_job_is_tried_so_often_in_all(project, here):
    project.submit("sh -c 'echo x >> tries; test $(wc -l < tries) -ge 3'", tries=5)
    project.submit("sh -c 'echo x >> others; exit 1'", tries=2)
    project.hire(1)
    report = project.dispatch()
    assert (report.done, report.failed, report.retried) == (1, 1, 2)
    assert len(lines_of(here / "tries")) == 3
    assert len(lines_of(here / "others")) == 2
    (failure,) = report.json()["failures"]
    assert failure["attempts"] == 2


def test_callbacks(project, here):
    project.hire(1)
    project.submit("true")
    reports = []
    assert project.dispatch(reports.append, fire=False) == reports[0]
    project.submit("false")
    report = project.dispatch('echo "$JAM_PROJECT $JAM_DONE $JAM_FAILED" > told; exit 4')
    assert (here / "told").read_text() == "p 0 1\n"
    assert "the callback exited with 4" in report.notes


def test_results_are_reduced_in_job_order(project, here):
    project.submit("sh -c 'echo [{}]' ", parameters=[str(n) for n in range(20)])
    project.submit("sh -c 'echo nothing >&2; exit 1'")
    project.hire(2)
    report = project.dispatch(reduce=lambda a, b: a + b, fire=False)
    assert (report.value, report.reduced) == (list(range(20)), 20)
    project.submit("echo {}", parameters="1,2,three,4")
    with pytest.raises(ReduceError, match="job3 printed"):
        project.dispatch(reduce=sum_up)
    report = project.dispatch(reduce=lambda a, b: f"{a}-{b}")  # the sweep is not over before
    assert report.value == "1-2-three-4"


def sum_up(a, b):
    return a + b


def test_resume_goes_by_content(project, here):
    command = ["sh", "-c", 'echo {} >> "ran-{}"; test {} != b || test -e mended', "sh"]
    project.submit(command, parameters="a,b,c")
    assert project.submit(command, parameters="c,d", resume=True).jobs == 1
    project.hire(2)
    assert project.dispatch(fire=False).failed == 1
    again = project.submit(command, parameters="e,d,c,b,a", resume=True)
    assert (again.jobs, again.skipped) == (1, 4)
    again = project.submit(command, parameters="a,b,c,e,f", resume_failed=True)
    assert (again.jobs, again.skipped) == (2, 3)  # b, f; e waits
    (here / "mended").touch()
    assert project.dispatch(fire=False).done == 3
    assert project.submit(command, parameters="a,b,c,d,e,f", resume_failed=True).jobs == 0
    assert {path.name: len(lines_of(path)) for path in here.glob("ran-*")} == {
        "ran-a": 1, "ran-b": 2, "ran-c": 1, "ran-d": 1, "ran-e": 1, "ran-f": 1,
    }  # fmt: skip


def test_all_that_failed_is_run_again(project, here):
    job = Path(project.path, names.QUEUE, "job 1.sh")
    project.submit("sh -c 'test -e mended'")
    project.submit("sh -c 'test -e mended || test {} = 1'", grid={"n": [1, 2]})
    job.write_text("#!/bin/sh\ntest -e mended\n")
    project.hire(1)
    assert project.dispatch(fire=False).failed == 3
    (here / "mended").touch()
    assert project.submit(resume_failed=True).jobs == 3
    report = project.dispatch(fire=False)
    assert (report.done, report.failed) == (3, 0)
    assert project.submit(resume_failed=True).jobs == 0


def test_a_joblog_is_appended_to_and_resumed_from(project, here):
    log = here / "log.tsv"
    log.write_text(joblog.HEADING + "7\t:\t1.000\t     0.003\t0\t0\t0\t0\techo a\n1\t:\t2.0")
    assert project.submit("echo {}", parameters="a,b", resume=True, joblog=log).jobs == 1
    project.hire(1)
    project.dispatch(joblog=log, joblog_append=True)
    entries = list(joblog.read(log.open(newline="\n")))
    assert [(entry.seq, entry.command) for entry in entries] == [(7, "echo a"), (8, "echo b")]


def test_halt_now_kills_what_runs(project, here):
    project.submit("sh -c 'echo x >> slow; sleep 60'", priority=1)
    project.submit("sh -c 'while ! test -e slow; do sleep 0.05; done; exit 1'")
    project.submit("sleep 60", priority=-1)  # may begin before the failure is noticed
    project.hire(2)
    said = Told()
    report = project.dispatch(halt="now,fail=1", say=said)
    assert (report.done, report.failed, report.left) == (0, 1, 2)
    assert report.halted == "1 job failed"
    assert report.exit_code == 1
    assert project.status().queued == 2


def test_halt_soon_lets_running_jobs_end(project, here):
    project.submit("echo x >> begun; sleep 2; echo x >> ended", shell=True, repeat=4)
    project.submit("true", priority=1)
    project.hire(1)
    report = project.dispatch(halt="soon,done=1")
    assert report.halted
    assert report.left >= 1
    assert report.done == 1 + len(lines_of(here / "begun"))
    assert lines_of(here / "begun") == lines_of(here / "ended")
    assert report.exit_code == 1  # jobs are left


def test_without_workers_it_is_said_and_waited(project, here):
    project.submit("true")
    said = Told()
    with dispatching(project, say=said) as report:
        said.wait("inv hire --project p")
        project.hire(1)
        assert report().done == 1


DISPATCH = """
import sys
from jamtasks.project import Project
report = Project("p").dispatch(say=lambda text: print(text, flush=True))
print("ended", report.done, report.failed, flush=True)
"""


@contextmanager
def dispatcher(here: Path) -> Iterator[subprocess.Popen]:
    """Another process that dispatches."""
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", DISPATCH],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        told = Path(Project("p").path, names.DISPATCHER)
        wait_until(lambda: told.exists() and told.read_bytes(), "it dispatches", SOON)
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_dispatcher_that_was_killed_is_started_again(project, here):
    project.submit("sh -c 'while ! test -e go; do sleep 0.05; done; echo x >> ran'")
    project.submit("sh -c 'echo {} >> ran'", parameters="a,b")
    project.hire(2)
    with dispatcher(here) as process:
        wait_until(lambda: len(lines_of(here / "ran")) == 2, "two jobs end", SOON)
        process.send_signal(signal.SIGKILL)
        process.wait()
    (here / "go").touch()
    report = project.dispatch()
    assert (report.done, report.failed) == (3, 0)
    assert lines_of(here / "ran") == ["a", "b", "x"]


def test_a_second_dispatcher_watches(project, here):
    project.submit("sh -c 'while ! test -e go; do sleep 0.05; done'")
    project.hire(1)
    with dispatcher(here) as process:
        assert str(process.pid) in project.status().dispatcher
        said = Told()
        with dispatching(project, say=said) as report:
            said.wait("dispatches this project already")
            (here / "go").touch()
            found = report()
        assert process.stdout.readlines()[-1] == "ended 1 0\n"
    assert (found.done, found.fired) == (1, None)


def test_a_second_dispatcher_goes_on_when_the_first_dies(project, here):
    project.submit("sh -c 'while ! test -e go; do sleep 0.05; done'")
    project.hire(1)
    with dispatcher(here) as process:
        said = Told()
        with dispatching(project, say=said) as report:
            said.wait("dispatches this project already")
            process.kill()
            process.wait()
            said.wait("going on in its place")
            (here / "go").touch()
            assert report().done == 1


def test_jobs_of_a_host_that_is_gone_wait_again(project, here, monkeypatch):
    monkeypatch.setenv("JAM_LEASE", "11")  # a little more than workers take between heartbeats
    project.submit("echo {}", parameters="a")
    root = project.path
    files = job_files.Files(root)
    (name,) = os.listdir(os.path.join(root, names.QUEUE))
    owner = names.new_owner("lab9", 3)
    held = files.run(steps.claim(names.read_pod(name), owner))
    files.do(steps.Append(names.results(owner), lines.begin(held, 0, 1.0)))
    files.close()
    Path(root, names.heartbeat(owner)).write_text(json.dumps({"claims": [held.pod], "pid": 1}))
    said = Told()
    with dispatching(project, say=said) as report:
        said.wait(
            "w3 on lab9 is gone: 1 job"
        )  # no worker yet: an idle one might be first to see it
        project.hire(1)
        assert report().done == 1


def test_workers_that_were_killed_with_their_keepers_are_hired_anew(project, here, monkeypatch):
    monkeypatch.setenv("JAM_LEASE", "11")
    project.submit("sh -c 'echo x >> begun; while ! test -e go; do sleep 0.05; done'")
    project.hire(1)
    wait_until(lambda: lines_of(here / "begun"), "the job runs", SOON)
    (worker,) = project.status().workers
    stat = Path(f"/proc/{worker.pid}/stat").read_text()
    keeper = int(stat.rpartition(")")[2].split()[1])
    os.kill(keeper, signal.SIGKILL)
    os.kill(worker.pid, signal.SIGKILL)
    (here / "go").touch()
    said = Told()
    report = project.dispatch(say=said)
    assert (report.done, report.failed) == (1, 0)
    assert any("Hired anew on localhost" in text for text in said.texts)


def test_what_keeps_waits_for_more(project, here):
    project.hire(1)
    project.submit("true")
    reports: list[DispatchReport] = []
    seen: list[job_report.Progress] = []

    def progress(state: job_report.Progress) -> None:
        seen.append(state)
        if state.done == 2:
            raise KeyboardInterrupt

    with dispatching(project, callback=reports.append, keep=True, progress=progress) as report:
        wait_until(lambda: reports, "the callback is called", SOON)
        project.submit("true")
        with pytest.raises(KeyboardInterrupt):
            report()
    assert len(reports) == 1
    assert project.status().done == 2
    assert len(project.status().workers) == 1
    assert not project.status().dispatcher


def test_a_submission_that_cannot_be_leaves_nothing(project, here):
    with pytest.raises(UsageError, match="job 3"):
        project.submit("cp {1} {2}", parameters="a#b,c#d,e")
    assert project.status().queued == 0
    left = [path for path in Path(project.path).rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["id"]


@pytest.mark.parametrize(
    "options",
    [
        {"command": None}, {"command": ""}, {"command": "'"}, {"command": "x", "priority": 1000},
        {"command": "x", "tries": -1}, {"command": "x", "timeout": "soon"},
        {"command": "x", "parameters": "a", "grid": ["n=1"]},
        {"command": "x", "parameters_from": "/is/not/there"},
        {"command": ["x", "y"], "shell": True}, {"command": "x", "repeat": 0},
    ],
)  # fmt: skip
def test_submissions_that_cannot_be(project, options):
    with pytest.raises(UsageError):
        project.submit(**options)


def test_the_order_is_a_file_that_workers_read(project):
    assert project.order() == ""
    assert project.order("age") == "age"
    assert Project("p").order() == "age"
    with pytest.raises(UsageError, match="name, age, priority"):
        project.order("size")


def test_a_project_that_is_not_there_is_only_looked_at(project):
    assert project.status().notes
    assert list(project.results()) == []
    assert project.find("1") is None
    assert not os.path.exists(project.path)


def test_hosts_of_fjd_are_read_from_the_project(project, lab):
    os.makedirs(project.path, 0o700)
    Path(project.path, "remote.conf").write_text("[host1]\nname = localhost\nworkers = 2\n")
    assert project.hire().hired == 2
    assert sum(row.workers or 0 for row in project.fire().hosts) == 2


def test_a_host_without_our_home_says_so(lab, transport, here):
    lab.host("lab1")
    project = Project("p", settings=lab.settings())
    report = project.hire(1, lab.spec("lab1"))
    (row,) = report.hosts
    assert row.hired is None
    assert "home is not shared" in row.note
    assert "could not reach lab1" in job_report.hire_summary(report)


def test_workers_of_several_hosts_share_the_jobs(lab, transport, here):
    """Two hosts with one home: whatever is submitted here runs there."""
    home = lab.private("shared")
    hosts = [lab.host("lab1"), lab.host("lab2", key="host2")]
    specs = [lab.spec(host, env=(("JAM_HOME", str(home)),)) for host in hosts]
    project = Project("p", home=home, settings=lab.settings(hosts=tuple(specs)))
    try:
        hired = project.hire(1)
        assert [row.hired for row in hired.hosts] == [1, 1], hired
        project.submit("sh -c 'echo {} >> begun; while ! test -e go; do sleep 0.05; done'",
                       parameters="a,b")  # fmt: skip
        with dispatching(project) as report:
            wait_until(lambda: len(lines_of(here / "begun")) == 2, "both run", SOON)
            (here / "go").touch()
            assert report().done == 2
        assert {record.host for record in project.results()} == {"lab1", "lab2"}
    finally:
        project.fire()


def test_pods_and_drops_in_one_joblog(project, here):
    queue = Path(project.path, names.QUEUE)
    job_files.prepare(project.path)
    for number in range(3):
        (queue / f"job{number}").write_text("#!/bin/sh\nexit 0\n")
    project.submit("true", repeat=2)
    project.hire(2)
    log = here / "log"
    assert project.dispatch(joblog=log).done == 5
    entries = list(joblog.read(log.open(newline="\n")))
    assert sorted(entry.seq for entry in entries) == [1, 2, 3, 4, 5]


def test_a_dead_submitters_jobs_become_visible(project):
    job_files.prepare(project.path)
    files = job_files.Files(project.path)
    pod = Pod(names.new_pod(1), 1, 0, names.NO_CUT)
    made = steps.submit([(pod, lines.write_pod(lines.Plan("a" * 12, words=("true",)), [[]]))],
                        names.new_ticket())  # fmt: skip
    answer = None
    while not isinstance(operation := made.send(answer), steps.Rename):
        answer = files.do(operation)
    files.do(operation)
    project.hire(1)
    assert project.dispatch().done == 1


def test_on_a_network_file_system_the_end_is_looked_at_twice(project, here, monkeypatch):
    monkeypatch.setattr(job_files, "is_network", lambda path: True)
    monkeypatch.setattr(sweep, "NETWORK_WAIT", 2.0)
    project.submit("true", repeat=3)
    project.hire(1)
    said = Told()
    report = project.dispatch(say=said)
    assert report.done == 3
    assert report.seconds > 2
    assert any("network file system" in text for text in said.texts)


def test_a_disk_that_is_full_leaves_no_half_of_a_submission(project, monkeypatch):
    def full(self, folder):
        raise job_files.Full(folder, OSError(errno.ENOSPC, "No space left on device"))

    job_files.prepare(project.path)
    monkeypatch.setattr(job_files.Files, "_sync_folder", full)
    with pytest.raises(JamError, match="No space left"):
        project.submit("true", repeat=3)
    assert os.listdir(os.path.join(project.path, names.SUBMITTED)) == []
    assert project.status().queued == 0


# --- litter --------------------------------------------------------------------------------------


def test_a_dispatcher_removes_what_killed_processes_left(project, monkeypatch):
    job_files.prepare(str(project.path))
    left = Path(project.path) / names.CLAIMED / ("." + layout.aside("new"))
    left.touch()
    project.dispatch()
    assert left.exists(), "its process may still live"
    monkeypatch.setattr(job_files, "LITTER_SECONDS", -1.0)
    project.dispatch()
    assert not left.exists()
