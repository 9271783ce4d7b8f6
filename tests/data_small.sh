#!/usr/bin/env bash
# The recipe `small` from packages to shards, nothing cached. Where a registry does not answer it says so and ends well: the
# adapters are then tested on fixtures alone. Anything else that fails, fails.
set -uo pipefail
root=${1:?where the sets go}
muomni=$(dirname "$PYTHON")/muomni
said=$(mktemp)
trap 'rm -f "$said"' EXIT
skip() {
    echo "data-small: not prepared, $1; the adapters are tested on fixtures alone"
    exit 0
}
"$PYTHON" -m pip install -q --disable-pip-version-check -c constraints.txt ".[dev,data]" >"$said" 2>&1 ||
    skip "$(grep -v WARNING "$said" | tail -1)"
rm -rf "$root"
if ! "$muomni" data prepare small --root "$root" 2>"$said"; then
    cat "$said" >&2
    # A registry's client that failed or is missing; see sources/fetch.py.
    grep -qE "(apt-get|npm|pip|python[0-9.]*) failed:|, which is not installed here" "$said" && skip "a registry does not answer"
    exit 1
fi
set -e
"$muomni" data verify small --root "$root"
"$PYTHON" tests/data/no_leaks.py "$root" small
"$muomni" data stats small --root "$root"
