"""Map calls under way, as `presence.running` tells of them, for people. Strings only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .report import clean, counted, duration, table

LONGEST = 10  # slices shown: those that are waited for longest


def calls(found: Sequence[Mapping[str, Any]], now: float, width: int | None = None) -> str:
    """What each call is about, how far it is, and what each slice that is out waits for.

    now: seconds since the epoch."""
    return "\n\n".join(_call(one, now, width) for one in found)


def _call(one: Mapping[str, Any], now: float, width: int | None) -> str:
    parts = [f"{one['done']} of {counted(one['slices'], 'slice')} done"]
    parts += [f"{one[word]} {word}" for word in ("failed", "retried") if one[word]]
    lines = [
        f"Map call {clean(one['module'])} of process {one['pid']}, for "
        f"{duration(max(0.0, now - one['began']))}: {', '.join(parts)}"
    ]
    if one["fold"]:
        fold = one["fold"]
        lines.append(
            f"fold waits for slice {fold['slice']} on {fold['host']}, {duration(fold['seconds'])}"
        )
    if one["homeless"]:
        lines.append(f"{counted(one['homeless'], 'slice')} for which no host is left")
    out: dict[str, int] = {}
    for item in one["waiting"]:
        out[item["host"]] = out.get(item["host"], 0) + 1
    hosts = [
        (
            host["name"],
            host["state"],
            str(host["workers"]),
            str(host["tasks"]),
            str(out.get(host["name"], 0)),
            str(one["queued"].get(host["name"], 0)),
            host["note"],
        )
        for host in one["hosts"]
    ]
    columns = "host state workers done out queued note".split()
    lines.append(table(columns, hosts, right=columns[2:6], width=width))
    slices = [
        (str(item["slice"]), item["host"], duration(item["seconds"]), item["for"])
        for item in one["waiting"][:LONGEST]
    ]
    if slices:
        lines.append("")
        columns = ["slice", "host", "since", "waits for"]
        lines.append(table(columns, slices, right=("slice", "since"), width=width))
    more = len(one["waiting"]) - len(slices) + one["more"]
    if more:
        lines.append(f"and {counted(more, 'slice')} more")
    return "\n".join(lines)
