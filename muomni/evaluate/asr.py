"""Speech recognition: character and word error rates, against the best constant transcript."""

from __future__ import annotations

from muomni.data.audio import normalise_transcript
from muomni.data.items import Source, Split
from muomni.evaluate.figure import Figure, ratio
from muomni.infer.session import Session
from muomni.metrics.edit import Unit, best_constant_error_rate, error_rate


def evaluate_asr(session: Session, *, source: Source, split: Split, seed: int) -> list[Figure]:
    """Transcribe every recording of a split that fits; how many do not is said, not hidden."""
    items = source.speech(split)
    fitting = [item for item in items if item.n_samples <= session.config.max_audio_samples]
    references = [normalise_transcript(item.text) for item in fitting]
    hypotheses = [session.transcribe(source.file(item)) for item in fitting]
    left_out = f", {len(items) - len(fitting)} longer clips left out" if len(items) > len(fitting) else ""
    figures = []
    units: tuple[tuple[Unit, str], ...] = (("char", "character"), ("word", "word"))
    for unit, word in units:
        rates = [error_rate([r], [h], unit) for r, h in zip(references, hypotheses, strict=True)]
        figures.append(
            ratio(
                f"asr.{unit}_error_rate", f"speech recognition: {word} error rate (CTC, greedy{left_out})",
                sums=[r.errors for r in rates], units=[r.n for r in rates],
                baseline=best_constant_error_rate(references, unit).value,
                baseline_name="best constant transcript", unit=f"errors/{word}", seed=seed,
            )
        )  # fmt: skip
    return figures
