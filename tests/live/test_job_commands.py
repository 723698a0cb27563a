"""The job plane through the command line: each row F1 to F13 of what fjd's users had, and the
README's examples, with real workers under screen, here and on hosts that share a home."""

import contextlib
import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from sshd import wait_until
from test_commands import INV, ROOT, Shell, complains

SOON = 30.0


class Jobs(Shell):
    """Commands in the test's folder, and its project's folder."""

    def __init__(self, folder, lab):
        super().__init__(folder, lab)
        (folder / "tasks.py").write_text("from jamtasks.cli import namespace\n")

    def inv(self, *words, **variables):
        return self.run(*INV, *words, **variables)

    def ok(self, *words, **variables):
        """(stdout, stderr) of a command that succeeds."""
        code, out, err = self.inv(*words, **variables)
        assert code == 0, (words, out, err)
        return out, err

    def value(self, *words):
        return json.loads(self.ok(*words, "--json")[0])

    def status(self, project="default"):
        return self.value("status", "--project", project)

    def home(self, project="default"):
        return Path(os.environ["HOME"], ".jam", project)

    def queue(self, project="default"):
        path = self.home(project) / "jobqueue"
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    def script(self, text, name="job.sh", folder=None):
        path = (folder or self.folder) / name
        path.write_text("#!/bin/sh\n" + textwrap.dedent(text))
        path.chmod(0o755)
        return path

    def drop(self, name, text, project="default"):
        """A job file that appears whole."""
        aside = self.queue(project) / ".aside.tmp"
        aside.write_text(textwrap.dedent(text))
        if text.startswith("#!"):
            aside.chmod(0o755)
        os.rename(aside, self.queue(project) / name)

    def lines(self, name):
        path = self.folder / name
        return sorted(path.read_text().splitlines()) if path.exists() else []

    def screens(self):
        """Names of the sessions that `screen -ls` lists here."""
        listed = subprocess.run(["screen", "-ls"], capture_output=True, text=True).stdout
        return sorted(re.findall(r"^\s+\d+\.(\S+)", listed, re.MULTILINE))

    def terminal(self, *argv):
        """A command on a terminal of its own."""
        return Terminal(argv, self.folder)


class Terminal:
    """A process on a pseudo terminal; what it shows is in `shown`."""

    def __init__(self, argv, cwd):
        self.shown = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.environ.update(PYTHONPATH=str(ROOT), TERM="xterm", COLUMNS="100")
            os.execvp(argv[0], list(argv))

    def read(self):
        """What it shows next; "" at its end."""
        try:
            data = os.read(self.fd, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""
        self.shown += data.decode(errors="replace")
        return data

    def wait_for(self, text, seconds=SOON):
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            assert self.read(), self.shown

    def type(self, keys):
        os.write(self.fd, keys.encode())

    def finish(self):
        """Its exit code, once it has ended."""
        with contextlib.suppress(OSError):
            while self.read():
                pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def jam(tmp_path, lab):
    jobs = Jobs(tmp_path, lab)
    yield jobs
    top = os.environ.get("JAM_HOME") or os.path.join(os.environ["HOME"], ".jam")
    for project in sorted(path.name for path in Path(top).glob("*")):
        jobs.inv("fire", "--jobs", "--project", project)


@pytest.fixture
def near(jam, neighbour):
    """A shell whose commands go to one host with this machine's home, over each transport."""
    return jam


@pytest.fixture
def shared(jam, ssh):
    """A shell for which lab1 and lab2 are hosts that share a home with this machine."""
    home = os.environ["HOME"]
    for name, key in (("lab1", "host1"), ("lab2", "host2")):
        jam.lab.host(name, key=key, env={"HOME": home})
    return jam


HIRED = 'Hired {} workers in project "default".\n'


# --- the README ---------------------------------------------------------------------------------


def test_the_readme_s_ten_jobs(jam):
    """fjd's own example: ten job files, four workers, a dispatcher."""
    script = str(ROOT / "examples" / "jobs" / "create_jobs.py")
    assert jam.run(sys.executable, script)[0] == 0
    assert jam.ok("hire", "4")[0] == HIRED.format(4)
    out, err = jam.ok("dispatch")
    summary = r'10 jobs done, 0 failed, \S+ s\. Fired 4 workers in project "default"\.'
    assert re.fullmatch(summary, out.rstrip("\n")), (out, err)
    found = [path.read_text() for path in sorted((jam.folder / "logfiles").glob("job*.dat"))]
    assert len(found) == 10
    assert found[3] == "of 60001 to 80000, 77031 takes most: 350 steps\n"
    assert not jam.screens()
    assert "10 done, 0 failed" in jam.ok("status")[0]


def test_the_readme_s_one_line(jam):
    for name in ("a.txt", "b.txt"):
        (jam.folder / name).write_text(name)
    words = ["--exe", "gzip -k $1", "--parameters", "a.txt,b.txt", "--hire", "2"]
    out, err = jam.ok("dispatch", *words)
    assert out.startswith("2 jobs done, 0 failed, "), err
    assert sorted(path.name for path in jam.folder.glob("*.gz")) == ["a.txt.gz", "b.txt.gz"]


def test_the_example_of_a_sweep(jam):
    words = ["--exe", f"{sys.executable} {ROOT}/examples/jobs/logistic.py {{r}} {{x}}"]
    words += ["--grid", "r=2.5,3.2,3.5", "--grid", "x=0.1,0.4", "--hire", "2"]
    out, err = jam.ok("dispatch", *words, "--reduce", "examples.jobs.logistic")
    assert out == "r = 2.5   1 1\nr = 3.2   2 2\nr = 3.5   4 4\n", err
    assert "6 jobs done, 0 failed" in err
    again = jam.value("dispatch", *words, "--reduce", "examples.jobs.logistic")
    assert again["result"] == {"2.5": [1, 1], "3.2": [2, 2], "3.5": [4, 4]}


def test_the_example_of_a_script(jam):
    source = ROOT / "examples" / "jobs" / "words.sh"
    (jam.queue() / "words.sh").write_bytes(source.read_bytes())
    (jam.queue() / "words.sh").chmod(0o755)
    jam.ok("dispatch", "--hire", "1", cwd=ROOT)
    out, _ = jam.ok("logs", "words.sh")
    first, *counts = out.splitlines()
    assert "as job words.sh of project default" in first
    assert counts[-1].split() == ["388", "total"] or counts[-1].split()[1] == "total"


# --- F1: hiring ---------------------------------------------------------------------------------


def test_F1_hire_means_so_many_in_all(near, neighbour):
    assert near.ok("hire", "2")[0] == HIRED.format(2)
    out, _ = near.ok("hire", "2")
    assert out == 'Hired 0 workers in project "default"; 2 were there already.\n'
    assert near.value("hire", "3") == {
        "project": "default",
        "hosts": [{"name": neighbour.label, "hired": 1, "left": 0}],
    }
    workers = near.status()["workers"]
    assert sorted(row["name"] for row in workers) == ["w1", "w2", "w3"]
    assert near.value("fire")["hosts"] == [{"name": neighbour.label, "ended": 3, "left": 0}]


def test_F1_without_a_number_one_less_than_cpus(jam):
    cpus = len(os.sched_getaffinity(0))
    assert jam.value("hire")["hosts"][0]["hired"] == max(1, cpus - 1)


def test_F1_as_configured_on_each_host(shared):
    (shared.folder / "hosts.yaml").write_text("hosts: {lab1: {workers: 2}, lab2: {workers: 1}}\n")
    out, err = shared.ok("hire")
    lines = out.splitlines()
    assert lines[0] == HIRED.format(3).rstrip("\n"), err
    assert [line.split()[:2] for line in lines[2:]] == [["lab1", "2"], ["lab2", "1"]]
    rows = shared.status()["workers"]
    assert sorted((row["host"], row["name"]) for row in rows) == [
        ("lab1", "w1"), ("lab1", "w2"), ("lab2", "w1"),
    ]  # fmt: skip
    ended = shared.value("fire", "--jobs")["hosts"]
    assert ended == [
        {"name": "lab1", "ended": 2, "left": 0},
        {"name": "lab2", "ended": 1, "left": 0},
    ]


@pytest.mark.parametrize("count", ["0", "-1", "many", "2.5"])
def test_F1_bad_numbers(jam, count):
    complains(jam.inv("hire", count), 2, count)


def test_F1_a_host_that_cannot_be_reached(jam, ssh):
    code, out, _ = jam.inv("hire", "1", "--hosts", "localhost,127.0.0.1:1")
    assert code == 1
    assert 'Hired 1 worker in project "default"; could not reach 127.0.0.1:1.' in out
    assert "refused" in out
    complains(jam.inv("dispatch", "--hosts", "127.0.0.1:1", "--hire", "1"), 3, "refused")


# --- F2 and F3: what a job is -------------------------------------------------------------------


@pytest.mark.parametrize("section", ["control", "fjd"])
def test_F2_an_ini_file(jam, section):
    script = jam.script('sed -n "s/^my_param: //p" "$1"; echo to stderr >&2', "a job.sh")
    (jam.folder / "logfiles").mkdir()
    jam.drop(
        "job1.conf",
        f"""\
        [{section}]
        executable: '{script}'
        logfile: logfiles/job1.dat

        [params]
        my_param: value 1 % $HOME
        """,
    )
    jam.ok("dispatch", "--hire", "1")
    assert (jam.folder / "logfiles" / "job1.dat").read_text().splitlines()[0] == "value 1 % $HOME"


def test_F2_what_a_job_file_may_say(jam):
    """cwd, timeout, retries; the log file is relative to the job's folder, the program is not."""
    (jam.folder / "deep").mkdir()
    jam.script("pwd; echo $JAM_TRY >> tries; test $JAM_TRY = 3", folder=jam.folder / "deep")
    text = "[control]\nexecutable: deep/job.sh\ncwd: {}\nlogfile: out.log\nretries: 3\n"
    jam.drop("tries.ini", text.format(jam.folder / "deep"))
    jam.drop("slow.ini", "[control]\nexecutable: sh -c 'sleep 60' x\ntimeout: 0.3\n")
    jam.drop("fails.ini", "[control]\nexecutable: sh -c 'exit 5' x\n")
    code, out, err = jam.inv("dispatch", "--hire", "2", "--json")
    assert code == 1, err
    value = json.loads(out)
    assert (value["done"], value["failed"], value["retried"]) == (1, 2, 1)
    rows = {row["job"]: (row["exit"], row["signal"]) for row in value["failures"]}
    assert rows == {"slow.ini": (-1, 15), "fails.ini": (5, 0)}
    assert (jam.folder / "deep" / "tries").read_text().split() == ["1", "2", "3"]
    assert str(jam.folder / "deep") in (jam.folder / "deep" / "out.log").read_text()


NAMES = [
    "plain.ini", "with space.ini", "'quo\"ted'.ini", "two\nlines.ini", "smörgås 🥪.ini", "a.b.c.d",
    "-rf", "--help", "$(touch hacked).ini", ";touch hacked", "~tilde", "*", "n" * 255,
]  # fmt: skip


def test_F2_names_of_all_kinds(jam):
    jam.script('cat "$1" >> got; printf "%s\\0" "$1" >> paths', "add.sh")
    for name in NAMES:
        jam.drop(name, f"[control]\nexecutable: ./add.sh\n[x]\nn: {NAMES.index(name)}\n")
    value = jam.value("dispatch", "--hire", "2")
    assert (value["done"], value["failed"]) == (len(NAMES), 0)
    numbers = [line for line in jam.lines("got") if line.startswith("n: ")]
    assert len(numbers) == len(NAMES) and len(set(numbers)) == len(NAMES)
    paths = (jam.folder / "paths").read_text().split("\0")[:-1]
    assert sorted(os.path.basename(path) for path in paths) == sorted(NAMES)
    assert not (jam.folder / "hacked").exists()


def test_F2_a_name_that_is_no_utf_8(jam):
    name = b"caf\xe9.ini"
    with open(os.path.join(os.fsencode(jam.queue()), name), "w") as handle:
        handle.write("[control]\nexecutable: false\n")
    code, out, err = jam.inv("dispatch", "--hire", "1", "--json")
    assert code == 1, err
    assert json.loads(out)["failures"][0]["job"] == "caf\\xe9.ini"


def test_F2_the_same_name_again_is_a_new_job(jam):
    text = "[control]\nexecutable: sh -c 'echo {} >> got' sh\nlogfile: {}.log\n"
    for n in (1, 2):
        jam.drop("job.ini", text.format(n, n))
        jam.ok("dispatch", "--hire", "1")
    assert jam.lines("got") == ["1", "2"]


def test_F2_a_file_that_is_copied_slowly_is_started_whole(jam):
    jam.ok("hire", "2")
    with subprocess.Popen(
        ["sh", "-c", "cat > slow.sh; chmod +x slow.sh; exec cat >> slow.sh"],
        cwd=jam.queue(), stdin=subprocess.PIPE, text=True,
    ) as copy:  # fmt: skip
        copy.stdin.write("#!/bin/sh\ncd " + str(jam.folder) + "\n")
        for _ in range(5):
            copy.stdin.write("echo a line >> got\n")
            copy.stdin.flush()
            time.sleep(0.3)  # as slowly as a network; nothing can be waited for
        copy.stdin.close()
        copy.wait(10)
    value = jam.value("dispatch")
    assert (value["done"], value["failed"]) == (1, 0)
    assert jam.lines("got") == ["a line"] * 5


def test_F2_what_is_no_job_is_left_alone_and_named(jam):
    jam.drop("notes.txt", "to do: water the plants\n")
    jam.ok("hire", "1")
    wait_until(lambda: "notes.txt" in jam.ok("status")[0], "status names it", SOON)
    assert (jam.queue() / "notes.txt").exists()
    out, err = jam.ok("dispatch")
    assert "0 jobs done" in out
    assert "notes.txt" in err + out


def test_F3_scripts_in_any_language(jam):
    jam.drop("shell", f"#!/bin/sh\necho shell >> {jam.folder}/got\n")
    jam.drop("python", f"#!{sys.executable}\nopen('{jam.folder}/got', 'a').write('python\\n')\n")
    jam.drop("awk", f'#!/usr/bin/awk -f\nBEGIN {{ print "awk" >> "{jam.folder}/got" }}\n')
    value = jam.value("dispatch", "--hire", "2")
    assert (value["done"], value["failed"]) == (3, 0)
    assert jam.lines("got") == ["awk", "python", "shell"]


# --- F4: dispatching ----------------------------------------------------------------------------


def test_F4_dispatch_ends_with_the_last_job_and_fires(near):
    near.ok("submit", "--exe", "sh -c 'sleep 0.2; echo $1 >> got' sh", "--parameters", "a,b,c")
    near.ok("hire", "2")
    out, _ = near.ok("dispatch")
    assert out.endswith('Fired 2 workers in project "default".\n')
    assert near.lines("got") == ["a", "b", "c"]
    assert near.status()["workers"] == []


def test_F4_no_fire_leaves_the_workers(jam):
    out, _ = jam.ok("dispatch", "--exe", "true", "--hire", "1", "--no-fire")
    assert out.startswith("1 job done") and "Fired" not in out
    assert len(jam.status()["workers"]) == 1


def test_F4_keep_stays_for_jobs_that_come_later(jam):
    jam.ok("hire", "1")
    process = jam.start(*INV, "dispatch", "--keep")
    wait_until((jam.home() / "dispatcher").exists, "it dispatches", SOON)
    for n in (1, 2):
        jam.drop(f"job{n}", f"#!/bin/sh\necho {n} >> {jam.folder}/got\n")
        wait_until(lambda n=n: len(jam.lines("got")) == n, "it ran", SOON)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, _, err = jam.finish(process)
    assert (code, err.splitlines()[-1]) == (130, "interrupted")
    assert len(jam.status()["workers"]) == 1, "without a terminal nobody is fired"


def test_F4_no_workers_is_said_and_waited_for(jam):
    jam.ok("submit", "--exe", "true")
    process = jam.start(*INV, "dispatch")
    line = process.stderr.readline()
    assert "no workers" in line.lower(), line
    text = line
    while "inv hire" not in text:
        more = process.stderr.readline()
        assert more, text
        text += more
    jam.ok("hire", "1")
    code, out, err = jam.finish(process)
    assert code == 0, err
    assert out.startswith("1 job done, 0 failed")


def test_F4_a_failed_job_is_not_done(jam):
    script = jam.script('echo "bad input $1" >&2; exit $1')
    code, out, err = jam.inv(
        "dispatch", "--exe", f"{script} $1", "--parameters", "3,0,3", "--hire", "1"
    )
    assert code == 1, err
    assert "1 job done, 2 failed" in out
    row = next(line for line in out.splitlines() if "exit 3" in line)
    assert row.split()[0] == "2" and "bad input 3" in row
    assert "bad input" in jam.ok("logs", "job1", "--err")[0]


def test_F4_exit_signal_timeout_and_what_cannot_start(jam):
    words = ["--shell", "--exe", 'eval "$1"', "--parameters", "exit 4,kill -9 $$,sleep 60,true"]
    code, out, err = jam.inv("dispatch", *words, "--timeout", "1", "--hire", "2", "--json")
    assert code == 1, err
    rows = {row["job"]: row for row in json.loads(out)["failures"]}
    assert list(rows["job1"]) == "job command exit signal attempts host stderr".split()
    assert (rows["job1"]["exit"], rows["job1"]["signal"]) == (4, 0)
    assert rows["job2"]["signal"] == 9
    assert rows["job3"]["signal"] in (9, 15)
    assert set(rows) == {"job1", "job2", "job3"}
    code, out, err = jam.inv("dispatch", "--exe", "./no-such-program", "--hire", "1")
    assert code == 1
    assert "could not be started" in out


def test_F4_retries(jam):
    words = ["--exe", "sh -c 'echo x >> got; test $JAM_TRY = 3'", "--retries", "3", "--hire", "1"]
    value = jam.value("dispatch", *words)
    assert (value["done"], value["failed"], value["retried"]) == (1, 0, 1)
    assert jam.lines("got") == ["x"] * 3


def test_F4_halt(jam):
    body = "echo $1 >> got; test $1 = 1 && exit 1; sleep 1"
    words = ["--exe", f"sh -c '{body}' sh", "--parameters", "1,2,3,4,5"]
    code, out, err = jam.inv("dispatch", *words, "--halt", "now,fail=1", "--hire", "1")
    assert code == 1, err
    assert "1 failed" in out and "alted" in out
    assert len(jam.lines("got")) < 5


def test_F4_resume_goes_by_content(jam):
    words = ["dispatch", "--hire", "1", "--exe", "sh -c 'echo $1 >> got; test $1 != 2' sh"]
    assert jam.inv(*words, "--parameters", "1,2,3")[0] == 1
    jam.ok(*words, "--parameters", "4,3,2,1", "--resume")
    assert jam.lines("got") == ["1", "2", "3", "4"]
    assert jam.inv("dispatch", "--resume-failed", "--hire", "1")[0] == 1
    assert jam.lines("got") == ["1", "2", "2", "3", "4"]
    assert jam.inv(*words, "--parameters", "5,2", "--resume-failed")[0] == 1
    assert jam.lines("got") == ["1", "2", "2", "2", "3", "4", "5"]


def test_F4_joblog(jam):
    words = ["dispatch", "--hire", "1", "--joblog", "log.tsv", "--exe", "sh -c 'exit $1' sh"]
    assert jam.inv(*words, "--parameters", "0,3")[0] == 1
    head, *rows = [line.split("\t") for line in (jam.folder / "log.tsv").read_text().splitlines()]
    assert head == "Seq Host Starttime JobRuntime Send Receive Exitval Signal Command".split()
    assert sorted((row[0], row[6], row[7]) for row in rows) == [("1", "0", "0"), ("2", "3", "0")]
    assert sorted(row[8] for row in rows) == ["sh -c 'exit 0' sh", "sh -c 'exit 3' sh"]
    assert abs(float(rows[0][2]) - time.time()) < 300


def test_F4_a_second_dispatcher_only_watches(jam):
    jam.ok("hire", "1")
    first = jam.start(*INV, "dispatch", "--keep")
    wait_until((jam.home() / "dispatcher").exists, "the first one dispatches", SOON)
    jam.ok("submit", "--exe", "sh -c 'echo x >> got'")
    second = jam.start(*INV, "dispatch")
    line = second.stderr.readline()
    assert str(first.pid) in line, line
    code, out, _ = jam.finish(second)
    assert (code, jam.lines("got")) == (0, ["x"])
    assert out.startswith("1 job done, 0 failed")
    assert len(jam.status()["workers"]) == 1, "one that watches fires nobody"
    first.send_signal(signal.SIGINT)
    assert jam.finish(first)[0] == 130


def test_F4_killed_and_started_again_it_goes_on(jam):
    jam.ok("submit", "--exe", "sh -c 'sleep 0.3; echo $1 >> got' sh", "--parameters", "a,b,c,d")
    jam.ok("hire", "1")
    first = jam.start(*INV, "dispatch")
    wait_until(lambda: jam.lines("got"), "a job has run", SOON)
    first.kill()
    jam.finish(first)
    out, err = jam.ok("dispatch")
    assert out.startswith("4 jobs done, 0 failed"), err
    assert jam.lines("got") == ["a", "b", "c", "d"]


# --- F5: projects -------------------------------------------------------------------------------


def test_F5_projects_do_not_touch_one_another(jam):
    for project in ("a", "ab"):
        jam.ok("hire", "1", "--project", project)
        jam.ok("submit", "--exe", f"sh -c 'echo {project} >> got; sleep 60'", "--project", project)
    wait_until(lambda: len(jam.lines("got")) == 2, "both run", SOON)
    before = jam.status("ab")["workers"]
    assert jam.value("fire", "--project", "a")["hosts"][0]["ended"] == 1
    now = jam.status("ab")
    assert [row["pid"] for row in now["workers"]] == [row["pid"] for row in before]
    assert now["running"] == 1
    assert jam.screens() == ["jam.ab.w1"]
    assert jam.status("a")["queued"] == 1, "the job of the fired worker waits again"
    complains(jam.inv("hire", "1", "--project", "a b"), 2, "a b")


# --- F6: several machines -----------------------------------------------------------------------


def test_F6_two_hosts_and_one_home(shared):
    (shared.folder / "hosts.yaml").write_text("hosts: {lab1: {workers: 1}, lab2: {workers: 1}}\n")
    # each job waits for the other, so both hosts must have one
    body = "touch at$1; while ! test -e at$2; do sleep 0.05; done"
    words = ["--exe", f"sh -c '{body}' sh", "--parameters", "1#2,2#1"]
    shared.ok("submit", *words)
    shared.ok("hire")
    out, err = shared.ok("dispatch", "--joblog", "log.tsv")
    assert 'Fired 2 workers in project "default".' in out, err
    rows = [line.split("\t") for line in (shared.folder / "log.tsv").read_text().splitlines()[1:]]
    assert sorted(row[1] for row in rows) == ["lab1", "lab2"]


def test_F6_remote_conf(shared):
    shared.queue()
    (shared.home() / "remote.conf").write_text(
        "[host1]\nname: lab1\nworkers: 2\n\n[host2]\nname: lab2\nworkers: 1\n"
    )
    rows = shared.value("hire")["hosts"]
    assert [(row["name"], row["hired"]) for row in rows] == [("lab1", 2), ("lab2", 1)]


def test_F6_relative_paths(jam):
    """The program: relative to where workers were hired; its log: to the job's folder."""
    (jam.folder / "hired").mkdir()
    (jam.folder / "elsewhere").mkdir()
    jam.script('echo "$0 in $(pwd)"', "here.sh", jam.folder / "hired")
    jam.drop("one.ini", "[control]\nexecutable: ./here.sh\nlogfile: one.log\n")
    jam.ok("hire", "1", "--cwd", str(jam.folder / "hired"))
    jam.ok("dispatch", cwd=jam.folder / "elsewhere")
    hired = jam.folder / "hired"
    assert (hired / "one.log").read_text() == f"{hired}/here.sh in {hired}\n"


def test_F6_another_folder_is_shared(jam, ssh, monkeypatch):
    """The hosts have homes of their own and are told of JAM_HOME."""
    monkeypatch.setenv("JAM_HOME", str(jam.folder / "shared"))
    jam.lab.host("lab1")
    jam.lab.host("lab2", key="host2")
    # lab2 has it under another path
    (jam.folder / "elsewhere").symlink_to("shared")
    settings = f"hosts:\n  lab1:\n  lab2: {{env: {{JAM_HOME: {jam.folder}/elsewhere}}}}\n"
    (jam.folder / "hosts.yaml").write_text(settings)
    out, _ = jam.ok("hire", "1", "--hosts", "lab2")
    (worker,) = jam.status()["workers"]
    environment = Path(f"/proc/{worker['pid']}/environ").read_bytes().split(b"\0")
    assert f"JAM_HOME={jam.folder}/elsewhere".encode() in environment
    jam.ok("fire", "--jobs")
    out, err = jam.ok("dispatch", "--exe", "sh -c 'echo $HOME'", "--hosts", "lab1*1", "--hire")
    assert out.startswith("1 job done, 0 failed"), err
    assert jam.ok("logs", "1")[0] == f"{jam.lab.hosts['lab1'].home}\n"
    assert not (Path(os.environ["HOME"]) / ".jam").exists()


def test_F6_a_home_that_is_not_shared_is_refused(jam, ssh):
    jam.lab.host("lab1")
    jam.queue()
    code, out, err = jam.inv("hire", "1", "--hosts", "lab1")
    assert code == 3, (out, err)
    assert "shared" in out + err
    jam.lab.hosts["lab1"].stop()


# --- F7: screens --------------------------------------------------------------------------------


def test_F7_workers_are_screens_with_a_log_each(jam):
    jam.ok("hire", "2")
    assert jam.screens() == ["jam.default.w1", "jam.default.w2"]
    jam.ok("submit", "--exe", "sh -c 'echo hello from job {#}'", "--repeat", "4")
    out, _ = jam.ok("dispatch", "--no-fire")
    assert out.startswith("4 jobs done")
    logs = [jam.ok("logs", name)[0] for name in ("w1", "w2")]
    assert all(logs) and logs[0] != logs[1]
    assert jam.ok("logs", "job3")[0] == "hello from job 3\n"
    assert jam.ok("logs", "3")[0] == "hello from job 3\n"


def test_F7_logs_of_a_job_that_runs(jam):
    """Not those of an earlier job of the same number; --follow ends with the job."""
    jam.ok("dispatch", "--exe", "echo early", "--hire", "1", "--no-fire")
    body = "echo begun; touch here; while ! test -e gate; do sleep 0.05; done; echo ended"
    jam.ok("submit", "--exe", f"sh -c '{body}'")
    wait_until((jam.folder / "here").exists, "it runs", SOON)
    out, err = jam.ok("logs", "job1")
    assert (out, err.split()[:2]) == ("begun\n", ["job1", "runs:"])
    follower = jam.start(*INV, "logs", "job1", "--follow")
    assert follower.stdout.readline() == "begun\n"
    (jam.folder / "gate").touch()
    assert jam.finish(follower)[:2] == (0, "ended\n")
    out, err = jam.ok("logs", "job1")
    assert out == "begun\nended\n"
    assert err.startswith("job1: exit 0, ")


def test_F7_attach(jam):
    jam.ok("hire", "1")
    complains(jam.inv("attach", "w1"), 2, "terminal")
    complains(jam.inv("attach", "w7"), 2, "w7", "w1")
    terminal = jam.terminal(*INV, "attach", "w1")
    terminal.type("x")
    jam.ok("submit", "--exe", "true")
    terminal.wait_for("job1")
    terminal.type("\x01d")
    assert terminal.finish() == 0, terminal.shown
    assert len(jam.status()["workers"]) == 1, "it outlives who looks at it"


def test_F7_attach_on_another_host(shared):
    shared.ok("hire", "--hosts", "lab1*1")
    terminal = shared.terminal(*INV, "attach", "lab1-w1")
    shared.ok("submit", "--exe", "true")
    terminal.wait_for("job1")
    terminal.type("\x01d")
    assert terminal.finish() == 0, terminal.shown


def test_F7_without_screen(jam, monkeypatch):
    """setsid instead: the same log, the same fire; attach follows the log."""
    folder = jam.folder / "bin"
    folder.mkdir()
    for place in ("/usr/bin", "/bin"):
        for name in os.listdir(place):
            if name != "screen" and not (folder / name).exists():
                (folder / name).symlink_to(os.path.join(place, name))
    monkeypatch.setenv("PATH", str(folder))
    jam.ok("hire", "1")
    jam.ok("submit", "--exe", "echo hello")
    terminal = jam.terminal(*INV, "attach", "w1")
    terminal.wait_for("job1")
    terminal.type("\x03")
    assert terminal.finish() == 130, terminal.shown
    assert jam.ok("logs", "w1")[0]
    assert jam.value("fire")["hosts"] == [{"name": "localhost", "ended": 1, "left": 0}]


# --- F8: firing ---------------------------------------------------------------------------------

STUBBORN = """\
trap '' TERM HUP
setsid sh -c 'trap "" TERM HUP; touch away; sleep 100' &
touch here
sleep 100
"""


def test_F8_fire_ends_children_too(near):
    script = near.script(STUBBORN)
    near.ok("hire", "1")
    near.ok("submit", "--exe", str(script))
    wait_until(lambda: all((near.folder / n).exists() for n in ("here", "away")), "it runs", SOON)
    code, out, err = near.inv("fire")
    assert code == 0, (out, err)
    assert "Fired 1 worker" in err and "nothing is left" in err
    assert not near.screens()
    assert not [line for line in near.lab.left_behind().values() if "sleep 100" in line]
    now = near.status()
    assert (now["queued"], now["running"], now["workers"]) == (1, 0, [])
    assert not list((near.home() / "workerqueue").iterdir())


def test_F8_fire_on_each_host(shared):
    script = shared.script("touch on$1; sleep 100")
    shared.ok("hire", "--hosts", "lab1*1,lab2*1")
    shared.ok("submit", "--exe", f"{script} $1", "--parameters", "1,2")
    wait_until(lambda: all((shared.folder / f"on{n}").exists() for n in (1, 2)), "both run", SOON)
    # no --hosts: those where workers were hired
    rows = shared.value("fire", "--jobs")["hosts"]
    assert rows == [
        {"name": "lab1", "ended": 1, "left": 0},
        {"name": "lab2", "ended": 1, "left": 0},
    ]
    assert not [line for line in shared.lab.left_behind().values() if "sleep 100" in line]


def test_F8_drain_lets_jobs_end(near):
    near.ok("hire", "1")
    # the first job is still at work when the worker is told, however busy this machine is
    near.ok(
        "submit", "--exe", "sh -c 'touch here$1; sleep 6; echo $1 >> got' sh", "--parameters", "1,2"
    )
    wait_until((near.folder / "here1").exists, "it runs", SOON)
    near.ok("fire", "--drain")
    assert near.lines("got") == ["1"]
    now = near.status()
    assert (now["queued"], now["done"], now["workers"]) == (1, 1, [])


def test_F8_either_plane(jam):
    (jam.folder / "hosts.yaml").write_text("hosts: {localhost: {keep: true}}\n")
    jam.ok("bootstrap")
    jam.ok("hire", "1")
    assert jam.value("fire", "--map")["hosts"] == [{"name": "localhost", "ended": 1, "left": 0}]
    assert jam.screens() == ["jam.default.w1"]
    jam.ok("bootstrap")
    assert jam.value("fire", "--jobs")["hosts"] == [{"name": "localhost", "ended": 1, "left": 0}]
    assert jam.screens() == ["jam.default.agent"]
    jam.ok("hire", "1")
    assert jam.value("fire")["hosts"] == [{"name": "localhost", "ended": 2, "left": 0}]
    assert jam.screens() == []


# --- F9: one line -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--exe", "echo x", "--repeat", "3"], ["x", "x", "x"]),
        (["--exe", "printf <%s>", "--parameters", "a  b,c"], ["<a  b>", "<c>"]),
        (["--exe", "echo $2-$1", "--parameters", "a#b,c#d"], ["b-a", "d-c"]),
        (["--exe", "echo {1} {}", "--parameters", "a,b"], ["a a", "b b"]),
        (["--exe", "echo {.} {/}", "--parameters", "d/x.txt"], ["d/x x.txt"]),
        (["--exe", "echo {n}{m}", "--grid", "n=1,2", "--grid", "m=0..1"], ["10", "11", "20", "21"]),
        (["--exe", "echo", "--parameters", "$HOME,`id`,a;b"], ["$HOME", "`id`", "a;b"]),
        (["--shell", "--exe", "echo \"$1\" | tr a b", "--parameters", "aa,$(id)"], ["$(id)", "bb"]),
    ],
)  # fmt: skip
def test_F9_one_line_runs_it_all(jam, flags, expected):
    value = jam.value("dispatch", *flags, "--hire", "2", "--joblog", "log.tsv")
    assert (value["done"], value["failed"]) == (len(expected), 0)
    got = [jam.ok("logs", str(n + 1))[0].rstrip("\n") for n in range(len(expected))]
    assert sorted(got) == sorted(expected)


def test_F9_parameters_from_a_file_and_stdin(jam):
    (jam.folder / "list.tsv").write_text("a\t1\nb\t2\n")
    words = ["--exe", "sh -c 'echo $1$2 >> got' sh", "--hire", "1"]
    jam.ok("dispatch", *words, "--parameters-from", "list.tsv")
    assert jam.lines("got") == ["a1", "b2"]
    process = subprocess.run(
        [*INV, "dispatch", *words, "--parameters-from", "-", "--colsep", ";"],
        cwd=jam.folder, input="c;3\nd;4\n", text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert jam.lines("got") == ["a1", "b2", "c3", "d4"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["submit"], ["--exe"]),
        (["dispatch", "--parameters", "a"], ["--parameters", "--exe"]),
        (["submit", "--exe", "echo {sed}", "--grid", "seed=1,2"], ["'sed'", "{seed}"]),
        (["submit", "--exe", "echo $3", "--parameters", "a#b"], ["3"]),
        (["submit", "--exe", "echo 'open", "--parameters", "a"], ["quotation"]),
        (["submit", "--exe", "echo", "--parameters-from", "no.txt"], ["no.txt"]),
        (["submit", "--exe", "echo", "--priority", "high"], ["--priority", "high"]),
        (["submit", "--exe", "echo", "--env", "x"], ["--env"]),
        (["submit", "--exe", "echo", "--timeout", "soon"], ["soon"]),
        (["dispatch", "--halt", "often"], ["often"]),
        (["dispatch", "--reduce", "no_such_module"], ["no_such_module"]),
        (["dispatch", "--order", "random"], ["random"]),
        (["order", "random"], ["random"]),
        (["logs", "job99"], ["job99"]),
        (["logs"], ["which"]),
        (["attach", "w1"], ["no workers"]),
    ],
)
def test_F9_wrong_use_is_2_in_two_lines(jam, flags, words):
    complains(jam.inv(*flags), 2, *words)


# --- F10: at the end ----------------------------------------------------------------------------


def test_F10_a_callback(jam):
    words = ["--exe", "true", "--repeat", "2", "--hire", "1", "--callback", "echo all done > ended"]
    jam.ok("dispatch", *words)
    assert jam.lines("ended") == ["all done"]


def test_F10_a_function_from_python(jam):
    (jam.folder / "sweep.py").write_text(
        textwrap.dedent(
            """
            from jamtasks import Project

            project = Project("sweep")
            project.submit("echo {lr}", grid={"lr": [0.1, 0.01]})
            project.hire(2)
            report = project.dispatch(callback=lambda report: print(report.done, "done"))
            print(report.failed, project.fire().hosts[0].left, report.exit_code)
            print(*[project.output(record).decode().strip() for record in project.results()])
            """
        )
    )
    code, out, err = jam.run(sys.executable, "sweep.py")
    assert (code, out) == (0, "2 done\n0 0 0\n0.1 0.01\n"), err


# --- F11: looking, and Ctrl-C -------------------------------------------------------------------


def test_F11_status(jam):
    jam.ok("submit", "--exe", "sh -c 'touch here; sleep 100'", "--repeat", "2")
    jam.ok("hire", "1")
    wait_until((jam.folder / "here").exists, "it runs", SOON)
    found = wait_until(lambda: (s := jam.status())["running"] and s, "status shows it", SOON)
    assert list(found) == "project queued claimed running done failed workers".split()
    (worker,) = found["workers"]
    assert list(worker) == "name host pid state job since".split()
    assert (worker["name"], worker["state"], worker["job"]) == ("w1", "running", "job1")
    assert found["queued"] + found["claimed"] == 2
    os.kill(worker["pid"], 0)
    assert abs(worker["since"] - time.time()) < 300
    out, _ = jam.ok("status")
    assert "1 running" in out and "w1" in out


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("\x03", 1)])
def test_F11_ctrl_c_asks_on_a_terminal(jam, answer, left):
    jam.ok("submit", "--exe", "sh -c 'touch here; sleep 100'")
    jam.ok("hire", "1")
    terminal = jam.terminal(*INV, "dispatch")
    wait_until((jam.folder / "here").exists, "it runs", SOON)
    terminal.wait_for("running")
    terminal.type("\x03")
    terminal.wait_for("Fire the workers? [y/N]")
    terminal.type(answer)
    assert terminal.finish() == 130, terminal.shown
    assert "Traceback" not in terminal.shown
    now = jam.status()
    assert len(now["workers"]) == left
    assert now["queued"] + now["claimed"] == 1, "the job survives either answer"


# --- F12: order ---------------------------------------------------------------------------------


def test_F12_priority_then_age(jam):
    for n, priority in enumerate(["0", "-5", "7", "0"]):
        words = ["--exe", f"sh -c 'echo {n} >> got'", "--priority", priority]
        jam.ok("submit", *words)
    jam.ok("dispatch", "--hire", "1")
    assert (jam.folder / "got").read_text().split() == ["2", "0", "3", "1"]


def test_F12_by_name_and_changed_while_it_runs(jam):
    gate = jam.folder / "gate"
    wait = f"while ! test -e {gate}; do sleep 0.05; done"
    jam.drop("m", f"#!/bin/sh\ntouch {jam.folder}/first\n{wait}\n")
    jam.ok("hire", "1")
    wait_until((jam.folder / "first").exists, "the first one runs", SOON)
    for name in ("z", "c", "a", "x"):
        jam.drop(name, f"#!/bin/sh\necho {name} >> {jam.folder}/got\n")
        time.sleep(0.01)  # ages differ
    assert jam.ok("order", "name")[0] == "name\n"
    assert jam.ok("order")[0] == "name\n"
    gate.touch()
    jam.ok("dispatch")
    assert (jam.folder / "got").read_text().split() == ["a", "c", "x", "z"]


# --- F13: batch systems and very many jobs ------------------------------------------------------


def test_F13_very_many_jobs_are_bundled(jam):
    began = time.monotonic()
    out, _ = jam.ok("submit", "--exe", "true", "--repeat", "200000")
    assert out == 'Submitted 200000 jobs to project "default".\n'
    assert time.monotonic() - began < 30
    assert len(list(jam.queue().iterdir())) < 1100
    began = time.monotonic()
    assert jam.status()["queued"] == 200000
    assert time.monotonic() - began < 10


def test_F13_thousands_of_jobs_end_to_end(jam):
    value = jam.value("dispatch", "--exe", "true", "--repeat", "3000", "--hire", "2")
    assert (value["done"], value["failed"]) == (3000, 0)


def test_F13_workers_hired_inside_a_batch_system(jam):
    """The example script, as a batch system runs it: no terminal, ended by TERM."""
    jam.ok(
        "submit", "--project", "brute", "--exe", "sh -c 'echo $1 >> got' sh", "--parameters", "a,b"
    )
    bin = jam.folder / "bin"
    bin.mkdir()
    inv = bin / "inv"
    inv.write_text(f'#!/bin/sh\nexec {" ".join(INV)} "$@"\n')
    inv.chmod(0o755)
    script = (ROOT / "examples" / "jobs" / "batch.sh").read_text()
    environment = {"SLURM_SUBMIT_DIR": str(jam.folder), "PATH": f"{bin}:{os.environ['PATH']}"}
    process = jam.start("sh", "-c", script, cwd="/", SLURM_JOB_ID="1", **environment)
    try:
        wait_until(lambda: jam.lines("got") == ["a", "b"], "its workers work", SOON)
        assert len(jam.status("brute")["workers"]) == 8
    finally:
        process.terminate()
        jam.finish(process)
    assert jam.status("brute")["workers"] == []
