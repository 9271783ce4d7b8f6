#!/usr/bin/env bash
# Cross-compiles the front end for AArch64, checks that its transform is NEON code, and runs fuzz cases in an emulator.
# fuzz_arm.sh [cases = 10000] [seed = 0]
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-linux-gnu
emulator=$(command -v qemu-aarch64 || command -v qemu-aarch64-static || true)
if ! command -v "$target-g++" >/dev/null || [ -z "$emulator" ]; then
    echo "fuzz-arm: needs $target-g++ and qemu-aarch64: apt-get install g++-$target qemu-user" >&2
    exit 1
fi

object=$(mktemp)
trap 'rm -f "$object"' EXIT
"$target-g++" -std=c++17 -O3 -Wall -Wextra -ffp-contract=fast -Icsrc -c csrc/transform_base.cpp -o "$object"
code=$("$target-objdump" -d "$object")
vector=$(grep -cE '\s(fmla|fmls|fadd|fsub|fmul)\s+v[0-9]+\.4s' <<<"$code" || true)
scalar=$(grep -cE '\s(fmadd|fmsub|fnmsub|fadd|fsub|fmul)\s+s[0-9]+' <<<"$code" || true)
echo "fuzz-arm: $vector vector and $scalar scalar arithmetic instructions in the transform"
if [ "$vector" -lt 100 ] || [ "$scalar" -gt "$((vector / 4))" ]; then
    echo "fuzz-arm: the transform is not vector code" >&2
    exit 1
fi
CXX="$target-g++" CXXFLAGS="-static -O3" SANITIZE="" RUN="$emulator" bash tests/fuzz.sh "${1:-10000}" "${2:-0}"
