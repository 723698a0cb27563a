"""Hosts as people write them, hosts.yaml, remote.conf and the environment."""

import pytest

from jamtasks.errors import SettingsError
from jamtasks.settings import HostSpec, Settings, load, parse_host


@pytest.fixture
def read(tmp_path):
    """Settings from the text of a hosts file, with an environment of our own."""

    def read(text, environ=None, name="hosts.yaml"):
        (tmp_path / name).write_text(text)
        environ = {"HOME": str(tmp_path / "home"), **(environ or {})}
        named = None if name == "hosts.yaml" else name
        return load(named, environ=environ, cwd=tmp_path)

    return read


def plain(**environ):
    return load(environ={"HOME": "/nowhere", **environ}, cwd="/")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("lab1", (None, "lab1", None, None)),
        ("me@lab1", ("me", "lab1", None, None)),
        ("me@lab1:2222*4", ("me", "lab1", 2222, 4)),
        ("lab1*4", (None, "lab1", None, 4)),
        ("10.0.0.1:22", (None, "10.0.0.1", 22, None)),
        ("[2001:db8::1]", (None, "2001:db8::1", None, None)),
        ("me@[fe80::1%eth0]:22*2", ("me", "fe80::1%eth0", 22, 2)),
        ("us-er.x@node-02.example.org", ("us-er.x", "node-02.example.org", None, None)),
    ],
)
def test_hosts_as_written(text, parts):
    assert parse_host(text) == parts


@pytest.mark.parametrize(
    "text",
    ["", "a b", "lab1:", "lab1:0", "lab1:70000", "lab1*0", "lab1*99999", "lab1*", "2001:db8::1",
     "@lab1", "-oProxyCommand=evil", "-l@lab1", "lab1:22:23", "a@b@c", "[lab1]"],
)  # fmt: skip
def test_what_is_no_host(text):
    with pytest.raises(SettingsError) as caught:
        parse_host(text)
    assert caught.value.hint or "must be" in caught.value.message


def test_ipv6_without_brackets_says_so():
    with pytest.raises(SettingsError, match="brackets"):
        parse_host("2001:db8::1")


def test_naming_a_host_often_counts_its_workers():
    def workers(names):
        return {spec.label: spec.workers for spec in plain().select(names)}

    assert workers("a,b") == {"a": None, "b": None}
    assert workers("a,b,a") == {"a": 2, "b": None}
    assert workers(["a", "a", "a"]) == {"a": 3}
    assert workers("a*4") == {"a": 4}
    assert workers("a*1") == {"a": 1}
    assert workers("a*4,a") == {"a": 5}
    assert workers([HostSpec("a"), HostSpec("a")]) == {"a": 2}
    assert workers(HostSpec("a", workers=7)) == {"a": 7}


def test_order_is_the_order_named():
    assert [spec.label for spec in plain().select("c,a,b,a")] == ["c", "a", "b"]


def test_same_name_other_settings_is_refused():
    with pytest.raises(SettingsError, match="different settings"):
        plain().select([HostSpec("a"), HostSpec("a", port=3)])


def test_nothing_named_is_refused():
    with pytest.raises(SettingsError, match="no host"):
        plain().select("")


def test_without_a_file_this_machine_without_ssh():
    (spec,) = plain().select()
    assert (spec.name, spec.transport) == ("localhost", "local")
    (spec,) = plain(JAM_USER="me", JAM_TRANSPORT="openssh", JAM_SSH_CONFIG="/c").select()
    assert (spec.transport, spec.user, spec.ssh_config) == ("local", None, None)


def test_localhost_with_ssh_settings_goes_over_ssh():
    for text in ("me@localhost", "localhost:2222"):
        (spec,) = plain().select(text)
        assert spec.transport == "fabric", text
    (spec,) = plain(JAM_TRANSPORT="openssh").select("me@localhost")
    assert spec.transport == "openssh"
    assert HostSpec("localhost").transport == "local"
    assert HostSpec("localhost", key="k").transport == "fabric"
    assert HostSpec("127.0.0.1").transport == "fabric"


def test_file(read):
    settings = read(
        """\
connect_timeout: 3
defaults:
  user: all
  python: /opt/py
  env: {A: 1, B: x}
hosts:
  lab1: {workers: 4, user: me, env: {B: y}, prepare: "module load python"}
  lab2*2:
  you@lab3:2222: {transport: openssh, keep: yes, gateway: "gate,gate2:22", name: lab3.example.org}
  localhost:
groups:
  fast: [lab1, lab2*3]
  all: fast, lab3
"""
    )
    lab1, lab2, lab3, here = settings.select()
    assert lab1 == HostSpec(
        "lab1", user="me", python="/opt/py", workers=4, prepare="module load python",
        env=(("A", "1"), ("B", "y")),
    )  # fmt: skip
    assert (lab2.workers, lab2.user, lab2.transport) == (2, "all", "fabric")
    assert (lab3.label, lab3.name) == ("lab3", "lab3.example.org")
    assert (lab3.user, lab3.port) == ("you", 2222)
    assert (lab3.transport, lab3.keep, lab3.gateway) == ("openssh", True, "gate,gate2:22")
    assert (here.transport, here.user, here.python) == ("local", None, "/opt/py")
    assert settings.connect_timeout == 3.0
    workers = {spec.label: spec.workers for spec in settings.select("all")}
    assert workers == {"lab1": 4, "lab2": 3, "lab3": None}


def test_workers_of_the_file_stand_unless_counted(read):
    settings = read("hosts: {lab1: {workers: 4}}\ngroups: {g: [lab1]}\n")
    for names, workers in ((None, 4), ("lab1", 4), ("g", 4), ("lab1,lab1", 2), ("g*3", 3)):
        assert settings.select(names)[0].workers == workers, names


def test_hosts_may_be_a_list(read):
    assert [s.label for s in read("hosts: [a, b*2]\n").select()] == ["a", "b"]
    assert [s.label for s in read("hosts: a, b\n").select()] == ["a", "b"]


def test_empty_file_means_this_machine(read):
    assert read("").select()[0].transport == "local"


def test_user_on_the_command_line_wins_and_changes_the_label(read):
    settings = read("hosts: {lab1: {user: me, port: 22, workers: 3}}\ngroups: {g: [lab1]}\n")
    (spec,) = settings.select("you@lab1:2200")
    assert (spec.label, spec.name, spec.user, spec.port) == ("you@lab1:2200", "lab1", "you", 2200)
    (spec,) = settings.select("you@g")
    assert (spec.label, spec.user) == ("you@lab1", "you")


def test_key_and_ssh_config_are_relative_to_the_file(read, tmp_path):
    (spec,) = read("hosts: {lab1: {key: keys/id, ssh_config: /etc/c}}\n").select()
    assert (spec.key, spec.ssh_config) == (str(tmp_path / "keys/id"), "/etc/c")


def test_environment_stands_between_host_and_defaults(read):
    environ = {"JAM_USER": "env", "JAM_PASSWORD": "secret", "JAM_TRANSPORT": "openssh"}
    text = "defaults: {user: all}\nhosts:\n  a:\n  b: {user: me, transport: fabric}\n"
    a, b = read(text, environ).select()
    assert (a.user, a.transport, a.password) == ("env", "openssh", "secret")
    assert (b.user, b.transport, b.password) == ("me", "fabric", "secret")
    assert "secret" not in repr(a)


def test_old_names_of_the_environment():
    environ = {"QJAM_USER": "q", "QJAM_PASSWD": "p", "QJAM_REMOTE_PYTHON": "/py"}
    (spec,) = plain(**environ).select("lab1")
    assert (spec.user, spec.password, spec.python) == ("q", "p", "/py")
    (spec,) = plain(**environ, JAM_USER="new").select("lab1")
    assert spec.user == "new"


def test_bad_transport_in_the_environment():
    with pytest.raises(SettingsError, match="JAM_TRANSPORT"):
        plain(JAM_TRANSPORT="telnet")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("hosts: {}\nhots: {}\n", ":2: unknown key 'hots'.*did you mean 'hosts'"),
        (
            "hosts: {}\nssh_config: x\n",
            ":2: unknown key 'ssh_config' at the top.*`defaults:` or a host$",
        ),
        ("name: x\n", ":1: unknown key 'name' at the top.*below a host$"),
        ("hosts:\n  a:\n    wrokers: 3\n", ":3: unknown key 'wrokers' in a.*'workers'"),
        ("hosts:\n  a:\n  b:\n  a: {workers: 2}\n", ":4: a stands twice in hosts, first on line 2"),
        ("hosts:\n  a:\n  me@a:\n", ":3: host a stands twice, first on line 2"),
        ("hosts:\n- a\n- a*2\n", ":3: host a stands twice"),
        ("hosts:\n  a: {workers: many}\n", ":2: a.workers must be a number"),
        ("hosts:\n  a: {workers: 0}\n", ":2: a.workers must be a number, 1 to 4096"),
        ("hosts:\n  a: {port: 22.5}\n", ":2: a.port must be a number"),
        ("hosts:\n  a: {transport: telnet}\n", ":2: a.transport must be one of fabric"),
        ("hosts:\n  a: {keep: maybe}\n", ":2: a.keep must be true or false"),
        ("hosts:\n  a: {env: [1]}\n", ":2: a.env must be a mapping"),
        ("hosts:\n  a: {password: x}\n", ":2: a: no password here.*JAM_PASSWORD"),
        ("hosts:\n  a: [1]\n", ":2: a must be a mapping"),
        ("hosts:\n  a*2: {workers: 3}\n", ":2: a.2: workers is 3 below and 2"),
        ("hosts:\n  2001:db8::1 : {}\n", ":2: .*brackets"),
        ("defaults:\n  name: x\n", ":2: unknown key 'name' in defaults"),
        ("groups:\n  g: {a: 1}\n", ":2: groups.g must be a list of hosts"),
        ("groups:\n  g: [a, 'b c']\n", ":2: 'b c' is not a host"),
        ("hosts: [a]\ngroups:\n  a: [b]\n", ":3: a is a host and a group"),
        ("dead_after: soon\n", ":1: dead_after must be a number"),
        ("hosts: [a\n", ":2: not YAML"),
        ("- a\n", ":1: hosts.yaml must be a mapping"),
        ("hosts: *x\n", "not YAML"),
    ],
)
def test_errors_name_file_line_and_key(read, text, complaint):
    with pytest.raises(SettingsError, match=f"(?s)hosts.yaml{complaint}" if complaint[0] == ":"
                       else complaint):  # fmt: skip
        read(text)


def test_groups_that_contain_themselves(read):
    settings = read("groups: {a: [b], b: [c, a]}\n")
    with pytest.raises(SettingsError, match="a > b > a"):
        settings.select("a")


def test_which_file(tmp_path):
    def found(*files, **options):
        for name in files:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"hosts: [{path.parent.name}-{path.stem}]\n")
        environ = {"HOME": str(tmp_path / "home"), **options.pop("environ", {})}
        return load(environ=environ, cwd=tmp_path / "here", **options).select()[0].label

    (tmp_path / "here").mkdir()
    assert found() == "localhost"
    assert found("home/.config/jam/hosts.yaml") == "jam-hosts"
    assert found("here/hosts.yaml") == "here-hosts"
    assert found("here/env.yaml", environ={"JAM_HOSTS_FILE": "env.yaml"}) == "here-env"
    named = {"JAM_HOSTS_FILE": "env.yaml"}
    assert found("here/given.yaml", environ=named, hosts_file="given.yaml") == "here-given"
    assert found("home/h.yaml", hosts_file="~/h.yaml") == "home-h"


def test_a_file_that_is_named_must_exist(tmp_path):
    with pytest.raises(SettingsError, match=r"(?s)none.yaml: no such file.*--hosts-file"):
        load("none.yaml", environ={}, cwd=tmp_path)
    with pytest.raises(SettingsError, match="JAM_HOSTS_FILE"):
        load(environ={"JAM_HOSTS_FILE": "none.yaml"}, cwd=tmp_path)


def test_remote_conf_of_fjd(read):
    text = "[host1]\nname: localhost\nworkers: 3\n[host2]\nname: me@lab2\n"
    here, lab2 = read(text, name="remote.conf").select()
    assert (here.name, here.workers, here.transport) == ("localhost", 3, "local")
    assert (lab2.name, lab2.user, lab2.workers) == ("lab2", "me", None)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[host1]\nworkers: 3\n", "no name"),
        ("[host1]\nname: a\nworkers: x\n", "workers must be"),
        ("[host1]\nname: a\nworker: 1\n", "unknown key 'worker'"),
        ("[host1]\nname: a\n[host2]\nname: a\n", "twice"),
        ("name: a\n", "section"),
    ],
)
def test_bad_remote_conf(read, text, complaint):
    with pytest.raises(SettingsError, match=rf"remote.conf.*{complaint}"):
        read(text, name="remote.conf")


@pytest.mark.parametrize("names", [5, [5], ["a", None], [["a"]], {1: 2}])
def test_neither_a_name_nor_a_spec_is_refused(names):
    with pytest.raises(SettingsError, match=r"^(5|None|\['a'\]|1) is no host\n  give names"):
        plain().select(names)


def test_one_host_need_not_be_in_a_list():
    assert plain().select(HostSpec("a")) == plain().select([HostSpec("a")])


def test_records_are_frozen():
    for record in (HostSpec("a"), Settings()):
        with pytest.raises(AttributeError):
            record.name = "b"


@pytest.mark.parametrize(
    ("python", "version", "other"),
    [
        (None, "3.11.2", False),
        ("3.9", "3.9.18", False),
        ("3.9", "3.8.18", True),
        ("3.1", "3.11.2", True),
        ("/opt/bin/python3.11", "3.11.2", False),
        ("/opt/bin/python3.11", "3.12.1", True),
        ("pypy3.9", "3.9.16", False),
        ("/opt/python3.8/bin/python3", "3.12.1", False),  # it may be any
    ],
)
def test_an_interpreter_that_was_not_asked_for(python, version, other):
    assert HostSpec("lab1", python=python).is_other_python(version) == other
