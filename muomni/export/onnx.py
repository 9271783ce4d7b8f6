"""ONNX files of the encoders, the codec's decoder and the vocoder, each with what its numbers mean in its metadata."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from muomni_kernels.registry import use_backend
from torch import nn

from muomni.data.audio import CTC_SYMBOLS
from muomni.errors import UserError
from muomni.export.graphs import AudioGraph, CodecDecoderGraph, VisionGraph, VocoderGraph
from muomni.infer.pretrained import ONNX_PARTS
from muomni.infer.session import Session
from muomni.models.vocoder import Vocoder

OPSET = 18
PARTS: tuple[str, ...] = ONNX_PARTS
"""Of which there are files."""
N_EXAMPLE = 5
"""Rows of the inputs that are traced; no length is kept in the graph."""


class ExportError(UserError, RuntimeError):
    """What an export needs is not installed."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export wrote."""

    files: tuple[Path, ...]
    notes: tuple[str, ...]
    """Parts that were left out, and why."""


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """One file to be written."""

    name: str
    module: nn.Module
    inputs: dict[str, torch.Tensor]
    """Examples; the first is the new rows, others are streaming states."""
    free: int
    """Axis of the first input whose length is open."""
    outputs: Sequence[str]
    facts: dict[str, Any]


def export_onnx(session: Session, directory: Path | str, *, parts: Sequence[str] = PARTS) -> Exported:
    """Write vision.onnx, audio.onnx, codec_decoder.onnx and, of a trained vocoder, vocoder.onnx.

    directory: made when it is not there; files of these names are replaced, each whole or not at all. parts: which.
    All in float32, single files. Inputs, outputs and their lengths are described in docs/export.md.
    Raises ExportError when onnx or onnxscript is not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"ONNX: {' and '.join(missing)} not installed; run `pip install 'muomni[export]'`.")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    if "vocoder" in parts and not isinstance(session.engine.model.vocoder, Vocoder):
        notes.append(
            "vocoder.onnx: left out, the vocoder is not trained; Griffin-Lim has no weights to export."
        )
        (directory / "vocoder.onnx").unlink(missing_ok=True)
    return Exported(
        files=tuple(_write(graph, directory) for graph in _graphs(session, parts)), notes=tuple(notes)
    )


def _graphs(session: Session, parts: Sequence[str]) -> Iterator[_Graph]:
    """What there is to write, one after another so that one copy of the weights is held at a time."""
    model, cfg = session.engine.model, session.config
    mel = {f"mel.{name}": value for name, value in asdict(cfg.mel).items()}
    if "vision" in parts:
        side = cfg.vision.image_size
        yield _Graph(
            name="vision", module=VisionGraph(model.vision, model.vision_projector),
            inputs={"images": torch.zeros(N_EXAMPLE, 3, side, side)}, free=0, outputs=("features",),
            facts={"n_image_tokens": cfg.vision.n_image_tokens},
        )  # fmt: skip
    if "audio" in parts:
        yield _Graph(
            name="audio", module=AudioGraph(model.audio, model.audio_projector, model.ctc_head),
            inputs={"frames": torch.zeros(N_EXAMPLE, cfg.audio.factor * cfg.mel.n_mels)}, free=0,
            outputs=("features", "ctc_logits"),
            facts={"factor": cfg.audio.factor, "ctc_expand": cfg.audio.ctc_expand, "ctc_symbols": CTC_SYMBOLS, **mel},
        )  # fmt: skip
    if "codec_decoder" in parts:
        decoder = CodecDecoderGraph(model.codec)
        codes = torch.zeros(1, cfg.codec.n_codebooks, N_EXAMPLE, dtype=torch.int64)
        yield _Graph(
            name="codec_decoder", module=decoder, inputs={"codes": codes, **_states(decoder.start())}, free=2,
            outputs=("frames", *_next(decoder.start())),
            facts={"factor": cfg.codec.factor, "codebook_size": cfg.codec.codebook_size, **mel},
        )  # fmt: skip
    if "vocoder" in parts and isinstance(model.vocoder, Vocoder):
        vocoder = VocoderGraph(model.vocoder)
        yield _Graph(
            name="vocoder", module=vocoder,
            inputs={"log_mel": torch.zeros(N_EXAMPLE, cfg.mel.n_mels), **_states(vocoder.start())}, free=0,
            outputs=("samples", *_next(vocoder.start())), facts={"n_held": model.vocoder.n_held, **mel},
        )  # fmt: skip


def _states(start: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"past_{i}": tensor for i, tensor in enumerate(start)}


def _next(start: Sequence[torch.Tensor]) -> list[str]:
    return [f"next_{i}" for i in range(len(start))]


def _write(graph: _Graph, directory: Path) -> Path:
    """Trace a graph on the CPU and write it beside its place, then there."""
    module = graph.module.cpu().eval()
    inputs = tuple(tensor.cpu() for tensor in graph.inputs.values())
    axes = {graph.free: torch.export.Dim.DYNAMIC}
    shapes: Any = tuple(axes if i == 0 else {} for i in range(len(inputs)))
    if len(inputs) > 1:
        # Of a `*past` the shapes are one tuple.
        shapes = (axes, tuple({} for _ in inputs[1:]))
    with _quiet(), use_backend(None, "reference"), torch.no_grad():
        program = torch.onnx.export(
            module, inputs, dynamo=True, dynamic_shapes=shapes, input_names=list(graph.inputs),
            output_names=list(graph.outputs), opset_version=OPSET, verbose=False,
        )  # fmt: skip
    assert program is not None
    for name, value in graph.facts.items():
        program.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    path = directory / f"{graph.name}.onnx"
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        program.save(str(aside), external_data=False)
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of its own workings by warnings and logs, which are not the user's to act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
