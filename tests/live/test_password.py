"""Logins that sshd offers only with PAM: against a server of our own with Paramiko's server side.

It knows one user and one password, and can ask for a second factor."""

import os
import re
import select
import socket
import subprocess
import threading

import paramiko
import pytest

from jamtasks import transport
from jamtasks.errors import AuthenticationError
from jamtasks.settings import load
from jamtasks.transport import known_hosts


class Rules(paramiko.ServerInterface):
    def __init__(self, methods, log):
        self.methods, self.log = methods, log
        self.passed = set()

    def get_allowed_auths(self, username):
        return ",".join(m for m in re.split("[+,]", self.methods) if m not in self.passed)

    def _done(self, method):
        self.passed.add(method)
        wanted = set(self.methods.split("+")) if "+" in self.methods else {method}
        ready = wanted <= self.passed
        return paramiko.AUTH_SUCCESSFUL if ready else paramiko.AUTH_PARTIALLY_SUCCESSFUL

    def check_auth_password(self, username, password):
        self.log.append(f"password {username}")
        if "password" in self.methods and (username, password) == ("me", "open sesame"):
            return self._done("password")
        return paramiko.AUTH_FAILED

    def check_auth_publickey(self, username, key):
        self.log.append("publickey")
        return self._done("publickey") if "+" in self.methods else paramiko.AUTH_FAILED

    def check_auth_interactive(self, username, submethods):
        self.log.append("interactive")
        if "keyboard-interactive" not in self.methods:
            return paramiko.AUTH_FAILED
        return paramiko.InteractiveQuery("", "", ("Password: ", False))

    def check_auth_interactive_response(self, responses):
        if responses == ["open sesame"]:
            return self._done("keyboard-interactive")
        return paramiko.AUTH_FAILED

    def check_channel_request(self, kind, chanid):
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel, command):
        threading.Thread(target=serve, args=(channel, command), daemon=True).start()
        return True


def serve(channel, command):
    """Run a command on a channel, as sshd would."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", command.decode()], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    with process:
        while data := process.stdout.read(1 << 16):
            channel.sendall(data)
    channel.send_exit_status(process.returncode)
    channel.shutdown_write()
    # not closed before the client leaves: it may still wait for the answer to its request
    while channel.recv(100):
        pass
    channel.close()


@pytest.fixture
def server(lab):
    """start(methods) -> log: an SSH server that lets in by these methods; a+b means both."""
    key = paramiko.Ed25519Key.from_private_key_file(str(lab.keys / "host1"))
    listener = socket.create_server(("127.0.0.1", 0))
    wake, waker = os.pipe()
    transports, threads = [], []

    def start(methods):
        log = []

        def accept():
            while listener in select.select([listener, wake], [], [])[0]:
                one = paramiko.Transport(listener.accept()[0])
                one.add_server_key(key)
                transports.append(one)
                try:
                    one.start_server(server=Rules(methods, log), event=threading.Event())
                except (paramiko.SSHException, EOFError):
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        threads.append(thread)
        return log

    port = listener.getsockname()[1]
    public = (lab.keys / "host1.pub").read_text().split()
    name = known_hosts.name_of("127.0.0.1", port)
    lab.known_hosts.write_text(f"{name} {public[0]} {public[1]}\n")
    start.port = port
    yield start
    os.close(waker)
    for thread in threads:
        thread.join()
    os.close(wake)
    listener.close()
    for one in transports:
        one.close()


def run(lab, ssh, server, **environ):
    lab.environment.setenv("JAM_TRANSPORT", ssh)
    for name, value in environ.items():
        lab.environment.setenv(name, value)
    (spec,) = load().select(f"127.0.0.1:{server.port}")
    connection = transport.connect(spec, lab.settings())
    try:
        channel = connection.exec("echo hello")
        data = channel.read(100)
        if not data:
            cause = channel.cause()
            assert cause is not None
            raise cause
        return data.decode()
    finally:
        connection.close()


@pytest.mark.parametrize("methods", ["password", "keyboard-interactive", "publickey+password",
                                     "publickey+keyboard-interactive"])  # fmt: skip
@pytest.mark.parametrize("names", ["JAM_USER JAM_PASSWORD", "QJAM_USER QJAM_PASSWD"])
def test_password_of_the_environment(ssh, lab, server, methods, names):
    log = server(methods)
    user, password = names.split()
    assert run(lab, ssh, server, **{user: "me", password: "open sesame"}) == "hello\n"
    assert len([entry for entry in log if not entry.startswith("publickey")]) == 1


def test_wrong_password_is_tried_once(ssh, lab, server):
    log = server("password")
    with pytest.raises(AuthenticationError) as caught:
        run(lab, ssh, server, JAM_USER="me", JAM_PASSWORD="wrong one")
    assert log.count("password me") == 1
    assert "wrong one" not in str(caught.value)


def test_no_password_says_where_to_give_one(lab, server):
    server("password")
    with pytest.raises(AuthenticationError, match="JAM_PASSWORD"):
        run(lab, "fabric", server, JAM_USER="me")


def test_what_only_ssh_can_do_is_named(lab, server):
    server("gssapi-with-mic,hostbased")
    with pytest.raises(AuthenticationError) as caught:
        run(lab, "fabric", server, JAM_USER="me")
    assert "gssapi-with-mic" in str(caught.value)
    assert "transport: openssh" in str(caught.value)


def test_openssh_does_not_hang_where_nobody_can_be_asked(lab, server):
    server("password")
    with pytest.raises(AuthenticationError, match="denied"):
        run(lab, "openssh", server, JAM_USER="me")
