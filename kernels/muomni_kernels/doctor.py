"""The rows of the doctor's table: every op, every backend, whether this machine can run it, and why not."""

from __future__ import annotations

from muomni_kernels import registry


def doctor_rows() -> list[tuple[str, str, bool, str]]:
    """(op, backend, runs on this machine, reason against or "")."""
    registry.load()
    return [
        (op, row.name, row.available() is None, row.available() or "")
        for op in registry.ops()
        for row in registry.backends(op)
    ]
