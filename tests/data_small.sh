#!/usr/bin/env bash
# The recipe `small` from packages to shards, nothing cached. Where a registry does not answer it says so and ends well: the
# adapters are then tested on fixtures alone. Anything else that fails, fails.
set -uo pipefail
root=${1:?where the sets go}
muomni=$(dirname "$PYTHON")/muomni
said=$(mktemp)
probe=$(mktemp -d)
trap 'rm -rf "$said" "$probe"' EXIT
fail() {
    cat "$said" >&2
    exit 1
}
# Failed: skip where the registry gives nothing at all, so that a package that is gone or changed is not passed over.
unless_unreachable() {
    if (cd "$probe" && "$@" >/dev/null 2>&1); then fail; fi
    echo "data-small: not prepared, a registry does not answer ($*): $(tail -1 "$said")"
    echo "data-small: the adapters are tested on fixtures alone"
    exit 0
}
# The extra of the package that is installed already, which stays as it is: others may be running it.
"$PYTHON" -m pip install -q --disable-pip-version-check -c constraints.txt "muomni[data]" >"$said" 2>&1 ||
    unless_unreachable "$PYTHON" -m pip download -q --no-deps iniconfig
rm -rf "$root"
if ! "$muomni" data prepare small --root "$root" 2>"$said"; then
    case $(cat "$said") in
    *" apt-get failed:"*) unless_unreachable apt-get download base-files ;;
    *" npm failed:"*) unless_unreachable npm ping ;;
    *python*" failed:"*) unless_unreachable "$PYTHON" -m pip download -q --no-deps iniconfig ;;
    *", which is not installed here"*)
        echo "data-small: not prepared: $(tail -1 "$said")"
        exit 0
        ;;
    *) fail ;;
    esac
fi
set -e
"$muomni" data verify small --root "$root"
"$PYTHON" tests/data/no_leaks.py "$root" small
"$muomni" data stats small --root "$root"
