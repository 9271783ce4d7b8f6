"""muomni_kernels: the ops of muomni with their references and their Triton and C++ backends.

Attributes are resolved on first use: importing this package loads neither torch nor triton.
"""

from importlib import import_module
from typing import Any

_LAZY: dict[str, str] = {
    "rms_norm": "muomni_kernels.ops",
    "rope": "muomni_kernels.ops",
    "swiglu": "muomni_kernels.ops",
    "attention": "muomni_kernels.attend",
    "attention_decode": "muomni_kernels.attend",
    "log_mel": "muomni_kernels.mel",
    "mel_downsample": "muomni_kernels.mel",
    "mel_filterbank": "muomni_kernels.mel_reference",
    "mel_frames": "muomni_kernels.mel_reference",
    "use_backend": "muomni_kernels.registry",
    "doctor_rows": "muomni_kernels.doctor",
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    """Import the owner of a public name when it is first asked for."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'muomni_kernels' has no attribute {name!r}; it offers {', '.join(_LAZY)}.")
