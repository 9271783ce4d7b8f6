"""Importing the package and asking for help are cheap and leave nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import json, os, sys, threading
environ, path = dict(os.environ), list(sys.path)
before = set(sys.modules)
import {module}
new = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(json.dumps(dict(new=sorted(new), environ=dict(os.environ) == environ, path=sys.path == path,
                      threads=threading.active_count())))
"""


def _run(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=dict(os.environ)
    )


@pytest.mark.parametrize(
    "module", ["muomni", "muomni_kernels", "muomni.cli", "muomni.config", "muomni.recipes"]
)
def test_import_loads_no_torch_and_leaves_no_side_effects(module: str, tmp_path: Path) -> None:
    done = _run(PROBE.format(module=module), tmp_path)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert not {"torch", "triton", "numpy", "tokenizers"} & set(seen["new"])
    assert seen["environ"] and seen["path"] and seen["threads"] == 1
    assert done.stderr == ""
    assert not list(tmp_path.iterdir())


def test_help_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, contextlib\n"
        "from muomni.cli import main\n"
        "with contextlib.suppress(SystemExit):\n    main(['--help'])\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = _run(code, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for verb in ("demo", "train", "runs", "eval", "chat", "say", "doctor", "data"):
        assert verb in done.stdout


def test_unknown_attribute_names_what_there_is() -> None:
    import muomni

    with pytest.raises(AttributeError, match="it offers"):
        _ = muomni.nothing
