"""`muomni speedrun`. As in cli.py, it imports what it needs when it runs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from muomni.errors import UserError


def speedrun(
    *,
    size: str = "nano",
    minutes: float = 30.0,
    data: str | None = None,
    run: Annotated[Path | None, arg(help="Directory of the run; default: runs/speedrun-SIZE.")] = None,
    seed: int = 0,
    threads: int | None = None,
    evaluate: bool = True,
    check: bool = False,
    json_: Annotated[bool, arg(name="json", help="Print the record as JSON.")] = False,
) -> None:
    """Train every part from nothing within some minutes on this machine, then measure it on held-out items.

    Each stage gets a share of the minutes and as many steps as fit, judged by timing some. An interrupted one
    goes on with the same steps when it is called again.

    Args:
        size: nano, tiny or base.
        minutes: In all, evaluation included.
        data: embedded, small, full, or prepared sets with commas between; default: nano embedded, others full.
        seed: Seed of the whole run.
        threads: Of the processor; default: what PyTorch takes, one fewer where a process makes batches beside.
        evaluate: Measure held-out figures at the end.
        check: Exit 1 unless every figure beats its baseline by the size's stated margin.
    """
    # Loading PyTorch is a part of the minutes.
    began = time.perf_counter()
    if not minutes > 0:
        raise UserError(f"speedrun: minutes: expected more than 0, got {minutes:g}.")
    if threads is not None and threads < 1:
        raise UserError(f"speedrun: threads: expected at least 1, got {threads}.")
    if check and not evaluate:
        raise UserError("speedrun: --check needs the figures; leave out --no-evaluate.")
    from muomni.evaluate import margins
    from muomni.recipes import model

    if check and model(size).size not in margins.SPEEDRUNS:
        raise UserError(f"speedrun: --check: no margins are stated for size {size}; leave it out.")
    from rich.console import Console

    from muomni.speedrun import run_speedrun
    from muomni.speedrun_record import record_line, record_name

    root = run or Path("runs", f"speedrun-{size}")
    console = Console(highlight=False, soft_wrap=True, stderr=json_)
    record = run_speedrun(
        root,
        size=size,
        minutes=minutes,
        data=data,
        seed=seed,
        threads=threads,
        evaluate=evaluate,
        console=console,
        began=began,
    )
    judged, failed = margins.judge(record["figures"], margins.SPEEDRUNS[size] if check else {})
    for line in failed:
        print(f"below its margin: {line}", file=sys.stderr)
    if json_:
        print(json.dumps(record, indent=2))
    else:
        for row in judged:
            print(
                f"{row['what']:<58} {row['value']:8.3f}   {row['baseline']:8.3f} {row['baseline_name']}   n={row['n']}"
            )
        over = "" if record["within"] else ", more than it was given"
        print(f"{record['seconds'] / 60:.1f} of {minutes:g} minutes{over}")
        if evaluate:
            print(
                f"{root / 'record.json'}, as docs/speedrun/{record_name(record)} it is this row of docs/speedrun.md:"
            )
            print(record_line(record))
    if failed:
        sys.exit(1)
