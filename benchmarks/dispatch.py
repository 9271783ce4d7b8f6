"""Regenerates the dispatch table: `python -m benchmarks.dispatch RESULTS_DIR...` reads rows.json of each.

For every device, mode, op, width and number of rows that was timed: the backend that costs least, but a kernel only
where it beats the reference by 3 %. Eager, a call costs its time on the GPU or the host's time to enqueue it,
whichever is longer; compiled, the host's time is gone and the reference is what torch.compile makes of it. Forward and
backward together decide where both exist: the table is for training. A number of rows between two that were timed takes
the nearer one's backend, on a logarithmic scale. Devices that are not in the results keep their entries.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from muomni_kernels import dispatch, registry

Row = dict[str, Any]
MARGIN = 0.97
"""A kernel's cost is at most this share of the reference's."""


def costs(rows: list[Row], mode: str) -> dict[str, float]:
    """Microseconds a call of every backend at one shape, from the rows of its deciding pass."""
    backends = {row.name for row in registry.backends(rows[0]["op"])}
    found: dict[str, float] = {}
    for row in rows:
        name = row["contender"]
        if mode == "compiled" and name == "compile":
            name = "reference"
        if name in backends:
            host = (row.get("us_host") or 0.0) if mode == "eager" else 0.0
            cost = max(row["p50"], host)
            found[name] = min(cost, found.get(name, math.inf))
    return found


def best(found: dict[str, float]) -> str:
    """The cheapest backend, or the reference where nothing beats it by the margin."""
    name = min(found, key=lambda key: found[key])
    if "reference" in found and found[name] > MARGIN * found["reference"]:
        return "reference"
    return name


def agreed(rows: list[Row], mode: str, *, faulty: bool) -> str | None:
    """The backend for calls of one width and number of rows; None where nothing was compared.

    The table cannot tell the variants of a shape apart (a mode, causal or not): a kernel must win in every one.
    """
    variants: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        variants[row["variant"]].append(row)
    # With one backend timed nothing was compared, unless the other was found wrong.
    compared = [
        found for some in variants.values() if len(found := costs(some, mode)) > 1 or (faulty and found)
    ]
    chosen = {best(found) for found in compared}
    if not chosen or "reference" in chosen:
        return "reference" if chosen else None
    return min(chosen, key=lambda name: sum(found.get(name, math.inf) for found in compared))


def steps(choices: dict[int, str]) -> list[list[Any]]:
    """Backends by rows timed -> [largest rows or None, backend], neighbours of one backend joined."""
    counts = sorted(choices)
    found: list[list[Any]] = []
    for rows, following in zip(counts, [*counts[1:], None], strict=True):
        limit = None if following is None else math.isqrt(max(1, rows) * following)
        if found and found[-1][1] == choices[rows]:
            found[-1][0] = limit
        else:
            found.append([limit, choices[rows]])
    return found


def table(rows: list[Row], source: str) -> dict[str, Any]:
    """The "devices" of a dispatch file from the rows of one or more runs."""
    registry.load()
    shapes: dict[tuple[str, str, int, int], list[Row]] = defaultdict(list)
    faulty: set[tuple[str, str, int, int]] = set()
    half = {row["op"] for row in rows if row["dtype"] == "bfloat16"}
    for row in rows:
        # Training is in bf16; an op that is timed in fp32 alone has no such rows.
        if row["op"] not in registry.ops() or (row["op"] in half and row["dtype"] != "bfloat16"):
            continue
        place = (row["capability"], row["op"], row["width"], row["rows"])
        if row["status"] == "ok":
            shapes[place].append(row)
        elif row["status"].startswith("wrong") and any(
            b.name == row["contender"] for b in registry.backends(row["op"])
        ):
            faulty.add(place)
    devices: dict[str, Any] = {}
    for mode in dispatch.MODES:
        choices: dict[tuple[str, str, int], dict[int, str]] = defaultdict(dict)
        for place, timed in shapes.items():
            key, op, width, n_rows = place
            stage = "both" if any(row["pass"] == "both" for row in timed) else "forward"
            deciding = [row for row in timed if row["pass"] == stage]
            choice = agreed(deciding, mode, faulty=place in faulty)
            if choice is not None:
                choices[key, op, width][n_rows] = choice
        for (key, op, width), by_rows in sorted(choices.items()):
            device = devices.setdefault(key, {"source": source})
            device.setdefault(mode, {}).setdefault(op, {})[str(width)] = steps(by_rows)
    return devices


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dispatch", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="folders with a rows.json")
    parser.add_argument("--table", type=Path, default=dispatch.PATH, help="the file to rewrite")
    arguments = parser.parse_args(argv)
    rows: list[Row] = []
    for folder in arguments.results:
        rows += json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    if any(row.get("capability") == "cpu" for row in rows):
        print("these rows are of a CPU smoke run: nothing in them decides")
        return 1
    source = ", ".join(f"{folder.parent.name}/{folder.name}" for folder in arguments.results)
    old = json.loads(arguments.table.read_text(encoding="utf-8")) if arguments.table.exists() else {}
    devices = {**old.get("devices", {}), **table(rows, source)}
    text = json.dumps({"version": dispatch.VERSION, "devices": devices}, indent=2, sort_keys=True) + "\n"
    dispatch.parse(text, name=str(arguments.table))
    arguments.table.write_text(text, encoding="utf-8")
    named = ", ".join(f"{key} ({len(device.get('eager', {}))} ops)" for key, device in devices.items())
    print(f"{arguments.table}: {named}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
