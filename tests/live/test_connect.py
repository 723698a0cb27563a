"""Getting in: host keys, logins, jump hosts, ssh_config, crowds, and why it failed."""

import dataclasses
import socket
import subprocess
import sys
import threading
import time

import pytest
from faults import cut_off, go_on
from sshd import keygen, wait_until

from jamtasks import Master, transport
from jamtasks.errors import AuthenticationError, HostError, HostKeyError
from jamtasks.settings import load
from jamtasks.transport import Attempt, known_hosts
from jamtasks.transport.base import patiently


def run(spec, settings, command="echo hello"):
    """(output, exit status, stderr) of a command; raises what kept it from running."""
    connection = transport.connect(spec, settings)
    try:
        channel = connection.exec(command)
        out = b""
        while data := channel.read(1 << 16):
            out += data
        cause = channel.cause()
        if cause is not None and not out:
            raise cause
        channel.close()
        return out.decode(), channel.exit_status(), channel.stderr_tail()
    finally:
        connection.close()


def fails(kind, spec, settings, *words):
    with pytest.raises(kind) as caught:
        run(spec, settings)
    told = str(caught.value)
    assert type(caught.value) is kind, told
    for word in words:
        assert word in told
    assert "Traceback" not in told
    return caught.value


def test_bytes_both_ways(host, lab):
    connection = transport.connect(host, lab.settings())
    channel = connection.exec("cat; echo to stderr >&2; exit 7")
    sent = bytes(range(256)) * 4096
    writer = threading.Thread(target=channel.write, args=([sent[:5], sent[5:], memoryview(b"!")],))
    writer.start()
    got = b""
    while len(got) <= len(sent):
        got += channel.read(1 << 20)
    writer.join()
    assert got == sent + b"!"
    channel.close()
    connection.close()
    channel.close()


def test_status_and_stderr(host, lab):
    assert run(host, lab.settings(), "echo out; echo err >&2; exit 7") == ("out\n", 7, "err\n")


def test_much_stderr_neither_hangs_nor_fills_memory(host, lab):
    talk = (
        "dd if=/dev/zero bs=1000 count=20000 2>/dev/null | tr '\\0' x >&2; echo last >&2; echo ok"
    )
    out, status, err = run(host, lab.settings(), talk)
    assert (out, status) == ("ok\n", 0)
    assert err.endswith("xlast\n")
    assert len(err) == 64 << 10


def test_close_ends_a_read_in_another_thread(host, lab):
    connection = transport.connect(host, lab.settings())
    channel = connection.exec("echo $$; exec cat")
    assert channel.read(100)
    got = []
    reader = threading.Thread(target=lambda: got.append(channel.read(100)))
    reader.start()
    time.sleep(0.05)
    channel.close()
    reader.join(5)
    assert got == [b""]
    with pytest.raises(HostError):
        channel.write([b"x" * 100_000] * 10)
    connection.close()


def test_a_connection_that_breaks_says_so(ssh, lab):
    host = lab.host()
    connection = transport.connect(lab.spec(host), lab.settings())
    channel = connection.exec("echo ready; exec cat")
    assert channel.read(100) == b"ready\n"
    host.stop()
    assert channel.read(100) == b""
    cause = channel.cause()
    assert cause is not None
    assert cause.retry
    channel.close()
    connection.close()


# --- host keys ---------------------------------------------------------------------------------


def test_unknown_key_is_refused(ssh, lab):
    host = lab.host(known=False)
    fails(HostKeyError, lab.spec(host), lab.settings(), "lab1", "unknown", "--accept-new")
    assert lab.known_hosts.read_text() == ""


def test_accept_new_records_it(ssh, lab):
    host = lab.host(known=False)
    run(lab.spec(host), lab.settings(accept_new=True))
    assert host.known_hosts_line().strip() in lab.known_hosts.read_text()
    run(lab.spec(host), lab.settings())


@pytest.mark.parametrize("accept_new", [False, True])
def test_changed_key_is_refused_always(ssh, lab, accept_new):
    host = lab.host(known=False)
    wrong = (lab.keys / "other.pub").read_text().split()[:2]
    lab.known_hosts.write_text(f"[127.0.0.1]:{host.port} {' '.join(wrong)}\n")
    lab.write_ssh_config(extra="Host *\n  StrictHostKeyChecking no\n")
    settings = lab.settings(accept_new=accept_new)
    fails(HostKeyError, lab.spec(host), settings, "recorded one", "ssh-keygen -R")
    assert host.known_hosts_line() not in lab.known_hosts.read_text()


def test_another_kind_of_key_than_the_recorded_one_is_refused(lab):
    host = lab.host(known=False)
    keygen(lab.folder / "ecdsa", "ecdsa")
    kind, key = (lab.folder / "ecdsa.pub").read_text().split()[:2]
    lab.known_hosts.write_text(f"[127.0.0.1]:{host.port} {kind} {key}\n")
    spec = lab.spec(host, "fabric")
    fails(HostKeyError, spec, lab.settings(accept_new=True), "not the recorded one")


def test_the_recorded_kind_is_asked_for(ssh, lab):
    ecdsa = keygen(lab.folder / "ecdsa", "ecdsa")
    host = lab.host("lab1", f"HostKey {ecdsa}", known=False)
    kind, key = ecdsa.with_suffix(".pub").read_text().split()[:2]
    lab.known_hosts.write_text(f"[127.0.0.1]:{host.port} {kind} {key}\n")
    assert run(lab.spec(host), lab.settings())[0] == "hello\n"


def test_host_key_alias(ssh, lab):
    host = lab.host(known=False)
    lab.write_ssh_config(extra="Host lab1\n  HostKeyAlias one\n")
    fails(HostKeyError, lab.spec(host), lab.settings())
    lab.known_hosts.write_text(host.known_hosts_line("one"))
    assert run(lab.spec(host), lab.settings())[0] == "hello\n"


def test_hashed_known_hosts(ssh, lab):
    host = lab.host()
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", lab.known_hosts], check=True,
                   stdin=subprocess.DEVNULL, capture_output=True)  # fmt: skip
    assert "127.0.0.1" not in lab.known_hosts.read_text()
    assert run(lab.spec(host), lab.settings())[0] == "hello\n"


def test_ssh_keygen_finds_what_fabric_recorded(lab):
    host = lab.host(known=False)
    lab.write_ssh_config(extra="Host *\n  HashKnownHosts yes\n")
    run(lab.spec(host, "fabric"), lab.settings(accept_new=True))
    assert "127.0.0.1" not in lab.known_hosts.read_text()
    name = known_hosts.name_of("127.0.0.1", host.port)
    found = subprocess.run(["ssh-keygen", "-F", name, "-f", lab.known_hosts], capture_output=True)
    assert found.returncode == 0


# --- logging in --------------------------------------------------------------------------------


def test_wrong_key_fails_once(ssh, lab):
    host = lab.host()
    text = lab.ssh_config.read_text().replace(str(lab.keys / "id"), "none")
    lab.ssh_config.write_text(text)
    spec = lab.spec(host, key=str(lab.keys / "other"))
    error = fails(AuthenticationError, spec, lab.settings(), "lab1", "publickey", "ssh -F")
    assert not error.retry
    assert host.log.count("Connection from") - host.log.count("Connection closed by 127") <= 2
    assert host.log.count("Failed publickey") <= 1


def test_an_encrypted_key_is_named(lab):
    host = lab.host()
    locked = lab.folder / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", locked], check=True)
    spec = lab.spec(host, "fabric", key=str(locked))
    fails(AuthenticationError, spec, lab.settings(), "locked", "ssh-add", "transport: openssh")


def test_a_missing_key_file_is_named(lab):
    host = lab.host()
    spec = lab.spec(host, "fabric", key="/nowhere/id")
    fails(AuthenticationError, spec, lab.settings(), "/nowhere/id", "no such file")


def _run(*command):
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_keys_of_the_agent(ssh, lab):
    host = lab.host()
    place = lab.folder / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", place], stdout=subprocess.DEVNULL)
    try:
        lab.environment.setenv("SSH_AUTH_SOCK", str(place))
        wait_until(lambda: _run("ssh-add", "-l").returncode < 2, "the agent listens")
        for name in ("other", "id"):
            subprocess.run(["ssh-add", "-q", lab.keys / name], check=True)
        lab.write_ssh_config(extra="Host *\n  IdentityFile none\n  IdentitiesOnly no\n")
        assert run(lab.spec(host), lab.settings())[0] == "hello\n"
        # of many keys the one that we have the file of comes first: sshd counts failures
        lab.write_ssh_config()
        assert run(lab.spec(host), lab.settings())[0] == "hello\n"
        assert "Failed publickey" not in host.log
    finally:
        agent.terminate()
        agent.wait()
        place.unlink(missing_ok=True)


# --- the way there -----------------------------------------------------------------------------


def test_nobody_listens(ssh, lab):
    host = lab.host(start=False, known=False)
    error = fails(HostError, lab.spec(host), lab.settings(), "refused", str(host.port))
    assert error.retry


def test_no_such_host(ssh, lab):
    spec = lab.spec("no-such-host.invalid")
    fails(HostError, spec, lab.settings(), "no-such-host.invalid", "not known")


def test_a_name_that_is_not_known_is_said_once(lab):
    lab.write_ssh_config("Host far\n  HostName elsewhere.invalid\n")
    error = fails(HostError, lab.spec("far", "fabric"), lab.settings(), "not known")
    assert error.message.startswith("far: elsewhere.invalid: ")
    error = fails(HostError, lab.spec("nowhere.invalid", "fabric"), lab.settings(), "not known")
    assert error.message.count("nowhere.invalid") == 1
    named = lab.spec("nowhere.invalid", "fabric", label="now")
    error = fails(HostError, named, lab.settings(), "now: nowhere.invalid: ", "not known")
    behind = lab.spec("far", "fabric", gateway="me@nowhere.invalid:24")
    error = fails(HostError, behind, lab.settings(), "far: gateway me@nowhere.invalid:24: ")
    assert error.message.count("nowhere.invalid") == 1


def test_a_host_that_never_answers(ssh, lab):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        spec = lab.spec("127.0.0.1", port=silent.getsockname()[1])
        error = fails(HostError, spec, lab.settings(connect_timeout=1.0))
        assert error.retry
        assert time.monotonic() - began < 5


def test_ssh_config_is_read_with_its_includes(ssh, lab):
    host = lab.host()
    included = lab.folder / "more"
    included.write_text(f"Host elsewhere\n  HostName 127.0.0.1\n  Port {host.port}\n")
    lab.write_ssh_config(extra=f"Include {included}\n")
    assert run(lab.spec("elsewhere"), lab.settings())[0] == "hello\n"


def test_an_agent_that_imports_numpy_for_long_is_waited_for(ssh, lab, tmp_path, module):
    """Longer than connecting may take: it is there."""
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "numpy.py").write_text("import time\ntime.sleep(4)\n__version__ = '1.0'\n")
    host = lab.host("lab1", env={"PYTHONPATH": str(slow)})
    name = module("def mapfunc(params, items):\n    return len(items)\n")
    with Master([lab.spec(host)], settings=lab.settings(connect_timeout=3.0)) as master:
        assert master.run(name, None, [1, 2, 3]) == 3


def test_ssh_config_of_the_environment_and_of_hosts_yaml(ssh, lab):
    lab.host()
    lab.environment.setenv("JAM_TRANSPORT", ssh)
    (spec,) = load().select("lab1")
    assert run(spec, lab.settings())[0] == "hello\n"
    lab.environment.delenv("JAM_SSH_CONFIG")
    lab.hosts_yaml("hosts: {lab1: {ssh_config: ssh_config}}\n")
    (spec,) = load().select()
    assert run(spec, lab.settings())[0] == "hello\n"


def test_a_bad_ssh_config_is_named(ssh, lab):
    lab.ssh_config.write_text("Hots x\n")
    fails(HostError, lab.spec("lab1"), lab.settings(), "hots")


def test_proxy_command(ssh, lab):
    host = lab.host()
    relay = lab.folder / "relay.py"
    relay.write_text(
        "import os, select, socket, sys\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "while True:\n"
        "    for f in select.select([0, s], [], [])[0]:\n"
        "        data = os.read(0, 65536) if f == 0 else s.recv(65536)\n"
        "        if not data: sys.exit()\n"
        "        s.sendall(data) if f == 0 else os.write(1, data)\n"
    )
    lab.write_ssh_config(extra=f"Host lab1\n  ProxyCommand python3 {relay} %h %p\n")
    assert run(lab.spec(host), lab.settings())[0] == "hello\n"


# --- jump hosts --------------------------------------------------------------------------------


@pytest.fixture
def jump(lab):
    """lab1 behind gate: gate's sshd forwards, both are on the same address (a trap of Fabric's)."""
    return lab.host("lab1"), lab.host("gate", key="host2")


def test_gateway(ssh, lab, jump):
    target, gate = jump
    for spec in (lab.spec(target, gateway="gate"),
                 lab.spec(target, gateway=f"ssh://127.0.0.1:{gate.port}")):  # fmt: skip
        logins = gate.log.count("Accepted publickey")
        assert run(spec, lab.settings())[0] == "hello\n"
        assert gate.log.count("Accepted publickey") == logins + 1


def test_proxy_jump_of_ssh_config_with_the_same_host_name(ssh, lab, jump):
    target, gate = jump
    lab.write_ssh_config(extra="Host lab1\n  ProxyJump gate\n")
    assert run(lab.spec(target), lab.settings())[0] == "hello\n"
    assert "Accepted publickey" in gate.log


def test_chain_of_gateways(ssh, lab, jump):
    target, gate = jump
    second = lab.host("gate2", key="host3")
    assert run(lab.spec(target, gateway="gate,gate2"), lab.settings())[0] == "hello\n"
    assert all("Accepted publickey" in each.log for each in (target, gate, second))
    lab.write_ssh_config(extra="Host lab1\n  ProxyJump gate2\nHost gate2\n  ProxyJump gate\n")
    before = gate.log.count("Accepted publickey")
    assert run(lab.spec(target), lab.settings())[0] == "hello\n"
    assert gate.log.count("Accepted publickey") == before + 1


def test_gateways_in_a_circle(ssh, lab, jump):
    lab.write_ssh_config(extra="Host lab1\n  ProxyJump gate\nHost gate\n  ProxyJump lab1\n")
    error = fails(HostError, lab.spec("lab1"), lab.settings(), "circle")
    assert "gateway" not in error.message


def test_a_gateway_of_the_same_name(ssh, lab, jump):
    """A container on a port of a machine, behind that machine."""
    target, gate = jump
    spec = lab.spec(target, gateway=f"lab1:{gate.port}")
    settings = dataclasses.replace(lab.settings(), hosts=(spec,))
    assert run(spec, settings)[0] == "hello\n"
    assert gate.log.count("Accepted publickey") == 1


@pytest.mark.parametrize("case", ["unknown", "changed"])
def test_gateways_key_is_checked_too(ssh, lab, jump, case):
    target, gate = jump
    wrong = " ".join((lab.keys / "other.pub").read_text().split()[:2])
    lines = target.known_hosts_line()
    if case == "changed":
        lines += f"[127.0.0.1]:{gate.port} {wrong}\n"
    lab.known_hosts.write_text(lines)
    lab.write_ssh_config(extra="Host lab1\n  ProxyJump gate\nHost *\n  StrictHostKeyChecking no\n")
    for settings in (lab.settings(), lab.settings(accept_new=True))[
        : 2 if case == "changed" else 1
    ]:
        fails(HostKeyError, lab.spec(target), settings)
    assert "Accepted" not in gate.log
    assert lab.known_hosts.read_text() == lines


def test_gateway_that_is_down_or_leads_nowhere(ssh, lab, jump):
    target, gate = jump
    spec = lab.spec(target, gateway="gate")
    target.stop()
    fails(HostError, spec, lab.settings(), "lab1")
    gate.stop()
    fails(HostError, spec, lab.settings(), "refused")


def test_one_login_at_the_gateway_for_all(lab, jump):
    _, gate = jump
    lab.host("lab2", key="host3")
    settings = lab.settings()
    specs = [lab.spec(name, "fabric", gateway="gate") for name in ["lab1", "lab2"] * 5]
    connections, failures = [], []

    def connect(spec):
        try:
            connections.append(transport.connect(spec, settings))
        except HostError as error:
            failures.append(error)

    threads = [threading.Thread(target=connect, args=(spec,)) for spec in specs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(connections) == 10
    assert gate.log.count("Accepted publickey") == 1
    for connection in connections[1:]:
        connection.close()
    channel = connections[0].exec("echo still there")
    assert channel.read(100) == b"still there\n"
    channel.close()
    connections[0].close()
    wait_until(lambda: "Disconnected from" in gate.log or "Connection closed" in gate.log)
    assert run(lab.spec("lab1", "fabric", gateway="gate"), settings)[0] == "hello\n"


# --- crowds ------------------------------------------------------------------------------------


def test_many_at_once_at_a_narrow_door(ssh, lab):
    host = lab.host("lab1", "MaxStartups 3:60:6")
    settings = lab.settings(connect_timeout=30.0)
    outcomes = []

    def one():
        try:
            out = patiently(lambda: run(lab.spec(host), settings)[0], 30.0, Attempt())
        except HostError as error:
            out = str(error)
        outcomes.append(out)

    threads = [threading.Thread(target=one) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["hello\n"] * 12


def test_no_session_left(ssh, lab):
    host = lab.host("lab1", "MaxSessions 0")
    assert fails(HostError, lab.spec(host), lab.settings(), "sshd runs no command").retry


@pytest.mark.parametrize("way", ["direct", "jump host"])
def test_close_ends_a_write_to_a_host_that_stands_still(ssh, lab, way):
    host = lab.host()
    if way == "jump host":
        lab.host("gate", key="host2")
        lab.write_ssh_config("Host lab1\n  ProxyJump gate\n")
    connection = transport.connect(lab.spec(host), lab.settings(dead_after=60.0))
    channel = connection.exec("echo ready; exec cat >/dev/null")
    channel.owned = connection
    assert channel.read(100) == b"ready\n"
    if (ssh, way) == ("fabric", "direct"):  # as on a line with a small window
        connection._way.login.line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    stopped = cut_off(host)
    outcome = []

    def write():
        try:
            for _ in range(100):
                channel.write([bytes(1 << 20)])
                outcome.append("written")
        except HostError as error:
            outcome.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        count = -1
        while len(outcome) > count:  # until nothing goes out any more
            count = len(outcome)
            time.sleep(0.3)
        assert writer.is_alive()
        began = time.monotonic()
        channel.close()
        writer.join(5)
        assert not writer.is_alive()
        assert time.monotonic() - began < 4
    finally:
        go_on(stopped)
        writer.join(20)
        connection.close()


# --- what it takes -----------------------------------------------------------------------------


LOADED_BY_TWO = """
import sys, threading
from jamtasks import transport
from jamtasks.settings import HostSpec
from jamtasks.transport import libraries, ssh_config

begun, other_came = threading.Event(), threading.Event()

class Lock:
    lock = threading.Lock()
    def __enter__(self):
        if not self.lock.acquire(blocking=False):
            other_came.set()
            self.lock.acquire()
    def __exit__(self, *error):
        self.lock.release()

def asked(event, args):
    if event != "import":
        return
    main = threading.current_thread() is threading.main_thread()
    if main and args[0] == "paramiko.agent":  # what fabric wants of it first
        other_came.set()
    elif not main and args[0] == "paramiko.transport":  # paramiko itself is half made then
        begun.set()
        assert other_came.wait(30)

sys.addaudithook(asked)
libraries._lock = Lock()
told = []

def log_in():
    try:
        told.append(ssh_config._resolve_without_ssh(HostSpec("lab1"))["hostname"])
    except BaseException as error:
        told.append(repr(error))

login = threading.Thread(target=log_in)
login.start()
assert begun.wait(30)
transport.load(["fabric"])
login.join()
print(*told)
"""


def test_fabric_and_paramiko_are_whole_for_two_threads_that_load_them_at_once():
    """One reads ssh_config without an `ssh`, the other gets Fabric ready meanwhile."""
    words = [sys.executable, "-c", LOADED_BY_TWO]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "lab1\n", "")
