"""Speech recognition by the CTC head and by the Thinker: error rates against the best constant transcript."""

from __future__ import annotations

from collections.abc import Sequence

from muomni.data.audio import normalise_transcript
from muomni.data.items import SpeechItem
from muomni.data.prepared import PreparedDataError, open_source
from muomni.data.wordings import wordings
from muomni.evaluate.family import Case, HeldOut, Measured, worst
from muomni.evaluate.figure import Figure, ratio
from muomni.evaluate.written import Question, write
from muomni.metrics.edit import Unit, best_constant_error_rate, error_rate

UNITS: tuple[tuple[Unit, str], ...] = (("char", "character"), ("word", "word"))
MAX_NEW_TOKENS = 160
"""Of a transcript that the Thinker writes."""


def evaluate_asr(held: HeldOut) -> Measured:
    """Transcribe recordings that fit, at most n; how many do not fit is said, not hidden.

    The CTC head is greedy; the Thinker is asked in a held-out wording, and its text is read as the CTC head's is.
    """
    out, session = Measured(), held.session
    items = held.source.speech(held.split)
    fitting = [item for item in items if item.n_samples <= session.config.max_audio_samples]
    chosen = held.chosen(fitting)
    if not chosen:
        out.skip(
            f"the data has no recording in split {held.split} that fits",
            "asr.char_error_rate", "asr.thinker.char_error_rate",
        )  # fmt: skip
        return out
    files = [held.source.file(item) for item in chosen]
    references = [normalise_transcript(item.text) for item in chosen]
    spelled = [session.transcribe(file) for file in files]
    asked = wordings("transcribe", held.split)[0]
    answers = write(
        session, [Question(text=asked, clips=(file,)) for file in files], max_new_tokens=MAX_NEW_TOKENS
    )
    thought = [normalise_transcript(answer) for answer in answers]
    left_out = f", {len(items) - len(fitting)} longer clips left out" if len(items) > len(fitting) else ""
    out.figures += _rates(held, "asr", f"CTC, greedy{left_out}", references, spelled)
    out.figures += _rates(held, "asr.thinker", f"written by the Thinker{left_out}", references, thought)
    out.figures.append(_against_others(held, references, thought))
    _by_speaker(held, out, chosen, references, spelled)
    for title, hypotheses in (("CTC head", spelled), ("Thinker", thought)):
        out.cases[f"Recordings that the {title} understands worst"] = worst(
            Case(
                item=item.id, expected=reference, given=hypothesis, heard=held.source.waveform(item),
                error=error_rate([reference], [hypothesis]).value,
            )
            for item, reference, hypothesis in zip(chosen, references, hypotheses, strict=True)
        )  # fmt: skip
    return out


def _against_others(held: HeldOut, references: Sequence[str], thought: Sequence[str]) -> Figure:
    """What the Thinker writes of the right recording, and of the next one that says something else."""
    rates = [error_rate([r], [t]) for r, t in zip(references, thought, strict=True)]
    n = len(references)
    others = [
        next((j % n for j in range(i + 1, i + n) if references[j % n] != references[i]), i) for i in range(n)
    ]
    return ratio(
        "asr.thinker.own_recording", "speech recognition: character error rate, the Thinker with the right recording",
        sums=[r.errors for r in rates], units=[r.n for r in rates],
        baseline=error_rate(references, [thought[i] for i in others]).value,
        baseline_name="with another's recording", unit="errors/character", seed=held.seed,
    )  # fmt: skip


def _by_speaker(
    held: HeldOut,
    out: Measured,
    chosen: Sequence[SpeechItem],
    references: Sequence[str],
    hypotheses: Sequence[str],
) -> None:
    """Error rates of speakers that the model was trained on, and of those that it was not."""
    known = trained_speakers(held)
    if known is None:
        why = "the model's training data are not all prepared here, and its voices do not name every speaker of them"
        out.skip(why, "asr.seen_speakers.char_error_rate", "asr.unseen_speakers.char_error_rate")
        return
    for name, seen in (("seen", True), ("unseen", False)):
        own = [i for i, item in enumerate(chosen) if (item.speaker in known) is seen]
        if not own:
            every = "none" if seen else "every one"
            why = f"of the {len({i.speaker for i in chosen})} speakers heard {every} is one the model was trained on"
            out.skip(why, f"asr.{name}_speakers.char_error_rate")
            continue
        n_speakers = len({chosen[i].speaker for i in own})
        out.figures += _rates(
            held, f"asr.{name}_speakers", f"CTC, {n_speakers} {name} speakers",
            [references[i] for i in own], [hypotheses[i] for i in own],
        )  # fmt: skip


def trained_speakers(held: HeldOut) -> set[str] | None:
    """Who speaks in what the model was trained on, whatever it is measured on; None when that cannot be told.

    Its record names the data of each stage, whose training splits are read where they are prepared; where they are not,
    the Talker's voices name the speakers, unless there may be more of them than it has places for. A model without a
    record is taken for one trained on the data it is measured on.
    """
    session = held.session
    if not session.history:
        return {item.speaker for item in held.source.speech("train")}
    known, complete = set(session.voices), True
    for names in {stage.data for stage in session.history}:
        try:
            known |= {item.speaker for item in open_source(names).speech("train")}
        except PreparedDataError:
            complete = False
    named = 0 < len(session.voices) < session.config.talker.n_voices
    return known if complete or named else None


def _rates(
    held: HeldOut, name: str, how: str, references: Sequence[str], hypotheses: Sequence[str]
) -> list[Figure]:
    figures = []
    for unit, word in UNITS:
        rates = [error_rate([r], [h], unit) for r, h in zip(references, hypotheses, strict=True)]
        figures.append(
            ratio(
                f"{name}.{unit}_error_rate", f"speech recognition: {word} error rate ({how})",
                sums=[r.errors for r in rates], units=[r.n for r in rates],
                baseline=best_constant_error_rate(references, unit).value,
                baseline_name="best constant transcript", unit=f"errors/{word}", seed=held.seed,
            )
        )  # fmt: skip
    return figures
