"""Who may import whom, read from the syntax tree: the table of docs/architecture.md."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

BASE = {"budget", "config", "settings", "errors", "files", "tokens"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "tokens": set(),
    "plot": set(),
    "progress": set(),
    "sound_out": {"errors"},
    "metrics": set(),
    "speedrun_record": set(),
    "budget": {"errors"},
    "settings": {"errors"},
    "parts": {"settings"},
    "config": {"budget", "parts", "settings", "tokens"},
    "recipes": {"config", "settings"},
    "alive": set(),
    "runs": {"alive", "config", "errors"},
    "nn": {"muomni_kernels"},
    "models": {"nn", "muomni_kernels"} | BASE,
    "data": {"muomni_kernels"} | BASE,
    "train": {"models", "data", "alive", "metrics", "plot"} | BASE,
    "infer": {"models", "data"} | BASE,
    "export": {"infer", "models", "nn", "data", "muomni_kernels"} | BASE,
    "evaluate": {"infer", "models", "data", "metrics", "plot"} | BASE,
}
ANYTHING = {
    "cli", "cli_chat", "cli_data", "cli_eval", "cli_export", "cli_options", "cli_speedrun", "cli_talk", "demo",
    "doctor", "speedrun", "__init__", "__main__",
}  # fmt: skip
"""The verbs themselves; nothing of ours imports them."""


def _layer(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] == "muomni":
        return parts[1] if len(parts) > 1 else None
    return "muomni_kernels" if parts[0] == "muomni_kernels" else None


def imported_layers(source: str, package: str) -> set[str]:
    """Layers of ours that a module imports, also inside functions; relative imports are resolved."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                names = [".".join([*base, node.module or ""]).rstrip(".")]
            elif node.module == "muomni":
                names = [f"muomni.{alias.name}" for alias in node.names]
            else:
                names = [node.module or ""]
        found |= {layer for layer in map(_layer, names) if layer}
    return found


def _modules() -> list[Path]:
    return sorted((ROOT / "muomni").rglob("*.py"))


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_module_imports_only_what_its_layer_may(path: Path) -> None:
    relative = path.relative_to(ROOT / "muomni")
    layer = relative.parts[0].removesuffix(".py")
    if layer in ANYTHING:
        return
    package = ".".join(["muomni", *relative.parts[:-1]])
    used = imported_layers(path.read_text(), package) - {layer}
    extra = used - MAY_IMPORT[layer]
    assert not extra, f"{relative} ({layer}) imports {sorted(extra)}; allowed: {sorted(MAY_IMPORT[layer])}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "kernels" / "muomni_kernels").rglob("*.py")), ids=lambda p: p.name
)  # fmt: skip
def test_kernels_import_nothing_of_the_model_and_triton_only_in_triton_files(path: Path) -> None:
    source = path.read_text()
    assert imported_layers(source, "muomni_kernels") <= {"muomni_kernels"}
    roots = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            roots.add((node.module or "").split(".")[0])
    if not path.name.startswith("triton_"):
        assert "triton" not in roots


def test_the_reader_of_imports_sees_every_form() -> None:
    source = "import muomni.nn.norm\nfrom muomni import train\nfrom ..data import image\n"
    source += "def f():\n import muomni_kernels.ops\n"
    assert imported_layers(source, "muomni.models") == {"nn", "train", "data", "muomni_kernels"}
