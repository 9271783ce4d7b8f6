"""Real-time factor and size of every part of speech: processing time over the duration of the sound."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from muomni.data.audio import audio_frames, denormalise, log_mel
from muomni.infer.session import Session
from muomni.models.omni import parameter_table


@dataclass(frozen=True, kw_only=True)
class PartSpeed:
    """One part's cost."""

    part: str
    parameters: int
    """0 for what is not trained; of `say` those of all parts it runs."""
    seconds: float
    """Processing time: of all threads on a CPU, elapsed on a GPU."""
    audio_seconds: float
    n: int
    """Clips."""
    n_threads: int
    device: str

    @property
    def rtf(self) -> float:
        """Real-time factor."""
        return self.seconds / self.audio_seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"rtf": self.rtf}


@torch.inference_mode()
def measure_speed(
    session: Session, clips: Sequence[tuple[np.ndarray, str]], *, seed: int = 0
) -> list[PartSpeed]:
    """Time the parts on clips (waveform, text), after one clip that does not count.

    Codec decoder and vocoder run frame by frame, as in speaking; `talker` is what `say` takes beyond these two, the
    Thinker's states of the text included. Raises ValueError for no clips.
    """
    if not clips:
        raise ValueError("clips: expected at least one to time, got none.")
    model, config, device = session.engine.model, session.config, session.engine.device
    codec, mel, factor = model.codec, config.mel, config.codec.factor
    used: dict[str, float] = {}
    sound: dict[str, float] = {}

    def timed(part: str, work: Callable[[], Any], *, n_samples: int, counts: bool) -> Any:
        started = _now(device)
        result = work()
        if counts:
            used[part] = used.get(part, 0.0) + _now(device) - started
            sound[part] = sound.get(part, 0.0) + n_samples / mel.sample_rate
        return result

    def decode(codes: torch.Tensor) -> list[torch.Tensor]:
        state = codec.new_state(1)
        frames = [codec.decode_step(frame, state) for frame in codes.split(1, dim=2)]
        return [denormalise(frame.reshape(-1, mel.n_mels), mel) for frame in frames]

    def speak(blocks: list[torch.Tensor]) -> None:
        state = model.vocoder.new_state()
        for block in blocks:
            model.vocoder.step(block, state)
        model.vocoder.flush(state)

    for i, (waveform, text) in enumerate([clips[0], *clips]):
        about: Any = {"n_samples": len(waveform), "counts": i > 0}
        timed("mel", partial(log_mel, waveform, mel), **about)
        frames = audio_frames(waveform, mel, factor=factor)[None].to(device)
        codes = timed("codec_encode", partial(codec.encode, frames), **about)
        blocks = timed("codec_decode", partial(decode, codes), **about)
        timed("vocoder", partial(speak, blocks), **about)
        started = _now(device)
        n_said = len(session.speak(text, seed=seed).waveform)
        if i > 0:
            used["say"] = used.get("say", 0.0) + _now(device) - started
            sound["say"] = sound.get("say", 0.0) + n_said / mel.sample_rate
    rest = used["say"] / sound["say"] - sum(used[p] / sound[p] for p in ("codec_decode", "vocoder"))
    used["talker"], sound["talker"] = rest * sound["say"], sound["say"]
    sizes = dict(parameter_table(config))
    encoder = sum(
        p.numel() for part in (codec.enter, codec.encoder, codec.to_latent) for p in part.parameters()
    )
    parameters = {
        "mel": 0, "codec_encode": encoder, "codec_decode": sizes["codec"] - encoder, "vocoder": sizes["vocoder"],
        "talker": sizes["talker"], "say": sum(sizes[p] for p in ("thinker", "talker", "codec", "vocoder")) - encoder,
    }  # fmt: skip
    return [
        PartSpeed(
            part=part, parameters=parameters[part], seconds=used[part], audio_seconds=sound[part], n=len(clips),
            n_threads=torch.get_num_threads(), device=str(device),
        )
        for part in parameters
    ]  # fmt: skip


def _now(device: torch.device) -> float:
    """Seconds: of processor time on a CPU, which other jobs do not lengthen; elapsed on a GPU, its queue empty."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()
