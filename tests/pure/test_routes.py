"""Jump hosts: through which servers, where hosts of the settings stand in for them."""

import pytest

from jamtasks.errors import HostError
from jamtasks.settings import HostSpec, Settings
from jamtasks.transport import Attempt, ssh_config


@pytest.fixture
def way(monkeypatch):
    """The logins on the way to the first of these hosts; ssh_config says nothing."""
    monkeypatch.setattr(ssh_config, "_resolve", lambda spec, attempt: {"user": "me"})

    def ask(*hosts):
        hops = ssh_config.route(hosts[0], Settings(hosts=hosts), Attempt(hosts[0].label))
        return [f"{hop.user}@{hop.host}:{hop.port}" for hop in hops]

    return ask


def test_what_the_settings_say_of_a_gateway_holds_for_it(way):
    gate = HostSpec("10.0.0.1", "root", 24, gateway="outer", label="gate")
    assert way(HostSpec("a", gateway="gate"), gate) == [
        "me@outer:22",
        "root@10.0.0.1:24",
        "me@a:22",
    ]
    assert way(HostSpec("a", gateway="you@gate:25"), gate)[:2] == ["me@outer:22", "you@10.0.0.1:25"]


@pytest.mark.parametrize("gateway", ["root@a:2222", "root@a", "a:2222", "ssh://root@a:2222"])
def test_another_server_of_the_same_name_is_no_circle(way, gateway):
    jump, host = way(HostSpec("a", port=24, gateway=gateway))
    assert host == "me@a:24" != jump
    host = HostSpec("10.0.0.1", port=24, gateway=gateway, label="a")
    assert way(host) == [jump.replace("@a", "@10.0.0.1"), "me@10.0.0.1:24"]


def test_others_are_behind_that_server_too(way):
    a = HostSpec("a", port=24, gateway="outer,root@a:22")
    assert way(a) == ["me@outer:22", "root@a:22", "me@a:24"]
    assert way(HostSpec("b", gateway="root@a:22"), a) == ["me@outer:22", "root@a:22", "me@b:22"]
    assert way(HostSpec("b", gateway="a"), a) == [*way(a), "me@b:22"]


@pytest.mark.parametrize(
    "hosts, circle",
    [
        ({"a": "a"}, "a behind a"),
        ({"a": "b", "b": "a"}, "a behind b behind a"),
        ({"a": "b", "b": "c", "c": "b"}, "a behind b behind c behind b"),
        ({"a": "b", "b": "b"}, "a behind b behind b"),
        ({"a": "root@b:24", "b": "root@a:24"}, "a behind b behind a behind b"),
    ],
)
def test_a_circle_is_said_once(way, hosts, circle):
    with pytest.raises(HostError) as caught:
        way(*(HostSpec(name, gateway=gateway) for name, gateway in hosts.items()))
    assert str(caught.value) == f"a: its jump hosts lead in a circle: {circle}"


def test_a_gateway_that_is_no_host(way):
    with pytest.raises(HostError, match="its gateway: 'x y' is not a host"):
        way(HostSpec("a", gateway="x y"))
