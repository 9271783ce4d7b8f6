"""Samples one can hear: a recording through the codec, and the Talker saying a text; spectrograms beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from muomni.data.audio import audio_frames, denormalise, log_mel, normalise
from muomni.data.items import Split
from muomni.data.media import write_wav
from muomni.models.codec import Codec
from muomni.models.script import Reading
from muomni.models.talker import Talker
from muomni.models.vocoder import Vocoder
from muomni.train.samples import write_spectrograms, write_speech
from muomni.train.stage import generator, part

if TYPE_CHECKING:
    from muomni.train.stages.codec import CodecStage
    from muomni.train.stages.talker import TalkerStage
    from muomni.train.stages.vocoder import VocoderStage

Item = TypeVar("Item")
MAX_FRAMES = 24
"""Code frames of a sample (1.92 s): Griffin-Lim takes a good part of their duration."""
TEMPERATURE = 0.2
"""Of the codes the Talker draws, as in speaking."""


def codec_samples(stage: CodecStage, model: nn.Module, split: Split, folder: Path) -> dict[str, float]:
    """A recording above its copy (spectrogram.png), both through the vocoder (recording.wav, copy.wav).

    Returns the copy's mean absolute log-mel error, natural-log units.
    """
    codec, mel = part(model, "codec", Codec), stage.config.mel
    chosen = longest_fitting(stage.data.speech(split), lambda item: stage.config.audio_tokens(item.n_samples))
    clip = stage.clips([chosen])[0][:MAX_FRAMES].to(stage.device(model))
    copy = codec.decode(codec.encode(clip[None]))[0]
    shown = [frames.reshape(-1, mel.n_mels) for frames in (clip, copy)]
    write_spectrograms(folder / "spectrogram.png", shown, mel)
    write_speech(folder / "recording.wav", shown[0], stage.config)
    write_speech(folder / "copy.wav", shown[1], stage.config)
    return {"log-mel error": float((copy - clip).abs().mean()) * mel.std}


def vocoder_samples(stage: VocoderStage, model: nn.Module, split: Split, folder: Path) -> dict[str, float]:
    """A recording (recording.wav), the vocoder's of its log-mel (vocoder.wav) and of the codec's copy (copy.wav).

    Their spectrograms are below one another (spectrogram.png). Returns the vocoder's mean absolute log-mel error,
    natural-log units.
    """
    codec, vocoder = part(model, "codec", Codec), part(model, "vocoder", Vocoder)
    mel, device = stage.config.mel, stage.device(model)
    chosen = longest_fitting(stage.data.speech(split), lambda item: stage.config.audio_tokens(item.n_samples))
    wave = torch.from_numpy(stage.source.waveform(chosen))[: MAX_FRAMES * stage.config.samples_per_frame]
    frames = audio_frames(wave, mel, factor=stage.config.codec.factor)[None].to(device)
    copy = codec.decode(codec.encode(frames))
    heard = {"recording": F.pad(wave, (0, frames.shape[1] * stage.config.samples_per_frame - len(wave)))}
    for name, given in (("vocoder", frames), ("copy", copy)):
        heard[name] = vocoder(denormalise(given.reshape(-1, mel.n_mels), mel)).float().cpu().clamp(-1.0, 1.0)
    shown = [normalise(log_mel(one, mel), mel) for one in heard.values()]
    write_spectrograms(folder / "spectrogram.png", shown, mel)
    for name, one in heard.items():
        write_wav(folder / f"{name}.wav", one.numpy(), mel.sample_rate)
    return {"log-mel error": float((shown[1] - shown[0]).abs().mean()) * mel.std}


def talker_samples(stage: TalkerStage, model: nn.Module, split: Split, folder: Path) -> dict[str, float]:
    """The text of a recording as the Talker says it (said.wav), below the recording (spectrogram.png).

    Codes are drawn with the run's seed. Returns how many code frames the Talker took.
    """
    codec, talker = part(model, "codec", Codec), part(model, "talker", Talker)
    device, mel = stage.device(model), stage.config.mel
    chosen = longest_fitting(stage.utterances(split), lambda utterance: utterance.codes.shape[1])
    voice = talker.voices(
        torch.tensor([chosen.voice], device=device), torch.zeros(1, 2 * mel.n_mels, device=device)
    )
    reading = Reading(talker.script)
    text = chosen.text
    for i, (own, embed) in enumerate(zip(text.states.to(device), text.embeds.to(device), strict=True)):
        reading.add(own, embed, bytes((text.characters[text.owners == i] - 1).tolist()))
    reading.end()
    draw = generator(stage.run.seed, 4)

    def sample(logits: torch.Tensor) -> torch.Tensor:
        shares = (logits.float() / TEMPERATURE).softmax(-1).cpu()
        return torch.multinomial(shares, 1, generator=draw)[:, 0].to(device)

    state = talker.new_state(1, MAX_FRAMES)
    made: list[torch.Tensor | None] = []
    while reading.ready and len(made) < MAX_FRAMES:
        frame, advance = talker.step(reading.condition() + voice, state, sample)
        made.append(frame)
        reading.advance(float(advance))
    made.append(talker.drain(reading.condition() + voice, state, sample))
    frames = [frame for frame in made if frame is not None]
    said = codec.decode(torch.stack(frames, dim=2))[0].reshape(-1, mel.n_mels)
    recorded = chosen.log_mel[: MAX_FRAMES * stage.config.codec.factor]
    write_spectrograms(folder / "spectrogram.png", [recorded, said], mel)
    write_speech(folder / "said.wav", said, stage.config)
    return {"frames": float(len(frames))}


def longest_fitting(items: Sequence[Item], length: Callable[[Item], int]) -> Item:
    """The longest item of at most MAX_FRAMES, or the shortest when all are longer."""
    fitting = [item for item in items if length(item) <= MAX_FRAMES]
    return max(fitting, key=length) if fitting else min(items, key=length)
