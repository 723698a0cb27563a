"""Masters that are interrupted, killed or stand still, that meet, that wait for a slow slice."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from faults import Running, agent, is_alive
from sshd import command_line, descendants, kill, wait_until

from jamtasks import HostSpec, Master

ROOT = Path(__file__).resolve().parents[2]
ENDED_WITHIN = 3.0  # seconds that map functions may outlive the master that was stopped
SUM = "def mapfunc(params, items):\n    return sum(items)\n"

# It will not be interrupted, and has a child in its group, one that left it, and one of that one.
STUBBORN = """
import os, signal, subprocess, time
def mapfunc(folder, items):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    children = [
        subprocess.Popen(["sleep", "301"]),
        subprocess.Popen(["sleep", "302"], start_new_session=True),
        subprocess.Popen(["sh", "-c", "sleep 303 & wait"], start_new_session=True),
    ]
    with open(os.path.join(folder, "pid%d" % items[0]), "w") as handle:
        handle.write("%d" % os.getpid())
    time.sleep(300)
"""

# The program of a master: hosts as the lab knows them, work, and an answer on stdout.
PROGRAM = """
import dataclasses, sys
from jamtasks import Master
from jamtasks.settings import load
hosts, module, params, count = sys.argv[1:]
with Master(settings=dataclasses.replace(load(hosts), dead_after=3.0)) as master:
    print(master.run(module, params, list(range(int(count))), slice_size=1))
"""


@pytest.fixture
def start(lab, tmp_path):
    """start(spec, module, count) runs a master in a process of its own."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PROGRAM))
    started = []

    def program(spec: HostSpec, module: str, count: int = 4) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, script, lab.hosts_yaml_of(spec), module, tmp_path, str(count)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        started.append(process)
        return process

    yield program
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.communicate()


def working(folder: Path, count: int = 2) -> list[int]:
    """The processes of the map functions that have begun, when there are so many."""
    files = wait_until(
        lambda: (
            len(found := [p for p in folder.glob("pid*") if p.stat().st_size]) >= count and found
        ),
        "map functions work",
    )
    return [int(path.read_text()) for path in files]


def sleepers(lab) -> list[int]:
    """What the stubborn map functions have started."""
    return [pid for pid, line in lab.left_behind().items() if "sleep 30" in line]


@pytest.mark.parametrize("how", ["Ctrl-C", "Ctrl-C twice", "SIGTERM", "SIGKILL"])
def test_what_ends_a_master_ends_its_work(lab, transport, module, start, tmp_path, how):
    host = lab.host("lab1")
    spec = lab.spec(host, workers=2)
    master = start(spec, module(STUBBORN))
    pids = working(tmp_path)
    wait_until(lambda: len(sleepers(lab)) == 8, "their children too")
    serving = agent(host.run_dir)["pid"]
    began = time.monotonic()
    number = signal.SIGINT if how.startswith("Ctrl-C") else getattr(signal, how)
    master.send_signal(number)
    if how.endswith("twice"):
        time.sleep(0.1)
        master.send_signal(number)
    wait_until(
        lambda: not any(map(is_alive, pids)) and not sleepers(lab),
        f"map functions and all that they started end after {how}",
        ENDED_WITHIN - (time.monotonic() - began),
    )
    _, err = master.communicate(timeout=10)
    assert master.returncode == -number, err
    with Master([spec]) as another:
        assert another.run(module(SUM), None, list(range(10))) == 45
        assert agent(host.run_dir)["pid"] == serving, "the agent is the same"


@pytest.mark.parametrize(
    ("transport", "victim"),
    [("local", "master"), ("fabric", "master"), ("openssh", "master"), ("openssh", "ssh")],
    indirect=["transport"],
)
def test_a_master_that_stands_still_loses_its_tasks_and_may_come_back(
    lab, transport, module, start, tmp_path, victim
):
    """As when its machine sleeps, or when the cable is cut and nobody can tell."""
    host = lab.host("lab1", env={"JAM_MASTER_GONE_AFTER": "2"})
    name = module(
        """
        import os, time
        def mapfunc(folder, items):
            with open(os.path.join(folder, "pid%d-%f" % (items[0], time.time())), "w") as handle:
                handle.write("%d" % os.getpid())
            deadline = time.time() + 60
            while not os.path.exists(os.path.join(folder, "go")) and time.time() < deadline:
                time.sleep(0.01)
            return sum(items)
        """
    )
    master = start(lab.spec(host, workers=2), name)
    pids = working(tmp_path)
    if victim == "master":
        stopped = [master.pid]
    else:
        stopped = [pid for pid in descendants(master.pid) if command_line(pid).startswith("ssh ")
                   or "/ssh " in command_line(pid)]  # fmt: skip
        assert stopped
    for pid in stopped:
        kill(pid, signal.SIGSTOP)
    wait_until(lambda: not any(map(is_alive, pids)), "its tasks end", 2.0 + ENDED_WITHIN)
    (tmp_path / "go").touch()
    if victim == "master":
        kill(master.pid, signal.SIGCONT)
    out, err = master.communicate(timeout=30)
    assert (master.returncode, out) == (0, "6\n"), err


def test_two_masters_on_one_host_do_not_disturb_each_other(host, module, start, tmp_path):
    spec = dataclasses.replace(host, workers=2)
    name = module(
        """
        import os, time
        def mapfunc(folder, items):
            if folder:
                with open(os.path.join(folder, "pid%d" % os.getpid()), "w") as handle:
                    handle.write("%d" % os.getpid())
            time.sleep(0.05)
            return [folder or items[0]]
        def reduce(a, b):
            return a + b
        """
    )
    other = start(spec, name, 10_000)
    working(tmp_path)
    done = []
    with Master([spec], progress=lambda *state: done.append(state[0])) as master:
        run = Running(master.run, name, None, list(range(80)), slice_size=1)
        wait_until(lambda: done and done[-1] > 20, "they take turns")
        assert other.poll() is None and not run.is_over
        other.kill()
        assert run.result() == list(range(80))
        assert master.last_run.retried == 0 and master.last_run.notes == ()


def test_answers_that_wait_for_a_slow_slice_take_bounded_memory(lab, host, module, tmp_path):
    """Slice 0 answers last, the others with 512 MiB: 32 MiB of them stay in memory."""
    name = module(
        """
        import os, time
        def mapfunc(folder, items):
            if items[0] == 0:
                deadline = time.time() + 60
                while not os.path.exists(folder + "/go") and time.time() < deadline:
                    time.sleep(0.01)
            return b"%d" % (items[0] % 10) * (8 << 20)
        def reduce(a, b):
            return a[:1] + b[:1] if len(a) > 100 else a + b[:1]
        """
    )
    lab.hosts_yaml_of(dataclasses.replace(host, workers=2))
    script = tmp_path / "large.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys, threading, time
            from jamtasks import Master
            sys.path.insert(0, {str(ROOT / "tests/live")!r})
            from faults import resident
            import os
            seen = []
            def progress(done, total, failed):
                seen.append(done)
                if done == total - 1:
                    open({str(tmp_path / "go")!r}, "w").close()
            with Master(progress=progress) as master:
                master.wait()
                before = resident(os.getpid())
                result = master.run({name!r}, {str(tmp_path)!r}, list(range(65)), slice_size=1,
                                    speculate=False)
                print(result.decode(), resident(os.getpid(), "VmHWM") - before >> 20)
            """
        )
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=100,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    digits, grown = done.stdout.split()
    assert digits == "".join(str(i % 10) for i in range(65))
    # 32 MiB that wait in memory, half as many that come in, and what is being decoded: 60 MiB were
    # measured
    assert int(grown) < 100, done.stdout
