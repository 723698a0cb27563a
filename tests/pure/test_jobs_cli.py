"""The command line of the job plane over a Project that only remembers what it was asked."""

import io
import json
import re
import sys
from pathlib import Path

import pytest

from jamtasks import cli, job_progress, jobs_cli, project, words
from jamtasks.errors import NoHostsError, UsageError
from jamtasks.job_report import (
    DispatchReport,
    FailureGroup,
    HireReport,
    HireRow,
    JobRecord,
    Progress,
    StatusReport,
    Submitted,
    WorkerRow,
    status_table,
)
from jamtasks.report import FireReport, FireRow

FIRED = FireReport("default", (FireRow("localhost", 2, 0, "", 2),))
DONE = DispatchReport("default", 10, 0, 0, 2.1, fired=FIRED)
FAILED = JobRecord(
    number=3, submission="a" * 12, name="", command="sh -c 'exit 3'", host="lab1",
    worker="w2", owner="", began=0.0, seconds=0.1, exit=3, signal=0, stderr="bad input",
)  # fmt: skip
HIRED = HireReport("default", (HireRow("localhost", 2, 2),))


class FakeProject:
    """What a Project was asked; what it answers may be set. One per test, by the fixture."""

    def __init__(self):
        self.calls = []
        self.answers = {
            "submit": Submitted("default", 10, "a" * 12),
            "hire": HIRED,
            "dispatch": DONE,
            "fire": FIRED,
            "status": StatusReport("default", 0, 0, 0, 0, 0),
            "order": "",
            "find": None,
            "running": [],
            "logs": [],
            "output": b"",
        }
        self.name = "default"

    def __call__(self, name="default", **options):
        self.name = name
        self.calls.append(("Project", (name,), options))
        return self

    def __getattr__(self, name):
        def answer(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            found = self.answers[name]
            if isinstance(found, BaseException):
                raise found
            return found

        return answer

    def asked(self, name):
        """(args, kwargs) of the one call of that name."""
        (found,) = [call[1:] for call in self.calls if call[0] == name]
        return found

    @property
    def order_of_calls(self):
        return [name for name, _, _ in self.calls]


@pytest.fixture
def fake(monkeypatch, tmp_path):
    fake = FakeProject()
    monkeypatch.setattr(project, "Project", fake)
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.fixture
def jam(fake, capsys):
    """jam(words...) -> (exit code, stdout, stderr)."""

    def run(*line):
        with pytest.raises(SystemExit) as ended:
            cli.program().run(["jam", *line])
            raise SystemExit(0)
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


# --- what reaches the project -------------------------------------------------------------------

PLAIN = {
    "command": "true", "parameters": None, "parameters_from": None, "colsep": None,
    "repeat": None, "grid": None, "shell": False, "tries": 1, "timeout": None, "priority": 0,
    "cwd": None, "logfile": None, "env": {}, "resume": False, "resume_failed": False,
    "joblog": None,
}  # fmt: skip
ALL = [
    "--exe", "run {a}", "--parameters", "1,2", "--parameters-from", "f", "--colsep", ";",
    "--repeat", "3", "--grid", "a=1,2", "--grid", "b=0..9", "--shell", "--retries", "0",
    "--timeout", "300%", "--priority", "-5", "--cwd", "d", "--logfile", "l{#}", "--env", "A=1=2",
    "--env", "B=", "--resume", "--resume-failed", "--joblog", "j.tsv",
]  # fmt: skip
GIVEN = {
    "command": "run {a}", "parameters": "1,2", "parameters_from": "f", "colsep": ";",
    "repeat": 3, "grid": ["a=1,2", "b=0..9"], "shell": True, "tries": 0, "timeout": "300%",
    "priority": -5, "cwd": "d", "logfile": "l{#}", "env": {"A": "1=2", "B": ""}, "resume": True,
    "resume_failed": True, "joblog": "j.tsv",
}  # fmt: skip


@pytest.mark.parametrize("task", ["submit", "dispatch"])
def test_flags_of_jobs(jam, fake, task):
    assert jam(task, "--exe", "true")[0] == 0
    assert fake.asked("submit") == ((), PLAIN)
    fake.calls.clear()
    assert jam(task, *ALL)[0] == 0
    assert fake.asked("submit") == ((), GIVEN)


def test_submit_says_how_many(jam):
    assert jam("submit", "--exe", "true") == (0, 'Submitted 10 jobs to project "default".\n', "")
    assert jam("submit", "--exe", "true", "--quiet") == (0, "", "")
    _, out, _ = jam("submit", "--exe", "true", "--json")
    assert json.loads(out) == {"project": "default", "jobs": 10}


@pytest.mark.parametrize(
    ("line", "count"),
    [
        (["hire"], None),
        (["hire", "4"], 4),
        (["hire", "--json", "4"], 4),
        (["hire", "--quiet"], None),
    ],
)
def test_hire_with_and_without_a_number(jam, fake, line, count):
    assert jam(*line)[0] == 0
    assert fake.asked("hire")[0] == (count, None)


def test_flags_of_hire(jam, fake):
    line = "hire 2 --hosts a,b*3 --hosts-file h.yaml --accept-new --project p --idle 2h --cwd d"
    assert jam(*line.split())[0] == 0
    assert fake.asked("Project") == (("p",), {"hosts_file": "h.yaml", "accept_new": True})
    assert fake.asked("hire") == ((2, "a,b*3"), {"idle": 7200.0, "cwd": "d"})


def test_hire_then_another_task(jam, fake):
    assert jam("hire", "4", "dispatch")[0] == 0
    assert [name for name in fake.order_of_calls if name != "Project"] == ["hire", "dispatch"]


ROW = HireRow("lab1", 2, 2)


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([ROW], 0),
        ([ROW, HireRow("lab2", None, None, None, "refused")], 1),
        ([HireRow("lab2", None, None, None, "refused")], 3),
        ([HireRow("lab1", 1, 1, 1)], 1),
    ],
)
def test_hire_exits_by_what_runs(jam, fake, rows, code):
    fake.answers["hire"] = HireReport("default", tuple(rows))
    found, out, _ = jam("hire")
    assert found == code
    assert out.startswith("Hired ")
    assert all(row.note in out for row in rows)


def test_dispatch_plain(jam, fake):
    code, out, err = jam("dispatch")
    assert (code, err) == (0, "")
    assert out == '10 jobs done, 0 failed, 2.1 s. Fired 2 workers in project "default".\n'
    args, options = fake.asked("dispatch")
    assert args == (None,)
    assert isinstance(options.pop("progress"), job_progress.JobProgress)
    options.pop("say")
    assert options == {
        "keep": False, "fire": True, "halt": "never", "joblog": None, "joblog_append": False,
        "reduce": None,
    }  # fmt: skip
    assert "submit" not in fake.order_of_calls and "hire" not in fake.order_of_calls


def test_flags_of_dispatch(jam, fake):
    line = ["dispatch", "--exe", "true", "--hire", "3", "--hosts", "a", "--keep", "--no-fire"]
    line += ["--callback", "echo", "--halt", "now,fail=1", "--order", "age", "--joblog", "j"]
    assert jam(*line, "--resume")[0] == 0
    assert fake.order_of_calls == ["Project", "order", "submit", "hire", "dispatch"]
    assert fake.asked("order") == (("age",), {})
    assert fake.asked("hire") == ((3, "a"), {})
    args, options = fake.asked("dispatch")
    assert args == ("echo",)
    assert (options["keep"], options["fire"], options["halt"]) == (True, False, "now,fail=1")
    assert (options["joblog"], options["joblog_append"]) == ("j", True)


def test_hire_of_dispatch_needs_no_number(jam, fake):
    assert jam("dispatch", "--hire", "--project", "p")[0] == 0
    assert fake.asked("hire") == ((None, None), {})


def test_dispatch_with_nobody_to_hire(jam, fake):
    row = HireRow("lab1", None, None, None, "connection refused")
    fake.answers["hire"] = HireReport("default", (row,))
    code, out, err = jam("dispatch", "--exe", "true", "--hire", "1")
    assert (code, out) == (NoHostsError.exit_code, "")
    assert "lab1: connection refused" in err
    assert "dispatch" not in fake.order_of_calls


def test_failures_are_a_table_and_exit_1(jam, fake):
    fake.answers["dispatch"] = DispatchReport(
        "default", 9, 1, 0, 2.1, (FAILED,), (FailureGroup("exit 3", "bad input", 1, FAILED),)
    )
    code, out, err = jam("dispatch")
    assert (code, err) == (1, "")
    assert re.search(r"^ +1 +exit 3 +bad input +job3 on lab1", out, re.M)
    assert out.splitlines()[-1] == "9 jobs done, 1 failed, 2.1 s."
    code, out, err = jam("dispatch", "--json")
    assert code == 1
    value = json.loads(out)
    assert list(value) == "project done failed retried seconds failures".split()
    assert value["failures"][0]["exit"] == 3
    assert "bad input" in err
    assert jam("dispatch", "--quiet") == (1, "", "")


def test_reduce_prints_the_result_alone(jam, fake, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "folds.py").write_text("def reduce(a, b): return a + b\n")
    fake.answers["dispatch"] = DispatchReport("default", 2, 0, 0, 1.0, value=42, reduced=2)
    code, out, err = jam("dispatch", "--reduce", "folds")
    assert (code, out) == (0, "42\n")
    assert err == "2 jobs done, 0 failed, 1.0 s.\n"
    assert fake.asked("dispatch")[1]["reduce"].reduce(1, 2) == 3
    assert json.loads(jam("dispatch", "--reduce", "folds", "--json")[1])["result"] == 42
    (tmp_path / "folds_not.py").write_text("x = 1\n")
    assert jam("dispatch", "--reduce", "folds_not")[0] == 2


@pytest.mark.parametrize(
    "line",
    [
        ["submit"],
        ["submit", "--exe", "x", "--repeat", "0"],
        ["submit", "--exe", "x", "--retries", "-1"],
        ["submit", "--exe", "x", "--priority", "1000"],
        ["submit", "--exe", "x", "--env", "1A=2"],
        ["dispatch", "--grid", "a=1"],
        ["dispatch", "--shell"],
        ["dispatch", "--hire", "none"],
        ["hire", "none"],
        ["hire", "--what"],
        ["hire", "--idle", "long"],
        ["logs"],
        ["logs", "job1"],
        ["attach"],
        ["attach", "w1"],
    ],
)
def test_wrong_use_is_2_in_two_lines(jam, line):
    code, out, err = jam(*line)
    assert (code, out) == (2, "")
    assert 1 <= len(err.rstrip("\n").split("\n")) <= 2, err
    assert err.startswith("jam: ")


# --- Ctrl-C -------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("typed", "fires"), [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False), ("", False)]
)
def test_ctrl_c_asks(jam, fake, monkeypatch, typed, fires):
    fake.answers["dispatch"] = KeyboardInterrupt()
    shown = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    monkeypatch.setattr(sys, "stderr", shown)
    code, out, _ = jam("dispatch")
    assert (code, out) == (130, "")
    assert "Fire the workers? [y/N]" in shown.getvalue()
    assert ("fire" in fake.order_of_calls) is fires


def test_ctrl_c_without_a_terminal_fires_nobody(jam, fake):
    fake.answers["dispatch"] = KeyboardInterrupt()
    assert jam("dispatch") == (130, "", "interrupted\n")
    assert "fire" not in fake.order_of_calls


def test_a_second_ctrl_c_means_no(jam, fake, monkeypatch):
    class Impatient(Terminal):
        def readline(self):
            raise KeyboardInterrupt

    fake.answers["dispatch"] = KeyboardInterrupt()
    monkeypatch.setattr(sys, "stdin", Impatient())
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert jam("dispatch")[0] == 130
    assert "fire" not in fake.order_of_calls


# --- looking ------------------------------------------------------------------------------------

WORKERS = (
    WorkerRow("w1", "lab1", 11, "running", "job7", 1.0, "lab1"),
    WorkerRow("w1", "lab2", 12, "idle", "", 1.0, "me@lab2"),
    WorkerRow("w2", "lab2", 13, "idle", "", 1.0, "me@lab2"),
)


def test_status(jam, fake):
    fake.answers["status"] = StatusReport("default", 5, 2, 1, 3, 1, WORKERS)
    code, out, err = jam("status")
    assert (code, err) == (0, "")
    assert out.startswith("5 queued, 1 taken by workers, 1 running, 3 done, 1 failed\n")
    assert len(out.splitlines()) == 6
    assert jam("status", "--quiet")[1].count("\n") == 1
    value = json.loads(jam("status", "--json")[1])
    assert list(value) == "project queued claimed running done failed workers".split()
    assert list(value["workers"][0]) == "name host pid state job since".split()


def test_order(jam, fake):
    assert jam("order")[:2] == (0, "priority (nothing else was said)\n")
    fake.answers["order"] = "age"
    assert jam("order", "age")[:2] == (0, "age\n")
    assert fake.calls[-1] == ("order", ("age",), {})
    fake.answers["order"] = UsageError("no such order")
    assert jam("order", "x")[0] == 2


def test_logs_of_a_job_and_of_a_worker(jam, fake, tmp_path):
    fake.answers["find"] = FAILED
    fake.answers["output"] = b"its output\n"
    code, out, err = jam("logs", "job3", "--err")
    assert (code, out) == (0, "its output\n")
    assert err == "job3: exit 3, 0.10 s, w2 on lab1: sh -c 'exit 3'\n"
    assert fake.asked("output") == ((FAILED, "err"), {})
    log = tmp_path / "w1.log"
    log.write_text("took job3\n")
    fake.answers["logs"] = [str(log)]
    assert jam("logs", "w1") == (0, "took job3\n", "")
    fake.answers["running"] = [FAILED]  # of another submission than the one that ended
    assert "job3 runs: w2 on lab1, 0.10 s" in jam("logs", "3")[2]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("w1", ["2 hosts", "lab1-w1, lab2-w1"]),
        ("w9", ["'w9'", "lab1-w1 (job7), lab2-w1, lab2-w2"]),
        ("x", ["'x'", "lab1-w1"]),
        ("lab9-w1", ["lab9-w1"]),
        ("w2", ["terminal"]),
        ("me@lab2-w1", ["terminal"]),
    ],
)
def test_which_worker(jam, fake, name, said):
    fake.answers["status"] = StatusReport("default", 0, 0, 0, 0, 0, WORKERS)
    code, out, err = jam("attach", name)
    assert (code, out) == (2, "")
    for text in said:
        assert text in err


# --- words and progress -------------------------------------------------------------------------


def test_help_behind_a_task_that_takes_a_word(monkeypatch):
    ran = []
    monkeypatch.setattr(words.os, "execv", lambda path, argv: ran.append(argv[1:]))
    for argv in (["inv", "hire", "--help"], ["inv", "jam.hire", "--json", "--help"]):
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "orig_argv", ["python", "-I", *argv])
        with pytest.raises(UsageError):  # where it comes to when nothing takes its place
            words.helps("--help", "hire")
    assert ran == [["-I", "inv", "--help", name] for name in ("hire", "jam.hire")]


@pytest.mark.parametrize(
    ("begun", "again"),
    [
        (["/usr/bin/jam"], ["/usr/bin/jam"]),
        (["-c", "main()"], ["-c", "main()"]),
        (["-X", "dev", "-m", "invoke"], ["-X", "dev", "-m", "invoke"]),
        ([], None),
        (["-c", "sys.argv = ...", "other"], None),
    ],
)
def test_help_begins_the_program_anew_as_it_was_begun(monkeypatch, begun, again):
    ran = []
    monkeypatch.setattr(words.os, "execv", lambda path, argv: ran.append(argv[1:]))
    monkeypatch.setattr(sys, "argv", ["-c", "map", "--help"])
    typed = [] if again is None else ["map", "--help"]
    monkeypatch.setattr(sys, "orig_argv", ["python", *begun, *typed])
    with pytest.raises(UsageError):
        words.helps("--help", "map")
    assert ran == ([] if again is None else [[*again, "--help", "map"]])


def test_help_asked_by_a_program_is_an_error_in_words():
    with pytest.raises(UsageError, match="not shown from here"):
        words.helps("-h", "map")  # and no word of this test's own command line


def test_every_task_has_an_example():
    for one in (*jobs_cli.TASKS, cli.fire):
        assert f"inv {one.name}" in one.__doc__, one.name


def test_progress_in_lines(monkeypatch):
    from jamtasks import progress

    monkeypatch.setattr(progress, "LINE_AFTER", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.001)
    stream = io.StringIO()
    with job_progress.JobProgress(stream) as shown:
        shown(Progress(87, 4, 2, 8, 1, 2, rate=4.0, eta=23.0))
        while "23" not in stream.getvalue():
            pass
    assert "89 queued, 2 running, 8 done, 1 failed, 2 workers, 4/s, about 23" in stream.getvalue()
    assert shown.amount() == (9, 100)


def test_status_says_who_dispatches_and_what_is_missing():
    idle = StatusReport("default", 5, 0, 0, 0, 0, dispatcher="lab1, process 7", order="name")
    assert status_table(idle).splitlines() == [
        "5 queued, 0 running, 0 done, 0 failed",
        "Dispatched by lab1, process 7",
        "Order: name",
        "No workers are hired: inv hire",
    ]


def test_every_flag_in_the_readme_is_one():
    """In the table of commands, and in the lines that one may type."""
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    tasks = {one.name: one for one in (*jobs_cli.TASKS, cli.fire)}
    looked = set()
    for line in text.splitlines():
        found = re.match(r"(?:\| `|\$ )?inv (\w+)", line)
        if not found or found[1] not in tasks:
            continue
        flags = {f"--{name}" for one in tasks[found[1]].get_arguments() for name in one.names}
        flags |= {flag.replace("--", "--no-") for flag in flags}
        unquoted = re.sub(r"'[^']*'", "", line)  # without the programs that jobs run
        said = set(re.findall(r"(?<![\w-])--[a-z-]+", unquoted))
        assert said <= flags, line
        looked.add(found[1])
    assert looked == tasks.keys()
