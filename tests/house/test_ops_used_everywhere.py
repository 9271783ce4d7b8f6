"""The model has no second copy of an op: what muomni_kernels offers is taken from there, read from the syntax tree."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# PyTorch's name -> the op to use instead.
INSTEAD = {
    "rms_norm": "rms_norm",
    "RMSNorm": "rms_norm",
    "scaled_dot_product_attention": "attention",
    "MultiheadAttention": "attention",
    "varlen_attn": "attention",
    "glu": "swiglu",
    "cross_entropy": "linear_cross_entropy",
    "nll_loss": "linear_cross_entropy",
    "CrossEntropyLoss": "linear_cross_entropy",
    "cdist": "vq_nearest",
    "argmin": "vq_nearest",
    "MelSpectrogram": "log_mel",
}
TORCH = {"torch", "F", "nn", "functional"}


def second_copies(source: str) -> list[str]:
    """Calls of PyTorch where an op exists, and products with a silu, which are SwiGLU by hand."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in INSTEAD:
            owner = (
                node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", None)
            )
            # argmin and cdist are methods of tensors too.
            if owner in TORCH or node.attr == "argmin":
                found.append(f"line {node.lineno}: {node.attr}, use {INSTEAD[node.attr]}")
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            for side in (node.left, node.right):
                if isinstance(side, ast.Call) and getattr(side.func, "attr", "") == "silu":
                    found.append(f"line {node.lineno}: a product with silu, use swiglu")
    return found


@pytest.mark.parametrize(
    "path", sorted((ROOT / "muomni").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_second_copy_of_an_op(path: Path) -> None:
    assert not second_copies(path.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "loss = F.cross_entropy(logits, labels)",
        "layer = nn.RMSNorm(8)",
        "y = torch.nn.functional.rms_norm(x, (8,))",
        "y = F.silu(gate) * up",
        "codes = distances.argmin(-1)",
    ],
)
def test_a_second_copy_is_found(source: str) -> None:
    assert second_copies(source)
