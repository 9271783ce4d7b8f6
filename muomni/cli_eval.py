"""`muomni eval`: all, speech. As in cli.py, a verb imports what it needs when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from muomni.errors import UserError

Json = Annotated[bool, arg(name="json", help="Print JSON.")]
HeldOut = Annotated[Literal["validation", "test"], arg(help="Which held-out items.")]

eval_app = tyro.extras.SubcommandApp()


@eval_app.command(name="all")
def all_(
    *,
    run: Annotated[Path, arg(help="Directory of the trained stages.")] = Path("out/demo/model"),
    split: HeldOut = "test",
    json_: Json = False,
) -> None:
    """Held-out figures of every stage, each with its trivial baseline, n and interval."""
    from muomni.evaluate.run import evaluate as measure

    rows = measure(run, split=split)["figures"]
    if json_:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(
            f"{row['what']:<58} {row['value']:8.3f}   {row['baseline']:8.3f} {row['baseline_name']}   n={row['n']}"
        )


@eval_app.command
def speech(
    run: Positional[Path],
    *,
    data: str | None = None,
    split: HeldOut = "test",
    n: int = 80,
    seeds: tuple[int, ...] = (0,),
    judges: str = "whisper,mos,speaker",
    threads: int = 1,
    shown: int = 6,
    out: Path = Path("out/speech"),
    cache: Path | None = None,
    json_: Json = False,
) -> None:
    """Independent judges of a run's speech: recordings, vocoder, codec and Talker. Needs muomni[eval].

    Writes speech.json and speech.html, which plays what was judged.

    Args:
        run: Directory of the trained stages.
        data: embedded, or prepared sets with commas between; default: what the codec was trained on.
        n: Held-out recordings of 3 to 30 words, evenly of each speaker.
        seeds: Seeds of the Talker; each sentence is said once a seed.
        judges: Some of whisper, mos and speaker, with commas between.
        threads: Threads of the model and of each judge.
        shown: Recordings that the page plays.
        out: Where speech.json and speech.html go.
        cache: Where the judges' packages are kept; default: packages in the data root.
    """
    for name, value, least in (
        ("n", n, 1),
        ("threads", threads, 1),
        ("shown", shown, 0),
        ("seeds", len(seeds), 1),
    ):
        if value < least:
            raise UserError(f"eval speech: {name}: expected at least {least}, got {value}.")
    from rich.console import Console

    from muomni.evaluate.judges import open_panel

    console = Console(highlight=False, soft_wrap=True, stderr=json_)
    panel = open_panel(judges.split(","), cache=cache, n_threads=threads, tell=console.print)
    import torch

    from muomni.doctor import device_name, versions
    from muomni.evaluate.speech_page import rows_of, speeds_of
    from muomni.evaluate.speech_run import evaluate_speech
    from muomni.progress import bar

    torch.set_num_threads(threads)
    machine = f"{device_name()}, torch {versions()['torch']}"
    with bar("eval speech", console) as update:
        result = evaluate_speech(
            run, panel, out=out, data=data, split=split, n=n, seeds=seeds, shown=shown, machine=machine,
            progress=update,
        )  # fmt: skip
    if json_:
        print(json.dumps(result, indent=2))
        return
    for rows in (rows_of(result), speeds_of(result)):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())
        print()
    print(f"Open {out / 'speech.html'}")
