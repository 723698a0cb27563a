"""The command line for real: processes, exit codes, what is on stdout and what on stderr."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from sshd import wait_until

ROOT = Path(__file__).resolve().parents[2]
INV = [sys.executable, "-m", "invoke"]
JAM = [sys.executable, "-c", "from jamtasks.start import main; main()"]
SECONDS = 60


class Shell:
    """Commands in a folder of their own, on the machine of a `lab`."""

    def __init__(self, folder: Path, lab):
        self.folder = folder
        self.lab = lab

    def start(self, *argv, cwd=None, **variables):
        return subprocess.Popen(
            argv,
            cwd=cwd or self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *argv, cwd=None, **variables):
        """(exit code, stdout, stderr)"""
        return self.finish(self.start(*argv, cwd=cwd, **variables))

    def finish(self, process):
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"{process.args} did not end\n{out}\n{err}")
        return process.returncode, out, err

    def jam(self, *words, **variables):
        return self.run(*JAM, *words, **variables)

    def inv(self, *words, **variables):
        """In the checkout."""
        return self.run(*INV, *words, cwd=ROOT, **variables)

    def module(self, name, source):
        (self.folder / f"{name}.py").write_text(textwrap.dedent(source))
        return name

    def agents(self):
        """Processes that run an agent, on any host of the lab and here."""
        return {
            pid: line
            for pid, line in self.lab.left_behind().items()
            if " serve " in line and "SCREEN" not in line
        }


@pytest.fixture
def shell(tmp_path, lab):
    return Shell(tmp_path, lab)


@pytest.fixture
def one(shell, host):
    """A shell whose commands go to one host, over each transport in turn."""
    shell.lab.hosts_yaml_of(host)
    return shell


@pytest.fixture
def two(shell, ssh, monkeypatch):
    """A shell for which lab1 and lab2 are hosts that no file names, over each SSH transport."""
    monkeypatch.setenv("JAM_REMOTE_PYTHON", sys.executable)  # it has numpy
    shell.lab.host("lab1")
    shell.lab.host("lab2", key="host2")
    return shell


def complains(result, code, *words):
    """It failed with this code, in one or two lines that hold these words."""
    found, out, err = result
    assert found == code, (out, err)
    assert not out
    lines = err.rstrip("\n").split("\n")
    assert 1 <= len(lines) <= 2, err
    assert "Traceback" not in err
    for word in words:
        assert word in err, err


# --- the README ---------------------------------------------------------------------------------


def readme_commands():
    return re.findall(
        r"^(?:python3 -m venv|\.venv/bin/pip).*$", (ROOT / "README.md").read_text(), re.M
    )


def test_the_readme_opens_with_the_two_commands():
    first, second = readme_commands()
    assert first == (
        "python3 -m venv .venv && .venv/bin/pip install -q ."
        " && .venv/bin/inv map examples.sum_matrix"
    )
    assert second == ".venv/bin/pip install -q '.[test]' && .venv/bin/inv test"


def test_the_first_command(shell):
    code, out, err = shell.inv("map", "examples.sum_matrix")
    assert code == 0, err
    expected, computed, verdict = out.splitlines()
    assert expected.split()[1] == computed.split()[1] == "499999500000"
    assert verdict == "equal"
    summary = r"\d+ slices on 1 host \(\d+ workers?\) in .*; .* sent, .* already there, 0 retried"
    assert re.fullmatch(summary, err.splitlines()[-1])


def test_a_second_command_sends_no_data_again(one):
    runs = []
    for _ in range(2):
        code, out, err = one.inv("map", "examples.sum_matrix", "--json")
        assert code == 0, err
        runs.append(json.loads(out))
    first, second = runs
    assert first["result"] == second["result"] == 499999500000
    assert first["bytes_sent"] > 8_000_000 and first["bytes_cached"] == 0
    assert second["bytes_sent"] == 0 and second["bytes_cached"] == first["bytes_sent"]


# --- examples -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["multiply_sum", "inner_product", "progressions", "newton_sqrt", "sparse_autoencoder"]
)
def test_examples_as_modules(one, name):
    code, out, err = one.inv("map", f"examples.{name}")
    assert code == 0, err
    assert out
    assert one.inv("map", f"examples.{name}", "--combine")[:2] == (0, out)


def test_char_count_of_a_glob(one):
    code, out, err = one.inv("map", "examples.char_count", "--dataset", "texts/*.txt")
    assert code == 0, err
    total = sum(
        len(line.rstrip("\n"))
        for path in (ROOT / "examples" / "texts").glob("*.txt")
        for line in path.read_text().splitlines()
    )
    assert out.startswith(f"{total} characters, ")


def test_newton_sqrt_as_a_program(shell):
    script = str(ROOT / "examples" / "newton_sqrt.py")
    code, out, err = shell.run(sys.executable, script, "123456789")
    assert code == 0, err
    assert out.splitlines()[0] == f"root  {123456789**0.5:.17g}"


@pytest.mark.parametrize("flags", [[], ["--slices-per-worker", "4", "--combine"]])
def test_sparse_autoencoder_as_a_program(shell, flags):
    script = str(ROOT / "examples" / "sparse_autoencoder.py")
    words = ["--iterations", "3", "--patches", "200", *flags]
    code, out, err = shell.run(sys.executable, script, *words)
    assert code == 0, err
    lines = out.splitlines()
    assert len(lines) == 4
    costs = [float(line.split()[2]) for line in lines[:3]]
    assert costs == sorted(costs, reverse=True)


# --- bootstrap and fire -------------------------------------------------------------------------


def test_bootstrap_then_fire(one, host):
    one.lab.hosts_yaml_of(dataclasses.replace(host, keep=True, workers=3))
    code, out, err = one.jam("bootstrap", "--json")
    assert code == 0, err
    (row,) = json.loads(out)["hosts"]
    assert list(row) == (
        "name state python implementation numpy cpus workers payload seconds note".split()
    )
    assert (row["name"], row["state"], row["workers"]) == (host.label, "up", 3)
    assert row["payload"] in ("sent", "present")
    assert one.agents(), "keep: true leaves an agent"
    code, out, err = one.jam("bootstrap")
    assert code == 0, err
    assert out.splitlines()[0].split()[:3] == ["HOST", "STATE", "PYTHON"]
    assert "present" in out
    code, out, err = one.jam("fire")
    assert code == 0, err
    assert "nothing is left" in err
    assert not one.agents()
    code, out, err = one.jam("fire", "--json")
    assert (code, json.loads(out)) == (
        0,
        {"project": "default", "hosts": [{"name": host.label, "ended": 0, "left": 0}]},
    )


def test_fire_alone_ends_the_agent_here_that_the_hosts_file_leaves_out(shell, ssh):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        (shell.folder / "hosts.yaml").write_text(f'hosts: ["{where}"]\n')
        assert shell.jam("map", "examples.multiply_sum", "--hosts", "localhost")[0] == 0
        assert shell.agents()
        code, _, err = shell.jam("fire")
    assert code == 1
    assert "nothing is left on 1 host; not proven for 127.0.0.1" in err
    assert not shell.agents()


def test_fire_ends_no_other_project(one, host):
    one.lab.hosts_yaml_of(dataclasses.replace(host, keep=True))
    assert one.jam("bootstrap", "--project", "ab")[0] == 0
    kept = one.agents()
    assert one.jam("fire", "--project", "a")[0] == 0
    assert one.agents() == kept
    assert one.jam("fire", "--project", "ab")[0] == 0


# --- results and errors -------------------------------------------------------------------------


def test_json_keys(one):
    name = one.module("ones", "def mapfunc(params, dataset): return {'x': (params, b'!')}\n"
                        "def reduce(a, b): return a\n")  # fmt: skip
    code, out, err = one.jam("map", name, "--json", "--params", "2.5")
    assert code == 0, err
    value = json.loads(out)
    assert list(value) == (
        "result slices workers seconds bytes_sent bytes_cached retried hosts".split()
    )
    assert list(value["hosts"][0]) == (
        "name state workers python numpy tasks bytes_sent bytes_cached note".split()
    )
    assert value["result"] == {"x": [2.5, {"base64": "IQ=="}]}
    assert value["workers"] == value["slices"] >= 1


def test_what_mapfunc_prints_is_on_stderr_with_host_and_slice(one, host):
    name = one.module(
        "talks",
        """
        import sys
        dataset = [1]
        def mapfunc(params, dataset):
            print("to", "stdout")
            print("to stderr", file=sys.stderr)
            return 7
        """,
    )
    code, out, err = one.jam("map", name, "--quiet")
    assert (code, out) == (0, "7\n")
    assert sorted(err.splitlines()) == [
        f"[{host.label} slice 0] to stderr",
        f"[{host.label} slice 0] to stdout",
    ]


FAILS = """
dataset = [1, 2, 3]
def mapfunc(params, numbers):
    if 2 in numbers:
        raise ValueError("two is bad")
    return sum(numbers)
"""


def test_an_exception_in_two_lines_with_its_place(one, host):
    name = one.module("fails", FAILS)
    words = [f"slice 1 on {host.label}: ValueError: two is bad", "fails.py:5 in mapfunc: raise"]
    complains(one.jam("map", name, "--slice-size", "1"), 1, *words)


def test_debug_shows_the_remote_traceback(one):
    code, _, err = one.jam("map", one.module("fails", FAILS), "--slice-size", "1", "--debug")
    assert code == 1
    assert 'raise ValueError("two is bad")' in err
    assert "jamtasks.errors.TaskFailed" in err


def test_keep_going(one, host):
    name = one.module("fails", FAILS)
    code, out, err = one.jam("map", name, "--slice-size", "1", "--keep-going")
    assert (code, out) == (1, "4\n")
    assert f"slice 1 on {host.label}: ValueError: two is bad" in err


@pytest.mark.parametrize(
    ("source", "flags", "code", "words"),
    [
        (None, [], 2, ["no module named 'bad'"]),
        ("x = 1", [], 2, ["bad has no function mapfunc"]),
        ("dataset = 5\ndef mapfunc(p, d): pass", [], 2, ["cut", "int"]),
        ("dataset = []\ndef mapfunc(p, d): pass", [], 2, ["empty"]),
        (
            "dataset = [1, 2]\ndef mapfunc(p, d): return [0] * d[0]",
            ["--slice-size", "1"],
            1,
            ["1", "2"],
        ),
        ("params = (i for i in ())\ndef mapfunc(p, d): pass", [], 2, ["params", "generator"]),
        (
            "import decimal\ndef mapfunc(p, d): return decimal.Decimal(1)",
            [],
            1,
            ["decimal", "Decimal"],
        ),
        ("def mapfunc(p, d): pass", ["--dataset", "nowhere.txt"], 2, ["nowhere.txt"]),
        ("def mapfunc(p, d): pass", ["--project", "a b"], 2, ["a b"]),
        ("def mapfunc(p, d): pass", ["--hosts", "a:b:c"], 2, ["a:b:c"]),
        ("def mapfunc(p, d): pass", ["--hosts-file", "no.yaml"], 2, ["no.yaml"]),
    ],
)
def test_bad_input(shell, source, flags, code, words):
    if source is not None:
        shell.module("bad", source)
    complains(shell.jam("map", "bad", *flags), code, *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hosts: {lab1: {prot: 22}}", ["hosts.yaml:1", "prot", "port"]),
        ("hosts:\n  lab1:\n  lab1:\n", ["hosts.yaml:3", "lab1", "twice"]),
    ],
)
def test_bad_hosts_file(shell, text, words):
    (shell.folder / "hosts.yaml").write_text(text)
    name = shell.module("good", "def mapfunc(p, d): return 1\n")
    complains(shell.jam("map", name), 2, *words)


def test_no_host_at_all_is_3(shell, ssh):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        name = shell.module("good", "def mapfunc(p, d): return 1\n")
        complains(shell.jam("map", name, "--hosts", where), 3, "127.0.0.1", "refused")
        code, out, _ = shell.jam("bootstrap", "--hosts", where)
        assert code == 3
        assert "refused" in out
        code, out, err = shell.jam("fire", "--hosts", where)
        assert code == 3
        assert "not proven" in out and "not proven" in err


def test_the_others_go_on_without_a_dead_host(shell, ssh):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        name = shell.module("good", "dataset = [1, 2]\ndef mapfunc(p, d): return sum(d)\n")
        code, out, err = shell.jam("map", name, "--hosts", f"localhost,{where}")
    assert (code, out) == (0, "3\n"), err
    assert re.search(r"^127\.0\.0\.1\S* \(unreachable\): .*refused", err, re.MULTILINE)


def test_ctrl_c_is_130_and_ends_the_work(one):
    name = one.module(
        "slow",
        """
        import os, time
        dataset = [1, 2, 3, 4]
        def mapfunc(folder, numbers):
            open(os.path.join(folder, "started"), "w").close()
            while True:
                time.sleep(0.05)
        """,
    )
    process = one.start(*JAM, "map", name, "--params", json.dumps(str(one.folder)))
    try:
        wait_until((one.folder / "started").exists, "mapfunc runs")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err


# Loaded by Python itself, before anything else: writes down what the main thread imports, and sends
# the process a SIGINT as it imports one of these modules.
INTERRUPTING = """
import atexit, os, signal, sys, threading

at = os.environ["INTERRUPT_AT"]
log = os.environ.get("IMPORTS")

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

class Finder:
    def find_spec(name, path=None, target=None):
        if "jamtasks" in sys.modules and threading.current_thread() is threading.main_thread():
            if name == at:
                interrupt()
            if log:
                with open(log, "a") as file:
                    file.write(name + "\\n")

sys.meta_path.insert(0, Finder)
if at == "the end":
    atexit.register(lambda: "jamtasks" in sys.modules and interrupt())
"""


@pytest.fixture
def interrupted(shell):
    """Runs a command, which gets SIGINT as it imports the module `at`: (exit code, stderr)."""
    (shell.folder / "sitecustomize.py").write_text(INTERRUPTING)

    def run(at, *words, **options):
        path = os.pathsep.join([str(shell.folder), str(ROOT)])
        code, _, err = shell.run(*words, PYTHONPATH=path, INTERRUPT_AT=at, **options)
        return code, err

    return run


def test_ctrl_c_is_130_at_any_moment(two, interrupted):
    name = two.module("good", "dataset = [1, 2]\ndef mapfunc(p, d): return sum(d)\n")
    words = [*JAM, "map", name, "--quiet", "--hosts", "lab1"]
    log = two.folder / "imports"
    assert interrupted("", *words, IMPORTS=str(log)) == (0, "")
    modules = list(dict.fromkeys(log.read_text().split()))
    modules = modules[modules.index("jamtasks.interrupts") :]
    assert "invoke.program" in modules and "jamtasks.master" in modules
    ours = ["jamtasks.interrupts", "jamtasks.cli", "jamtasks.logins", "jamtasks.master"]
    for at in dict.fromkeys([*ours, *modules[:: len(modules) // 6], "the end"]):
        assert (at, *interrupted(at, *words)) == (at, 130, "interrupted\n")


def test_ctrl_c_is_130_from_the_tasks_file_on(interrupted):
    words = [*INV, "map", "examples.multiply_sum", "--quiet"]
    for at in ("jamtasks.cli", "jamtasks.words", "jamtasks.arguments", "the end"):
        assert (at, *interrupted(at, *words, cwd=ROOT)) == (at, 130, "interrupted\n")


@pytest.mark.parametrize(
    ("closed", "code"), [("<&-", 0), ("2>&-", 0), (">&-", 2), ("<&- 2>&- >&-", 2)]
)
def test_closed_standard_streams(one, closed, code):
    """As cron and some daemons start programs."""
    line = f'exec "$@" {closed}'
    found = one.run("/bin/sh", "-c", line, "sh", *JAM, "map", "examples.sum_matrix")
    assert found[0] == code
    if code:
        assert found[2] == "" if "2>" in closed else "jam: stdout is closed" in found[2]
    else:
        assert found[1].endswith("equal\n")


def test_a_reader_that_goes_is_no_error(shell):
    name = shell.module("good", "def mapfunc(p, d): return 1\ndef report(r): print('x' * 10**6)\n")
    process = shell.start(*JAM, "map", name, "--quiet")
    process.stdout.close()
    with process.stderr:
        err = process.stderr.read()
    assert (process.wait(SECONDS), err) == (0, "")


@pytest.mark.parametrize("words", [["--list"], ["--help"], ["--help", "map"], ["map", "--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_of_help_that_goes_is_no_error(shell, words, unbuffered):
    process = shell.start(*JAM, *words, PYTHONUNBUFFERED=unbuffered)
    process.stdout.close()
    with process.stderr:
        err = process.stderr.read()
    assert (process.wait(SECONDS), err) == (0, "")


# --- over SSH -----------------------------------------------------------------------------------


def test_bootstrap_map_and_fire_on_two_hosts(two):
    code, out, err = two.inv("bootstrap", "--hosts", "lab1,lab2*3", "--json")
    assert code == 0, err
    rows = json.loads(out)["hosts"]
    assert [(row["name"], row["state"], row["payload"]) for row in rows] == [
        ("lab1", "up", "sent"),
        ("lab2", "up", "sent"),
    ]
    assert rows[1]["workers"] == 3
    code, out, err = two.inv("map", "examples.sum_matrix", "--hosts", "lab1,lab2")
    assert code == 0, err
    assert out.splitlines()[-1] == "equal"
    assert " on 2 hosts " in err
    code, out, err = two.inv("map", "examples.sum_matrix", "--hosts", "lab1,lab2", "--json")
    assert code == 0, err
    value = json.loads(out)
    assert value["result"] == 499999500000
    # an idle host may take a slice over from the other, and then it has to be sent there
    assert value["bytes_cached"] > value["bytes_sent"]
    assert [host["state"] for host in value["hosts"]] == ["up", "up"]
    assert all(host["tasks"] for host in value["hosts"])
    code, out, err = two.inv("fire", "--hosts", "lab1,lab2", "--json")
    assert code == 0, err
    assert json.loads(out)["hosts"] == [
        {"name": "lab1", "ended": 1, "left": 0},
        {"name": "lab2", "ended": 1, "left": 0},
    ]
    assert not two.agents()


def test_fire_alone_ends_what_named_hosts_were_given(two):
    """No file names them; the environment that led there is not needed any more either."""
    assert two.inv("bootstrap", "--hosts", "lab1,lab2*2")[0] == 0
    code, out, err = two.inv("map", "examples.sum_matrix", "--hosts", "lab1,lab2")
    assert code == 0, err
    assert two.agents()
    elsewhere = {"JAM_SSH_CONFIG": "", "JAM_TRANSPORT": ""}
    code, out, err = two.jam("fire", "--json", "--project", "other", **elsewhere)
    assert [host["name"] for host in json.loads(out)["hosts"]] == ["localhost"], err
    code, out, err = two.jam("fire", **elsewhere)
    assert code == 0, (out, err)
    assert re.search(r"^lab1 +1 +0 .*^lab2 +1 +0 ", out, re.MULTILINE | re.DOTALL)
    assert err == 'Ended 2 agents in project "default"; nothing is left.\n'
    assert not two.agents()
    code, out, err = two.jam("fire", "--json", **elsewhere)
    assert [host["name"] for host in json.loads(out)["hosts"]] == ["localhost"], err


def test_fire_alone_ends_what_a_program_started(two):
    script = str(ROOT / "examples" / "newton_sqrt.py")
    assert two.run(sys.executable, script, "2", "lab1", "lab2")[0] == 0
    assert two.agents()
    two.lab.hosts["lab2"].stop()
    code, out, err = two.inv("fire")
    assert code == 1
    assert re.search(r"^lab2 +\? +not proven .*refused.*; it is asked for a day", out, re.MULTILINE)
    assert "nothing is left on 2 hosts; not proven for lab2." in err
    two.lab.hosts["lab2"].start()
    code, out, err = two.inv("fire", "--json")
    assert (code, [host["name"] for host in json.loads(out)["hosts"]]) == (0, ["localhost", "lab2"])
    assert not two.agents()


def test_a_users_own_folder_of_examples(shell):
    (shell.folder / "examples").mkdir()
    (shell.folder / "examples" / "mine.py").write_text("def mapfunc(params, slice): return 1\n")
    assert shell.jam("map", "examples.mine")[0] == 0
    assert shell.jam("map", "examples.multiply_sum")[0] == 0


def test_programs_on_two_hosts(two):
    examples = ROOT / "examples"
    script = str(examples / "newton_sqrt.py")
    code, out, err = two.run(sys.executable, script, "123456789", "lab1", "lab2")
    assert code == 0, err
    assert out.splitlines()[0] == f"root  {123456789**0.5:.17g}"
    script = str(examples / "sparse_autoencoder.py")
    words = ["--hosts", "lab1,lab2", "--iterations", "2", "--patches", "300"]
    code, out, err = two.run(sys.executable, script, *words)
    assert code == 0, err
    assert len(out.splitlines()) == 3


def test_a_dead_host_is_named_everywhere(two):
    two.lab.hosts["lab2"].stop()
    code, out, err = two.inv("map", "examples.sum_matrix", "--hosts", "lab1,lab2")
    assert code == 0, err
    assert out.splitlines()[-1] == "equal"
    assert re.search(r"^lab2 \(unreachable\): .*refused", err, re.MULTILINE)
    code, out, err = two.inv("bootstrap", "--hosts", "lab1,lab2")
    assert code == 1
    assert re.search(r"^lab2 +unreachable .*refused", out, re.MULTILINE)
    code, out, err = two.inv("fire", "--hosts", "lab1,lab2")
    assert code == 1
    assert re.search(r"^lab2 +\? +not proven ", out, re.MULTILINE)
    assert "nothing is left on 1 host; not proven for lab2." in err


def test_an_unknown_host_key_is_refused_until_it_is_accepted(two):
    two.lab.host("lab3", key="host3", known=False)
    name = two.module("good", "def mapfunc(p, d): return 1\ndef reduce(a, b): return a\n")
    two.lab.host("lab4", key="host1", known=False)
    complains(two.jam("map", name, "--hosts", "lab3"), 3, "lab3", "--accept-new")
    words = ["map", name, "--hosts"]
    code, _, err = two.jam(*words, "lab1,lab3,lab4")
    assert (code, err.count("--accept-new")) == (0, 1), err
    assert re.search("^lab3, lab4: compare it .*--accept-new$", err, re.MULTILINE), err
    code, _, err = two.jam(*words, "lab3,lab4,nowhere.invalid")
    assert (code, err.count("--accept-new")) == (3, 1), err
    assert re.search("^  lab3, lab4: compare it .*--accept-new$", err, re.MULTILINE), err
    assert two.jam("map", name, "--hosts", "lab3", "--accept-new")[:2] == (0, "1\n")
    assert two.jam("map", name, "--hosts", "lab3")[:2] == (0, "1\n")


def test_twenty_at_once_with_no_agent_there(two):
    """They end with one agent and twenty right answers."""
    name = two.module("adds", "dataset = [1, 2, 3, 4]\ndef mapfunc(p, d): return sum(d) + p * 0\n")
    words = [*JAM, "map", name, "--hosts", "lab1", "--quiet", "--params"]
    started = [two.start(*words, str(number)) for number in range(20)]
    ended = [two.finish(process) for process in started]
    assert ended == [(0, "10\n", "")] * 20
    code, out, _ = two.jam("fire", "--hosts", "lab1", "--json")
    assert (code, json.loads(out)["hosts"]) == (0, [{"name": "lab1", "ended": 1, "left": 0}])


# --- elsewhere ----------------------------------------------------------------------------------


def test_as_a_collection_of_another_project(shell):
    (shell.folder / "tasks.py").write_text(
        "from invoke import Collection\nimport jamtasks\n"
        "ns = Collection()\nns.add_collection(jamtasks)\n"
    )
    code, out, err = shell.run(*INV, "--list")
    assert code == 0, err
    assert {"jam.map", "jam.fire", "jam.bootstrap"} <= set(out.split())
    code, out, err = shell.run(*INV, "jam.map", "examples.multiply_sum")
    assert code == 0, err
    assert "150015000" in out


def test_ctrl_c_is_the_business_of_the_program_that_imports_us(shell):
    program = (
        "import signal, jamtasks, jamtasks.cli\n"
        "for name in jamtasks.__all__: getattr(jamtasks, name)\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    assert shell.run(sys.executable, "-c", program) == (0, "True\n", "")


def test_import_costs_little(shell):
    """Nothing heavy is imported by `import jamtasks`, nor by listing the tasks."""
    heavy = "fabric paramiko numpy rich yaml jamtasks.master jamtasks.datasets".split()
    for before, ours in (("sys", "jamtasks"), ("invoke", "jamtasks.cli")):
        program = (
            f"import sys, {before}; had = set(sys.modules); import {ours}\n"
            f"print([name for name in {heavy} if name in set(sys.modules) - had])"
        )
        code, out, err = shell.run(sys.executable, "-c", program)
        assert (code, out) == (0, "[]\n"), err
