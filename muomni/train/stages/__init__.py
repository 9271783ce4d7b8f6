"""The stages, by name, in training order."""

from __future__ import annotations

from muomni.config import RunConfig
from muomni.train.stage import Stage


def stage(run: RunConfig) -> Stage:
    """The stage a run trains. Only the chosen stage's module is imported."""
    if run.stage == "text":
        from muomni.train.stages.text import TextStage as chosen
    elif run.stage == "audio":
        from muomni.train.stages.audio import AudioStage as chosen
    elif run.stage == "vision":
        from muomni.train.stages.vision import VisionStage as chosen
    elif run.stage == "codec":
        from muomni.train.stages.codec import CodecStage as chosen
    elif run.stage == "vocoder":
        from muomni.train.stages.vocoder import VocoderStage as chosen
    elif run.stage == "omni":
        from muomni.train.stages.omni import OmniStage as chosen
    else:
        from muomni.train.stages.talker import TalkerStage as chosen
    return chosen(run)
