"""Speech: codec mel error by codebooks; the Talker's next codes, its stop, and its use of the text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from muomni.config import ModelConfig
from muomni.data.audio import audio_frames
from muomni.data.items import Source, SpeechItem, Split
from muomni.data.wordings import SAY
from muomni.evaluate.figure import Figure, ratio
from muomni.infer.session import Session
from muomni.infer.speech import STOP_PROBABILITY
from muomni.metrics.ngram import NGramModel

N_REFERENCE = 150
"""Training recordings, spread over the split, that the mean frame and the unigrams are taken from."""


def spread(n_items: int, n: int) -> list[int]:
    """At most n indices, evenly spaced."""
    return [i * n_items // n for i in range(n)] if n_items > n else list(range(n_items))


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


def material(config: ModelConfig, source: Source, split: Split) -> Material:
    """Read the clips once."""
    items, train = recordings(config, source, split), recordings(config, source, "train")
    chosen = [train[i] for i in spread(len(train), N_REFERENCE)]
    return Material(
        items=items,
        frames=[frames_of(item, config, source) for item in items],
        reference=[frames_of(item, config, source) for item in chosen],
        reference_items=chosen,
    )


@torch.inference_mode()
def evaluate_codec(session: Session, clips: Material, *, seed: int) -> list[Figure]:
    """Mean absolute error of log-mel in nepers of power, against the mean frame of the training clips."""
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
    figures = [
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
        worst = int(np.argmax(totals[1:] / totals[:-1])) + 1
        figures.append(
            ratio(
                "codec.weakest_codebook", f"codec: error kept by the weakest codebook ({worst + 1})",
                sums=errors[worst], units=errors[worst - 1], baseline=1.0, baseline_name="no gain",
                unit="ratio", seed=seed,
            )
        )  # fmt: skip
    return figures


@torch.inference_mode()
def evaluate_talker(session: Session, clips: Material, *, seed: int) -> list[Figure]:
    """Teacher-forced losses of held-out recordings with their own and with another recording's text."""
    codec, device = session.engine.model.codec, session.engine.device
    held = [codec.encode(clip[None].to(device)) for clip in clips.frames]
    told = [_told(session, item.text) for item in clips.items]
    voices = [_voice(session, item.speaker) for item in clips.items]
    own = [_losses(session, codes, *told[i], voices[i]) for i, codes in enumerate(held)]
    swapped = [
        _losses(session, codes, *told[_other(clips.items, i)], voices[i]) for i, codes in enumerate(held)
    ]
    counts = np.array([codes.numel() for codes in held])
    n_frames = np.array([codes.shape[2] for codes in held])
    nats, other = np.array([o[0] for o in own]), np.array([s[0] for s in swapped])
    train = [codec.encode(clip[None].to(device))[0].cpu().numpy() for clip in clips.reference]
    size = session.config.codec.codebook_size
    trivial = 0.0
    for level in range(session.config.codec.n_codebooks):
        unigram = NGramModel([codes[level].tolist() for codes in train], order=1, vocab_size=size)
        trivial += sum(unigram.nll(codes[0, level].tolist()) for codes in held)
    # The trivial guess of a duration: as many frames a subword as in the training recordings.
    subwords = sum(len(session.tokenizer.encode(item.text)) for item in clips.reference_items)
    frames_per_subword = sum(len(clip) for clip in clips.reference) / subwords
    guessed = np.array([round(frames_per_subword * states.shape[1]) for states, _ in told])
    return [
        ratio(
            "talker.next_code", "talker: next-code loss", sums=nats, units=counts,
            baseline=trivial / counts.sum(), baseline_name="unigram of each codebook", unit="nats/code",
            seed=seed,
        ),
        ratio(
            "talker.stop", "talker: error of the stop position, teacher-forced",
            sums=np.abs(np.array([o[1] for o in own]) - n_frames), baseline=np.abs(guessed - n_frames).mean(),
            baseline_name="mean frames a subword", unit="frames", seed=seed,
        ),
        ratio(
            "talker.text_used", "talker: code loss saved by the right text, against another's",
            sums=other - nats, units=counts, baseline=0.0, baseline_name="text ignored", better="higher",
            unit="nats/code", seed=seed,
        ),
    ]  # fmt: skip


def _told(session: Session, text: str) -> tuple[Tensor, Tensor]:
    """Thinker states and embeddings of a text that is to be spoken."""
    return session.engine.spoken_states(session.tokenizer.encode(SAY + text), session.tokenizer.encode(text))


def _other(items: list[SpeechItem], i: int) -> int:
    """The nearest item, cyclically, with another text; i itself when there is none."""
    others = ((i + k) % len(items) for k in range(1, len(items)))
    return next((o for o in others if items[o].text != items[i].text), i)


def _voice(session: Session, speaker: str) -> Tensor:
    """The speaker's, nobody's when it is not known."""
    return session.engine.model.talker.voice(speaker if speaker in session.voices else None)


def _losses(
    session: Session, codes: Tensor, states: Tensor, embeds: Tensor, voice: Tensor
) -> tuple[float, int]:
    """Summed code loss of one clip, nats, and the frames after which the Talker would stop. codes: (1, K, T).

    Stopping counts after the text, as in speech; where it never stops, that is max_audio_tokens frames.
    """
    talker = session.engine.model.talker
    n_frames = codes.shape[2]
    counts = torch.tensor([states.shape[1]], device=codes.device)
    condition = talker.condition(states, embeds, counts, n_frames + talker.cfg.delay, voice)
    out = talker(codes, condition)
    code_loss = talker.codes.cross_entropy(out["queries"][0], codes[0].T)[0].sum()
    n_text = states.shape[1]
    over = (out["stop"][0, n_text:].sigmoid() > STOP_PROBABILITY).nonzero().flatten().tolist()
    return float(code_loss), n_text + over[0] + 1 if over else session.config.max_audio_tokens
