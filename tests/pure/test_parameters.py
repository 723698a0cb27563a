"""Parameters of jobs: words, lines, grids, repeats, time limits."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jamtasks import parameters
from jamtasks.errors import UsageError
from jamtasks.parameters import Parameters


def rows(found: Parameters) -> list[list[str]]:
    return list(found.rows)


def test_the_words_of_the_command_line():
    assert rows(parameters.from_text("a,b,c")) == [["a"], ["b"], ["c"]]
    assert rows(parameters.from_text("1#x,2#y z")) == [["1", "x"], ["2", "y z"]]
    assert rows(parameters.from_text("a,,b")) == [["a"], [""], ["b"]]


def test_values_of_a_program():
    given = ["a", 2, ("b", 0.5), b"caf\xe9", ["x,y", "#"]]
    assert rows(parameters.from_values(given)) == [
        ["a"], ["2"], ["b", "0.5"], ["caf\udce9"], ["x,y", "#"],
    ]  # fmt: skip


def test_lines_are_jobs_and_empty_lines_are_none():
    lines = ["a b\n", "\n", "c\td\n", "last"]
    assert rows(parameters.from_lines(lines)) == [["a b"], ["c\td"], ["last"]]
    assert rows(parameters.from_lines(lines, "\t")) == [["a b"], ["c", "d"], ["last"]]
    assert rows(parameters.from_lines(["a, b,c\r\n"], r",\s*")) == [["a", "b", "c"]]
    with pytest.raises(UsageError, match="regular expression"):
        parameters.from_lines([], "(")


def test_lines_are_read_as_they_are_needed():
    endless = (f"{number}\n" for number in itertools.count())
    assert list(itertools.islice(parameters.from_lines(endless).rows, 2)) == [["0"], ["1"]]


def test_a_grid_is_a_product_whose_last_axis_changes_fastest():
    found = parameters.grid(["lr=0.1,0.01", "seed=0..2"])
    assert found.names == ("lr", "seed")
    assert rows(found) == [
        ["0.1", "0"], ["0.1", "1"], ["0.1", "2"],
        ["0.01", "0"], ["0.01", "1"], ["0.01", "2"],
    ]  # fmt: skip


def test_ranges_in_a_grid():
    assert rows(parameters.grid(["n=1..3,7,10..0..-5"])) == [
        ["1"], ["2"], ["3"], ["7"], ["10"], ["5"], ["0"],
    ]  # fmt: skip
    assert rows(parameters.grid(["n=08..11"])) == [["08"], ["09"], ["10"], ["11"]]
    assert rows(parameters.grid(["n=-1..1"])) == [["-1"], ["0"], ["1"]]
    assert rows(parameters.grid(["file=a..b,../c"])) == [["a..b"], ["../c"]]


def test_a_grid_of_a_program():
    found = parameters.grid({"lr": [0.1, 1], "name": "a,b", "k": 3})
    assert found.names == ("lr", "name", "k")
    assert rows(found)[:2] == [["0.1", "a", "3"], ["0.1", "b", "3"]]
    assert len(rows(parameters.grid({"lr": (0.1, 1)}, repeat=3))) == 6


def test_repeats():
    assert rows(parameters.one()) == [[]]
    assert rows(parameters.times(parameters.one(), 3)) == [[], [], []]
    assert rows(parameters.times(parameters.from_text("a,b"), 2)) == [["a"], ["a"], ["b"], ["b"]]


@pytest.mark.parametrize(
    "axes", [["lr"], ["lr="], [], ["a=1", "a=2"], ["a b=1"], ["n=1..9..0"], {"x": []}, ["1=2"]]
)
def test_grids_that_cannot_be(axes):
    with pytest.raises(UsageError):
        rows(parameters.grid(axes))


@pytest.mark.parametrize(
    "make", [lambda: parameters.times(parameters.one(), 0), lambda: parameters.grid(["a=1"], 0)]
)
def test_repeats_that_cannot_be(make):
    with pytest.raises(UsageError, match="1 or more"):
        make()


def test_a_row_that_lacks_what_the_command_asks_for():
    some = parameters.from_text("a#b,c")
    assert list(parameters.checked(["cp", "{1}"], some)) == [["a", "b"], ["c"]]
    for words in (["cp", "{1}", "{2}"], ["cp", "$2"], ["cp", "{2/.}"]):
        with pytest.raises(UsageError, match="job 2 has 1 of the 2 parameters"):
            list(parameters.checked(words, some))


def test_a_command_without_parameters_keeps_its_braces_and_dollars():
    words = ["awk", "{print $3}", "{}"]
    assert list(parameters.checked(words, parameters.times(parameters.one(), 2))) == [[], []]


def test_dollars_of_a_shell_text_are_its_own():
    assert list(parameters.checked(["echo $2"], parameters.from_text("a"), shell=True)) == [["a"]]
    with pytest.raises(UsageError, match="2 parameters"):
        list(parameters.checked(["echo {2}"], parameters.from_text("a"), shell=True))


def test_a_slip_in_a_name_of_the_grid_is_found():
    found = parameters.grid(["seed=1", "lr=2"])
    assert list(parameters.checked(["awk", "{print}", "{seed}"], found)) == [["1", "2"]]
    with pytest.raises(UsageError, match=r"did you mean .seed") as caught:
        list(parameters.checked(["run", "{sed}"], found))
    assert caught.value.exit_code == 2


def test_no_word_can_hold_nul():
    with pytest.raises(UsageError, match="NUL"):
        list(parameters.checked(["echo"], parameters.from_values(["a\0b"])))


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (None, (0, 0)), (90, (90, 0)), (0.5, (0.5, 0)), ("90", (90, 0)), ("10m", (600, 0)),
        ("1d3.5h16.6m4s", (100000, 0)), ("300%", (0, 300)), ("1.5H", (5400, 0)),
        ("2m30s", (150, 0)),
    ],
)  # fmt: skip
def test_time_limits_as_gnu_parallel_writes_them(given, answer):
    assert parameters.timeout(given) == pytest.approx(answer)


@pytest.mark.parametrize("given", ["", "soon", "0", 0, "-1", "1m30", "%", "0%", "1x", "1e3"])
def test_time_limits_that_cannot_be(given):
    with pytest.raises(UsageError, match="timeout"):
        parameters.timeout(given)


@given(st.integers(1, 3_000_000))
def test_pods_are_about_a_thousand_and_none_is_large(jobs):
    size = parameters.pod_size(jobs)
    assert 1 <= size <= 1000
    assert jobs / size < 2048 or size == 1000
