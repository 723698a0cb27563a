"""Job workers on a real directory: what they run, what they record, what a death leaves."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from job_host import RUN, Project, marks, without_screen
from pythons import pythons
from sshd import wait_until

from worker_payload.jobs import names, steps

SH = ("/bin/sh", "-c")


@pytest.fixture
def project(lab) -> Iterator[Project]:
    here = lab.folder / "hired"
    here.mkdir()
    project = Project(here)
    try:
        yield project
    finally:
        project.close()


def screens() -> set[str]:
    listing = subprocess.run(["screen", "-ls"], stdout=subprocess.PIPE, text=True).stdout
    words = (line.split() for line in listing.splitlines())
    return {word[0].partition(".")[2] for word in words if word and word[0].partition(".")[2]}


# --- jobs --------------------------------------------------------------------------------------


def test_jobs_are_run_and_recorded(project):
    project.hire(2)
    command = 'echo "out $1"; echo "err $1" >&2; exit $1'
    project.submit([*SH, command, "sh", "{}"], [[str(n % 3)] for n in range(20)], size=4)
    project.wait(20)
    for (label, _), result in project.records().items():
        number = int(label[3:])
        status = (number - 1) % 3
        assert (result.exit, result.signal, result.tries, result.reason) == (status, 0, 1, "")
        assert project.output(result) == f"out {status}\n"
        assert project.output(result, "err") == f"err {status}\n"
        assert result.last == (f"err {status}" if status else "")
        assert result.memory > 1 << 20 and 0 < result.seconds < 10 and result.cpu >= 0
        assert abs(result.began - time.time()) < 60
    wait_until(lambda: all(told["state"] == "idle" for told in project.hearts()))
    assert not project.waiting() and not project.claimed()


def test_how_jobs_end(project):
    project.hire(1)
    project.submit([*SH, "{}"], [
        ["kill -9 $$"], ["kill -TERM $$"], ["exit 255"], ["sleep 60"],
        ["trap '' TERM; echo on; sleep 60; sleep 60"],
    ], timeout=0.3)  # fmt: skip
    project.submit(["/nowhere/prog"])
    project.submit(["/etc/passwd"])
    project.submit(["no-such-program"])
    results = project.wait(8)
    ends = [(result.exit, result.signal, result.reason) for result in results]
    assert ends[:3] == [(-1, 9, ""), (-1, 15, ""), (255, 0, "")]
    assert ends[3:5] == [(-1, 15, "timeout"), (-1, 9, "timeout")]
    assert results[4].seconds > 1.2  # TERM, and KILL a second later
    assert ends[5:] == [(127, 0, "spawn"), (126, 0, "spawn"), (127, 0, "spawn")]
    assert results[5].last == "/nowhere/prog: No such file or directory"
    assert all(result.failed for result in results)


def test_a_failing_job_is_tried_again_when_the_others_of_its_pod_ended(project):
    project.hire(1)
    command = "echo $1.$JAM_TRY >> runs; test $1 != b || test $JAM_TRY = 3"
    project.submit([*SH, command, "sh", "{}"], [["a"], ["b"], ["c"]], tries=3)
    project.submit(["/bin/false"], tries=2)
    project.wait(4)
    records = project.records()
    assert (project.here / "runs").read_text().split() == ["a.1", "b.1", "c.1", "b.2", "b.3"]
    assert sorted((r.exit, r.tries) for r in records.values()) == [(0, 1), (0, 1), (0, 3), (1, 2)]


def test_what_a_job_finds(project):
    project.hire(1, env={"MINE": "1"})
    (project.here / "prog").write_text("#!/bin/sh\npwd; printf '<%s>' \"$@\"; cat\n")
    (project.here / "prog").chmod(0o755)
    ticket = project.submit("./prog {1} x{2}", [["a b'\n", ""], ["-n", "*"]], env=(("E", "ü e"),))
    shown = 'echo "$JAM_PROJECT $JAM_JOB $JAM_TRY $JAM_SUBMISSION $E $MINE $JAM_OWNER"'
    project.submit([*SH, shown], env=(("E", "ü e"),))
    first, second, third = project.wait(3)
    assert project.output(first) == f"{project.here}\n<a b'\n><x>"
    assert project.output(second) == f"{project.here}\n<-n><x*>"
    words = project.output(third).split()
    assert words[:3] == ["test", "1", "1"] and words[4:7] == ["ü", "e", "1"]
    assert len(words[3]) == 12 and words[3] != ticket
    assert words[7].startswith("test.")


def test_log_files_and_folders(project):
    project.hire(1)
    place = project.here / "place"
    place.mkdir()
    project.submit([*SH, "pwd; echo e >&2; exit $1", "sh", "{}"], [["0"], ["1"]],
                   logfile="logs/{#}.log")  # fmt: skip
    results = project.wait(2)
    assert (project.here / "logs/1.log").read_text() == f"{project.here}\ne\n"
    assert results[1].last == "e" and results[1].out == (0, 0)
    project.submit("/bin/true", logfile="/proc/none/x")
    assert project.wait(3)[2].reason == "spawn"


# --- dropped files -----------------------------------------------------------------------------

NAMES = ["plain", "a b.ini", "it's \"q\"", "-rf", "new\nline", "ünïcode", "$(touch x)", "a;b",
         "dots...", "x" * 255, "ü" * 127, "*", "~home", "p5000.x"]  # fmt: skip


def test_any_name_is_a_job(project):
    for name in NAMES:
        project.drop(name, "[fjd]\nexecutable: cat\n")
    project.drop(b"not-utf8-\xff\xfe", "[control]\nexecutable = cat\n")
    project.hire(2)
    project.wait(len(NAMES) + 1)
    records = project.records()
    assert {label for label, _ in records} == {*NAMES, os.fsdecode(b"not-utf8-\xff\xfe")}
    assert not any(result.failed for result in records.values())
    assert len(list((project.root / names.LOGS).glob("*.out"))) >= len(NAMES)


def test_the_same_name_again_is_another_job(project):
    project.hire(1)
    for text in ("one", "two", "three"):
        project.drop(
            "job", f"#!/bin/sh\necho {text}; echo $JAM_JOB $JAM_JOB_FILE $0 >> seen\n", 0o755
        )
        wait_until(lambda: "job" not in project.waiting())
    project.wait(3)
    logs = {path.read_text() for path in (project.root / names.LOGS).glob("????????????.out")}
    assert logs == {"one\n", "two\n", "three\n"}
    seen = [line.split() for line in (project.here / "seen").read_text().splitlines()]
    assert len({line[1] for line in seen}) == 3
    assert all(line[0] == "job" and line[1] == line[2] for line in seen)


def test_what_a_job_file_says(project):
    (project.here / "bin").mkdir()
    (project.here / "place").mkdir()
    tool = project.here / "bin" / "my tool"
    tool.write_text('#!/bin/sh\npwd; echo "$1"; tail -1 "$2"\n')
    tool.chmod(0o755)
    project.drop("job.ini", "[control]\nexecutable: 'bin/my tool' '100% x'\ncwd: place\n"
                 "logfile: job.log\n[mine]\nkey = %value\n")  # fmt: skip
    project.drop("slow", "[control]\nexecutable: sleep 30 #\ntimeout: 0.2\nretries: 2\n")
    project.drop("shebang", "#!/bin/sh\nexit 7\n", 0o644)
    project.hire(1)
    project.wait(3)
    log = (project.here / "place" / "job.log").read_text()
    assert log == f"{project.here}/place\n100% x\nkey = %value\n"
    records = project.records()
    assert records["shebang", 0].exit == 7
    slow = records["slow", 0]
    assert slow.failed and slow.tries == 2


def test_what_is_no_job_is_left_alone(project):
    (project.queue / "folder").mkdir()
    (project.queue / "none").symlink_to("/nowhere")
    os.mkfifo(project.queue / "pipe")
    project.drop("notes.txt", "buy milk\n")
    project.drop("bad", "[control]\nexecutable: x\ntimeout: soon\n")
    project.drop("quote", "[control]\nexecutable: 'x\n")
    for name in (".hidden", "x.tmp", "x~", ".x.swp", "y.part"):
        project.drop(name, "[control]\nexecutable: true\n")
    before = set(project.waiting())
    project.hire(1, env={"JAM_LEASE": "9"})
    wanted = {"folder", "none", "pipe", "notes.txt", "bad", "quote"}
    told = wait_until(lambda: [t for t in project.hearts() if set(t["complaints"]) == wanted])
    assert told[0]["complaints"]["bad"] == "timeout: 'soon' is no number"
    project.drop("job", "[control]\nexecutable: true\n")
    project.wait(1)
    assert set(project.waiting()) == before
    project.drop("bad", "[control]\nexecutable: true\n")  # mended
    project.wait(2)
    (project.queue / "x.tmp").unlink()


def test_a_file_is_not_begun_while_it_is_written(project):
    project.hire(2)
    with (project.queue / "slow").open("w") as handle:
        handle.write("#!/bin/sh\necho first\n")
        handle.flush()
        os.fchmod(handle.fileno(), 0o755)
        project.drop("other", "#!/bin/sh\n", 0o755)
        project.wait(1)
        time.sleep(0.7)
        assert "slow" in project.waiting()
        handle.write("echo second\n")
    project.wait(2)
    assert "first\nsecond\n" in {p.read_text() for p in (project.root / names.LOGS).glob("*.out")}


def test_order_is_by_priority_then_age_and_can_be_changed(project):
    run = [*SH, "echo $1 >> order", "sh", "{}"]
    project.submit(run, [["b"]])
    time.sleep(0.01)
    project.submit(run, [["c"]])
    project.submit(run, [["a"]], priority=5)
    project.drop("z", "[control]\nexecutable: sh -c 'echo z >> order'\npriority: 9\n")
    project.hire(1)
    project.wait(4)
    assert (project.here / "order").read_text().split() == ["z", "a", "b", "c"]
    project.fire()
    (project.root / names.ORDER).write_text("age\n")
    project.submit(run, [["d"]])
    time.sleep(0.01)
    project.submit(run, [["e"]], priority=5)
    project.hire(1)
    project.wait(6)
    assert (project.here / "order").read_text().split()[4:] == ["d", "e"]


# --- workers -----------------------------------------------------------------------------------


def test_hire_is_in_all(project):
    assert project.hire(2)["hired"] == 2
    assert screens() == {"jam.test.w1", "jam.test.w2"}
    assert project.hire(3) == {
        "hired": 1, "total": 3, "notes": [],
        "names": ["jam.test.w1", "jam.test.w2", "jam.test.w3"],
    }  # fmt: skip
    assert project.hire(2)["total"] == 3
    os.kill(project.workers()[1]["pid"], signal.SIGTERM)
    wait_until(lambda: len(project.workers()) == 2)
    wait_until(lambda: screens() == {"jam.test.w1", "jam.test.w3"})
    assert project.hire(3)["hired"] == 1
    assert screens() == {"jam.test.w1", "jam.test.w2", "jam.test.w3"}
    answer = project.fire(agents=False)
    assert (answer["workers"], answer["left"], screens()) == (3, 0, set())
    assert not project.hearts()
    assert not [name for name in os.listdir(project.run.path) if name.startswith("worker.")]


def test_hire_refuses_another_home(project):
    with pytest.raises(Exception, match="home is not shared"):
        project.hire(1, id="0" * 16)
    with pytest.raises(Exception, match="home is not shared"):
        project.hire(1, home=str(project.here))
    assert not project.workers()
    answer = project.verb(sys.executable, "hire", {"count": 1, "id": "0" * 16})
    assert "not shared" in answer["error"] and "JAM_HOME" in answer["hint"]


def test_without_screen(project, lab, monkeypatch):
    monkeypatch.setenv("PATH", without_screen(lab.folder / "path"))
    assert project.hire(2)["hired"] == 2
    project.submit("sleep {}", [["0"], ["60"]], size=1)
    project.wait(1)
    assert len(project.workers()) == 2
    answer = project.fire()
    assert (answer["workers"], answer["left"]) == (2, 0)
    assert len(project.waiting()) == 1


def test_fire_leaves_nothing(project, lab):
    project.hire(1)
    command = (
        "(setsid sleep 61 &) ; nohup sleep 62 >/dev/null 2>&1 & trap '' TERM HUP; "
        "(trap '' TERM; setsid sh -c 'trap \"\" TERM HUP; sleep 63; sleep 64' &) ; "
        "touch up; sleep 65; sleep 66"
    )
    project.submit([*SH, command])
    wait_until((project.here / "up").exists)
    wait_until(lambda: len(lab.left_behind()) > 5)
    assert project.fire() == {
        "ended": 1, "left": 0, "workers": 1, "draining": 0, "names": ["jam.test.w1"]
    }  # fmt: skip
    assert not lab.left_behind()
    (waiting,) = project.waiting()
    pod = names.read_pod(waiting)
    assert pod.attempt == 1 and not project.claimed()
    assert pod.cut == names.NO_CUT  # ended on purpose: that is no loss


def test_what_a_job_leaves_ends_with_it(project):
    project.hire(1)
    project.submit([*SH, "sleep 61 & (setsid sleep 62 &) ; sleep 0.2"], env=(("LEFT", "by-it"),))
    project.wait(1)
    wait_until(lambda: not marks("LEFT=by-it"))


def test_drain_waits_for_the_job_at_hand(project):
    project.hire(1)
    project.submit([*SH, "echo $1 >> begun; sleep 1; echo $1 >> ended", "sh", "{}"], [["a"], ["b"]])
    wait_until((project.here / "begun").exists)
    answer = project.fire(drain=True)
    assert (answer["workers"], answer["left"], answer["draining"]) == (1, 0, 0)
    assert (project.here / "ended").read_text() == "a\n"
    (waiting,) = project.waiting()
    assert names.read_pod(waiting).jobs == 2
    project.hire(1)
    project.wait(2)
    assert (project.here / "ended").read_text() == "a\nb\n"


def test_projects_do_not_touch_one_another(lab):
    here = lab.folder / "hired"
    here.mkdir()
    one, other = Project(here, "a"), Project(here, "ab")
    try:
        one.hire(1)
        other.hire(2)
        other.submit("sleep 60")
        wait_until(other.claimed)
        assert one.fire()["workers"] == 1
        assert screens() == {"jam.ab.w1", "jam.ab.w2"}
        assert len(other.workers()) == 2 and other.claimed() and not one.workers()
    finally:
        one.close()
        other.close()


def test_a_stopped_terminal_does_not_stop_the_worker(project):
    pid, master = pty.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.environ["JAM_HIRED"] = json.dumps({"cwd": str(project.here)})
            os.execv(sys.executable, [sys.executable, "-c", RUN, "work", "test", "1"])
        os._exit(1)
    try:
        wait_until(project.hearts)
        os.write(master, b"\x13")
        project.submit("/bin/false", [[] for _ in range(200)], size=10)
        project.wait(200)
        os.write(master, b"\x11")
        assert b"jam: worker 1 of project test" in os.read(master, 1 << 16)
    finally:
        project.fire()
        os.waitpid(pid, 0)
        os.close(master)


def test_logs_are_bounded_and_tell_of_jobs(project):
    project.hire(1)
    project.submit("/bin/true", [[] for _ in range(300)])
    project.submit(["/bin/sh", "-c", "echo oops >&2; exit 3"])
    project.wait(301)
    wait_until(lambda: "more lines)" in project.log())
    log = project.log()
    assert "job1: /bin/true" in log and "job1: exit 0" in log
    assert len(log.splitlines()) < 150


def test_a_long_pod_is_shared_with_workers_that_have_nothing(project):
    project.hire(2)
    project.submit("sleep 0.5", [[] for _ in range(24)])
    results = project.wait(24)
    assert len({result.owner for result in results}) == 2
    pods = [names.read_pod(name) for name in os.listdir(project.root / names.DONE)]
    assert len(pods) >= 2 and sum(pod.jobs for pod in pods) == 24
    assert not os.listdir(project.root / names.TAILS)


# --- deaths ------------------------------------------------------------------------------------

UNTIL = "echo $1 >> begun; while [ ! -e go ]; do sleep 0.02; done; echo $1 >> ended"


def begun(project: Project) -> list[str]:
    path = project.here / "begun"
    return path.read_text().split() if path.exists() else []


def test_a_killed_job_has_failed(project):
    project.hire(1)
    project.submit([*SH, "echo $$ > pid; sleep 60", "sh", "{}"], [["a"]])
    pid = wait_until(lambda: (project.here / "pid").exists() and (project.here / "pid").read_text())
    os.kill(int(pid), signal.SIGKILL)
    (result,) = project.wait(1)
    assert (result.exit, result.signal, result.tries) == (-1, 9, 1)


def test_a_killed_worker_is_replaced_and_its_job_runs_again(project):
    project.hire(1)
    project.submit([*SH, UNTIL.replace("go", "go$1"), "sh", "{}"], [["a"], ["b"], ["c"]])
    (project.here / "goa").touch()
    wait_until(lambda: begun(project) == ["a", "b"])
    owner = project.hearts()[0]["owner"]
    os.kill(project.worker_pid(), signal.SIGKILL)
    wait_until(lambda: begun(project) == ["a", "b", "b"], "another worker goes on with b")
    assert [told["owner"] != owner for told in project.hearts()] == [True]
    for name in ("gob", "goc"):
        (project.here / name).touch()
    results = project.wait(3)
    assert not any(result.failed for result in results)
    assert [result.owner == owner for result in results] == [True, False, False]
    assert (project.here / "ended").read_text().split() == ["a", "b", "c"]
    assert begun(project) == ["a", "b", "b", "c"]


@pytest.mark.parametrize("screen", [True, False])
def test_a_killed_keeper_takes_all_with_it_and_hire_mends_it(project, lab, monkeypatch, screen):
    if not screen:  # which would hang up on the worker when it loses the keeper
        monkeypatch.setenv("PATH", without_screen(lab.folder / "path"))
    project.hire(1)
    project.submit([*SH, f"(setsid sleep 61 &) ; {UNTIL}", "sh", "{}"], [["a"]])
    wait_until(lambda: begun(project))
    os.kill(project.workers()[0]["pid"], signal.SIGKILL)
    wait_until(lambda: not lab.left_behind(), "nothing is left")
    wait_until(lambda: not project.workers(), "its lock is free")
    (project.here / "go").touch()
    project.hire(1)
    (result,) = project.wait(1)
    assert not result.failed and begun(project) == ["a", "a"]


def test_keeper_and_worker_killed_at_once(project, lab):
    project.hire(1)
    project.submit([*SH, f"(setsid sleep 61 &) ; {UNTIL}", "sh", "{}"], [["a"]],
                   env=(("LEFT", "at-once"),))  # fmt: skip
    wait_until(lambda: begun(project))
    for pid in (project.workers()[0]["pid"], project.worker_pid()):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not project.workers())
    assert len(project.claimed()) == 1
    (project.here / "go").touch()
    project.hire(1)
    (result,) = project.wait(1)
    assert not result.failed and begun(project) == ["a", "a"]
    assert len(project.hearts()) == 1
    wait_until(lambda: not marks("LEFT=at-once"))


def test_fire_after_both_were_killed(project, lab):
    project.hire(1)
    project.submit([*SH, f"(setsid sleep 61 &) ; {UNTIL}", "sh", "{}"], [["a"]])
    wait_until(lambda: begun(project))
    for pid in (project.workers()[0]["pid"], project.worker_pid()):
        os.kill(pid, signal.SIGKILL)
    assert project.fire()["left"] == 0
    assert not lab.left_behind() and not project.hearts()
    assert len(project.waiting()) == 1 and not project.claimed()


def test_an_idle_worker_takes_what_a_dead_host_held(project):
    """No dispatcher runs; the dead owner's host has another name, and is never heard of again."""
    project.submit("/bin/true")
    pod = names.read_pod(project.waiting()[0])
    owner = names.new_owner("elsewhere", 1)
    project.do(steps.claim(pod, owner))
    (project.root / names.heartbeat(owner)).write_text('{"state": "running"}')
    project.hire(2, env={"JAM_LEASE": "1.5"})
    (result,) = project.wait(1)
    assert result.owner != owner and not result.failed
    assert "no sign of life of " + owner in project.log(1) + project.log(2)


def test_a_job_that_kills_its_worker_is_given_up_after_three_losses(project):
    project.hire(1)
    project.submit([*SH, "echo x >> begun; kill -9 $PPID; sleep 9", "sh", "{}"], [["a"]])
    (result,) = project.wait(1)
    assert result.reason == "lost" and result.failed
    assert begun(project) == ["x"] * 3


def test_a_worker_that_was_away_gives_up_and_begins_anew(project):
    project.hire(1, env={"JAM_LEASE": "4"})
    project.submit([*SH, UNTIL, "sh", "{}"], [["a"]])
    wait_until(lambda: begun(project))
    pid, before = project.worker_pid(), project.hearts()[0]["owner"]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(2.5)
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: [t for t in project.hearts() if t["owner"] != before])
    (project.here / "go").touch()
    (result,) = project.wait(1)
    assert not result.failed and result.owner != before
    assert begun(project) == ["a", "a"]


def test_a_full_disk_holds_the_worker_and_fails_no_job(project, lab):
    folder = lab.private("full")
    flag = folder / "flag"
    (folder / "sitecustomize.py").write_text(
        "import errno, os\n"
        "write = os.write\n"
        "def full(fd, data):\n"
        "    path = os.readlink('/proc/self/fd/%d' % fd)\n"
        f"    if path.endswith('.jsonl') and os.path.exists({str(flag)!r}):\n"
        "        if len(data) > 20: return write(fd, data[:20])\n"
        "        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "    return write(fd, data)\n"
        "os.write = full\n"
    )
    project.hire(1, env={"PYTHONPATH": str(folder)})
    project.submit([*SH, "echo $1 >> begun", "sh", "{}"], [[str(n)] for n in range(50)], size=10)
    wait_until(lambda: len(begun(project)) > 3)
    flag.touch()
    wait_until(lambda: project.hearts()[0]["state"] == "held", "it is held")
    assert "No space left" in project.hearts()[0]["note"] or "grow" in project.hearts()[0]["note"]
    count = len(begun(project))
    time.sleep(0.3)
    assert len(begun(project)) == count
    flag.unlink()
    results = project.wait(50)
    assert not any(result.failed for result in results)
    assert begun(project) == [str(n) for n in range(50)]


# --- Pythons -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "python", [p for p in pythons() if p.minor in ((3, 6), (3, 13)) or "PyPy" in str(p)], ids=str
)
def test_any_python(project, python):
    request = {"count": 2, "cwd": str(project.here), "id": project.identity}
    assert project.verb(python.executable, "hire", request)["hired"] == 2
    project.submit([*SH, "echo $1; exit $1", "sh", "{}"], [["0"], ["3"]], size=1)
    project.submit("sleep 60", timeout=0.2)
    project.submit([*SH, "(setsid sleep 61 &) ; sleep 0.1"], env=(("LEFT", "here"),))
    project.drop("a b", "[control]\nexecutable: cat\n")
    project.drop("script", "#!/bin/sh\necho $JAM_JOB\n", 0o755)
    results = project.wait(6)
    assert sorted(r.exit for r in results) == [-1, 0, 0, 0, 0, 3]
    wait_until(lambda: not marks("LEFT=here"))
    answer = project.verb(python.executable, "fire", {"agents": False})
    assert (answer["workers"], answer["left"]) == (2, 0)


def test_priority_and_threads_are_the_workers(project):
    project.hire(1, nice=3, threads=2)
    project.submit([*SH, "nice; echo $OMP_NUM_THREADS"])
    (result,) = project.wait(1)
    assert project.output(result) == f"{3 + os.nice(0)}\n2\n"


def test_a_worker_without_job_and_dispatcher_ends_by_itself(project):
    dispatcher = project.root / names.DISPATCHER
    dispatcher.write_text("0")
    project.hire(1, idle=0.5)
    for beat in range(8):
        time.sleep(0.3)
        dispatcher.write_text(f"{beat}")
    assert project.workers()
    wait_until(lambda: not project.workers(), "it ends")
    assert "no job and no dispatcher" in project.log()
