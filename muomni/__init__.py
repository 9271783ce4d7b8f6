"""muomni: an omni model (text, image, audio in; text and speech out) trained from scratch on one GPU.

Attributes are resolved on first use, so `import muomni` loads neither torch nor the model code.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muomni.config import ModelConfig, RunConfig
    from muomni.infer.session import Session, from_pretrained, load

__version__ = "0.1.0"

_LAZY: dict[str, str] = {
    "load": "muomni.infer.session",
    "from_pretrained": "muomni.infer.session",
    "Session": "muomni.infer.session",
    "ModelConfig": "muomni.config",
    "RunConfig": "muomni.config",
}

__all__ = ["ModelConfig", "RunConfig", "Session", "__version__", "from_pretrained", "load"]


def __getattr__(name: str) -> Any:
    """Import the owner of a public name when it is first asked for."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'muomni' has no attribute {name!r}; it offers {', '.join(__all__)}.")
