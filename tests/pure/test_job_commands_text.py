"""What a job's command becomes: words for exec, texts for sh, and what people see of them."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker_payload.jobs.commands import expand, fill, highest, placeholders, shown, text
from worker_payload.jobs.lines import Plan

ODD = "a b'c\"d$(touch /tmp/x)`id`;e\n*\\é"


def words(command, *params, names=(), number=7):
    return expand(Plan("s", words=tuple(command.split()), names=names), params, number)


@pytest.mark.parametrize(
    ("command", "params", "argv"),
    [
        ("gzip -k $1", ["a b"], "gzip|-k|a b"),
        ("gzip -k {}", ["a b"], "gzip|-k|a b"),
        ("gzip -k", ["a b"], "gzip|-k|a b"),
        ("cp", ["a", "b"], "cp|a|b"),
        ("cp {} /x", ["a", "b c"], "cp|a|b c|/x"),
        ("cp in-{} /x", ["a", "b"], "cp|in-a b|/x"),
        ("run {2} {1} {#}", ["a", "b"], "run|b|a|7"),
        ("run --n={#}", [], "run|--n=7"),
        ("run $2$1", ["a", "b"], "run|ba"),
        ("run $10", list("abcdefghij"), "run|j"),
        ("run {3}", ["a"], "run|"),
        ("run {} $1", [], "run|{}|$1"),
        ("find {print} {1,2} ${1} x", ["a"], "find|{print}|{1,2}|$a|x"),
        ("c {} {.} {/} {//} {/.}", ["/d.x/f.tar.gz"],
         "c|/d.x/f.tar.gz|/d.x/f.tar|f.tar.gz|/d.x|f.tar"),
        ("c {.} {//} {1.}", ["f.d/name"], "c|f.d/name|f.d|f.d/name"),
        ("c {//} {/}", ["name"], "c|.|name"),
        ("c {//}", ["/name"], "c|/"),
        ("c {2/.}", ["x", "d/f.c"], "c|f"),
    ],
)  # fmt: skip
def test_words(command, params, argv):
    assert "|".join(words(command, *params)) == argv


def test_names():
    found = words("./train --lr={lr} {seed.} {l}", "0.1", "a.b", "z", names=("lr", "seed", "l"))
    assert found == ("./train", "--lr=0.1", "a", "z")
    assert words("x {a.b} {a}", "1", "2", names=("a", "a.b")) == ("x", "2", "1")


def test_a_parameter_is_never_split_and_is_not_read_again():
    for odd in (ODD, "{}", "$1", "{2}", "", " "):
        assert words("run {1} x{2}x", odd, odd) == ("run", odd, f"x{odd}x")


def test_a_dropped_job_gets_its_file():
    plan = Plan("s", words=("/bin/prog", "{}", "$1"), kind="drop", name="6a")
    assert expand(plan, [], 1, "/home/j/x y") == ("/bin/prog", "{}", "$1", "/home/j/x y")


def test_what_a_command_asks_for():
    assert placeholders(["a{}b", "{lr}", "$2", "{x}", "{#}"], ["lr"]) == ["{}", "{lr}", "$2", "{#}"]
    assert highest(["{2.}", "$3"]) == 3
    assert highest(["{lr}", "{}"], ["a", "lr"]) == 2
    assert highest(["{}"]) == 0


def run_sh(line, *params, names=(), number=7):
    argv = expand(Plan("s", words=(line,), shell=True, names=names), params, number)
    assert argv[:2] == ("/bin/sh", "-c")
    return subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout.decode()


@pytest.mark.parametrize(
    ("line", "params", "printed"),
    [
        ("printf '<%s>' {}", ["a b"], "<a b>"),
        ("printf '<%s>'", ["a b", "c"], "<a b><c>"),
        ("printf '<%s>' \"$2\" $#", ["a", "b  c"], "<b  c><2>"),
        ("printf '<%s>' {}", ["a b", "c"], "<a b><c>"),
        ("printf '<%s>' \"x {} y\"", ["a  b"], "<x a  b y>"),
        ("printf '<%s>' 'x {} y'", ["a  b"], "<x a  b y>"),
        ("printf '<%s>' 'it'\\''s {}' \\'{}", ["a  b"], "<it's a  b><'a  b>"),
        ("printf '<%s>' \"$(printf %s {})\" {#}", ["a  b"], "<a  b><7>"),
        ("printf '<%s>' {.}.png {/} \"{//}\"", ["d d/x y.jpg"], "<d d/x y.png><x y.jpg><d d>"),
        ("printf '<%s>' {#}", [], "<7>"),
        ("for i in 1 2; do printf '<%s>' $i{}; done", ["a"], "<1a><2a>"),
    ],
)
def test_shell(line, params, printed):
    assert run_sh(line, *params) == printed


@pytest.mark.parametrize(
    "line",
    [
        "printf %s {}", 'printf %s "{}"', "printf %s '{}'", 'printf %s "$(printf %s {})"',
        "# it's\nprintf %s {}", "printf %s `printf %s {}`", "cat <<E\nit's {}\nE\n",
        'printf %s "$(case a in a) printf %s {};; esac)"', "printf %s {.} {/} {1.}",
    ],
)  # fmt: skip
def test_nothing_in_a_parameter_runs(line, tmp_path):
    mark = tmp_path / "mark"
    touch = f"touch {mark}"
    for evil in (f"$({touch})", f"`{touch}`", f"; {touch};", f"'; {touch};'", f'"; {touch};"',
                 f"\n {touch}\n", f"'\"$({touch}.x)\"'"):  # fmt: skip
        argv = expand(Plan("s", words=(line,), shell=True), [evil], 1)
        subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        assert not list(tmp_path.iterdir()), argv


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=3)
)
def test_sh_prints_any_parameters(params):
    if params:
        assert run_sh("printf '<%s>' {}", *params) == "".join(f"<{param}>" for param in params)


def test_people_see_the_values():
    plan = Plan("s", words=("gzip {} > '{.}.gz'; $2",), shell=True)
    assert shown(plan, ["a b.c", "d"], 1) == "gzip 'a b.c' d > ''a b' d.gz'; d"
    assert shown(Plan("s", words=("gzip",), shell=True), ["a b"], 1) == "gzip 'a b'"
    assert shown(Plan("s", words=("gzip", "{}")), ["a b"], 1) == "gzip 'a b'"
    assert text(["a", "b c", ""]) == "a 'b c' ''"
    assert fill(plan, "logs/{/.}-{#}.log", ["a b.c"], 3) == "logs/a b-3.log"
