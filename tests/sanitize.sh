#!/usr/bin/env bash
# Builds the C++ extension with AddressSanitizer and UndefinedBehaviorSanitizer and runs fuzz cases and its tests under them.
# The build goes to a temporary directory; nothing of the tree or the environment changes.
# PYTHON: an interpreter with torch, pybind11, setuptools, pytest and hypothesis (default .venv/bin/python).
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath --no-symlinks "${PYTHON:-.venv/bin/python}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

SANITIZE=1 "$python" setup.py -q build_ext --build-lib "$work/lib" --build-temp "$work/temp" >"$work/build.log" 2>&1 || true
if ! compgen -G "$work/lib/muomni_kernels/_C*.so" >/dev/null; then
    cat "$work/build.log" >&2
    echo "sanitize: the extension did not build" >&2
    exit 1
fi
cp kernels/muomni_kernels/*.py kernels/muomni_kernels/*.json "$work/lib/muomni_kernels/"

# A slice of `make fuzz`, on the objects just built.
OBJECTS="$work/temp/csrc" bash tests/fuzz.sh 6000

# The interpreter itself is not instrumented: the runtimes come first, and its own leaks are not ours.
export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so) $(g++ -print-file-name=libstdc++.so.6)"
export ASAN_OPTIONS=detect_leaks=0:strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH="$work/lib" PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
"$python" - <<'CHECK'
from muomni_kernels import cpp
assert cpp.available() is None, cpp.available()
assert b"__asan_init" in open(cpp.extension().__file__, "rb").read(), "the extension is not instrumented"
CHECK

# Capture would swallow the report of the finding that ends the process.
"$python" -m pytest -q --capture=no -p no:cacheprovider tests/kernels/test_mel.py \
    tests/kernels/test_mel_extension.py tests/kernels/test_mel_fused.py \
    tests/kernels/test_mel_half.py tests/kernels/test_mel_window.py tests/kernels/test_row_cpp.py \
    tests/kernels/test_packed.py
echo "sanitize: no findings"
