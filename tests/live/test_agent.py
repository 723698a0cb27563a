"""The agent's life, with real processes on this machine: started by many, killed, fired, abused."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import agent_client
import pytest
from agent_client import Client, Gone, wait_until
from place import Place, installed
from pythons import Python, pythons

from jamtasks import archive
from worker_payload import layout, procs, wire

ADD = "def mapfunc(params, x):\n    return params + x\n"
PID = "import os\ndef mapfunc(params, x):\n    return os.getpid()\n"
SLEEP = "import time\ndef mapfunc(params, x):\n    time.sleep(x)\n    return x\n"


def parent(pid: int) -> int:
    return procs.look(pid).parent


def gone(pid: int) -> bool:
    return not procs.is_alive(pid)


# --- one agent ---------------------------------------------------------------------------------


def test_a_call_is_answered(place: Place) -> None:
    client = place.attach()
    assert client.run(ADD, [1, 2, 3], 10) == [11, 12, 13]
    assert client.close() == 0


def test_twenty_attaches_at_once_end_with_one_agent(place: Place) -> None:
    import threading

    pids, answers, problems = [], [], []

    def one(number: int) -> None:
        try:
            client = place.attach(workers=1, timeout=60)
            assert client.welcome is not None
            pids.append(client.welcome.pid)
            answers.append((number, client.run(ADD, [number], 100)))
            client.close()
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert not problems
    assert sorted(answers) == [(i, [100 + i]) for i in range(20)]
    assert len(set(pids)) == 1


def test_attaching_to_an_agent_that_is_just_ending(place: Place) -> None:
    place.env["JAM_IDLE"] = "0"  # ends as soon as its master leaves
    pids = set()
    for i in range(6):
        client = place.attach(workers=1)
        assert client.run(ADD, [i], 1) == [i + 1]
        pids.add(client.welcome.pid if client.welcome else 0)
        client.close()  # the next one comes while this one's agent is on its way out
    assert len(pids) > 1, "no agent ended: the test did not test it"


def test_a_stale_socket_is_taken_over(place: Place) -> None:
    place.run.mkdir(mode=0o700)
    left = socket.socket(socket.AF_UNIX)
    run = layout.RunDir(str(place.run), os.open(place.run, os.O_RDONLY))
    left.bind(run.socket(layout.socket_name("default", place.build)))
    left.close()
    os.close(run.fd)
    assert place.attach().run(ADD, [1], 1) == [2]


def test_squatted_directories_are_passed_over(place: Place, tmp_path: Path) -> None:
    link, target, wide, foreign = (tmp_path / n for n in ("link", "target", "wide", "foreign"))
    target.mkdir(mode=0o700)
    link.symlink_to(target)
    wide.mkdir()
    wide.chmod(0o755)
    foreign.mkdir(mode=0o700)
    if os.getuid() == 0:
        os.chown(foreign, 12345, 12345)
    else:
        foreign.rmdir()
        foreign.symlink_to("/root")
    place.env["JAM_RUN_DIR"] = os.pathsep.join(map(str, (link, wide, foreign, place.run)))
    assert place.attach().run(ADD, [1], 1) == [2]
    assert not any(target.iterdir()) and not any(wide.iterdir())
    assert list(place.run.glob("*.sock"))


def test_no_directory_at_all_names_the_owner(place: Place, tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    wide.mkdir()
    wide.chmod(0o755)
    place.env["JAM_RUN_DIR"] = str(wide)
    with pytest.raises(Gone, match="0123456789abcdef:X"):
        place.attach()


def test_a_long_run_directory_still_has_a_socket(place: Place, tmp_path: Path) -> None:
    place.run = tmp_path / ("long" * 40) / "run"
    place.env["JAM_RUN_DIR"] = str(place.run)
    assert place.attach().run(ADD, [1], 1) == [2]


def test_builds_do_not_meet_and_the_older_agent_ends_when_idle(
    place: Place, tmp_path: Path
) -> None:
    old = place.attach()
    old_pid = old.welcome.pid if old.welcome else 0
    source = tmp_path / "other" / "worker_payload"
    shutil.copytree(Path(layout.__file__).parent, source)
    (source / "extra.py").write_text("# another build\n")
    payload = archive.pack(source)
    new = Client(installed(tmp_path, payload), place.env, build=payload.build)
    place.clients.append(new)
    assert new.welcome is not None and new.welcome.pid != old_pid
    assert old.run(ADD, [1], 1) == [2], "the old agent serves its master on"
    assert new.run(ADD, [1], 2) == [3]
    item, length = list(range(20_000)), "def mapfunc(params, x):\n    return len(x)\n"
    assert old.run(length, [item]) == new.run(length, [item]) == [20_000]
    assert old.blob(item) in old.sent and old.blob(item) not in new.sent, "they share the store"
    old.close()
    wait_until(lambda: gone(old_pid), 10, "the agent of the older build to end")
    assert new.run(ADD, [1], 2) == [3]


def test_an_idle_agent_ends(place: Place) -> None:
    place.env["JAM_IDLE"] = "0.3"
    client = place.attach()
    client.run(ADD, [1], 1)
    client.close()
    wait_until(lambda: not place.processes(), 10, "the idle agent to end")
    assert not list(place.run.glob("*.sock"))


def test_a_local_agent_without_screen_ends_with_its_last_master(place: Place) -> None:
    first, second = place.attach(options=["local"]), place.attach(options=["local"])
    first.close()
    assert second.run(ADD, [1], 1) == [2]
    second.close()
    wait_until(lambda: not place.processes(), 10, "the agent to end")


def test_a_local_agent_is_kept_if_asked(place: Place) -> None:
    first = place.attach(options=["local", "keep"])
    other = place.attach(options=["local"], project="other")
    assert first.welcome is not None and other.welcome is not None
    pid, gone = first.welcome.pid, other.welcome.pid
    first.close()
    other.close()
    # one that is not kept ends meanwhile, so this one has had the time for it
    wait_until(lambda: gone not in place.processes(), 10, "the other agent to end")
    second = place.attach(options=["local", "keep"])
    assert second.welcome is not None and second.welcome.pid == pid


def test_under_screen_where_it_works(place: Place, tmp_path: Path) -> None:
    screens = tmp_path / "screens"
    screens.mkdir(mode=0o700)
    place.env["SCREENDIR"] = str(screens)
    client = place.attach()
    assert client.run(ADD, [1], 1) == [2]
    names = [path.name.partition(".")[2] for path in screens.iterdir()]
    assert names == ["jam.default.agent"]
    assert "jam.default.agent" in place.verb("fire", "default")
    wait_until(lambda: not list(screens.iterdir()), 5, "the screen to end")


# --- deaths ------------------------------------------------------------------------------------


def test_a_killed_agent_leaves_nothing_and_the_next_attach_works(place: Place) -> None:
    client = place.attach()
    pids = client.run(PID, [None, None])
    assert client.welcome is not None
    os.kill(client.welcome.pid, signal.SIGKILL)
    assert client.process.wait(10) == 75
    assert "without a word" in client.stderr()
    wait_until(lambda: all(map(gone, pids)), 5, "the workers of the killed agent to end")
    wait_until(lambda: not place.processes(), 5, "its keeper and template to end")
    assert place.attach().run(ADD, [1], 1) == [2]


def test_a_killed_keeper_leaves_nothing(place: Place) -> None:
    client = place.attach()
    call = client.begin(
        "import subprocess, time\n"
        "def mapfunc(params, x):\n"
        "    subprocess.Popen(['sleep', '300'], start_new_session=True)\n"
        "    time.sleep(300)\n"
    )
    client.task(call, [1])
    client.wait(wire.Started)
    assert client.welcome is not None
    assert len(place.processes()) >= 6
    os.kill(parent(client.welcome.pid), signal.SIGKILL)
    client.wait(wire.Ending)
    wait_until(lambda: not place.processes(), 5, "all of it to end")


def test_a_killed_worker_is_lost_and_replaced(place: Place) -> None:
    client = place.attach(workers=1)
    call = client.begin(
        "import os, sys, time\n"
        "def mapfunc(params, x):\n"
        "    sys.stderr.write('last words')\n"
        "    sys.stderr.flush()\n"
        "    if x: os.kill(os.getpid(), 9)\n"
        "    return os.getpid()\n"
    )
    client.task(call, [0])
    first = client.collect(call, 1)[0]
    client.task(call, [1], first=1)
    lost = client.collect(call, 1)[1]
    assert (lost.signal, lost.exit, lost.worker) == (9, None, 0)
    assert lost.stderr.endswith("last words")
    client.task(call, [0], first=2)
    assert client.collect(call, 1)[2] not in (first, None)


def test_last_words_are_those_of_the_task_that_died(place: Place) -> None:
    client = place.attach(workers=1)
    call = client.begin(
        "import os, sys, time\n"
        "def mapfunc(params, x):\n"
        "    if x == 0: sys.stderr.write('something harmless\\n')\n"
        "    if x == 2: os._exit(1)\n"
    )
    client.task(call, [0])
    client.collect(call, 1)  # with what it printed
    client.task(call, [1, 2], first=1)
    lost = client.collect(call, 2)[2]
    assert (lost.exit, lost.stderr) == (1, "")


def test_only_the_culprit_is_lost(place: Place) -> None:
    client = place.attach(workers=1)
    call = client.begin(
        "import os\ndef mapfunc(params, x):\n    os._exit(7) if x == 150 else None\n    return x\n"
    )
    client.task(call, range(300))
    found = client.collect(call, 300)
    assert [i for i, value in found.items() if value != i] == [150]
    assert found[150].exit == 7


def test_a_killed_template_is_replaced(place: Place) -> None:
    client = place.attach(workers=2)
    (worker, _) = client.run(PID, [None, None])
    os.kill(parent(worker), signal.SIGKILL)
    wait_until(lambda: gone(worker), 5, "its workers to end")
    assert client.run(ADD, [1, 2], 1) == [2, 3]


def test_fire_ends_everything_and_counts(place: Place) -> None:
    import json

    client = place.attach()
    source = (
        "import os, subprocess, signal, time\n"
        "def mapfunc(params, x):\n"
        "    subprocess.Popen(['sleep', '300'], start_new_session=True)\n"
        "    subprocess.Popen(['env', '-i', 'sh', '-c', 'trap \"\" TERM; sleep 300; sleep 300'],"
        " start_new_session=True)\n"
        "    return os.getpid()\n"
    )
    (pid,) = client.run(source, [1])
    orphans = procs.descendants([pid])
    assert len(orphans) >= 2
    busy = client.begin(SLEEP)
    client.task(busy, [300])
    client.wait(wire.Started)
    other = place.attach(project="default2")
    answer = json.loads(place.verb("fire", "default"))
    assert (answer["ended"], answer["left"]) == (1, 0)
    assert all(map(gone, orphans))
    client.wait(wire.Ending)
    assert other.run(ADD, [1], 1) == [2], "another project, whose name begins alike, lives on"
    assert json.loads(place.verb("fire", "default2"))["ended"] == 1
    assert json.loads(place.verb("fire", "default"))["ended"] == 0


def test_fire_ends_an_agent_that_was_started_by_hand(place: Place) -> None:
    """Its keeper got its mark after it was started, so /proc does not show it."""
    import json

    serve = subprocess.Popen(
        [sys.executable, str(place.payload), "serve", "default"],
        env=place.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: list(Path(place.env["JAM_RUN_DIR"]).glob("agent.*.sock")))
        client = place.attach()
        (worker,) = client.run(PID, [None])
        assert client.welcome is not None
        agent = client.welcome.pid
        assert parent(agent) == serve.pid
        answer = json.loads(place.verb("fire", "default"))
        assert (answer["ended"], answer["left"]) == (1, 0)
        assert gone(agent) and gone(worker)
        serve.wait(5)
    finally:
        serve.kill()
        serve.wait()


def test_fire_leaves_other_run_directories_alone(place: Place, tmp_path: Path) -> None:
    import json

    away = Place(tmp_path / "away", place.payload)
    here, there = place.attach(), away.attach()
    try:
        assert there.run(ADD, [1], 1) == [2]
        assert json.loads(place.verb("fire", "default"))["ended"] == 1
        here.wait(wire.Ending)
        assert there.run(ADD, [1], 1) == [2], "the same project, in another run directory"
    finally:
        away.verb("fire", "default")
        there.close()


# --- what user code does -----------------------------------------------------------------------


def test_a_flood_of_output_does_no_harm(place: Place) -> None:
    client = place.attach(workers=1)
    source = (
        "import os\n"
        "def mapfunc(params, x):\n"
        "    for _ in range(100): os.write(2, b'x' * (1 << 20))\n"
        "    os.write(2, b'the end')\n"
        "    return x\n"
    )
    assert client.run(source, [1]) == [1]
    assert client.text(2).endswith("the end")
    assert "left out" in client.text(2)
    assert client.run(ADD, [1], 1) == [2]


def test_closed_streams_are_opened_again(place: Place) -> None:
    client = place.attach(workers=1)
    source = (
        "import os, sys\n"
        "def mapfunc(params, x):\n"
        "    print('before', x)\n"
        "    if x == 1: sys.stdout.close()\n"
        "    if x == 2: os.close(1); os.close(2)\n"
        "    if x == 3: sys.stdout = None\n"
        "    return x\n"
    )
    assert client.run(source, [1, 2, 3, 4]) == [1, 2, 3, 4]
    for x in (1, 2, 3, 4):
        assert f"before {x}\n" in client.text(1)


def test_output_comes_with_its_task_before_its_answer(place: Place) -> None:
    client = place.attach(workers=2)
    client.run("def mapfunc(params, x):\n    print('slice', x)\n    return x\n", list(range(40)))
    assert len(client.outputs) >= 40
    for output in client.outputs:
        assert bytes(output.segments[0]) == b"slice %d\n" % output.id


def test_a_slow_task_among_tiny_ones_keeps_nobody_waiting(place: Place) -> None:
    client = place.attach(workers=2)
    source = "import time\ndef mapfunc(params, x):\n    time.sleep(x)\n    return x\n"
    assert client.run(source, [0] * 200) == [0] * 200
    call = client.begin(source)
    client.task(call, [2 if i in (0, 20) else 0 for i in range(40)])
    found = client.collect(call, 1)
    began = time.monotonic()
    while len(found) < 38:
        found.update(client.collect(call, 1))
    assert time.monotonic() - began < 1.9 or 2 not in found.values()
    assert client.collect(call, 40 - len(found))


def test_exit_harms_only_itself(place: Place) -> None:
    client = place.attach(workers=2)
    source = "import os\ndef mapfunc(params, x):\n    if x == 1: os._exit(3)\n    return x\n"
    found = client.run(source, [0, 1, 2, 3])
    assert [found[0], found[2], found[3]] == [0, 2, 3]
    assert (found[1].exit, found[1].signal) == (3, None)


def test_sys_exit_is_a_failure(place: Place) -> None:
    client = place.attach(workers=1)
    pid = client.run(PID, [1])
    (failure,) = client.run("import sys\ndef mapfunc(params, x):\n    sys.exit(5)\n", [1])
    assert (failure.type, failure.message) == ("SystemExit", "5")
    assert client.run(PID, [1]) == pid


def test_a_fork_that_comes_back_is_not_heard(place: Place) -> None:
    client = place.attach(workers=1)
    source = (
        "import os, sys\n"
        "def mapfunc(params, x):\n"
        "    pid = os.fork()\n"
        "    if pid == 0 and x == 2: raise ValueError('in the child')\n"
        "    if pid == 0 and x == 3: del sys.stdout, sys.stderr\n"
        "    return os.getpid(), os.waitpid(pid, 0)[1] if pid else None\n"
    )
    first, *others = client.run(source, [1, 2, 3]) + client.run(source, [1])
    assert first[1] == 0 and others == [first] * 3
    assert not client.others


def test_chdir_is_undone(place: Place, tmp_path: Path) -> None:
    client = place.attach(workers=1)
    source = (
        "import os\n"
        "def mapfunc(params, x):\n"
        "    before = os.getcwd()\n"
        "    os.chdir(x)\n"
        "    return before\n"
    )
    away = tmp_path / "away"
    away.mkdir()
    first, second = client.run(source, [str(away), "/"])
    assert first == second != str(away)


def test_a_fork_bomb_of_a_cancelled_task_is_ended(place: Place) -> None:
    client = place.attach(workers=1)
    call = client.begin(
        "import os, signal, subprocess, time\n"
        "def mapfunc(params, x):\n"
        "    signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "    for _ in range(3): subprocess.Popen(['sleep', '300'], start_new_session=True)\n"
        "    subprocess.Popen(['env', '-i', 'setsid', 'sleep', '300'])\n"
        "    time.sleep(300)\n"
    )
    client.task(call, [1])
    client.wait(wire.Started)
    assert client.welcome is not None
    before = procs.descendants([client.welcome.pid])
    client.send(wire.Cancel(call, []))
    wait_until(lambda: len(procs.descendants([client.welcome.pid]) & before) <= 2, 4, "its end")
    assert client.run(ADD, [1], 1) == [2]


def test_closing_all_descriptors_loses_only_that_task(place: Place) -> None:
    client = place.attach(workers=1)
    source = (
        "import os, time\ndef mapfunc(params, x):\n"
        "    os.closerange(3, 1000)\n    time.sleep(x)\n    return x\n"
    )
    (lost,) = client.run(source, [300])
    assert isinstance(lost, wire.Lost) and "closed its connection" in lost.note
    assert client.run(ADD, [1], 1) == [2]


# --- cancelling --------------------------------------------------------------------------------


def test_cancel_interrupts_then_kills(place: Place) -> None:
    client = place.attach(workers=2)
    call = client.begin(
        "import signal, time\n"
        "def mapfunc(params, x):\n"
        "    if x: signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "    try: time.sleep(300)\n"
        "    except KeyboardInterrupt: print('interrupted', flush=True); raise\n"
    )
    client.task(call, [0, 1, 0, 1])
    for _ in range(2):
        client.wait(wire.Started)
    assert client.welcome is not None
    before = procs.descendants([client.welcome.pid])
    began = time.monotonic()
    client.send(wire.Cancel(call, []))
    assert client.run(ADD, [1, 2, 3], 1) == [2, 3, 4], "fresh workers take their place at once"
    wait_until(lambda: len(procs.descendants([client.welcome.pid]) & before) <= 2, 4, "their end")
    assert time.monotonic() - began < 3
    assert not client.others[2:], "a cancel is not answered"


def test_cancelling_some_leaves_the_others(place: Place) -> None:
    client = place.attach(workers=1)
    call = client.begin(SLEEP)
    client.task(call, [300, 0.01, 0.01, 0.01])
    client.wait(wire.Started)
    client.send(wire.Cancel(call, [0, 2]))
    assert client.collect(call, 2) == {1: 0.01, 3: 0.01}


def test_revoke_gives_back_what_has_not_started(place: Place) -> None:
    client = place.attach(workers=1)
    call = client.begin(SLEEP)
    client.task(call, [0.6, 0.01, 0.01])
    client.wait(wire.Started)
    client.send(wire.Revoke(call, [0, 1]))
    assert client.wait(wire.Revoked) == wire.Revoked(call, [1])
    assert client.collect(call, 2) == {0: 0.6, 2: 0.01}


def test_the_end_of_a_master_ends_its_tasks(place: Place) -> None:
    other = place.attach(workers=2)
    client = place.attach(workers=2)
    call = client.begin(
        "import signal, time\n"
        "def mapfunc(params, x):\n"
        "    signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "    time.sleep(300)\n"
    )
    client.task(call, [0, 1])
    for _ in range(2):
        client.wait(wire.Started)
    assert client.welcome is not None
    before = procs.descendants([client.welcome.pid])
    began = time.monotonic()
    assert client.close() == 0
    wait_until(lambda: len(procs.descendants([other.welcome.pid]) & before) <= 2, 4, "its tasks")
    assert time.monotonic() - began < 3
    assert other.run(ADD, [1, 2], 1) == [2, 3]


def test_a_master_that_comes_again_ends_what_it_had_begun(place: Place) -> None:
    """Its former connection broke, and nobody told the agent."""
    first, other = place.attach(name="m"), place.attach(name="n")
    call = first.begin(SLEEP)
    first.task(call, [300, 300])
    first.wait(wire.Started)
    second = place.attach(name="m")
    assert first.process.wait(10) == 75
    assert second.run(ADD, [1, 2], 1) == [2, 3], "the workers are free"
    assert other.run(ADD, [1], 1) == [2]


def test_an_attach_that_nobody_waits_for_does_not_try_for_ever(place: Place) -> None:
    place.attach().close()
    place.verb("fire", "default")
    # from now on no agent can be started: it has nowhere to be
    (place.run / f"agent.default.{place.build}.lock").unlink()
    (place.run / f"agent.default.{place.build}.lock").mkdir()
    ours, theirs = socket.socketpair()
    with theirs:
        attach = subprocess.Popen(
            [sys.executable, str(place.payload), "attach", "marker", "default"],
            stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=place.env,
        )  # fmt: skip
    ours.close()
    assert attach.wait(20) == 75


def test_a_killed_attach_ends_its_master(place: Place) -> None:
    client = place.attach(workers=1)
    call = client.begin(SLEEP)
    client.task(call, [300])
    client.wait(wire.Started)
    client.process.kill()
    with pytest.raises(Gone):
        client.wait(wire.Result)


def test_a_task_that_takes_too_long(place: Place) -> None:
    client = place.attach(workers=1)
    (lost,) = client.run(SLEEP, [300], timeout=0.3)
    assert isinstance(lost, wire.Lost) and lost.note == "still running after 0.3 s"
    assert client.run(ADD, [1], 1) == [2]


# --- data --------------------------------------------------------------------------------------


def test_writing_to_a_slice_says_what_to_do(place: Place) -> None:
    import numpy as np

    client = place.attach(workers=1)
    source = "def mapfunc(params, x):\n    x[0] = 7\n    return x.sum()\n"
    big = np.ones(100_000)
    (failure,) = client.run(source, [big])
    assert failure.type == "ValueError" and "writable=True" in failure.message
    assert "x[0] = 7" in failure.traceback
    (small,) = client.run(source, [np.ones(10)])
    assert "writable=True" in small.message
    assert client.run(source, [big, big, np.ones(10)], writable=True) == [
        100_006.0,
        100_006.0,
        16.0,
    ]


def test_blobs_are_sent_once(place: Place) -> None:
    import numpy as np

    client = place.attach(workers=2)
    slices = [np.full(50_000, i) for i in range(4)]
    source = "def mapfunc(params, x):\n    return int(x[0] + params[0])\n"
    params = np.ones(50_000)
    assert client.run(source, slices, params) == [1, 2, 3, 4]
    sent = len(client.sent)
    assert sent == 6  # four slices, params, code
    assert client.run(source, slices, params) == [1, 2, 3, 4]
    assert client.sent[sent:] == [client.blob(params)], "params are dropped after the call"
    again = place.attach(workers=2)
    assert again.run(source, slices) != [] and len(again.sent) == 0


def test_blobs_outlive_the_agent_and_damage_is_noticed(place: Place) -> None:
    import numpy as np

    client = place.attach(workers=1)
    item = np.arange(200_000)
    source = "def mapfunc(params, x):\n    return int(x.sum())\n"
    assert client.run(source, [item]) == [item.sum()]
    digest = client.blob(item)
    place.verb("fire", "default")
    stored = list(place.run.rglob(digest))
    assert stored, "moved to disk at the end"
    again = place.attach(workers=1)
    assert again.run(source, [item]) == [item.sum()]
    assert again.sent == []
    again.close()
    place.verb("fire", "default")
    with open(stored[0], "r+b") as handle:
        handle.seek(5000)
        handle.write(b"damage")
    third = place.attach(workers=1)
    assert third.run(source, [item]) == [item.sum()]
    assert third.sent == [digest]


def test_a_blob_that_arrives_damaged_is_asked_for_again(place: Place) -> None:
    client = place.attach(workers=1)
    call = client.begin(ADD, 1)
    digest = client.blob(list(range(1000)))
    good = client.blobs[digest]
    data = b"".join(bytes(part) for part in good)
    bad = data[:-1] + bytes([data[-1] ^ 1])
    tries = []

    def send(wanted: str) -> None:
        whole = b"".join(bytes(part) for part in client.blobs[wanted])
        if wanted == digest:
            tries.append(wanted)
            whole = bad if len(tries) == 1 else whole
        client.send(wire.Blob(wanted, 0, len(whole), [whole]))

    client.send_blob = send  # type: ignore[method-assign]
    client.send(wire.Task(call, [[0, digest, None]]))
    failure = client.collect(call, 1)[0]
    assert failure.type == "TypeError", (
        "it arrived whole the second time, and a list cannot be added"
    )
    assert len(tries) == 2


def test_large_results_and_params(place: Place) -> None:
    import numpy as np

    client = place.attach(workers=2, timeout=60)
    source = "def mapfunc(params, x):\n    return params[x:] * 2\n"
    params = np.arange(4 << 20, dtype=np.float64)
    first, second = client.run(source, [0, 1], params)
    assert (first == params * 2).all() and (second == params[1:] * 2).all()


def test_a_master_that_does_not_read_stops_only_its_own(place: Place) -> None:
    slow = place.attach(workers=1)
    call = slow.begin("def mapfunc(params, x):\n    return bytes(16 << 20)\n")
    slow.task(call, range(12))
    slow.wait(wire.Result)
    quick = place.attach(workers=2)
    assert quick.run(ADD, list(range(50)), 1) == list(range(1, 51))
    assert quick.welcome is not None
    rss = Path(f"/proc/{quick.welcome.pid}/status").read_text()
    kib = int(rss.partition("VmRSS:")[2].split()[0])
    assert kib < 150 << 10


# --- code --------------------------------------------------------------------------------------


def test_tracebacks_show_source_lines_of_all_modules(place: Place) -> None:
    client = place.attach(workers=1)
    client.calls += 1
    modules = {
        "pack": ["/nowhere/pack/__init__.py", "", True],
        "pack.inner": ["/nowhere/pack/inner.py", "def deep(x):\n    return 1 / x  # here\n", False],
        "pack.outer": [
            "/nowhere/pack/outer.py",
            "from .inner import deep\ndef mapfunc(params, x):\n    return deep(x)\n",
            False,
        ],
    }
    code = client.blob({"main": "pack.outer", "modules": modules})
    params = b"".join(bytes(p) for p in agent_client.codec.blob_parts(agent_client.codec.encode(0)))
    client.send(wire.Begin(client.calls, code, "pack.outer", "", {}, [params]))
    client.task(client.calls, [0, 1])
    found = client.collect(client.calls, 2)
    assert found[1] == 1.0
    assert found[0].type == "ZeroDivisionError"
    assert "return 1 / x  # here" in found[0].traceback
    assert '/nowhere/pack/inner.py", line 2' in found[0].traceback
    assert "worker.py" not in found[0].traceback


def test_a_main_script_runs_without_its_main_part(place: Place) -> None:
    client = place.attach(workers=1)
    source = (
        "import collections\n"
        "Point = collections.namedtuple('Point', 'x y')\n"
        "class Mine:\n"
        "    class Inner: pass\n"
        "def mapfunc(params, x):\n"
        "    import pickle, __main__\n"
        "    pickle.loads(pickle.dumps([Point(1, 2), Mine(), Mine.Inner()]))\n"
        "    return [Point.__module__, Mine.__module__, __main__.Mine is Mine]\n"
        "if __name__ == '__main__':\n"
        "    raise SystemExit('the main part ran')\n"
    )
    assert client.run(source, [1], name="__main__") == [["__main__", "__main__", True]]


def test_an_import_that_fails_is_told_for_each_task(place: Place) -> None:
    client = place.attach(workers=1)
    found = client.run("import no_such_module\n", [1, 2, 3])
    assert [f.type for f in found] == ["ModuleNotFoundError"] * 3
    assert "import no_such_module" in found[2].traceback
    (none,) = client.run("x = 1\n", [1])
    assert "mapfunc" in none.message


def test_another_bundle_gets_another_process(place: Place) -> None:
    client = place.attach(workers=1)
    one, other = PID, PID + "# edited\n"
    (first,) = client.run(one, [1])
    (second,) = client.run(other, [1])
    assert first != second
    assert client.run(one, [1]) == [first]


def test_calls_without_data_belong_to_their_worker(place: Place) -> None:
    client = place.attach(workers=3)
    first = client.run(PID, [None] * 3)
    assert len(set(first)) == 3
    assert client.run(PID, [None] * 3) == first


def test_require(place: Place) -> None:
    client = place.attach(workers=1)
    client.send(wire.Require(5, ["json", "no_such_module", "sys"]))
    assert client.wait(wire.Lacks) == wire.Lacks(5, ["no_such_module"])


def test_settings_reach_the_workers(place: Place) -> None:
    settings = {"threads": 3, "nice": 2, "env": {"MINE": "yes"}}
    client = place.attach(workers=1, settings=settings)
    source = (
        "import os\n"
        "def mapfunc(params, x):\n"
        "    return [os.environ['MINE'], os.environ['OMP_NUM_THREADS'], os.nice(0)]\n"
    )
    assert client.run(source, [1]) == [["yes", "3", 2 + os.nice(0)]]
    plain = place.attach(workers=1)
    (failure,) = plain.run(source, [1])
    assert failure.type == "KeyError"


def test_two_masters_take_turns(place: Place) -> None:
    long, short = place.attach(workers=1), place.attach(workers=1)
    call = long.begin(SLEEP)
    long.task(call, [0.05] * 100)
    long.collect(call, 1)
    began = time.monotonic()
    assert short.run(ADD, [1, 2, 3], 1) == [2, 3, 4]
    assert time.monotonic() - began < 2


def test_nonsense_ends_the_master_only(place: Place) -> None:
    client, other = place.attach(), place.attach()
    client.sock.sendall(b"GET / HTTP/1.0\r\n\r\n" + bytes(100))
    ending = client.wait(wire.Ending)
    assert "not a jam frame" in ending.reason
    assert client.process.wait(10) == 76
    assert other.run(ADD, [1], 1) == [2]


# --- every Python --------------------------------------------------------------------------------


@pytest.mark.parametrize("python", pythons(), ids=str)
def test_on_every_python(place: Place, python: Python) -> None:
    client = place.attach(workers=2, python=python.executable)
    source = (
        "import os, sys\n"
        "def mapfunc(params, x):\n"
        "    print('slice', x)\n"
        "    if x == 1: raise ValueError('one')\n"
        "    if x == 2: os._exit(4)\n"
        "    if x == 3 and os.fork() == 0: return 'child'\n"
        "    if x == 4: sys.stdout.close(); os.close(1); os.chdir('/')\n"
        "    return len(params) + x\n"
    )
    found = client.run(source, list(range(7)), b"p" * 100_000)
    assert [found[i] for i in (0, 3, 4, 5, 6)] == [100_000 + i for i in (0, 3, 4, 5, 6)]
    assert (found[1].type, found[1].message) == ("ValueError", "one")
    assert "raise ValueError('one')" in found[1].traceback
    assert found[2].exit == 4
    assert {f"slice {i}" for i in range(7)} <= set(client.text(1).splitlines())
    assert client.run("def mapfunc(p, x):\n    return bytes(x)\n", [3 << 20]) == [bytes(3 << 20)]
    call = client.begin(SLEEP)
    client.task(call, [300])
    client.wait(wire.Started)
    client.send(wire.Cancel(call, []))
    assert client.run(PID, [None, None])[0] > 0
    second = place.attach(workers=1, python=python.executable)
    call = second.begin(
        "import subprocess\n"
        "def mapfunc(params, x):\n"
        "    subprocess.Popen(['sleep', '300'], start_new_session=True)\n"
    )
    second.task(call, [1])
    assert second.collect(call, 1) == {0: None}
    assert '"ended": 1, "left": 0' in place.verb("fire", "default", python=python.executable)
