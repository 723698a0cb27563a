"""The command line for real: processes, exit codes, what is on stdout and what on stderr."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INV = [sys.executable, "-m", "invoke"]
JAM = [sys.executable, "-c", "from jamtasks.cli import main; main()"]
SECONDS = 60


class Shell:
    """Commands in a folder of their own, with agents that know of no others."""

    def __init__(self, folder: Path, private: Path):
        self.folder = folder
        self.private = private
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAM_", "QJAM_"))}
        self.env = {
            **environment,
            "JAM_RUN_DIR": str(private / "run"),
            "JAM_CACHE_DIR": str(private / "cache"),
            "HOME": str(private / "home"),
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "100",
        }
        for name in ("run", "cache", "home"):
            (private / name).mkdir(mode=0o700)

    def start(self, *argv, cwd=None, **options):
        return subprocess.Popen(
            argv,
            cwd=cwd or self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, *argv, cwd=None):
        """(exit code, stdout, stderr)"""
        process = self.start(*argv, cwd=cwd)
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"{argv} did not end\n{out}\n{err}")
        return process.returncode, out, err

    def jam(self, *words):
        return self.run(*JAM, *words)

    def inv(self, *words):
        """In the checkout."""
        return self.run(*INV, *words, cwd=ROOT)

    def module(self, name, source):
        (self.folder / f"{name}.py").write_text(textwrap.dedent(source))
        return name

    def processes(self):
        """{pid: command line} of all that runs with our directories."""
        mark = f"JAM_RUN_DIR={self.env['JAM_RUN_DIR']}".encode()
        found = {}
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and mark in Path(f"/proc/{entry}/environ").read_bytes():
                    line = Path(f"/proc/{entry}/cmdline").read_bytes()
                    found[int(entry)] = line.replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found


def wait_until(condition, what, seconds=SECONDS):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"still not: {what}"
        time.sleep(0.02)


@pytest.fixture
def shell(tmp_path, tmp_path_factory):
    import shutil
    import tempfile

    private = Path(tempfile.mkdtemp(prefix="jam-cli-", dir="/tmp"))  # short: sockets live in it
    shell = Shell(tmp_path, private)
    try:
        yield shell
        wait_until(lambda: not shell.processes(), f"all ended: {shell.processes()}")
    finally:
        for pid in shell.processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(private, ignore_errors=True)


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
    assert re.fullmatch(r"\d+ slices on 1 host \(\d+ workers?\) in .*; .* sent, .* retried\n", err)


def test_a_second_command_sends_no_data_again(shell):
    runs = []
    for _ in range(2):
        code, out, err = shell.inv("map", "examples.sum_matrix", "--json")
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
def test_examples_as_modules(shell, name):
    code, out, err = shell.inv("map", f"examples.{name}")
    assert code == 0, err
    assert out


def test_char_count_of_a_glob(shell):
    code, out, err = shell.inv("map", "examples.char_count", "--dataset", "texts/*.txt")
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


def test_sparse_autoencoder_as_a_program(shell):
    script = str(ROOT / "examples" / "sparse_autoencoder.py")
    code, out, err = shell.run(sys.executable, script, "--iterations", "3", "--patches", "200")
    assert code == 0, err
    lines = out.splitlines()
    assert len(lines) == 4
    costs = [float(line.split()[2]) for line in lines[:3]]
    assert costs == sorted(costs, reverse=True)


# --- bootstrap and fire -------------------------------------------------------------------------


def test_bootstrap_then_fire(shell):
    (shell.folder / "hosts.yaml").write_text("hosts: {localhost: {keep: true, workers: 3}}\n")
    code, out, err = shell.jam("bootstrap", "--json")
    assert code == 0, err
    (host,) = json.loads(out)["hosts"]
    assert list(host) == (
        "name state python implementation numpy cpus workers payload seconds note".split()
    )
    assert (host["name"], host["state"], host["workers"]) == ("localhost", "up", 3)
    assert host["payload"] in ("sent", "present")
    assert shell.processes(), "keep: true leaves an agent"
    code, out, err = shell.jam("bootstrap")
    assert code == 0, err
    assert out.splitlines()[0].split()[:3] == ["HOST", "STATE", "PYTHON"]
    assert "present" in out
    code, out, err = shell.jam("fire")
    assert code == 0, err
    assert "nothing is left" in err
    assert not shell.processes()
    code, out, err = shell.jam("fire", "--json")
    assert (code, json.loads(out)) == (
        0,
        {"project": "default", "hosts": [{"name": "localhost", "ended": 0, "left": 0}]},
    )


def test_fire_ends_no_other_project(shell):
    (shell.folder / "hosts.yaml").write_text("hosts: {localhost: {keep: true}}\n")
    assert shell.jam("bootstrap", "--project", "ab")[0] == 0
    kept = shell.processes()
    assert shell.jam("fire", "--project", "a")[0] == 0
    assert shell.processes() == kept
    assert shell.jam("fire", "--project", "ab")[0] == 0


# --- results and errors -------------------------------------------------------------------------


def test_json_keys(shell):
    name = shell.module("ones", "def mapfunc(params, dataset): return {'x': (params, b'!')}\n"
                        "def reduce(a, b): return a\n")  # fmt: skip
    code, out, err = shell.jam("map", name, "--json", "--params", "2.5")
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


def test_what_mapfunc_prints_is_on_stderr_with_host_and_slice(shell):
    name = shell.module(
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
    code, out, err = shell.jam("map", name, "--quiet")
    assert (code, out) == (0, "7\n")
    assert sorted(err.splitlines()) == [
        "[localhost slice 0] to stderr",
        "[localhost slice 0] to stdout",
    ]


FAILS = """
dataset = [1, 2, 3]
def mapfunc(params, numbers):
    if 2 in numbers:
        raise ValueError("two is bad")
    return sum(numbers)
"""


def test_an_exception_in_two_lines_with_its_place(shell):
    name = shell.module("fails", FAILS)
    words = ["slice 1 on localhost: ValueError: two is bad", "fails.py:5 in mapfunc: raise"]
    complains(shell.jam("map", name, "--slice-size", "1"), 1, *words)


def test_debug_shows_the_remote_traceback(shell):
    code, _, err = shell.jam("map", shell.module("fails", FAILS), "--slice-size", "1", "--debug")
    assert code == 1
    assert 'raise ValueError("two is bad")' in err
    assert "jamtasks.errors.TaskFailed" in err


def test_keep_going(shell):
    name = shell.module("fails", FAILS)
    code, out, err = shell.jam("map", name, "--slice-size", "1", "--keep-going")
    assert (code, out) == (1, "4\n")
    assert "slice 1 on localhost: ValueError: two is bad" in err


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


def test_no_host_at_all_is_3(shell):
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


def test_the_others_go_on_without_a_dead_host(shell):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        name = shell.module("good", "dataset = [1, 2]\ndef mapfunc(p, d): return sum(d)\n")
        code, out, err = shell.jam("map", name, "--hosts", f"localhost,{where}")
    assert (code, out) == (0, "3\n"), err
    assert re.search(r"^127\.0\.0\.1\S* \(unreachable\): .*refused", err, re.MULTILINE)


def test_ctrl_c_is_130_and_ends_the_work(shell):
    name = shell.module(
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
    process = shell.start(*JAM, "map", name, "--params", json.dumps(str(shell.folder)))
    try:
        wait_until((shell.folder / "started").exists, "mapfunc runs")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err


def test_a_reader_that_goes_is_no_error(shell):
    name = shell.module("good", "def mapfunc(p, d): return 1\ndef report(r): print('x' * 10**6)\n")
    process = shell.start(*JAM, "map", name, "--quiet")
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(SECONDS), err) == (0, "")


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


def test_import_costs_little(shell):
    """Nothing heavy is imported by `import jamtasks`, nor by listing the tasks."""
    heavy = "fabric paramiko numpy rich yaml jamtasks.master jamtasks.datasets".split()
    for statement in ("import jamtasks", "from jamtasks.cli import namespace"):
        program = f"{statement}\nimport sys; print([m for m in {heavy} if m in sys.modules])"
        code, out, err = shell.run(sys.executable, "-c", program)
        assert (code, out) == (0, "[]\n"), err
