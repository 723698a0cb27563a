"""Flags in, one call, one report out: the command line over a Master that only remembers."""

import contextlib
import doctest
import io
import json
import sys
import textwrap

import numpy
import pytest

from jamtasks import arguments, checkout, cli, console, fleet, logins, master, progress, report
from jamtasks.errors import NoHostsError, ReduceError, TaskFailed
from jamtasks.report import FailedSlice, HostReport, RunReport

HOST = HostReport("localhost", "up", 2, "3.11.7", "2.4.6", 4, 100, 0)
RUN = RunReport(4, 2, (HOST,), 0.5, 100, 0, 0)


class FakeMaster:
    """What a Master was asked, and what it shall do. One per test, by the fixture."""

    result: object = 42
    error: BaseException | None = None
    ran = RUN

    def __init__(self):
        self.made = self.begun = self.called = None
        self.closed = self.sent_off = False

    def __call__(self, hosts, project, **options):
        assert options.pop("logins") is self
        assert self.sent_off
        self.made = {"hosts": hosts, "project": project, **options}
        return self

    def begin(self, hosts, project, **options):
        self.begun = {"hosts": hosts, "project": project, **options}
        return contextlib.nullcontext(self)

    def send_off(self):
        self.sent_off = True

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.closed = True

    def run(self, module, params, dataset, **options):
        self.called = {"module": module, "params": params, "dataset": dataset, **options}
        if self.error is not None:
            raise self.error
        return self.result

    @property
    def last_run(self):
        return self.ran


@pytest.fixture
def fake(monkeypatch, tmp_path):
    fake = FakeMaster()
    monkeypatch.setattr(master, "Master", fake)
    monkeypatch.setattr(logins.Logins, "begin", fake.begin)
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.fixture
def jam(fake, capsys):
    """jam(words...) -> (exit code, stdout, stderr)."""

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            cli.program().run(["jam", *words])
            raise SystemExit(0)
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


@pytest.fixture
def module(tmp_path, monkeypatch):
    """module(source) -> name of a fresh module in the current folder."""
    count = iter(range(100))
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source):
        name = f"mapped_{tmp_path.name}_{next(count)}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return name

    return write


PLAIN = "def mapfunc(params, dataset): return 1\n"


def lines_of(text):
    return text.rstrip("\n").split("\n") if text else []


@pytest.mark.parametrize("tested", [progress, console])
def test_doctests(tested):
    failed, attempted = doctest.testmod(tested)
    assert attempted and not failed


# --- what reaches the Master --------------------------------------------------------------------


def test_defaults(jam, fake, module):
    name = module(PLAIN)
    assert jam("map", name)[0] == 0
    fake.made.pop("progress")
    named = {"hosts": None, "project": "default"}
    assert fake.made == {**named, "on_notice": None}
    assert fake.begun == {**named, "hosts_file": None, "accept_new": False}
    assert fake.called.pop("module").__name__ == name
    assert fake.called == {
        "params": None,
        "dataset": None,
        "slice_size": None,
        "keep_going": False,
        "writable": False,
        "speculate": None,
        "task_timeout": None,
        "combine": None,
    }
    assert fake.closed


def test_every_flag_arrives(jam, fake, module):
    code, _, _ = jam(
        "map", module(PLAIN), "--hosts", "a,b*4", "--hosts-file", "h.yaml", "--project", "p",
        "--accept-new", "--params", '{"a": [1]}', "--slice-size", "7", "--keep-going",
        "--writable", "--no-speculate", "--task-timeout", "1.5m", "--combine",
    )  # fmt: skip
    assert code == 0
    fake.made.pop("progress")
    named = {"hosts": "a,b*4", "project": "p"}
    assert fake.made == {**named, "on_notice": None}
    assert fake.begun == {**named, "hosts_file": "h.yaml", "accept_new": True}
    fake.called.pop("module")
    assert fake.called == {
        "params": {"a": [1]},
        "dataset": None,
        "slice_size": 7,
        "keep_going": True,
        "writable": True,
        "speculate": False,
        "task_timeout": 90.0,
        "combine": "host",
    }


def test_jobs_do_not_combine(jam, fake, module):
    code, _, err = jam("map", module(PLAIN), "--combine", "--via", "jobs")
    assert code == 2 and "--combine: each job answers for itself" in err


def test_the_module_offers_dataset_and_params_as_values_or_functions(jam, fake, module):
    jam("map", module(PLAIN + "dataset = [1, 2]\ndef params(): return {'x': 1}\n"))
    assert fake.called["dataset"] == [1, 2]
    assert fake.called["params"] == {"x": 1}


def test_params_from_a_file(jam, fake, module, tmp_path):
    (tmp_path / "p.json").write_text("[1, 2]")
    jam("map", module(PLAIN + "params = 1\n"), "--params", "@p.json")
    assert fake.called["params"] == [1, 2]


def test_params_and_dataset_from_attributes(jam, fake, module):
    name = module(PLAIN + "class Here: values = [3]\ndef make(): return 4\n")
    assert jam("map", name, "--params", f"{name}.make", "--dataset", f"{name}.Here.values")[0] == 0
    assert fake.called["params"] == 4
    assert fake.called["dataset"] == [3]


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("a.npy", "NpyFileDataSet"),
        ("a.csv", "NumpyMatrixFileDataSet"),
        ("texts/*.txt", "TextLinesDataSet"),
        ("texts/b.txt", "TextLinesDataSet"),
        ("[x].txt", "TextLinesDataSet"),
        ("texts/*", "FilesDataSet"),
        ("a.bin", "FilesDataSet"),
    ],
)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_dataset_files_are_found_here_or_beside_the_module(
    jam, fake, module, tmp_path, monkeypatch, word, kind, elsewhere
):
    (tmp_path / "texts").mkdir()
    for name in ("texts/b.txt", "texts/c.txt", "texts/d.bin", "a.bin", "[x].txt"):
        (tmp_path / name).write_text("text\n")
    numpy.save(tmp_path / "a.npy", numpy.arange(3))
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    name = module(PLAIN)
    if elsewhere:
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
    assert jam("map", name, "--dataset", word)[0] == 0
    assert type(fake.called["dataset"]).__name__ == kind


# --- what a person sees -------------------------------------------------------------------------


def test_result_on_stdout_and_summary_on_stderr(jam, module):
    code, out, err = jam("map", module(PLAIN))
    assert (code, out) == (0, "42\n")
    assert lines_of(err) == [report.summary(RUN)]


def test_quiet_leaves_the_result_only(jam, module):
    assert jam("map", module(PLAIN), "--quiet") == (0, "42\n", "")


def test_json_is_one_value(jam, fake, module):
    fake.result = {"a": numpy.arange(3)}
    code, out, _ = jam("map", module(PLAIN + "def report(r): print('no')\n"), "--json")
    assert code == 0
    assert json.loads(out) == RUN.json({"a": [0, 1, 2]})


def test_the_modules_own_report(jam, module):
    name = module(PLAIN + "def report(result): print('sum', result)\n")
    assert jam("map", name, "--quiet") == (0, "sum 42\n", "")


def test_hosts_that_did_not_answer_are_named(jam, fake, module):
    dead = HostReport("lab9", "unreachable", 0, "", "", 0, 0, 0, "Connection refused")
    fake.ran = RunReport(4, 2, (HOST, dead), 0.5, 100, 0, 0)
    code, _, err = jam("map", module(PLAIN))
    assert code == 0
    assert lines_of(err)[1:] == ["lab9 (unreachable): Connection refused"]


def test_keep_going_with_failures_exits_with_1_and_lists_them(jam, fake, module):
    failed = (FailedSlice(2, "lab1", "ValueError", "bad", "Traceback\n  x\n"),)
    fake.ran = RunReport(4, 2, (HOST,), 0.5, 100, 0, 0, failed=failed)
    code, out, err = jam("map", module(PLAIN), "--keep-going")
    assert (code, out) == (1, "42\n")
    assert "slice 2 on lab1: ValueError: bad" in lines_of(err)
    assert "  Traceback" in lines_of(err)


# --- --output -----------------------------------------------------------------------------------


def test_output_npy(jam, fake, module, tmp_path):
    fake.result = numpy.arange(6.0).reshape(2, 3)
    code, out, err = jam("map", module(PLAIN), "--output", "r.npy")
    assert (code, out) == (0, "")
    assert "r.npy" in err
    numpy.testing.assert_array_equal(numpy.load(tmp_path / "r.npy"), fake.result)


def test_output_json_and_pkl(jam, fake, module, tmp_path):
    import pickle

    fake.result = {"a": {1, 2}}
    jam("map", module(PLAIN), "--output", "r.json")
    jam("map", module(PLAIN), "--output", "r.pkl")
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": [1, 2]}
    assert pickle.loads((tmp_path / "r.pkl").read_bytes()) == {"a": {1, 2}}


def test_output_that_cannot_be_is_said_before_anything_is_connected(jam, fake, module):
    for word in ("r.txt", "nowhere/r.npy"):
        code, out, err = jam("map", module(PLAIN), "--output", word)
        assert (code, out) == (2, "")
        assert len(lines_of(err)) == 1
    assert fake.made is None


def test_output_that_does_not_fit_the_result_leaves_no_file(jam, fake, module, tmp_path):
    fake.result = {"a": 1}
    code, _, err = jam("map", module(PLAIN), "--output", "r.npy")
    assert code == 2
    assert "no array" in err and ".pkl" in err
    assert not [path for path in tmp_path.iterdir() if "r.npy" in path.name]


# --- text that stdout's encoding does not have --------------------------------------------------

TEXT = "caf\u00e9 caf\udce9 \ud800 \u20ac \U0001f600"  # \udce9: from a file that is Latin-1
ENCODINGS = [
    (
        ("utf-8", "strict"),
        "caf\u00e9 caf\\udce9 \\ud800 \u20ac \U0001f600".encode(),
    ),
    (
        ("utf-8", "surrogateescape"),
        "caf\u00e9 caf".encode() + b"\xe9 " + "\\ud800 \u20ac \U0001f600".encode(),
    ),
    (("latin-1", "strict"), b"caf\xe9 caf\\udce9 \\ud800 \\u20ac \\U0001f600"),
    (("ascii", "surrogateescape"), b"caf\\xe9 caf\xe9 \\ud800 \\u20ac \\U0001f600"),
    (("latin-1", "replace"), b"caf\xe9 caf? ? ? ?"),
]


@pytest.fixture
def printed(fake, monkeypatch):
    """printed((encoding, errors), words...) -> the bytes on such a stdout, of a run without an
    error."""

    def run(stream, *words):
        fake.result = TEXT
        out = io.BytesIO()
        encoding, errors = stream
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding, errors))
            with contextlib.suppress(SystemExit):
                cli.program().run(["jam", "map", *words, "--quiet"])
            sys.stdout.flush()
            return out.getvalue().rstrip(b"\n")

    return run


@pytest.mark.parametrize(("stream", "expected"), ENCODINGS)
def test_no_result_is_lost_for_its_characters(printed, module, capfd, stream, expected):
    assert printed(stream, module(PLAIN)) == expected
    report = module(PLAIN + "def report(result): print(result)\n")
    assert printed(stream, report) == expected
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("stream", [stream for stream, _ in ENCODINGS])
def test_json_is_json_whatever_stdout_holds(printed, module, tmp_path, stream):
    out = printed(stream, module(PLAIN), "--json", "--output", "z.json")
    assert json.loads(out.decode("utf-8"))["result"] == TEXT
    assert json.loads((tmp_path / "z.json").read_text("utf-8")) == TEXT


# --- errors -------------------------------------------------------------------------------------


def two_lines(result, code, *words):
    """The command failed with this code, these words, and no more than two lines."""
    found, out, err = result
    assert found == code, err
    assert not out
    assert 1 <= len(lines_of(err)) <= 2, err
    assert "Traceback" not in err
    for word in words:
        assert word in err, err


def test_unknown_module(jam, fake):
    two_lines(jam("map", "no.such.module_here"), 2, "no.such.module_here")
    two_lines(jam("map", "examples/sum_matrix.py"), 2, "examples.sum_matrix")
    two_lines(jam("map", "--hsots"), 2, "--hsots")
    assert fake.made is None


def test_module_without_mapfunc(jam, fake, module):
    two_lines(jam("map", module("x = 1\n")), 2, "mapfunc")
    assert fake.closed or fake.made is None


def test_module_that_cannot_be_imported(jam, module):
    two_lines(jam("map", module("import not_there_at_all\n")), 2, "not_there_at_all", ".py:1")
    two_lines(jam("map", module("def mapfunc(:\n")), 2, "SyntaxError", ".py:1")
    two_lines(jam("map", module("1 / 0\n")), 2, "ZeroDivisionError", ".py:1: 1 / 0")


def test_users_functions_that_raise(jam, module):
    name = module(PLAIN + "def dataset(): return open('/nowhere')\n")
    two_lines(jam("map", name), 1, f"{name}.dataset()", "FileNotFoundError", ".py:2")
    name = module(PLAIN + "def report(result): return result.nothing\n")
    two_lines(jam("map", name), 1, f"{name}.report()", "AttributeError", ".py:2")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--params", "{"], ["--params"]),
        (["--params", "@nowhere.json"], ["nowhere.json", "No such file"]),
        (["--params", "nowhere.attr"], ["nowhere"]),
        (["--dataset", "nowhere.attr"], ["nowhere"]),
        (["--dataset", "nowhere.npy"], ["nowhere.npy"]),
        (["--dataset", "nowhere/*.txt"], ["nowhere/*.txt"]),
        (["--dataset", "json.decoder"], ["json.decoder", "module"]),
        (["--slice-size", "0"], ["--slice-size"]),
        (["--slice-size", "x"], ["--slice-size"]),
    ],
)
def test_words_that_mean_nothing(jam, module, flags, words):
    two_lines(jam("map", module(PLAIN), *flags), 2, *words)


TRACEBACK = """Traceback (most recent call last):
  File "/x/task.py", line 3, in mapfunc
    return 1 / 0
ZeroDivisionError: division by zero
"""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (NoHostsError("no host could be reached: a: timed out"), 3, ["a: timed out"]),
        (ReduceError("slice 3: 2 elements, not 3", "the same lengths, please"), 1, ["slice 3"]),
        (
            TaskFailed(
                host="lab1", slice=3, type="ValueError", message="a\nb", traceback=TRACEBACK
            ),
            1,
            ["slice 3 on lab1: ValueError: a b", "/x/task.py:3 in mapfunc: return 1 / 0"],
        ),
        (KeyError("x"), 1, ["KeyError", "--debug"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
    ],
)
def test_errors_of_a_run(jam, fake, module, error, code, words):
    fake.error = error
    two_lines(jam("map", module(PLAIN)), code, *words)
    assert fake.closed


def test_debug_shows_both_tracebacks(jam, fake, module):
    fake.error = TaskFailed(host="a", slice=1, type="E", message="m", traceback=TRACEBACK)
    code, _, err = jam("map", module(PLAIN), "--debug")
    assert code == 1
    assert "jamtasks.errors.TaskFailed" in err
    assert TRACEBACK in err


def test_wrong_use_exits_with_2(jam):
    assert jam("map")[0] == 2
    assert jam("nonsense")[0] == 2
    assert jam("map", "x", "--nonsense")[0] == 2
    assert jam("--help", "nonsense")[0] == 2


def test_bench_may_be_called_without_a_name():
    assert not [argument.name for argument in checkout.bench.get_arguments() if argument.positional]


def test_bench_outside_a_checkout(jam, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkout, "__file__", str(tmp_path / "jamtasks" / "checkout.py"))
    two_lines(jam("bench"), 2, "benchmarks need a checkout of jam")
    two_lines(jam("test"), 2, "tests need a checkout of jam")


def test_every_benchmark_can_be_named():
    folder = checkout.find_root() / "benchmarks"
    run_by_others = {"delay"}
    programs = {path.stem for path in folder.glob("*.py") if "\ndef main(" in path.read_text()}
    programs -= {name for name in programs if "__main__" not in (folder / f"{name}.py").read_text()}
    assert programs - run_by_others == set(checkout.BENCHMARKS)


def test_list_and_version(jam):
    code, out, _ = jam("--list")
    assert code == 0
    for name in ("map", "bootstrap", "fire", "test", "dev.lint"):
        assert name in out.split()
    assert jam("--version")[1].startswith("jam 0.")


# --- bootstrap and fire -------------------------------------------------------------------------


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """rows(bootstrap=[...], fire=[...]): what the fleet shall answer."""
    monkeypatch.setenv("JAM_RUN_DIR", str(tmp_path / "run"))  # nobody's hosts are remembered here

    def answer(bootstrap=(), fire=()):
        found = report.BootstrapReport(tuple(bootstrap))
        monkeypatch.setattr(fleet, "bootstrap", lambda settings, specs, project: found)
        fired = report.FireReport("default", tuple(fire))
        monkeypatch.setattr(fleet, "fire", lambda settings, specs, project, **planes: fired)

    return answer


UP = report.BootstrapRow("a", "up", "3.11.7", "CPython", "2.4.6", 4, 4, "sent", 0.3)
DOWN = report.BootstrapRow("b", "unreachable", note="no route")


@pytest.mark.parametrize(("found", "code"), [([UP], 0), ([UP, DOWN], 1), ([DOWN], 3)])
def test_bootstrap_exits_by_what_is_up(jam, rows, found, code):
    rows(bootstrap=found)
    assert jam("bootstrap", "--quiet")[::2] == (code, "")
    found_code, out, _ = jam("bootstrap", "--json")
    assert found_code == code
    assert [row["name"] for row in json.loads(out)["hosts"]] == [row.name for row in found]


CLEAN, LEFT = report.FireRow("a", 2, 0), report.FireRow("b", 1, 1)
UNKNOWN = report.FireRow("c", None, None, "no route")


@pytest.mark.parametrize(
    ("found", "code"), [([CLEAN], 0), ([CLEAN, LEFT], 1), ([CLEAN, UNKNOWN], 1), ([UNKNOWN], 3)]
)
def test_fire_exits_by_what_is_left(jam, rows, found, code):
    rows(fire=found)
    assert jam("fire")[0] == code
    assert json.loads(jam("fire", "--json")[1])["hosts"][0]["left"] == found[0].left


def test_a_typo_in_hosts_yaml_is_named_with_its_line(jam, tmp_path):
    (tmp_path / "hosts.yaml").write_text("hosts:\n  a:\n    prot: 22\n")
    two_lines(jam("bootstrap"), 2, "hosts.yaml:3", "prot", "port")


# --- progress -----------------------------------------------------------------------------------


def test_a_short_run_shows_no_progress(capsys):
    with progress.Progress() as shown:
        shown(1, 2, 0)
    assert capsys.readouterr() == ("", "")


def test_lines_where_there_is_no_terminal(monkeypatch):
    import io

    monkeypatch.setattr(progress, "LINE_AFTER", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.001)
    stream = Watched("3 of 4 slices")
    with progress.Progress(stream) as shown:
        shown(3, 4, 1)
        assert stream.seen.wait(10)
    assert isinstance(stream, io.StringIO)
    assert "1 failed" in stream.getvalue().splitlines()[-1]


def test_a_bar_on_a_terminal_that_leaves_nothing(monkeypatch):
    monkeypatch.setattr(progress, "BAR_AFTER", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = Watched("3 of 4 slices")
    with progress.Progress(stream, terminal=True) as shown:
        shown(3, 4, 0)
        assert stream.seen.wait(10)
    assert stream.getvalue().endswith("\x1b[2K")


def Watched(text):
    """A text stream with an event that is set once `text` has been written to it."""
    import io
    import threading

    class Stream(io.StringIO):
        seen = threading.Event()

        def write(self, data):
            count = super().write(data)
            if text in self.getvalue():
                self.seen.set()
            return count

    return Stream()


def test_positive():
    assert arguments.positive(None, "--x") is None
    assert arguments.positive("12", "--x") == 12
