"""Settings of the model's parts: what a ModelConfig is made of. Taken from muomni.config, like all settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from muomni.settings import TRAINING_ONLY


@dataclass(frozen=True, kw_only=True)
class MelConfig:
    """The one definition of the log-mel spectrogram, used by every stage."""

    sample_rate: int = 16_000
    """Hz."""
    n_fft: int = 400
    """Samples per FFT."""
    win_length: int = 400
    """Samples per Hann window."""
    hop_length: int = 160
    """Samples between frames (100 Hz)."""
    n_mels: int = 128
    """Mel bands."""
    f_min: float = 0.0
    """Hz, lower edge of the first band."""
    f_max: float = 8_000.0
    """Hz, upper edge of the last band."""
    scale: Literal["slaney", "htk"] = "slaney"
    """Mel scale."""
    padding: Literal["causal", "reflect"] = "causal"
    """Causal: frame t sees only samples before (t + 1) * hop_length."""
    log: Literal["ln", "whisper"] = "ln"
    """Natural logarithm with a floor, or Whisper's clamp-and-scale."""
    floor: float = 1e-7
    """Smallest mel power before the logarithm."""
    mean: float = -8.0
    """Subtracted from log-mel before a network sees it (natural-log units)."""
    std: float = 4.0
    """Divides log-mel after the mean is subtracted."""

    @property
    def frame_rate(self) -> float:
        """Frames per second, Hz."""
        return self.sample_rate / self.hop_length


@dataclass(frozen=True, kw_only=True)
class ThinkerConfig:
    """Decoder-only transformer in the unified space."""

    vocab_size: int
    """Entries of the tokenizer, special tokens included."""
    d_model: int
    """Width of the unified space."""
    n_layers: int
    """Blocks."""
    n_heads: int
    """Query heads."""
    n_kv_heads: int
    """Key and value heads (GQA)."""
    head_dim: int
    """Width of one head."""
    d_ff: int
    """Hidden width of SwiGLU."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_sections: tuple[int, int, int] = (2, 1, 1)
    """Share of rotary frequencies for time, height, width (TM-RoPE), interleaved by this ratio."""
    mix_kernel: int = 3
    """Positions of which a position's input is mixed, its own included; 1: its own alone."""
    late_keys: bool = True
    """In the first block a value stands beside the key of the position before it, and nothing is rotated."""
    n_experts: int = 0
    """0: dense. Otherwise experts per MoE layer."""
    n_active_experts: int = 2
    """Experts a token is sent to."""
    balance_weight: float = field(default=0.01, metadata=TRAINING_ONLY)
    """Weight of the MoE load-balance loss."""
    dropout: float = field(default=0.0, metadata=TRAINING_ONLY)
    """Residual dropout probability in training."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """ViT with a CLS token: one picture -> n_image_tokens vectors."""

    image_size: int = 224
    """Pixels per side."""
    patch_size: int = 16
    """Pixels per side of a patch."""
    cell_channels: int = 0
    """Channels of the 4 x 4 pixel cells that a patch is read by, with one layer for all cells; 0: pixels at once."""
    d_model: int
    """Width."""
    n_layers: int
    """Blocks."""
    n_heads: int
    """Heads."""
    d_ff: int
    """Hidden width of SwiGLU."""
    n_image_tokens: int = 1
    """1: CLS only; k * k + 1: CLS and a k x k pooled patch grid."""
    text_layers: int = 2
    """Blocks of the text tower used by the contrastive stage."""
    embed_dim: int
    """Width of the contrastive space."""

    @property
    def n_patches(self) -> int:
        """Patches of one picture."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """Transformer over 12.5 Hz audio frames."""

    d_model: int
    """Width."""
    n_layers: int
    """Blocks."""
    n_heads: int
    """Heads."""
    d_ff: int
    """Hidden width of SwiGLU."""
    factor: int = 8
    """Log-mel frames (100 Hz) per audio frame (12.5 Hz)."""
    downsample: Literal["stack", "conv"] = "stack"
    """How the factor is taken: stacking by the C++ op and a linear layer, or three strided convolutions."""
    conv_kernel: int = 7
    """Frames of the depthwise convolution in each block; 0 for none."""
    ctc_expand: int = 4
    """CTC positions per audio frame (4 -> 50 Hz), so that a character target fits."""
    dropout: float = field(default=0.1, metadata=TRAINING_ONLY)
    """Residual dropout probability in training."""


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Log-mel -> residual codes at 12.5 Hz -> log-mel."""

    d_model: int
    """Width of encoder and decoder."""
    n_layers: int
    """Causal convolution blocks in each of encoder and decoder."""
    latent_dim: int
    """Width of the quantised latent."""
    n_codebooks: int = 8
    """Residual levels."""
    codebook_size: int = 1_024
    """Entries per level."""
    factor: int = 8
    """Log-mel frames per code frame."""
    ema_decay: float = field(default=0.98, metadata=TRAINING_ONLY)
    """Decay of the codebooks' moving averages."""
    commitment_weight: float = field(default=0.25, metadata=TRAINING_ONLY)
    """Weight of the commitment loss."""
    scales_weight: float = field(default=1.0, metadata=TRAINING_ONLY)
    """Weight of the absolute error of log-mel averaged over patches of 2, 4 and 8 frames and bands."""
    adversarial_from: float = field(default=1.0, metadata=TRAINING_ONLY)
    """Share of the training steps after which discriminators of log-mel take part; 1: they never do."""
    d_discriminator: int = field(default=16, metadata=TRAINING_ONLY)
    """Channels of the discriminators' convolutions."""


@dataclass(frozen=True, kw_only=True)
class TalkerConfig:
    """Thinker states and text -> codes."""

    d_model: int
    """Width of the backbone."""
    n_layers: int
    """Backbone blocks."""
    n_heads: int
    """Query heads."""
    n_kv_heads: int
    """Key and value heads."""
    head_dim: int
    """Width of one head."""
    d_ff: int
    """Hidden width of SwiGLU."""
    depth_d_model: int
    """Width of the depth transformer over codebooks."""
    depth_layers: int = 1
    """Blocks of the depth transformer."""
    depth_heads: int = 2
    """Heads of the depth transformer."""
    depth_d_ff: int
    """Hidden width of the depth transformer's SwiGLU."""
    delay: int = 0
    """Frames by which codebooks 1.. of a frame come after its codebook 0 (acoustic delay): 0 or 1."""
    n_voices: int = 16
    """Speakers with an embedding of their own: the most frequent of the training recordings."""
    dropout: float = field(default=0.1, metadata=TRAINING_ONLY)
    """Residual dropout probability in training."""
    noise: float = field(default=0.1, metadata=TRAINING_ONLY)
    """Share of past frames whose codes are random in the last training steps, from none in the first on."""
    depth_share: float = field(default=1.0, metadata=TRAINING_ONLY)
    """Share of a batch's frames that codebooks 1.. are trained on, other ones each step; codebook 0 is on all."""


@dataclass(frozen=True, kw_only=True)
class VocoderConfig:
    """Log-mel -> waveform, and the discriminators it is trained against."""

    d_model: int
    """Width."""
    n_layers: int
    """ConvNeXt blocks."""
    d_ff: int
    """Hidden width of SwiGLU."""
    kernel: int = 7
    """Log-mel frames that a convolution sees."""
    n_fft: int = 640
    """Samples of a spectrum: all but one hop of them is the delay of the waveform (30 ms)."""
    d_discriminator: int = field(default=16, metadata=TRAINING_ONLY)
    """Channels of the discriminators' first convolution."""
    adversarial_from: float = field(default=0.5, metadata=TRAINING_ONLY)
    """Share of the training steps after which discriminators take part; 1: they never do."""


@dataclass(frozen=True, kw_only=True)
class GriffinLimConfig:
    """Log-mel -> waveform without training."""

    n_iters: int = 24
    """Griffin-Lim phase iterations per block."""
    lookahead: int = 4
    """Log-mel frames of lookahead a block's phase is fitted with."""
