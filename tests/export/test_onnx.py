"""ONNX files give what the model gives, at lengths they were not traced with, whole and in a stream."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from muomni.config import AudioConfig, CodecConfig, ModelConfig
from muomni.data.audio import denormalise
from muomni.infer.session import Session, load
from muomni.models.omni import OmniModel

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from muomni.export import onnx as export  # noqa: E402
from muomni.export.graphs import AudioGraph  # noqa: E402

MOST = 1e-4
"""Largest difference allowed, as issue 8 asks."""
LENGTHS = (1, 2, 3, 7, 40)


def _shaken(model: OmniModel, seed: int = 0) -> OmniModel:
    """Every parameter moved, so that no branch, bias or tap is zero or one."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        model.codec.quantizer.codebooks.normal_()
    return model.eval()


def _opened(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _run(opened: onnxruntime.InferenceSession, *inputs: np.ndarray | torch.Tensor) -> list[np.ndarray]:
    names = [one.name for one in opened.get_inputs()]
    return opened.run(None, {n: np.asarray(x) for n, x in zip(names, inputs, strict=True)})


def _start(opened: onnxruntime.InferenceSession) -> list[np.ndarray]:
    return [np.zeros(one.shape, np.float32) for one in opened.get_inputs()[1:]]


def _close(found: np.ndarray, expected: torch.Tensor) -> None:
    assert found.shape == tuple(expected.shape)
    assert float(np.abs(expected.numpy()).max()) > 1e-2
    assert float(np.abs(found - expected.numpy()).max()) <= MOST


class Written:
    """A model and its ONNX files."""

    def __init__(self, session: Session, directory: Path) -> None:
        self.session, self.directory = session, directory
        self.model = _shaken(session.engine.model)
        self.done = export.export_onnx(session, directory)
        self.opened = {path.stem: _opened(path) for path in self.done.files}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, write_run: Callable[..., OmniModel]) -> Written:
    """Two blocks where there are convolutions and attention, vocoder trained."""
    root = tmp_path_factory.mktemp("run")
    audio = AudioConfig(d_model=64, n_layers=2, n_heads=2, d_ff=64, downsample="conv", conv_kernel=5)
    write_run(root, audio=audio, codec=CodecConfig(d_model=64, n_layers=2, latent_dim=16, codebook_size=64))
    return Written(load(root, device="cpu"), tmp_path_factory.mktemp("onnx"))


def test_every_part_is_one_file(written: Written) -> None:
    names = ["audio.onnx", "codec_decoder.onnx", "vision.onnx", "vocoder.onnx"]
    assert sorted(path.name for path in written.directory.iterdir()) == names
    assert written.done.notes == ()


@pytest.mark.parametrize("n", [1, 2, 3])
@torch.inference_mode()
def test_pictures(written: Written, n: int) -> None:
    side = written.session.config.vision.image_size
    images = torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(n))
    (features,) = _run(written.opened["vision"], images)
    _close(features, written.model.image_features(images))


@pytest.mark.parametrize("n", [*LENGTHS, 128])
@torch.inference_mode()
def test_clips(written: Written, n: int) -> None:
    model = written.model
    width = model.config.audio.factor * model.config.mel.n_mels
    frames = torch.randn(n, width, generator=torch.Generator().manual_seed(n))
    bounds = torch.tensor([0, n], dtype=torch.int32)
    features, logits = _run(written.opened["audio"], frames)
    _close(features, model.audio_features(frames, bounds, n))
    _close(logits, model.ctc_head(model.audio(frames, bounds, n)))


@pytest.mark.parametrize("downsample", ["stack", "conv"])
@pytest.mark.parametrize("conv_kernel", [0, 5])
@torch.inference_mode()
def test_the_traced_encoder_is_the_model_s_for_every_front_end(
    downsample: Literal["stack", "conv"], conv_kernel: int, small_config: Callable[..., ModelConfig]
) -> None:
    audio = AudioConfig(
        d_model=64, n_layers=2, n_heads=2, d_ff=64, downsample=downsample, conv_kernel=conv_kernel
    )
    model = _shaken(OmniModel(small_config(audio=audio)))
    frames = torch.randn(9, audio.factor * model.config.mel.n_mels)
    bounds = torch.tensor([0, 9], dtype=torch.int32)
    features, logits = AudioGraph(model.audio, model.audio_projector, model.ctc_head).eval()(frames)
    torch.testing.assert_close(features, model.audio_features(frames, bounds, 9), atol=1e-5, rtol=1e-5)
    expected = model.ctc_head(model.audio(frames, bounds, 9))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n", LENGTHS)
@torch.inference_mode()
def test_codes_of_a_whole_clip(written: Written, n: int) -> None:
    cfg, opened = written.session.config.codec, written.opened["codec_decoder"]
    codes = torch.randint(
        cfg.codebook_size, (1, cfg.n_codebooks, n), generator=torch.Generator().manual_seed(n)
    )
    _close(_run(opened, codes, *_start(opened))[0], written.model.codec.decode(codes))


@torch.inference_mode()
def test_codes_in_a_stream_of_unequal_pieces(written: Written) -> None:
    cfg, opened = written.session.config.codec, written.opened["codec_decoder"]
    codes = torch.randint(
        cfg.codebook_size, (1, cfg.n_codebooks, 23), generator=torch.Generator().manual_seed(0)
    )
    past, parts = _start(opened), []
    for piece in codes.split([1, 1, 2, 12, 7], dim=2):
        frames, *past = _run(opened, piece, *past)
        parts.append(frames)
    _close(np.concatenate(parts, 1), written.model.codec.decode(codes))


def _speech(written: Written, log_mel: torch.Tensor, sizes: list[int]) -> np.ndarray:
    """An utterance through vocoder.onnx as docs/export.md has it, from the file's own metadata."""
    opened = written.opened["vocoder"]
    facts = {
        k: json.loads(v)
        for k, v in opened.get_modelmeta().custom_metadata_map.items()
        if v[0] in "-0123456789"
    }
    silence = np.full((int(facts["n_held"]), log_mel.shape[1]), np.log(facts["mel.floor"]), np.float32)
    past, parts = _start(opened), []
    for piece in [*log_mel.split(sizes), silence]:
        samples, *past = _run(opened, piece, *past)
        parts.append(samples)
    return np.concatenate(parts)[int(facts["n_held"]) * int(facts["mel.hop_length"]) :]


@pytest.mark.parametrize("sizes", [[1], [2], [40], [1, 1, 3, 8, 27]], ids=str)
def test_samples_whole_and_in_a_stream(written: Written, sizes: list[int]) -> None:
    n_mels = written.session.config.mel.n_mels
    log_mel = torch.randn(sum(sizes), n_mels, generator=torch.Generator().manual_seed(1)) * 2 - 5
    _close(_speech(written, log_mel, sizes), written.model.vocoder(log_mel).detach())


@torch.inference_mode()
def test_the_page_s_example_speaks_as_the_model_does(written: Written) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text()
    (code,) = [part for part in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "onnxruntime" in part]
    assert not re.search(r"import (?!json|numpy|onnxruntime)", code)
    cfg = written.session.config
    codes = torch.randint(64, (1, cfg.codec.n_codebooks, 11), generator=torch.Generator().manual_seed(2))
    names: dict[str, Any] = {"folder": str(written.directory), "codes": codes.numpy()}
    exec(code, names)
    frames = written.model.codec.decode(codes)[0].reshape(-1, cfg.mel.n_mels)
    _close(names["waveform"], written.model.vocoder(denormalise(frames, cfg.mel)))


def test_an_untrained_vocoder_is_left_out_and_said(
    tmp_path: Path, write_run: Callable[..., OmniModel]
) -> None:
    write_run(tmp_path)
    shutil.rmtree(tmp_path / "vocoder")
    done = export.export_onnx(load(tmp_path, device="cpu"), tmp_path / "onnx", parts=["vocoder"])
    assert done.files == ()
    assert len(done.notes) == 1
    assert "not trained" in done.notes[0]


def test_without_onnx_one_line_names_the_extra(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(export.ExportError, match=r"pip install 'muomni\[export\]'"):
        export.export_onnx(session, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
