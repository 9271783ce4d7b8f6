"""Rules of the house that a machine can check: length, first lines, no pickle, no print, no broad except."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "muomni").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))
NATIVE = sorted([*(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "csrc").rglob("*.h")])


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 30
    assert len(TESTS) > 20
    assert NATIVE


@pytest.mark.parametrize("path", [*SOURCES, *TESTS, *NATIVE], ids=_id)
def test_file_is_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", SOURCES, ids=_id)
def test_module_says_what_it_holds(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path.name} has no module docstring"


def _calls(tree: ast.AST) -> list[str]:
    return [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", SOURCES, ids=_id)
def test_only_the_command_line_prints(path: Path) -> None:
    if path.name not in ("cli.py", "cli_data.py", "cli_eval.py", "cli_speedrun.py"):
        assert "print" not in _calls(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", SOURCES, ids=_id)
def test_exceptions_are_caught_narrowly(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            assert caught not in ("everything", "Exception", "BaseException"), (
                f"line {node.lineno} catches {caught}"
            )


@pytest.mark.parametrize("path", SOURCES, ids=_id)
def test_public_functions_and_classes_are_documented_and_annotated(path: Path) -> None:
    missing = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                missing.append(f"{node.name} has no docstring")
            # A Triton kernel's arguments are pointers and constants of its own type system.
            kernel = any("triton.jit" in ast.unparse(d) for d in node.decorator_list)
            if isinstance(node, ast.FunctionDef) and not kernel:
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if node.returns is None or any(a.annotation is None for a in arguments):
                    missing.append(f"{node.name} is not fully annotated")
    assert not missing, "; ".join(missing)


@pytest.mark.parametrize("path", [*SOURCES, *NATIVE], ids=_id)
def test_nothing_is_left_for_later(path: Path) -> None:
    assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", path.read_text())


def test_kernels_folder_is_not_a_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_tests_are_not_packages_and_have_unique_names() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
    names = [path.name for path in TESTS if path.name != "conftest.py"]
    assert len(names) == len(set(names))
