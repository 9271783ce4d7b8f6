"""`muomni export`: a run as one directory, as ONNX, on the hub. Imports what it needs when it runs, as cli.py does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg


def export(
    *,
    run: Annotated[Path, arg(help="Directory of the trained stages, or a finished model's.")] = Path(
        "out/demo/model"
    ),
    out: Path = Path("out/pretrained"),
    dtype: Literal["float32", "float16"] = "float32",
    onnx: bool = False,
    license: str = "other",
    language: tuple[str, ...] = ("en",),
    figures: Path | None = None,
    push: str | None = None,
    private: bool = False,
) -> None:
    """Write a trained model as one directory with a model card; with --onnx its parts for other runtimes.

    Args:
        out: Where it goes; a finished model that is there is replaced.
        dtype: How weights are stored; float16 halves the file.
        onnx: Also write OUT/onnx: encoders, codec decoder and vocoder. Needs muomni[export].
        license: The model's licence as the hub names it, such as cc-by-sa-4.0; other: the card lists the data's.
        language: Codes of the languages it speaks.
        figures: Output of `muomni eval all --json` or a metrics.json, for the card.
        push: OWNER/NAME to upload it to on the Hugging Face hub. Needs muomni[hub].
        private: Make a repository that is not there yet a private one.
    """
    import muomni
    from muomni.infer import hub, pretrained
    from muomni.infer.model_card import Card, read_figures

    if push is not None:
        hub.check_repo_id(push)
    card = Card(license=license, languages=language, figures=read_figures(figures) if figures else ())
    session = muomni.load(run, device="cpu")
    session.save_pretrained(out, dtype=dtype, card=card)
    for path in (out / name for name in sorted(pretrained.FILES)):
        print(f"{path}: {path.stat().st_size:,} bytes")
    if onnx:
        from muomni.export.onnx import export_onnx

        done = export_onnx(session, out / pretrained.ONNX)
        for path in done.files:
            print(f"{path}: {path.stat().st_size:,} bytes")
        for note in done.notes:
            print(note)
    if push is not None:
        print(hub.push(out, push, private=private))
