"""All held-out figures of a trained run, each with its trivial baseline, n, seed and interval."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from muomni.data.items import Source, Split
from muomni.data.prepared import open_source
from muomni.evaluate.asr import evaluate_asr
from muomni.evaluate.figure import Figure
from muomni.evaluate.media_use import evaluate_media_use
from muomni.evaluate.retrieval import evaluate_retrieval
from muomni.evaluate.speech import evaluate_codec, evaluate_talker, material
from muomni.evaluate.text import evaluate_text
from muomni.infer.loading import find_stage
from muomni.infer.session import Session, load
from muomni.models.thinker import Thinker
from muomni.models.vision import ContrastModel

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, name of the family)."""


def evaluate(
    root: Path | str,
    *,
    source: Source | None = None,
    split: Split = "test",
    seed: int = 0,
    progress: Progress | None = None,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Measure every family on a held-out split of what the run was trained on, or of another source.

    Returns {"split", "seed", "seconds" by family, "figures": rows as Figure.to_dict gives them}.
    Raises what `muomni.load` raises.
    """
    root = Path(root)
    session = load(root, device=device)
    source = source or open_source(find_stage(root, "text").record["config"].get("data", "embedded"))
    text_only = _text_thinker(root, session)
    config, tokenizer = session.config, session.tokenizer
    shared: dict[str, Any] = {}

    def clips() -> Any:
        if "clips" not in shared:
            shared["clips"] = material(config, source, split)
        return shared["clips"]

    families: dict[str, Callable[[], list[Figure]]] = {
        "text": lambda: evaluate_text(
            text_only, tokenizer, max_seq_len=config.max_seq_len, source=source, split=split, seed=seed
        ),
        "speech recognition": lambda: evaluate_asr(session, source=source, split=split, seed=seed),
        "pictures": lambda: evaluate_retrieval(
            _contrast(root, session), tokenizer, source=source, split=split, seed=seed
        ),
        "codec": lambda: evaluate_codec(session, clips(), seed=seed),
        "answers": lambda: evaluate_media_use(session, text_only, source=source, split=split, seed=seed),
        "talker": lambda: evaluate_talker(session, clips(), seed=seed),
    }
    figures: list[Figure] = []
    seconds: dict[str, float] = {}
    for done, (name, measure) in enumerate(families.items()):
        if progress is not None:
            progress(done, len(families), name)
        started = time.perf_counter()
        figures += measure()
        seconds[name] = round(time.perf_counter() - started, 2)
    if progress is not None:
        progress(len(families), len(families), "done")
    return {"split": split, "seed": seed, "seconds": seconds, "figures": [f.to_dict() for f in figures]}


def _text_thinker(root: Path, session: Session) -> Thinker:
    """The Thinker as the text stage left it, before it saw any media."""
    thinker = Thinker(session.config.thinker)
    thinker.load_state_dict(find_stage(root, "text").weights({"thinker.": ""}))
    return thinker.to(session.engine.device).eval()


def _contrast(root: Path, session: Session) -> ContrastModel:
    """Both towers of the vision stage."""
    model = ContrastModel(session.config.vision, vocab_size=session.config.thinker.vocab_size)
    model.load_state_dict(find_stage(root, "vision").weights({"": ""}))
    return model.to(session.engine.device).eval()
