"""From a bare host to a channel to its agent: login shells, noise, Pythons, the payload."""

import dataclasses
import os
import shlex
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sshd import wait_until

from jamtasks import archive, bootstrap, loader
from jamtasks.errors import HostError
from worker_payload import frames, wire

SHELLS = {
    "sh": (".profile", "echo noise"),
    "dash": (".profile", "echo noise"),
    "bash": (".bashrc", "echo noise"),
    "zsh": (".zshenv", "echo noise"),
    "tcsh": (".tcshrc", "echo noise"),
    "fish": (".config/fish/config.fish", "echo noise"),
}


def greeted(attached):
    """The agent's first message; then the channel is closed."""
    decoder = frames.Decoder()
    messages = decoder.feed(attached.head)
    while not messages:
        data = attached.channel.read(1 << 16)
        assert data, attached.channel.stderr_tail()
        messages = decoder.feed(data)
    attached.channel.close()
    assert isinstance(messages[0], wire.Welcome)
    return messages[0]


@pytest.fixture
def attach(lab):
    """Attach to a host (or fail), and fire its agents in the end."""
    done = []

    def attach(spec, **settings):
        attached = bootstrap.attach(spec, lab.settings(**settings), "test")
        done.append((spec, attached.channel))
        return attached

    yield attach
    for _, channel in done:
        channel.close()
    for spec in dict.fromkeys(spec for spec, _ in done):
        try:
            assert bootstrap.command(spec, lab.settings(), "test", "fire")["left"] == 0
        except HostError:
            continue  # a host that was made unusable


def refused(spec, lab, *words):
    with pytest.raises(HostError) as caught:
        bootstrap.attach(spec, lab.settings(), "test")
    told = str(caught.value)
    for word in words:
        assert word in told, told
    return told


def test_the_payload_goes_once(host, attach):
    first = attach(host)
    assert first.payload == "sent"
    welcome = greeted(first)
    assert welcome.build == archive.payload().build
    again = attach(host)
    assert (again.payload, again.noise) == ("present", "")
    assert greeted(again).pid == welcome.pid


def test_probe_and_fire(host, lab, attach):
    greeted(attach(host))
    told = bootstrap.command(host, lab.settings(), "test", "probe")
    assert told["payload"] == "present"
    assert [agent["project"] for agent in told["agents"]] == ["test"]
    fired = bootstrap.command(host, lab.settings(), "test", "fire")
    assert (fired["ended"], fired["left"]) == (1, 0)
    assert bootstrap.command(host, lab.settings(), "test", "probe")["agents"] == []


@pytest.mark.parametrize("shell", SHELLS)
def test_login_shells_that_print(shell, ssh, lab, attach):
    path = shutil.which(shell)
    assert path, f"apt-get install {shell}"
    name, text = SHELLS[shell]
    # what sshd does with a login shell: SHELL -c COMMAND
    host = lab.host("lab1", f'ForceCommand exec {path} -c "$SSH_ORIGINAL_COMMAND"')
    start_up = host.home / name
    start_up.parent.mkdir(parents=True, exist_ok=True)
    start_up.write_text(text + "\n")
    spec = lab.spec(host, python=None)
    cold = attach(spec)
    assert cold.payload == "sent"
    greeted(cold)
    warm = attach(spec)
    assert warm.payload == "present"
    if shell not in ("sh", "dash"):  # they read nothing for a command
        assert "noise" in warm.noise
    greeted(warm)


def test_much_noise(ssh, lab, attach):
    host = lab.host()
    (host.home / ".bashrc").write_text("for i in $(seq 5000); do echo 0123456789; done\n")
    assert len(attach(lab.spec(host)).noise) == 5000 * 11 - 1


def test_endless_noise_is_shown(ssh, lab):
    host = lab.host()
    (host.home / ".bashrc").write_text("exec yes spam\n")
    refused(lab.spec(host), lab, "lab1", "print more than 64 kB", "spam | spam")


def test_a_login_shell_that_refuses(ssh, lab):
    host = lab.host("lab1", "ForceCommand echo This account is not available.; exit 1")
    refused(lab.spec(host), lab, "login shell ended with 1", "account is not available")


def test_a_start_up_file_that_hangs(ssh, lab, monkeypatch):
    monkeypatch.setattr(bootstrap, "STAGE_TIMEOUT", 0.7)
    monkeypatch.setattr(bootstrap, "LOGIN_TIMEOUT", 1.5)
    host = lab.host()
    (host.home / ".bashrc").write_text("read x\n")
    refused(lab.spec(host), lab, "no answer within", "logging in")


# --- prepare -----------------------------------------------------------------------------------


def test_prepare(host, lab, attach):
    """Any text: quotes, lines, output, splitting; its PATH decides, and it sees no stdin."""
    place = lab.private('it\'s a "place"!')
    (place / "python3").symlink_to(sys.executable)
    text = (
        f"cd {shlex.quote(str(place))}\n"
        "PATH=$PWD:$PATH; export PATH\n"
        "words='a b  c'; set -- $words; [ $# = 3 ] || exit 9\n"
        "echo 'printed by prepare'; cat; m=1 c=2 p=3 q=/bin/false x=4"
    )  # fmt: skip
    spec = dataclasses.replace(host, prepare=text, python=None)
    first, second = attach(spec), None
    greeted(first)
    assert "printed by prepare" in first.channel.stderr_tail()
    second = attach(spec)
    assert second.payload == "present"
    greeted(second)
    told = bootstrap.command(spec, lab.settings(), "test", "probe")
    if host.transport != "local":
        assert Path(told["executable"]).parent == place


def test_prepare_that_fails(host, lab):
    spec = dataclasses.replace(host, prepare="module load python/3.99 || exit 4")
    told = refused(spec, lab, "module")
    if host.transport != "local":
        assert "`prepare:` ended with 4" in told


# --- Python ------------------------------------------------------------------------------------


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(lab):
    """A host whose PATH has a shell and little else."""
    tools = lab.private("tools")
    for name in ("sh", "dd", "uname", "env", "cat"):
        (tools / name).symlink_to(shutil.which(name))
    return lab.host("lab1", env={"PATH": str(tools)}), tools


def test_no_python(ssh, lab, bare, monkeypatch):
    host, _ = bare
    monkeypatch.setattr(bootstrap, "PYTHONS", ["python3", "python"])
    refused(
        lab.spec(host, python=None),
        lab,
        "no Python 3.6 or newer",
        "python3, python",
        "prepare:",
    )


def test_old_pythons_are_passed_over(ssh, lab, bare, monkeypatch, attach):
    host, tools = bare
    monkeypatch.setattr(bootstrap, "PYTHONS", ["python3", "python", "python3.9"])
    script(tools / "python3", "exit 1")
    script(tools / "python3.9", f'exec {sys.executable} "$@"')
    greeted(attach(lab.spec(host, python=None)))


def test_the_python_that_was_asked_for(ssh, lab, attach):
    host = lab.host()
    place = lab.folder / "my pythons"
    place.mkdir()
    (place / "python3").symlink_to(shutil.which("python3", path="/usr/bin"))
    spec = lab.spec(host, python=str(place / "python3"))
    for _ in range(2):
        greeted(attach(spec))
    told = bootstrap.command(spec, lab.settings(), "test", "probe")
    assert told["executable"] == str(place / "python3")


def test_a_python_in_the_home_and_one_with_an_odd_name(ssh, lab, attach):
    host = lab.host()
    for name in ("venv/bin/python", "it's/python!"):
        path = host.home / name
        path.parent.mkdir(parents=True)
        path.symlink_to(shutil.which("python3", path="/usr/bin"))
        spec = lab.spec(host, python=f"~/{name}")
        told = bootstrap.command(spec, lab.settings(), "test", "probe")
        assert told["executable"] == str(path)


def test_a_python_that_will_not_do(ssh, lab):
    host = lab.host()
    spec = lab.spec(host, python="/nowhere/python3")
    refused(spec, lab, "there is no /nowhere/python3", "`python:`")
    answer = "case $3 in *version_info*) exit 1;; *) echo 3 5 2 cpython 0;; esac"
    old = script(host.home / "bin/python3", answer)
    refused(lab.spec(host, python=str(old)), lab, "is Python 3.5.2", "3.6 or newer")
    broken = script(host.home / "bin/broken", "exit 127")
    refused(lab.spec(host, python=str(broken)), lab, "broken does not run")


def test_numpy_decides_then_the_newest(monkeypatch):
    found = {
        "/a/python3": (False, (3, 13, 0), True), "/b/python3": (True, (3, 9, 0), True),
        "/c/python3": (True, (3, 11, 1), True), "/d/pypy3": (True, (3, 11, 1), False),
        "/e/python3": (True, (3, 5, 0), True),
    }  # fmt: skip
    broken = set()
    monkeypatch.setattr(loader, "_candidates", lambda: list(found))
    monkeypatch.setattr(loader, "_ask", lambda paths: [(*found[p], p) for p in paths])
    monkeypatch.setattr(loader, "_run", lambda argv: None if argv[0] in broken else "")
    monkeypatch.setattr(loader, "TOLD", {"python": None, "prepared": False})
    for expected in ("/c/python3", "/d/pypy3", "/b/python3", "/a/python3"):
        assert loader._choose() == expected
        broken.add(expected)


# --- what lies on the host ---------------------------------------------------------------------


def test_a_home_that_cannot_be_written(ssh, lab):
    host = lab.host("lab1", env={"JAM_CACHE_DIR": "/proc/nowhere"})
    refused(lab.spec(host), lab, "cannot write to /proc/nowhere", "JAM_CACHE_DIR")


def test_prepare_may_move_the_cache(ssh, lab, attach):
    host = lab.host("lab1", env={"JAM_CACHE_DIR": "/proc/nowhere"})
    other = lab.folder / "scratch place"
    spec = lab.spec(host, prepare=f'export JAM_CACHE_DIR="{other}"')
    assert attach(spec).payload == "sent"
    assert attach(spec).payload == "present"
    assert (other / "payload").is_dir()


def test_only_we_can_read_or_write_what_is_put_there(ssh, lab, attach):
    host = lab.host()
    attach(lab.spec(host)).channel.close()
    for part in ("payload", "python"):
        place = Path(host.env["JAM_CACHE_DIR"]) / part
        assert stat.S_IMODE(place.stat().st_mode) == 0o700


@pytest.mark.parametrize("harm", ["damaged", "half gone", "python gone", "python broken"])
def test_what_was_there_once_and_is_broken_now_is_made_anew(ssh, lab, attach, harm):
    host = lab.host()
    python = host.home / "python3"
    python.symlink_to(shutil.which("python3", path="/usr/bin"))
    spec = lab.spec(host, python=None if "python" not in harm else str(python))
    attach(spec).channel.close()
    folder = Path(host.env["JAM_CACHE_DIR"]) / "payload" / archive.payload().build
    if harm == "damaged":
        (folder / "worker_payload" / "cli.py").write_text("nonsense(")
    elif harm == "half gone":
        (folder / "worker_payload" / "cli.py").unlink()
    elif harm == "python gone":
        python.unlink()
        refused(spec, lab, "there is no")
        return
    else:
        cached = next((Path(host.env["JAM_CACHE_DIR"]) / "python").iterdir())
        cached.write_text(str(script(host.home / "bin/broken", "exit 3")) + "\n")
    again = attach(spec)
    assert again.payload == "sent"
    greeted(again)
    assert attach(spec).payload == "present"


def test_many_at_once_on_a_new_host(ssh, lab, attach):
    """Eight masters find nothing there: one payload in the end, nothing half-made beside it."""
    host = lab.host()
    spec = lab.spec(host)
    welcomes, failures = [], []

    def one():
        try:
            welcomes.append(greeted(attach(spec)))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len({welcome.pid for welcome in welcomes}) == 1
    payloads = os.listdir(Path(host.env["JAM_CACHE_DIR"]) / "payload")
    assert payloads == [archive.payload().build]


def test_a_shared_home(ssh, lab, attach):
    """Two hosts with one cache: the payload goes once."""
    one = lab.host("lab1")
    two = lab.host("lab2", key="host2", env={"JAM_CACHE_DIR": one.env["JAM_CACHE_DIR"]})
    assert attach(lab.spec(one)).payload == "sent"
    assert attach(lab.spec(two)).payload == "present"


def test_nothing_secret_reaches_the_agent(lab, attach):
    lab.environment.setenv("JAM_PASSWORD", "secret-word")
    spec = lab.spec("localhost", "local")
    pid = greeted(attach(spec)).pid
    assert b"secret-word" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_leaving_ends_the_attach_process(ssh, lab, attach):
    host = lab.host()
    attached = attach(lab.spec(host))
    mine = [pid for pid, line in lab.left_behind().items() if " attach " in line]
    assert mine
    attached.channel.close()
    wait_until(lambda: not any(" attach " in line for line in lab.left_behind().values()))


def test_the_line_is_what_a_plain_shell_runs_too(lab):
    """The conversation by hand: what sh prints is only marker lines."""
    spec = lab.spec("localhost", "local")
    answers = {"P": b"", "L": b"import os; os.write(1, b'loaded')", "N": b""}
    line = bootstrap.command_line(spec, ("11", "22"), "b" * 16, "attach", "test", answers)
    ran = subprocess.run(line, shell=True, input=answers["L"], capture_output=True)
    assert ran.stdout == b"2211:L\nloaded"
