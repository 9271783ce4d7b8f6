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
    run: Annotated[Path, arg(help="Directory of the trained stages, or of a whole model.")] = Path(
        "out/demo/model"
    ),
    families: str = "",
    data: str | None = None,
    split: HeldOut = "test",
    n: int = 48,
    seed: int = 0,
    judges: Literal["none", "whisper"] = "none",
    threads: int = 1,
    out: Path = Path("out/eval"),
    json_: Json = False,
) -> None:
    """Held-out figures of every family, each with its trivial baseline, n, seed and interval.

    Writes eval.json and eval.html. What a model or its data do not have is said to be missing, with the reason.

    Args:
        families: Some of text, asr, retrieval, answers, vqa, spoken, ocr, codec, talker, speech, with commas between;
            default: all.
        data: embedded, or prepared sets with commas between; default: what the run was trained on.
        n: Held-out items of a figure, at most; texts and pictures that are only scored may be more.
        seed: Of the bootstrap and of the Talker.
        judges: An independent recogniser of speech (needs muomni[eval]), or none.
        threads: Threads of the model and of the judge.
        out: Where eval.json and eval.html go.
    """
    for name, value in (("n", n), ("threads", threads)):
        if value < 1:
            raise UserError(f"eval all: {name}: expected at least 1, got {value}.")
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, stderr=json_)
    import torch

    from muomni.doctor import device_name, versions
    from muomni.evaluate.eval_run import evaluate_all
    from muomni.evaluate.judges import open_panel
    from muomni.evaluate.report import number
    from muomni.evaluate.run import FAMILIES
    from muomni.progress import bar

    chosen = families.split(",") if families else list(FAMILIES)
    torch.set_num_threads(threads)
    panel = open_panel([judges], n_threads=threads, tell=console.print) if judges != "none" else None
    machine = f"{device_name()}, torch {versions()['torch']}, {threads} threads"
    with bar("eval", console) as update:
        result = evaluate_all(
            run, out=out, families=chosen, data=data, split=split, n=n, seed=seed, panel=panel, machine=machine,
            progress=update,
        )  # fmt: skip
    if json_:
        print(json.dumps(result, indent=2))
        return
    for row in result["figures"]:
        low, high = map(number, row["interval"])
        print(
            f"{row['what']:<72} {number(row['value']):>8} [{low}, {high}]  {number(row['baseline'])} "
            f"{row['baseline_name']}  n={row['n']}"
        )
    for row in result["missing"]:
        print(f"{row['name']}: not measured: {row['why']}")
    print(f"Open {out / 'eval.html'}")


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
