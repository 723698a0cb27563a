"""Map calls under way, as a person sees them."""

from jamtasks import call_report

CALL = {
    "pid": 7, "command": "inv map lines", "module": "lines", "began": 100.0, "slices": 400,
    "done": 8, "failed": 0, "retried": 2, "homeless": 0, "more": 0,
    "fold": {"slice": 0, "host": "lab1", "seconds": 37.0, "for": "its map function"},
    "waiting": [
        {"slice": 0, "host": "lab1", "seconds": 37.0, "for": "its map function"},
        {"slice": 9, "host": "lab1", "seconds": 1.5, "for": "its data, or a free worker"},
    ],
    "queued": {"lab1": 390},
    "hosts": [
        {"name": "lab1", "state": "up", "workers": 1, "tasks": 8, "note": ""},
        {"name": "lab2", "state": "lost", "workers": 4, "tasks": 0, "note": "silent for 10 s"},
    ],
}  # fmt: skip


def test_a_call_is_shown_with_what_its_slices_wait_for():
    assert call_report.calls([CALL], 137.0).splitlines() == [
        "Map call lines of process 7, for 37.0 s: 8 of 400 slices done, 2 retried",
        "fold waits for slice 0 on lab1, 37.0 s",
        "HOST  STATE  WORKERS  DONE  OUT  QUEUED  NOTE",
        "lab1  up           1     8    2     390",
        "lab2  lost         4     0    0       0  silent for 10 s",
        "",
        "SLICE  HOST   SINCE  WAITS FOR",
        "    0  lab1  37.0 s  its map function",
        "    9  lab1  1.50 s  its data, or a free worker",
    ]


def test_long_lists_are_cut_and_counted():
    waiting = [{**CALL["waiting"][0], "slice": n} for n in range(200)]
    text = call_report.calls([{**CALL, "waiting": waiting, "more": 40, "homeless": 1}], 137.0)
    assert text.endswith("and 230 slices more")
    assert "1 slice for which no host is left" in text


def test_no_calls_are_no_text():
    assert call_report.calls([], 0.0) == ""
