"""Parts of the model as modules of tensors in and tensors out, in operations that ONNX has, with the model's weights.

Three things differ from the model's own forward, none of them in what is computed: attention knows that all documents
are equally long, so that it needs no bounds; the inverse Fourier transform is a product with its bases, because ONNX
runtimes have no complex numbers; a streaming state is a list of tensors.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from muomni.models.audio import ROPE_THETA, AudioEncoder, CTCHead
from muomni.models.codec import Codec, CodecState
from muomni.models.fuse import Projector
from muomni.models.vision import VisionEncoder
from muomni.models.vocoder import MAX_LOG_MAGNITUDE, Vocoder, VocoderState
from muomni.nn.attention import Attention
from muomni.nn.block import Block, Stack
from muomni.nn.rope import rotary_tables


class EqualAttention(Attention):
    """Attention of packed documents that are all max_seqlen long, without looking at their bounds."""

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor | None,
        sin: torch.Tensor | None,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        earlier: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x: (n * max_seqlen, d_model); the rest as `Attention.forward`, without late keys. Returns the shape of x."""
        groups = self.n_heads // self.n_kv_heads
        q, k, v = (
            t.reshape(-1, max_seqlen, t.shape[1], self.head_dim).transpose(1, 2)
            for t in self._project(x, cos, sin)
        )
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        shares = (q @ k.transpose(2, 3) * self.head_dim**-0.5).softmax(-1)
        return self.out((shares @ v).transpose(1, 2).reshape(x.shape[0], -1))


def _equal(stack: Stack) -> None:
    """Replace the attention of every block of a copied stack."""
    for block in stack.blocks:
        assert isinstance(block, Block)
        old = block.attention
        block.attention = EqualAttention(
            old.qkv.in_features, n_heads=old.n_heads, n_kv_heads=old.n_kv_heads, head_dim=old.head_dim, causal=False
        )  # fmt: skip
        block.attention.load_state_dict(old.state_dict())


class VisionGraph(nn.Module):
    """Pictures -> features in the unified space."""

    def __init__(self, vision: VisionEncoder, projector: Projector) -> None:
        """Copies both."""
        super().__init__()
        self.vision, self.projector = copy.deepcopy(vision), copy.deepcopy(projector)
        _equal(self.vision.stack)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images: (n, 3, S, S) in [-1, 1] -> (n * n_image_tokens, d_thinker)."""
        return self.projector(self.vision(images)).flatten(0, 1)


class AudioGraph(nn.Module):
    """One clip -> features in the unified space, and the logits of what is said."""

    def __init__(self, audio: AudioEncoder, projector: Projector, ctc_head: CTCHead) -> None:
        """Copies all three."""
        super().__init__()
        self.audio = copy.deepcopy(audio)
        self.projector, self.ctc_head = copy.deepcopy(projector), copy.deepcopy(ctc_head)
        _equal(self.audio.stack)

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """frames: (T, factor * n_mels), normalised -> (T, d_thinker), (T * expand, n_symbols)."""
        audio, n_frames = self.audio, frames.shape[0]
        positions = torch.arange(n_frames)
        if audio.enter is not None:
            x = audio.enter(frames)
        else:
            assert audio.conv is not None
            x = audio.conv(frames, (positions > 0).to(frames.dtype)[:, None])
        cos, sin = rotary_tables(positions, head_dim=audio.head_dim, theta=ROPE_THETA)
        # Of one document: what a convolution reads beyond its ends is zero already.
        same = torch.ones(audio.stack.conv_kernel, 1, 1) if audio.stack.conv_kernel else None
        branch, bounds = None, torch.zeros(2, dtype=torch.int32)
        for block in audio.stack.blocks:
            x, branch = block(x, branch, cos, sin, bounds, n_frames, same)
        states = audio.stack.norm.add(x, branch)[0]
        return self.projector(states), self.ctc_head(states)


class CodecDecoderGraph(nn.Module):
    """New codes and the decoder's past -> frames and the next past; zeros are the past of a start."""

    def __init__(self, codec: Codec) -> None:
        """Copies it."""
        super().__init__()
        self.codec = copy.deepcopy(codec)

    def start(self) -> list[torch.Tensor]:
        """The past before the first frame."""
        return self.codec.new_state(1).past

    def forward(self, codes: torch.Tensor, *past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """codes: (1, K, t) int64; past: (1, n_past, d) each -> (1, t, factor * n_mels), then the next past."""
        state = CodecState(list(past))
        frames = self.codec.decode_step(codes, state)
        return frames, *state.past


class RealVocoder(Vocoder):
    """A vocoder whose inverse transform is two matrix products; cosines and sines of float64, rounded once."""

    cosines: torch.Tensor
    sines: torch.Tensor

    def __init__(self, vocoder: Vocoder) -> None:
        """With the weights of another one."""
        super().__init__(vocoder.mel, vocoder.cfg)
        self.load_state_dict(vocoder.state_dict())
        n_fft = vocoder.cfg.n_fft
        n_bins = n_fft // 2 + 1
        bins, samples = torch.arange(n_bins), torch.arange(n_fft)
        # Whole turns are left out before the angle is rounded.
        angles = (bins[:, None] * samples % n_fft).double() * (2 * math.pi / n_fft)
        # Every bin stands for itself and its mirror image, but the first and the last of an even length are their own.
        twice = torch.full((n_bins, 1), 2.0, dtype=torch.float64)
        twice[0] = 1.0
        if n_fft % 2 == 0:
            twice[-1] = 1.0
        scaled = twice / n_fft * self.window.double()
        self.register_buffer("cosines", (angles.cos() * scaled).float(), persistent=False)
        self.register_buffer("sines", (angles.sin() * scaled).float(), persistent=False)

    def _windowed(self, x: torch.Tensor) -> torch.Tensor:
        size, phase = self.head(self.norm(x)).float().chunk(2, dim=-1)
        size = size.clamp(max=MAX_LOG_MAGNITUDE).exp()
        return (size * phase.cos()) @ self.cosines - (size * phase.sin()) @ self.sines


class VocoderGraph(nn.Module):
    """New log-mel frames and the vocoder's past -> samples and the next past; zeros are the past of a start.

    hop_length samples a frame. The first n_held * hop_length of an utterance are before it, to be dropped; its last
    ones come out with n_held frames of silence behind it.
    """

    def __init__(self, vocoder: Vocoder) -> None:
        """Copies it."""
        super().__init__()
        self.vocoder = RealVocoder(vocoder)

    def start(self) -> list[torch.Tensor]:
        """The past before the first frame: of each convolution, then the samples not finished."""
        state = self.vocoder.new_state()
        return [*state.past, state.tail]

    def forward(self, log_mel: torch.Tensor, *past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """log_mel: (t, n_mels), natural logarithm of mel power -> (t * hop_length,), then the next past."""
        state = VocoderState(list(past[:-1]), past[-1])
        state.n_frames = self.vocoder.n_held
        samples = self.vocoder.advance(log_mel, state)
        return samples, *state.past, state.tail
