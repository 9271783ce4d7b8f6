"""Speech: codec mel error by codebooks; the Talker's next codes, its use of the text, and how long it speaks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from muomni.config import ModelConfig
from muomni.data.audio import audio_frames, ctc_symbols
from muomni.data.items import Source, SpeechItem, Split
from muomni.data.wordings import SAY
from muomni.evaluate.family import Case, HeldOut, Measured, spread, worst
from muomni.evaluate.figure import ratio
from muomni.evaluate.speech_paths import CODEC, resynthesis
from muomni.infer.session import Session
from muomni.metrics.ngram import NGramModel
from muomni.models.alignment import begins, walk
from muomni.models.script import MAX_ADVANCE, Text

_NO_CLIPS = "the data lacks held-out or training recordings that fit"
HEARD = 3
"""Cases with sound, which is most of a page."""
N_REFERENCE = 150
"""Training recordings, spread over the split, that the mean frame and the unigrams are taken from."""


def recordings(config: ModelConfig, source: Source, split: Split) -> list[SpeechItem]:
    """Recordings of a split that fit the context."""
    return [item for item in source.speech(split) if item.n_samples <= config.max_audio_samples]


def frames_of(item: SpeechItem, config: ModelConfig, source: Source) -> Tensor:
    """Normalised, stacked log-mel (T, factor * n_mels)."""
    return audio_frames(source.waveform(item), config.mel, factor=config.codec.factor)


@dataclass(frozen=True, kw_only=True)
class Material:
    """What both parts of this family are measured on."""

    items: list[SpeechItem]
    frames: list[Tensor]
    """Held-out clips, (T, factor * n_mels) each."""
    reference: list[Tensor]
    """Training clips for the trivial baselines."""
    reference_items: list[SpeechItem]


def material(held: HeldOut) -> Material:
    """Read the clips once: at most n held-out ones."""
    config, source = held.session.config, held.source
    items = held.chosen(recordings(config, source, held.split))
    chosen = spread(recordings(config, source, "train"), N_REFERENCE)
    return Material(
        items=items,
        frames=[frames_of(item, config, source) for item in items],
        reference=[frames_of(item, config, source) for item in chosen],
        reference_items=chosen,
    )


@torch.inference_mode()
def evaluate_codec(held: HeldOut, clips: Material) -> Measured:
    """Mean absolute error of log-mel in nepers of power, against the mean frame of the training clips."""
    out, session, seed = Measured(), held.session, held.seed
    if not clips.items or not clips.reference:
        out.skip(_NO_CLIPS, "codec.mel_error", "codec.weakest_codebook")
        return out
    codec, mel, device = session.engine.model.codec, session.config.mel, session.engine.device
    mean = torch.cat([clip.reshape(-1, mel.n_mels) for clip in clips.reference]).mean(dim=0)
    n_codebooks = session.config.codec.n_codebooks
    errors = np.zeros((n_codebooks, len(clips.frames)))
    trivial, sizes = np.zeros(len(clips.frames)), np.array([clip.numel() for clip in clips.frames])
    for i, clip in enumerate(clips.frames):
        codes = codec.encode(clip[None].to(device))
        for k in range(n_codebooks):
            decoded = codec.decode(codes[:, : k + 1])[0].cpu()
            errors[k, i] = float((decoded - clip).abs().sum()) * mel.std
        trivial[i] = float((clip.reshape(-1, mel.n_mels) - mean).abs().sum()) * mel.std
    baseline = trivial.sum() / sizes.sum()
    out.figures = [
        ratio(
            f"codec.mel_error.{k}", f"codec: log-mel error with {k} of {n_codebooks} codebooks",
            sums=errors[k - 1], units=sizes, baseline=baseline, baseline_name="mean frame", unit="nepers",
            seed=seed,
        )
        for k in sorted({1, 2, 4, n_codebooks})
        if k <= n_codebooks
    ]  # fmt: skip
    if n_codebooks > 1:
        totals = errors.sum(axis=1)
        weakest = int(np.argmax(totals[1:] / totals[:-1])) + 1
        out.figures.append(
            ratio(
                "codec.weakest_codebook", f"codec: error kept by the weakest codebook ({weakest + 1})",
                sums=errors[weakest], units=errors[weakest - 1], baseline=1.0, baseline_name="no gain",
                unit="ratio", seed=seed,
            )
        )  # fmt: skip
    copy = resynthesis(session)[CODEC]
    found = worst(
        Case(item=item.id, expected=item.text, given=f"{error:.3f} nepers", error=error)
        for item, error in zip(clips.items, (errors[-1] / sizes).tolist(), strict=True)
    )
    own = {item.id: item for item in clips.items}
    for case in found[:HEARD]:
        waveform = held.source.waveform(own[case.item])
        out.cases.setdefault("Recordings that the codec copies worst", []).append(
            dataclasses.replace(case, heard=waveform, said=copy(waveform))
        )
    return out


@torch.inference_mode()
def evaluate_talker(held: HeldOut, clips: Material) -> Measured:
    """Losses of held-out recordings with their own and with another recording's text; how long the Talker says theirs.

    Texts that CTC cannot spell in the time of their recording are left out.
    """
    out, session, seed = Measured(), held.session, held.seed
    names = ("talker.next_code", "talker.stop", "talker.text_used")
    if not clips.items or not clips.reference:
        out.skip(_NO_CLIPS, *names)
        return out
    model, device, factor = session.engine.model, session.engine.device, session.config.codec.factor
    told = [_Told(session, item.text) for item in clips.items]
    times = begins(model.audio, model.ctc_head, clips.frames, [one.symbols for one in told])
    chosen = [i for i, own in enumerate(times) if own is not None]
    if not chosen:
        out.skip("CTC cannot spell any held-out text in the time of its recording", *names)
        return out
    items, texts = [clips.items[i] for i in chosen], [told[i] for i in chosen]
    times = [own for own in times if own is not None]
    coded = [model.codec.encode(clips.frames[i][None].to(device)) for i in chosen]
    voices = [item.speaker if item.speaker in session.voices else None for item in items]
    nats, other = np.zeros(len(coded)), np.zeros(len(coded))
    for i, codes in enumerate(coded):
        n_frames, swap = codes.shape[2], _other(items, i)
        room = MAX_ADVANCE * (n_frames - 1)
        # The other text in the time of this one.
        wrong = torch.cat([times[swap][:-1][:room], times[swap][-1:]]) * times[i][-1] // times[swap][-1]
        for sums, text, when in ((nats, texts[i], times[i]), (other, texts[swap], wrong)):
            sums[i] = text.nats(codes, walk(when, n_frames, factor=factor), voices[i])
    counts = np.array([codes.numel() for codes in coded])
    n_frames = np.array([codes.shape[2] for codes in coded])
    train = [model.codec.encode(clip[None].to(device))[0].cpu().numpy() for clip in clips.reference]
    size = session.config.codec.codebook_size
    trivial = 0.0
    for level in range(session.config.codec.n_codebooks):
        unigram = NGramModel([codes[level].tolist() for codes in train], order=1, vocab_size=size)
        trivial += sum(unigram.nll(codes[0, level].tolist()) for codes in coded)
    # The trivial guess of a duration: as many frames a character as in the training recordings.
    pace = sum(len(clip) for clip in clips.reference) / sum(len(item.text) for item in clips.reference_items)
    guessed = np.array([round(pace * len(item.text)) for item in items])
    samples = session.config.samples_per_frame
    spoken = [
        session.speak(item.text, voice=voice, seed=seed).waveform
        for item, voice in zip(items, voices, strict=True)
    ]
    said = np.array([len(waveform) // samples for waveform in spoken])
    out.cases["Texts that the Talker says in the wrong time"] = worst(
        (
            Case(
                item=item.id, expected=item.text, given=f"{n} frames, recorded {real}", error=float(abs(n - real)),
                said=waveform,
            )
            for item, n, real, waveform in zip(items, said.tolist(), n_frames.tolist(), spoken, strict=True)
        ),
        HEARD,
    )  # fmt: skip
    out.figures = [
        ratio(
            "talker.next_code", "talker: next-code loss", sums=nats, units=counts,
            baseline=trivial / counts.sum(), baseline_name="unigram of each codebook", unit="nats/code",
            seed=seed,
        ),
        ratio(
            "talker.stop", "talker: difference of how long it speaks from the recording",
            sums=np.abs(said - n_frames), baseline=np.abs(guessed - n_frames).mean(),
            baseline_name="mean frames a character", unit="frames", seed=seed,
        ),
        ratio(
            "talker.text_used", "talker: code loss saved by the right text, against another's",
            sums=other - nats, units=counts, baseline=0.0, baseline_name="text ignored", better="higher",
            unit="nats/code", seed=seed,
        ),
    ]  # fmt: skip
    return out


class _Told:
    """A text as the Talker is told of it."""

    def __init__(self, session: Session, text: str) -> None:
        ids = session.tokenizer.encode(text)
        self.talker = session.engine.model.talker
        states = session.engine.spoken_states(session.tokenizer.encode(SAY + text), ids)
        spelled = [session.tokenizer.spell(token) for token in ids]
        self.text = Text.of(*states, spelled)
        self.symbols = torch.tensor(ctc_symbols(b"".join(spelled).decode()))

    def nats(self, codes: Tensor, places: Tensor, voice: str | None) -> float:
        """Summed code loss of a recording in which it is said. codes: (1, K, T); places: (T,) of `walk`."""
        talker = self.talker
        places = F.pad(places, (0, talker.cfg.delay), value=len(self.text.characters))
        told = talker.script(*self.text.at(places))
        out = talker(codes, (told + talker.voice(voice))[None])
        return float(talker.codes.cross_entropy(out["queries"][0], codes[0].T)[0].sum())


def _other(items: list[SpeechItem], i: int) -> int:
    """The nearest item, cyclically, with another text; i itself when there is none."""
    others = ((i + k) % len(items) for k in range(1, len(items)))
    return next((o for o in others if items[o].text != items[i].text), i)
