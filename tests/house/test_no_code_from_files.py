"""Nothing of ours runs code that a file holds: no pickle in any dress, no remote code, no eval; by the syntax tree."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("muomni", "kernels", "benchmarks")
SOURCES = sorted([ROOT / "setup.py", *(path for f in FOLDERS for path in (ROOT / f).rglob("*.py"))])

MODULES = {
    "pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "shelve", "marshal",
}  # fmt: skip
"""Import one of these and a file can hold code."""
SHARDED = "torch.distributed.checkpoint"
CALLS = {
    "torch.load", "torch.save", "torch.serialization.load", "torch.jit.load", "torch.export.load", "torch.hub.load",
    "torch.package.PackageImporter", f"{SHARDED}.FileSystemReader", f"{SHARDED}.FileSystemWriter",
    f"{SHARDED}.filesystem.FileSystemReader", f"{SHARDED}.filesystem.FileSystemWriter",
    "torch.distributed.all_gather_object", "torch.distributed.gather_object",
    "torch.distributed.broadcast_object_list", "torch.distributed.scatter_object_list",
    "numpy.load", "numpy.save", "numpy.savez", "pandas.read_pickle",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "eval", "exec", "builtins.eval", "builtins.exec", "__import__",
}  # fmt: skip
"""Under their full names: an alias or a `from` import is looked through."""
ARGUMENTS = {"trust_remote_code": (True,), "allow_pickle": (True,), "weights_only": (False,)}
"""Keywords and the constants they may not have; what is no constant is refused too."""
STORAGE = {"load": "storage_reader", "save": "storage_writer"}
"""What the sharded `load` and `save` must be given: without it their metadata are a pickle."""


def _names(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for, in full."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _full(node: ast.expr, names: dict[str, str]) -> str:
    first, dot, rest = ast.unparse(node).partition(".")
    return names.get(first, first) + dot + rest


def unsafe(source: str) -> list[str]:
    """What a source does that a file's content could turn into running code, one line each."""
    tree = ast.parse(source)
    names = _names(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [
                f"line {node.lineno} imports {a.name}" for a in node.names if MODULES & set(a.name.split("."))
            ]
        elif isinstance(node, ast.ImportFrom):
            parts = {*(node.module or "").split("."), *(a.name for a in node.names)}
            found += [f"line {node.lineno} imports {name}" for name in sorted(MODULES & parts)]
        elif isinstance(node, ast.Name | ast.Attribute) and _full(node, names) in CALLS:
            # Named, not only called: passed on or bound to another name it is called elsewhere.
            found.append(f"line {node.lineno} uses {_full(node, names)}")
        elif isinstance(node, ast.Constant) and node.value in MODULES:
            found.append(f"line {node.lineno} names the module {node.value!r}")
        elif isinstance(node, ast.keyword) and node.arg in ARGUMENTS:
            if not isinstance(node.value, ast.Constant) or node.value.value in ARGUMENTS[node.arg]:
                found.append(f"line {node.value.lineno} sets {node.arg}={ast.unparse(node.value)}")
        elif isinstance(node, ast.Call) and _full(node.func, names).startswith(SHARDED):
            needed = STORAGE.get(_full(node.func, names).rpartition(".")[2])
            if needed and needed not in {k.arg for k in node.keywords}:
                found.append(f"line {node.lineno} reads or writes shards without {needed}")
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in ARGUMENTS:
                    found.append(f"line {key.lineno} sets {key.value}={ast.unparse(value)} in a dict")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_can_run_code_from_a_file(path: Path) -> None:
    assert unsafe(path.read_text()) == []


def test_there_is_something_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == {
        "setup.py",
        "muomni",
        "kernels",
        "benchmarks",
    }
    assert len(SOURCES) > 100


PLANTED = [
    "import pickle", "import pickle as p", "import cloudpickle, os", "from pickle import loads", "import shelve",
    "from marshal import load", "import multiprocessing.reduction, _pickle", "def f():\n    import dill",
    "from torch.serialization import pickle", "importlib.import_module('pickle')", "__import__('os')",
    "import torch\ntorch.load(p)", "import torch\ntorch.load(p, weights_only=True)",
    "import torch as t\nt.save(x, p)", "from torch import load\nload(p)", "from torch import save as s\ns(x, p)",
    "import torch\nf = torch.load", "import torch.jit\ntorch.jit.load(p)", "import numpy as np\nnp.load(p)",
    "from numpy import load\nload(p)", "import numpy as np\nnp.savez(p, x)",
    "f(p, allow_pickle=True)", "f(p, allow_pickle=flag)", "f(p, weights_only=False)",
    "f(n, trust_remote_code=True)", "f(n, trust_remote_code=args.trust)", "f(n, **{'trust_remote_code': True})",
    "eval(text)", "exec(text)", "import builtins\nbuiltins.exec(text)", "import yaml\nyaml.load(f)",
    "import torch.distributed.checkpoint as dcp\ndcp.load(state, checkpoint_id=p)",
    "from torch.distributed.checkpoint.state_dict_saver import save\nsave(state)",
    "from torch.distributed.checkpoint import FileSystemReader\nFileSystemReader(p)",
    "import torch.distributed as dist\ndist.all_gather_object(out, x)",
]  # fmt: skip
SOUND = [
    "model.eval()", "import torch\ntorch.library.define('a')", "'never pickle'", "import json\njson.load(f)",
    "from safetensors.torch import load_file\nload_file(p)", "f(p, allow_pickle=False)", "f(p, weights_only=True)",
    "import yaml\nyaml.safe_load(f)", "self.load(p)", "state.save(p)",
    "from torch.distributed.checkpoint.state_dict_loader import load\nload(state, storage_reader=reader)",
]  # fmt: skip


@pytest.mark.parametrize("source", PLANTED)
def test_a_planted_example_is_found(source: str) -> None:
    assert unsafe(source)


@pytest.mark.parametrize("source", SOUND)
def test_what_is_sound_is_not(source: str) -> None:
    assert unsafe(source) == []
