"""Faults of hosts in the middle of a run: whatever breaks there, the answer is right."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy
import pytest
from faults import Running, agent, cut_off, go_on, screen_of, sessions, states, stored, wait_state
from sshd import kill, wait_until

from jamtasks import Master
from jamtasks.errors import NoHostsError, ReduceError

ROOT = Path(__file__).resolve().parents[2]
SUM = "def mapfunc(params, items):\n    return sum(items)\n"

# Each slice says where it runs, then waits for the file `go`.
GATED = """
import os, time
def mapfunc(folder, items):
    where = os.path.basename(os.environ["JAM_TEST"])
    open(os.path.join(folder, "at-" + where), "a").close()
    deadline = time.time() + 60
    while not os.path.exists(os.path.join(folder, "go")) and time.time() < deadline:
        time.sleep(0.01)
    return sum(items)
"""


@pytest.fixture
def two(lab, transport):
    """This machine, and another host whose silence is noticed soon."""
    host = lab.host("lab1")
    specs = [lab.spec("localhost", "local", workers=1), lab.spec("lab1", workers=2)]
    with Master(specs, settings=lab.settings(dead_after=3.0, connect_timeout=3.0)) as master:
        master.wait(60)
        yield host, master


# --- workers -----------------------------------------------------------------------------------


def test_workers_that_die_are_counted_each_with_its_reason(host, module, tmp_path):
    """By a signal, by os._exit, by a crash in C, and for want of memory where groups limit it."""
    group = Path(f"/sys/fs/cgroup/memory/{tmp_path.name}")
    limited = os.access(group.parent, os.W_OK)
    if limited:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(48 << 20))
    name = module(
        f"""
        import ctypes, os, signal, sys, time
        def die(item):
            sys.stderr.write("last words of %d\\n" % item)
            if item == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            if item == 4:
                os._exit(7)
            if item == 6:
                ctypes.string_at(0)
            if item == 8:
                if not {limited}:
                    os.abort()
                with open({str(group / "tasks")!r}, "w") as tasks:
                    tasks.write(str(os.getpid()))
                kept = [bytearray(b"x" * (1 << 20)) for _ in range(200)]
        def mapfunc(folder, items):
            time.sleep(0.02)  # so that none waits in a worker's hand behind another
            if items[0] in (2, 4, 6, 8):
                try:
                    os.close(os.open(folder + "/once%d" % items[0], os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    pass
                else:
                    die(items[0])
            return items[0]
        """
    )
    try:
        with Master([dataclasses.replace(host, workers=2)]) as master:
            assert master.run(name, str(tmp_path), list(range(10)), slice_size=1) == 45
            report = master.last_run
    finally:
        if limited:
            wait_until(lambda: not (group / "tasks").read_text())
            group.rmdir()
    assert report.retried == 4
    told = {note.partition(": ")[0][-1]: note for note in report.notes}
    for item, reason in {
        "2": "signal 9 (SIGKILL)",
        "4": "exit code 7",
        "6": "signal 11 (SIGSEGV), a crash in compiled code",
        "8": "signal 9 (SIGKILL), out of memory" if limited else "signal 6 (SIGABRT)",
    }.items():
        assert reason in told[item] and f"last words of {item}" in told[item], report.notes


def test_too_little_memory_for_python_is_an_exception_that_says_so(host, module):
    name = module(
        """
        import resource
        def mapfunc(params, items):
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))
            return len(bytearray(params)) if items[0] == 3 else 0
        """
    )
    with Master([dataclasses.replace(host, workers=1)]) as master:
        assert master.run(name, 1 << 32, list(range(6)), slice_size=1, keep_going=True) == 0
        (failed,) = master.last_run.failed
    assert (failed.slice, failed.type) == (3, "MemoryError")


# --- agents, keepers, screens, connections -----------------------------------------------------


@pytest.mark.parametrize("victim", ["agent", "keeper", "screen", "connection"])
def test_what_is_killed_comes_back_into_the_same_run(two, module, tmp_path, victim):
    host, master = two
    run = Running(master.run, module(GATED), str(tmp_path), list(range(12)), slice_size=1)
    wait_until((tmp_path / "at-lab1").exists, "lab1 works")
    before = agent(host.run_dir)
    if victim == "connection":
        for pid in sessions(host):
            kill(pid)
    else:
        kill(screen_of(host.run_dir) if victim == "screen" else before[
            "pid" if victim == "agent" else "keeper"])  # fmt: skip
    wait_state(master, "lab1", "lost", 10)
    wait_state(master, "lab1", "up", 10)
    (tmp_path / "go").touch()
    assert run.result() == 66
    report = master.last_run
    assert any("lab1 was lost" in note for note in report.notes)
    assert "lab1 joined" in report.notes
    assert {one.name: one.tasks for one in report.hosts}["lab1"] > 0, "it took part again"
    assert sum(one.tasks for one in report.hosts) == 12, "each slice counts once"
    assert (agent(host.run_dir)["pid"] == before["pid"]) == (victim == "connection")


# what is local has nothing on its way that could be silent
@pytest.mark.parametrize("transport", ["fabric", "openssh"], indirect=True)
def test_a_silent_connection_is_noticed_and_the_host_rejoins(two, module, tmp_path):
    """As after a cable was pulled: nothing comes, nothing is refused; later everything goes on."""
    host, master = two
    run = Running(master.run, module(GATED), str(tmp_path), list(range(12)), slice_size=1)
    wait_until((tmp_path / "at-lab1").exists, "lab1 works")
    pids = cut_off(host)
    try:
        began = time.monotonic()
        wait_state(master, "lab1", "lost", 10)
        assert time.monotonic() - began < 3.0 + 2.0
        (tmp_path / "go").touch()  # its tasks end now, and their answers lie in the old connection
        wait_until(lambda: (tmp_path / "at-here").exists(), "the work goes on here")
    finally:
        go_on(pids)
    assert run.result() == 66
    wait_state(master, "lab1", "up", 15)
    assert any("lab1 was lost: silent for" in note for note in master.last_run.notes)
    assert sum(one.tasks for one in master.last_run.hosts) == 12, "late answers are not used"
    assert master.run(module(SUM), None, list(range(10))) == 45


def test_an_agent_that_stands_still_is_lost_and_rejoins(two, module, tmp_path):
    """As if its machine were frozen, while sshd still answers."""
    host, master = two
    run = Running(master.run, module(GATED), str(tmp_path), list(range(12)), slice_size=1)
    wait_until((tmp_path / "at-lab1").exists, "lab1 works")
    pid = agent(host.run_dir)["pid"]
    kill(pid, signal.SIGSTOP)
    try:
        wait_state(master, "lab1", "lost", 10)
    finally:
        kill(pid, signal.SIGCONT)
    wait_state(master, "lab1", "up", 20)
    (tmp_path / "go").touch()
    assert run.result() == 66
    assert sum(one.tasks for one in master.last_run.hosts) == 12
    assert agent(host.run_dir)["pid"] == pid


@pytest.mark.parametrize("way", ["direct", "jump host"])
def test_a_host_that_stops_while_much_is_sent_to_it(lab, ssh, module, way):
    """A write that cannot go on holds up neither the run nor its end."""
    host = lab.host("lab1")
    if way == "jump host":
        lab.host("gate", key="host2")
        lab.write_ssh_config("Host lab1\n  ProxyJump gate\n")
    specs = [lab.spec("localhost", "local", workers=1), lab.spec("lab1", workers=1)]
    matrix = numpy.ones((16, 1 << 19))  # 64 MiB in slices of 4 MiB
    # long enough that the other host has not done all of it before this one counts as lost
    name = module(
        "import time\ndef mapfunc(params, rows):\n"
        "    time.sleep(0.4)\n    return float(rows.sum())\n"
    )
    pids = []
    with Master(specs, settings=lab.settings(dead_after=3.0, connect_timeout=3.0)) as master:
        master.wait(60)
        run = Running(master.run, name, None, matrix, slice_size=1)
        try:
            wait_until(lambda: stored(host.run_dir, host.env["JAM_CACHE_DIR"]), "data comes")
            pids = cut_off(host)
            assert run.result(30) == matrix.sum()
            assert any("lab1 was lost: silent" in note for note in master.last_run.notes)
            wait_until(lambda: "silent" not in master.hosts()[1].note, "it is tried again", 10)
            closing = time.monotonic()
            master.close()
            assert time.monotonic() - closing < 6.0
        finally:
            go_on(pids)


# --- no host left ------------------------------------------------------------------------------


def test_when_all_hosts_are_gone_the_run_waits_and_then_names_each(lab, ssh, module, tmp_path):
    hosts = lab.host("lab1"), lab.host("lab2", key="host2")
    specs = [lab.spec("lab1", workers=1), lab.spec("lab2", workers=1)]
    told = []
    settings = lab.settings(give_up_after=2.0)
    with Master(specs, settings=settings, on_notice=told.append) as master:
        master.wait(60)
        run = Running(master.run, module(GATED), str(tmp_path), list(range(8)), slice_size=1)
        wait_until(lambda: (tmp_path / "at-lab1").exists() and (tmp_path / "at-lab2").exists())
        for host in hosts:
            host.stop()
        began = time.monotonic()
        with pytest.raises(NoHostsError) as caught:
            run.result(15)
        assert 1.0 < time.monotonic() - began < 2.0 + 4.0
        (tmp_path / "go").touch()
    error = caught.value
    assert error.exit_code == 3
    for host in hosts:
        assert host.name in error.message and "efused" in error.message, error.message
    assert "no host is left; waiting up to 2 s" in "".join(told)


def test_a_host_that_comes_back_while_the_run_waits(lab, ssh, module, tmp_path):
    host = lab.host("lab1")
    with Master([lab.spec("lab1", workers=2)], settings=lab.settings()) as master:
        master.wait(60)
        run = Running(master.run, module(GATED), str(tmp_path), list(range(8)), slice_size=1)
        wait_until((tmp_path / "at-lab1").exists, "it works")
        host.stop()
        wait_state(master, "lab1", "lost")
        wait_until(lambda: "efused" in master.hosts()[0].note, "it was tried again in vain")
        host.start()
        (tmp_path / "go").touch()
        assert run.result() == 28
        assert states(master) == {"lab1": "up"}


# --- data --------------------------------------------------------------------------------------


def test_stored_data_that_is_damaged_or_deleted_is_sent_again(lab, transport, module):
    name = module("def mapfunc(params, rows):\n    return float(rows.sum())\n")
    matrix = numpy.arange(200_000.0).reshape(8, -1)
    host = lab.host("lab1")
    run_dir, cache = host.run_dir, host.env["JAM_CACHE_DIR"]
    spec = lab.spec(host, workers=2)
    with Master([spec]) as master:
        assert master.run(name, None, matrix, slice_size=1) == matrix.sum()
        sent = master.last_run.bytes_sent
    kill(agent(run_dir)["pid"])  # the next one has not seen the files
    blobs = wait_until(
        lambda: [path for path in stored(run_dir, cache) if path.stat().st_size > 100_000]
    )
    assert len(blobs) == 8
    for blob in blobs[:3]:
        with open(blob, "r+b") as handle:
            handle.seek(1000)
            handle.write(b"damage")
    blobs[3].unlink()
    with Master([spec]) as master:
        assert master.run(name, None, matrix, slice_size=1) == matrix.sum()
        assert sent * 0.49 < master.last_run.bytes_sent < sent * 0.51


def test_answers_that_nobody_folds_do_not_keep_a_host_from_the_next_run(host, module, monkeypatch):
    monkeypatch.setattr("jamtasks.link.LAG_MAX", 1 << 20)
    name = module(
        """
        import time
        def mapfunc(params, items):
            return bytes(1 << 20)
        def reduce(a, b):
            time.sleep(0.5)  # meanwhile so many answers come that the host is not read any more
            raise ValueError("no")
        """
    )
    with Master([dataclasses.replace(host, workers=2)]) as master:
        with pytest.raises(ReduceError):
            master.run(name, None, list(range(60)), slice_size=1)
        again = Running(master.run, module(SUM), None, list(range(10)))
        assert again.result(4) == 45


@pytest.mark.parametrize("full", ["memory", "both"])
def test_a_full_memory_and_a_full_disk(lab, module, tmp_path, full):
    """Real ones: the run has file systems of its own, on which nothing is left in the end."""
    name = module(
        """
        def mapfunc(params, rows):
            return float(rows.sum()) + params[0]
        """
    )
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, numpy
            from jamtasks import Master, HostSpec
            matrix = numpy.arange(512.0 * 1024).reshape(16, -1)  # 4 MiB in slices of 256 KiB
            params = numpy.zeros(20_000)
            with Master([HostSpec("localhost", transport="local", workers=2)]) as master:
                master.wait(60)
                for path in {["/dev/shm", lab.here["JAM_RUN_DIR"]][: 1 + (full == "both")]!r}:
                    with open(path + "/others", "wb", 0) as others:
                        try:
                            while others.write(bytes(4096)) == 4096:
                                pass
                        except OSError:
                            os.ftruncate(others.fileno(), others.tell() - 600 * 1024)
                for _ in range(2):
                    assert master.run({name!r}, params, matrix, slice_size=1) == matrix.sum()
                print(*master.last_run.notes, *(one.note for one in master.last_run.hosts))
            """
        )
    )
    small = (
        "mount -t tmpfs -o size=2m none /dev/shm && "
        f'mount -t tmpfs -o mode=700,size=8m none {lab.here["JAM_RUN_DIR"]} && exec "$@"'
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", small, "sh", sys.executable, script],
        capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}",
             "JAM_STORE_RAM": str(1 << 30), "JAM_STORE_DISK": str(1 << 30)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "memory file system" in done.stdout
    assert ("and its disk are full" in done.stdout) == (full == "both")
