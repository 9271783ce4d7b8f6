"""The audio front ends that bench_mel times beside ours: one adapter each, with what they compute.

An adapter makes a function of clips, (n_samples,) float32 at 16 kHz, to one (n_frames, n_mels) array a clip.
Equally long clips are one batch for those that take one. Preparation (filters, windows, pipelines) is not timed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from muomni_kernels import mel_filterbank

Clips = Sequence[np.ndarray] | np.ndarray
"""Clips one after another; equally long ones as (B, n_samples)."""
Run = Callable[[Clips], Sequence[Any]]

N_FFT, HOP, N_MELS, FLOOR = 400, 160, 128, 1e-10


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Somebody else's log-mel."""

    name: str
    package: str
    make: Callable[[], Run]
    convention: str = "ln"
    """"whisper" when it clamps and scales like Whisper; else natural logarithms, or close to them."""
    same_bands: bool = True
    """Whether its bands are ours: then they are compared one by one, else their mean."""
    note: str = ""
    """What differs from ours."""


def _each_or_batch(one: Callable[[torch.Tensor], torch.Tensor]) -> Run:
    def run(clips: Clips) -> Sequence[torch.Tensor]:
        if isinstance(clips, np.ndarray):
            return one(torch.from_numpy(clips))  # pyright: ignore[reportReturnType]
        return [one(torch.from_numpy(clip)) for clip in clips]

    return run


def torch_log_mel(*, pool: int = 1) -> Run:
    """torch.stft, a matrix product, a logarithm; with pool the mean of so many frames, a short last group left out."""
    window = torch.hann_window(N_FFT)
    filters = mel_filterbank(n_mels=N_MELS, n_fft=N_FFT, sample_rate=16_000).T

    def one(x: torch.Tensor) -> torch.Tensor:
        spectrum = torch.stft(x, N_FFT, HOP, window=window, return_complex=True)[..., :-1]
        power = spectrum.real.square() + spectrum.imag.square()
        mel = (power.transpose(-1, -2) @ filters).clamp(min=FLOOR).log()
        if pool == 1:
            return mel
        n = mel.shape[-2] // pool * pool
        return mel[..., :n, :].unflatten(-2, (-1, pool)).mean(-2)

    return _each_or_batch(one)


def _librosa() -> Run:
    feature = importlib.import_module("librosa").feature

    def run(clips: Clips) -> list[np.ndarray]:
        return [
            np.log(
                np.maximum(
                    feature.melspectrogram(
                        y=clip, sr=16_000, n_fft=N_FFT, hop_length=HOP, n_mels=N_MELS, pad_mode="reflect"
                    ),
                    FLOOR,
                )
            ).T
            for clip in clips
        ]

    return run


def _whisper() -> Run:
    audio = importlib.import_module("whisper.audio")
    return _each_or_batch(lambda x: audio.log_mel_spectrogram(x, n_mels=N_MELS).transpose(-1, -2))


def _extractor() -> Any:
    return importlib.import_module("transformers").WhisperFeatureExtractor(feature_size=N_MELS)


def _transformers() -> Run:
    extractor = _extractor()

    def run(clips: Clips) -> list[np.ndarray]:
        # Padded to the longest clip, as it always does; the cut to each clip's frames is a view.
        found = extractor(
            list(clips), sampling_rate=16_000, padding="longest", truncation=False, return_tensors="np"
        )
        return [x.T[: len(clip) // HOP] for x, clip in zip(found["input_features"], clips, strict=True)]

    return run


def _transformers_numpy() -> Run:
    extract = _extractor()._np_extract_fbank_features
    return lambda clips: [np.asarray(extract(clip[None], "cpu"))[0].T for clip in clips]


def _faster_whisper() -> Run:
    module = importlib.import_module("faster_whisper.feature_extractor")
    extractor = module.FeatureExtractor(feature_size=N_MELS)
    return lambda clips: [extractor(clip, padding=0).T for clip in clips]


def _torchaudio() -> Run:
    module = importlib.import_module("torchaudio").transforms
    mel = module.MelSpectrogram(
        16_000, n_fft=N_FFT, hop_length=HOP, n_mels=N_MELS, norm="slaney", mel_scale="slaney"
    )
    return _each_or_batch(lambda x: mel(x).clamp(min=FLOOR).log().transpose(-1, -2))


def _kaldi() -> Run:
    module = importlib.import_module("kaldi_native_fbank")
    options = module.FbankOptions()
    frame, bands = options.frame_opts, options.mel_opts
    frame.samp_freq, frame.dither, frame.preemph_coeff, frame.snip_edges = 16_000, 0.0, 0.0, False
    frame.remove_dc_offset, frame.window_type, bands.num_bins, options.energy_floor = (
        False,
        "hanning",
        80,
        0.0,
    )

    def one(clip: np.ndarray) -> np.ndarray:
        stream = module.OnlineFbank(options)
        stream.accept_waveform(16_000, clip)
        stream.input_finished()
        return np.stack([stream.get_frame(i) for i in range(stream.num_frames_ready)])

    return lambda clips: [one(clip) for clip in clips]


def _audioflux() -> Run:
    module = importlib.import_module("audioflux")
    kinds = importlib.import_module("audioflux.type")
    bank = module.BFT(
        num=N_MELS, samplate=16_000, low_fre=0, high_fre=8_000, radix2_exp=9, slide_length=HOP,
        window_type=kinds.WindowType.HANN, scale_type=kinds.SpectralFilterBankScaleType.MEL,
        data_type=kinds.SpectralDataType.POWER, normal_type=kinds.SpectralFilterBankNormalType.AREA,
        is_reassign=False,
    )  # fmt: skip
    return lambda clips: [
        np.log(np.maximum(np.abs(bank.bft(clip, result_type=1)), FLOOR)).T for clip in clips
    ]


def _dali() -> Run:
    dali = importlib.import_module("nvidia.dali")
    pipelines: dict[int, Any] = {}

    def pipeline(size: int) -> Any:
        options = {"exec_async": False, "exec_pipelined": False, "prefetch_queue_depth": 1}
        pipe = dali.Pipeline(size, 1, None, **options)
        with pipe:
            wave = dali.fn.external_source(name="clips", dtype=dali.types.FLOAT, ndim=1)
            power = dali.fn.spectrogram(
                wave, nfft=N_FFT, window_length=N_FFT, window_step=HOP, power=2, layout="tf"
            )
            mel = dali.fn.mel_filter_bank(power, sample_rate=16_000.0, nfilter=N_MELS, freq_high=8_000.0)
            # ln = 10 log10 times ln 10 / 10.
            pipe.set_outputs(
                dali.fn.to_decibels(mel, multiplier=float(np.log(10)), reference=1.0, cutoff_db=-100.0)
            )
        pipe.build()
        return pipe

    def run(clips: Clips) -> list[np.ndarray]:
        if len(clips) not in pipelines:
            pipelines[len(clips)] = pipeline(len(clips))
        pipelines[len(clips)].feed_input("clips", list(clips))
        (found,) = pipelines[len(clips)].run()
        return [np.asarray(found.at(i)) for i in range(len(clips))]

    return run


PEERS: tuple[Peer, ...] = (
    Peer(name="torch.stft + matmul + log", package="torch", make=torch_log_mel),
    Peer(name="librosa", package="librosa", make=_librosa),
    Peer(name="whisper", package="openai-whisper", make=_whisper, convention="whisper"),
    Peer(name="transformers (torch)", package="transformers", make=_transformers, convention="whisper"),
    Peer(name="transformers (numpy)", package="transformers", make=_transformers_numpy, convention="whisper"),
    Peer(name="faster-whisper", package="faster-whisper", make=_faster_whisper, convention="whisper"),
    Peer(name="torchaudio", package="torchaudio", make=_torchaudio),
    Peer(
        name="kaldi-native-fbank",
        package="kaldi-native-fbank",
        make=_kaldi,
        same_bands=False,
        note="80 bands of an FFT of 512: it refuses 128",
    ),
    Peer(
        name="audioflux",
        package="audioflux",
        make=_audioflux,
        same_bands=False,
        note="an FFT of 512; other bands",
    ),
    Peer(name="DALI, CPU", package="nvidia-dali-cuda120", make=_dali),
)
