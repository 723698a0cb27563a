"""known_hosts as OpenSSH reads it."""

import base64

import pytest

from jamtasks.transport.known_hosts import fingerprint, look_up, record

KEY, OTHER = b"\0\0\0\x0bssh-ed25519" + b"k" * 36, b"\0\0\0\x0bssh-ed25519" + b"o" * 36


def b64(key):
    return base64.b64encode(key).decode()


@pytest.fixture
def verdict(tmp_path):
    def verdict(text, host="lab1", port=22, alias=None, key=KEY):
        path = tmp_path / "known_hosts"
        path.write_text(text.replace("KEY", b64(KEY)).replace("OTHER", b64(OTHER)))
        return look_up([str(tmp_path / "none"), str(path)], host, port, alias).verdict(key)

    return verdict


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lab1 ssh-ed25519 KEY\n", "ok"),
        ("lab1 ssh-ed25519 KEY comment here", "ok"),
        ("LAB1,10.0.0.1 ssh-ed25519 KEY\n", "ok"),
        ("lab? ssh-ed25519 KEY\n", "ok"),
        ("lab*,!lab1 ssh-ed25519 KEY\n", "unknown"),
        ("lab ssh-ed25519 KEY\n", "unknown"),
        ("xlab1 ssh-ed25519 KEY\n", "unknown"),
        ("labx1 ssh-ed25519 KEY\n", "unknown"),
        ("# lab1 ssh-ed25519 KEY\n", "unknown"),
        ("", "unknown"),
        ("lab1 ssh-ed25519\n", "unknown"),
        ("lab1 ssh-ed25519 no*base64\n", "unknown"),
        ("lab1 ssh-ed25519 OTHER\n", "changed"),
        ("lab1 ssh-ed25519 OTHER\nlab1 ssh-ed25519 KEY\n", "ok"),
        ("lab1 ssh-rsa OTHER\n", "changed"),  # a key of another kind is no excuse
        ("@revoked lab1 ssh-ed25519 KEY\nlab1 ssh-ed25519 KEY\n", "revoked"),
        ("@revoked * ssh-ed25519 KEY\n", "revoked"),
        ("@cert-authority lab1 ssh-ed25519 KEY\n", "unknown"),
        ("|1|broken ssh-ed25519 KEY\n", "unknown"),
    ],
)
def test_lines(verdict, line, expected):
    assert verdict(line) == expected


def test_ports(verdict):
    assert verdict("[lab1]:2222 ssh-ed25519 KEY\n", port=2222) == "ok"
    assert verdict("[lab1]:2222 ssh-ed25519 KEY\n", port=22) == "unknown"
    assert verdict("[lab1]:2222 ssh-ed25519 KEY\n", port=2223) == "unknown"
    assert verdict("lab1 ssh-ed25519 KEY\n", port=2222) == "ok"
    assert verdict("lab1 ssh-ed25519 KEY\n[lab1]:2222 ssh-ed25519 OTHER\n", port=2222) == "changed"


def test_alias_stands_for_name_and_port(verdict):
    assert verdict("one ssh-ed25519 KEY\n", port=2222, alias="one") == "ok"
    assert verdict("lab1 ssh-ed25519 KEY\n", alias="one") == "unknown"


def test_authority_is_noticed(tmp_path):
    path = tmp_path / "known_hosts"
    path.write_text(f"@cert-authority *.lab ssh-ed25519 {b64(KEY)}\n")
    assert look_up([str(path)], "a.lab", 22).authority
    assert not look_up([str(path)], "a.other", 22).authority


@pytest.mark.parametrize("hashed", [False, True])
def test_what_is_recorded_is_found_again(tmp_path, hashed):
    path = tmp_path / "ssh" / "known_hosts"
    record(str(path), "[lab1]:2222", "ssh-ed25519", KEY, hashed)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600
    assert look_up([str(path)], "lab1", 2222).verdict(KEY) == "ok"
    assert look_up([str(path)], "lab1", 2222).verdict(OTHER) == "changed"
    assert ("lab1" in path.read_text()) is not hashed


def test_recording_spares_a_last_line_without_end(tmp_path):
    path = tmp_path / "known_hosts"
    path.write_text(f"a ssh-ed25519 {b64(KEY)}")
    record(str(path), "b", "ssh-ed25519", OTHER)
    assert look_up([str(path)], "a", 22).verdict(KEY) == "ok"
    assert look_up([str(path)], "b", 22).verdict(OTHER) == "ok"


def test_fingerprint_is_that_of_ssh_keygen():
    key = base64.b64decode("AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl")
    assert fingerprint(key) == "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"
