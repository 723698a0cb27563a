"""Records to text and JSON: what a person and a program see of a run."""

import doctest
import json
import re

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jamtasks import report
from jamtasks.report import (
    BootstrapReport,
    BootstrapRow,
    FailedSlice,
    FireReport,
    FireRow,
    HostReport,
    RunReport,
)


def host(name="lab1", state="up", tasks=8, note=""):
    return HostReport(name, state, 3, "3.11.7", "2.4.6", tasks, 1000, 2000, note)


def run(*hosts, **changes):
    values = {
        "slices": 16,
        "workers": 6,
        "hosts": hosts or (host("lab1"), host("lab2")),
        "seconds": 0.314,
        "bytes_sent": 2_100_000,
        "bytes_cached": 6_000_000,
        "retried": 0,
    }
    return RunReport(**{**values, **changes})


def test_doctests():
    failed, attempted = doctest.testmod(report)
    assert attempted and not failed


def test_summary_is_one_line_with_human_units():
    assert report.summary(run()) == (
        "16 slices on 2 hosts (6 workers) in 0.31 s; 2.1 MB sent, 6.0 MB already there, 0 retried"
    )


def test_summary_counts_one_of_each_and_leaves_out_hosts_that_never_answered():
    text = report.summary(run(host(), host("b", "unreachable", 0), slices=1, workers=1))
    assert text.startswith("1 slice on 1 host (1 worker) in ")


def test_summary_counts_a_lost_host_that_answered_and_says_what_failed():
    failed = (FailedSlice(3, "lab1", "ValueError", "bad"),)
    text = report.summary(run(host(), host("b", "lost", 4), failed=failed))
    assert "on 2 hosts" in text
    assert text.endswith("0 retried, 1 failed")


def test_notes_name_hosts_that_are_not_well_with_the_reason_once():
    notes = report.run_notes(
        run(
            host("a", "unreachable", 0, "a: Connection refused"),
            host("b"),
            host("c", note="store on disk"),
            host("d", "lost", 4, "silent for 10 s"),
            notes=("slice 0 was run twice", "d was lost: silent for 10 s"),
        )
    )
    assert notes == [
        "a (unreachable): Connection refused",
        "c: store on disk",
        "slice 0 was run twice",
        "d was lost: silent for 10 s",
    ]


def test_failures_are_grouped_by_error_with_one_traceback():
    failed = [FailedSlice(i, f"lab{i % 2}", "ValueError", "bad", f"tb {i}\n") for i in range(12)]
    failed.append(FailedSlice(12, "lab1", "KeyError", ""))
    assert report.failures(failed) == [
        "slices 0, 1, 2, 3, 4, 5, 6, 7 and 4 more on lab0, lab1: ValueError: bad",
        "slice 12 on lab1: KeyError",
        "slice 0 on lab0, in full:",
        "  tb 0",
    ]


def test_json_of_a_run_has_exactly_the_documented_keys():
    value = json.loads(report.dumps(run().json({"sum": 1})))
    assert list(value) == (
        "result slices workers seconds bytes_sent bytes_cached retried hosts".split()
    )
    assert list(value["hosts"][0]) == (
        "name state workers python numpy tasks bytes_sent bytes_cached note".split()
    )
    assert value["result"] == {"sum": 1}


def test_json_of_a_run_with_failures_lists_them():
    value = run(failed=(FailedSlice(3, "lab1", "ValueError", "bad"),)).json(None)
    assert value["failed"] == [
        {"slice": 3, "host": "lab1", "type": "ValueError", "message": "bad", "traceback": ""}
    ]


BOOTSTRAP = BootstrapReport(
    (
        BootstrapRow("lab1", "up", "3.11.7", "CPython", "2.4.6", 4, 2, "sent", 0.30412345678),
        BootstrapRow("lab2", "up", "3.9.16", "PyPy", "", 4, 4, "present", 0.1),
        BootstrapRow("lab3", "unreachable", note="lab3: [Errno 113] No route\nto \x1b[31mhost"),
    )
)


def test_json_of_bootstrap_has_exactly_the_documented_keys():
    value = json.loads(report.dumps(BOOTSTRAP.json()))
    assert list(value) == ["hosts"]
    assert list(value["hosts"][0]) == (
        "name state python implementation numpy cpus workers payload seconds note".split()
    )


def test_bootstrap_table():
    lines = report.bootstrap_table(BOOTSTRAP).splitlines()
    assert lines[0].split() == "HOST STATE PYTHON NUMPY CPUS WORKERS PAYLOAD SECONDS NOTE".split()
    assert lines[1].split() == "lab1 up 3.11.7 2.4.6 4 2 sent 0.30".split()
    assert lines[2].split() == "lab2 up PyPy 3.9.16 none 4 4 present 0.10".split()
    assert lines[3].split(maxsplit=2) == [
        "lab3",
        "unreachable",
        "lab3: [Errno 113] No route to host",
    ]


def test_columns_without_a_word_are_left_out():
    table = report.bootstrap_table(BootstrapReport((BootstrapRow("a", "unreachable"),)))
    assert table.splitlines()[0].split() == ["HOST", "STATE"]


def test_table_wraps_its_last_column_only_on_a_terminal():
    row = BootstrapRow("a", "unreachable", note="word " * 60)
    wide = report.bootstrap_table(BootstrapReport((row,)))
    narrow = report.bootstrap_table(BootstrapReport((row,)), width=60)
    assert len(wide.splitlines()) == 2
    assert max(map(len, narrow.splitlines())) <= 60


def test_fire_says_that_nothing_is_left():
    fired = FireReport("default", (FireRow("a", 3, 0), FireRow("b", 1, 0)))
    assert report.fire_summary(fired) == ('Ended 4 agents in project "default"; nothing is left.')
    assert fired.json() == {
        "project": "default",
        "hosts": [{"name": "a", "ended": 3, "left": 0}, {"name": "b", "ended": 1, "left": 0}],
    }


def test_fire_never_says_that_nothing_is_left_where_it_could_not_look():
    fired = FireReport("p", (FireRow("a", 1, 0), FireRow("b", None, None, "no route")))
    assert report.fire_summary(fired) == (
        'Ended 1 agent in project "p"; nothing is left on 1 host; not proven for b.'
    )
    assert "not proven" in report.fire_table(fired)
    alone = FireReport("p", (FireRow("b", None, None),))
    assert "nothing is left" not in report.fire_summary(alone)
    assert [row.clean for row in fired.hosts] == [True, False]


def test_fire_says_what_would_not_end():
    fired = FireReport("p", (FireRow("a", 2, 1), FireRow("b", 0, 0)))
    said = report.fire_summary(fired)
    assert said == 'Ended 2 agents in project "p"; 1 of their processes left on a.'


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (numpy.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (numpy.float64(0.5), 0.5),
        (numpy.array([1.0, numpy.nan]), [1.0, "NaN"]),
        (float("-inf"), "-Infinity"),
        (1 + 2j, {"real": 1.0, "imag": 2.0}),
        (numpy.array([1j]), [{"real": 0.0, "imag": 1.0}]),
        (b"\xff", {"base64": "/w=="}),
        ({3, 1, 2}, [1, 2, 3]),
        ({1, "a", None}, [1, None, "a"]),
        ({(1, 2): 3}, [[[1, 2], 3]]),
        ({"a": (1,)}, {"a": [1]}),
        (numpy.datetime64("2020-01-01T00:00:00.000000001"), "2020-01-01T00:00:00.000000001"),
        (numpy.array([(1, 2.5)], dtype="i4,f8"), [[1, 2.5]]),
        (True, True),
        (numpy.bool_(True), True),
        (range(3), [0, 1, 2]),
        (ValueError("x"), "x"),
    ],
)
def test_results_that_json_cannot_hold_get_sensible_forms(value, form):
    assert report.jsonable(value) == form
    json.loads(report.dumps(report.jsonable(value)))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner)
    | st.frozensets(st.integers() | st.text()),
    max_leaves=12,
)  # fmt: skip


@given(anything)
def test_every_result_gives_strict_json(value):
    json.loads(report.dumps(report.jsonable(value)), parse_constant=pytest.fail)


def test_json_keeps_characters_and_escapes_what_is_none():
    assert report.dumps("caf\u00e9 caf\udce9") == '"caf\u00e9 caf\\udce9"'
    assert report.dumps("\u00e9 \U0001f600", ascii=True) == '"\\u00e9 \\ud83d\\ude00"'


@given(st.text(st.characters() | st.characters(categories=["Cs"], max_codepoint=0xDFFF)))
def test_any_text_comes_back_from_json(text):
    # two halves of one character side by side are that character in JSON
    text = re.sub("[\ud800-\udbff](?=[\udc00-\udfff])", "", text)
    for ascii in (False, True):
        written = report.dumps([text, {text: 1}], ascii=ascii)
        assert json.loads(written.encode("ascii" if ascii else "utf-8")) == [text, {text: 1}]


@given(st.text())
def test_clean_leaves_one_line_without_control_characters(text):
    cleaned = report.clean(text)
    assert all(ord(c) >= 32 and not 127 <= ord(c) < 160 for c in cleaned)
    assert len(cleaned.splitlines()) <= 1
