#!/usr/bin/env bash
# Builds the C++ front end and its fuzz driver with sanitizers and runs random cases on every core; the build goes to a
# temporary directory. fuzz.sh [cases = 200000] [seed = 0]; a case that fails prints how to run it alone.
# SANITIZE: sanitizers, "thread" for one (default address,undefined), or empty. CXX, CXXFLAGS: compiler, more flags.
# OBJECTS: a directory with csrc's objects, built with the same sanitizers. RUN: an emulator for another architecture.
set -euo pipefail
cd "$(dirname "$0")/.."
cases=${1:-200000} seed=${2:-0} cores=$(env -u OMP_NUM_THREADS nproc) compiler=${CXX:-g++}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

flags=(-std=c++17 -O1 -g -fno-omit-frame-pointer -Wall -Wextra -ffp-contract=fast -pthread -Icsrc)
sanitize=${SANITIZE-address,undefined}
[ -z "$sanitize" ] || flags+=("-fsanitize=$sanitize" -fno-sanitize-recover=all)
read -ra more <<<"${CXXFLAGS:-}"
flags+=("${more[@]}")

sources=(tests/fuzz_mel.cpp)
[ -n "${OBJECTS:-}" ] || sources+=(csrc/*.cpp)
printf '%s\n' "${sources[@]}" | grep -v bindings |
    xargs -P "$cores" -I{} sh -c '"$@" -c {} -o "$0/$(basename {} .cpp).o"' "$work" "$compiler" "${flags[@]}"
if [ -n "${OBJECTS:-}" ]; then cp "$OBJECTS"/*.o "$work" && rm -f "$work"/*bindings.o; fi
"$compiler" "${flags[@]}" "$work"/*.o -o "$work/fuzz_mel"

# A small quarantine: the cases' buffers are small too, and fresh pages cost more than the cases.
export ASAN_OPTIONS=quarantine_size_mb=16 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1
share=$(((cases + cores - 1) / cores)) pids=() status=0
for ((core = 0; core < cores; core++)); do
    ${RUN:-} "$work/fuzz_mel" "$share" "$seed" "$((core * share))" &
    pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || status=1; done
exit $status
