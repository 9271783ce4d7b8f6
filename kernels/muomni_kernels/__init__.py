"""muomni_kernels: the ops of muomni with their references and their Triton and C++ backends.

Attributes are resolved on first use: importing this package loads neither torch nor triton.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muomni_kernels.attend import attention, attention_decode
    from muomni_kernels.doctor import choice_rows, doctor_rows
    from muomni_kernels.downsample import mel_downsample
    from muomni_kernels.head import linear_cross_entropy
    from muomni_kernels.lengths import chunk_and_pad, token_lengths
    from muomni_kernels.mel import log_mel
    from muomni_kernels.mel_fused import log_mel_downsample
    from muomni_kernels.mel_reference import mel_filterbank, mel_frames
    from muomni_kernels.mel_stream import StreamingLogMel
    from muomni_kernels.ops import add_rms_norm, qk_norm_rope, rms_norm, rope, swiglu
    from muomni_kernels.quantise import vq_nearest
    from muomni_kernels.registry import use_backend

_LAZY: dict[str, str] = {
    "StreamingLogMel": "muomni_kernels.mel_stream",
    "add_rms_norm": "muomni_kernels.ops",
    "qk_norm_rope": "muomni_kernels.ops",
    "rms_norm": "muomni_kernels.ops",
    "rope": "muomni_kernels.ops",
    "swiglu": "muomni_kernels.ops",
    "attention": "muomni_kernels.attend",
    "attention_decode": "muomni_kernels.attend",
    "linear_cross_entropy": "muomni_kernels.head",
    "log_mel": "muomni_kernels.mel",
    "log_mel_downsample": "muomni_kernels.mel_fused",
    "mel_downsample": "muomni_kernels.downsample",
    "mel_filterbank": "muomni_kernels.mel_reference",
    "mel_frames": "muomni_kernels.mel_reference",
    "token_lengths": "muomni_kernels.lengths",
    "use_backend": "muomni_kernels.registry",
    "vq_nearest": "muomni_kernels.quantise",
    "choice_rows": "muomni_kernels.doctor",
    "chunk_and_pad": "muomni_kernels.lengths",
    "doctor_rows": "muomni_kernels.doctor",
}

__all__ = [
    "StreamingLogMel",
    "add_rms_norm",
    "attention",
    "attention_decode",
    "choice_rows",
    "chunk_and_pad",
    "doctor_rows",
    "linear_cross_entropy",
    "log_mel",
    "log_mel_downsample",
    "mel_downsample",
    "mel_filterbank",
    "mel_frames",
    "qk_norm_rope",
    "rms_norm",
    "rope",
    "swiglu",
    "token_lengths",
    "use_backend",
    "vq_nearest",
]


def __getattr__(name: str) -> Any:
    """Import the owner of a public name when it is first asked for."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'muomni_kernels' has no attribute {name!r}; it offers {', '.join(_LAZY)}.")
