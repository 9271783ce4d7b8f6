"""Clips as network input: the log-mel of every stage, and the characters CTC spells transcripts with."""

from __future__ import annotations

import unicodedata

import numpy as np
import torch
from muomni_kernels import log_mel as log_mel_op
from muomni_kernels import mel_downsample

from muomni.config import MelConfig
from muomni.data.media import MediaError

CTC_SYMBOLS = "_ 'abcdefghijklmnopqrstuvwxyz"
"""Index 0 is the blank."""
BLANK = 0
_INDEX = {symbol: index for index, symbol in enumerate(CTC_SYMBOLS)}


def normalise_transcript(text: str) -> str:
    """Lower-case words of a-z and apostrophes; everything else is a space. Digits must be words already."""
    kept = "".join(c if c in _INDEX and c != "_" else " " for c in text.lower().replace("’", "'"))
    return " ".join(kept.split())


def encode_ctc(text: str) -> list[int]:
    """A normalised transcript as CTC indices. Raises MediaError for a character outside CTC_SYMBOLS."""
    wrong = {c for c in text if c not in _INDEX or c == "_"}
    if wrong:
        raise MediaError(
            f"text: {sorted(wrong)} cannot be spelled; pass it through normalise_transcript first."
        )
    return [_INDEX[c] for c in text]


def ctc_symbols(text: str) -> list[int]:
    """The CTC index of each UTF-8 byte of a text, accents left out; BLANK for one that is not heard.

    Several bytes of one character are heard in its first. A space is heard between words, not before the first one.
    """
    result = [BLANK] * (len(text) - len(text.lstrip(" ")))
    for character in text.lstrip(" "):
        letter = "'" if character == "’" else unicodedata.normalize("NFKD", character.lower())[0]
        result += [_INDEX.get(letter, BLANK)] + [BLANK] * (len(character.encode()) - 1)
    return result


def decode_ctc(indices: list[int]) -> str:
    """Greedy CTC: collapse repeats, drop blanks; words with one space between, as `normalise_transcript` has them."""
    kept = [i for n, i in enumerate(indices) if i != BLANK and (n == 0 or indices[n - 1] != i)]
    return " ".join("".join(CTC_SYMBOLS[i] for i in kept).split())


def ctc_feasible(text: str, n_positions: int) -> bool:
    """Whether a transcript fits: one position a character and one more between equal neighbours."""
    repeats = sum(a == b for a, b in zip(text, text[1:], strict=False))
    return len(text) + repeats <= n_positions


def log_mel(waveform: np.ndarray | torch.Tensor, mel: MelConfig) -> torch.Tensor:
    """Log-mel of one clip: (n_samples,) at mel.sample_rate -> (n_frames, n_mels) float32, not normalised."""
    return log_mel_op(
        torch.as_tensor(waveform),
        sample_rate=mel.sample_rate,
        n_fft=mel.n_fft,
        win_length=mel.win_length,
        hop_length=mel.hop_length,
        n_mels=mel.n_mels,
        f_min=mel.f_min,
        f_max=mel.f_max,
        scale=mel.scale,
        padding=mel.padding,
        log=mel.log,
        floor=mel.floor,
    )


def normalise(log_mels: torch.Tensor, mel: MelConfig) -> torch.Tensor:
    """Log-mel in natural-log units -> about unit scale."""
    return (log_mels - mel.mean) / mel.std


def denormalise(frames: torch.Tensor, mel: MelConfig) -> torch.Tensor:
    """The inverse of normalise."""
    return frames * mel.std + mel.mean


def stack_frames(log_mels: torch.Tensor, mel: MelConfig, *, factor: int = 8) -> torch.Tensor:
    """Normalised log-mel (n_frames, n_mels) -> (ceil(n_frames / factor), factor * n_mels).

    A missing tail is filled with the floor (silence), not with zero, which would be loud.
    """
    n_frames = len(log_mels)
    stacked = mel_downsample(log_mels, factor=factor, mode="stack")
    missing = len(stacked) * factor - n_frames
    if missing:
        stacked = stacked.clone()
        silence = (float(np.log(mel.floor)) - mel.mean) / mel.std
        stacked[-1, (factor - missing) * mel.n_mels :] = silence
    return stacked


def audio_frames(waveform: np.ndarray | torch.Tensor, mel: MelConfig, *, factor: int = 8) -> torch.Tensor:
    """A clip as the encoder and the codec see it: (ceil(n_samples / (hop * factor)), factor * n_mels) float32."""
    return stack_frames(normalise(log_mel(waveform, mel), mel), mel, factor=factor)
