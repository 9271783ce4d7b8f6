"""The doctor's tables: every op and backend with the reason against it, and what decides between them."""

from __future__ import annotations

import os

from muomni_kernels import dispatch, registry


def doctor_rows() -> list[tuple[str, str, bool, str]]:
    """(op, backend, runs on this machine, reason against or "")."""
    registry.load()
    return [
        (op, row.name, row.available() is None, row.available() or "")
        for op in registry.ops()
        for row in registry.backends(op)
    ]


def choice_rows() -> list[tuple[str, str]]:
    """(op, what decides which of its backends runs on this machine's device)."""
    import torch

    registry.load()
    where = torch.empty(0, device="cuda") if torch.cuda.is_available() else torch.empty(0)
    return [(op, _choice(op, registry.device_key(where))) for op in registry.ops()]


def _choice(op: str, key: str) -> str:
    wish = registry.forced(op)
    if wish is not None:
        by = registry.ENVIRONMENT if os.environ.get(registry.ENVIRONMENT) else "use_backend"
        return f"{wish}, forced by {by}"
    counts: dict[str, int] = {}
    for mode in dispatch.MODES:
        for steps in dispatch.active.get(op, {}).get((key, mode), {}).values():
            for _, name in steps:
                counts[name] = counts.get(name, 0) + 1
    if not counts:
        first = next((row.name for row in registry.backends(op) if row.available() is None), "none")
        return f"{first} first, by order of priority: not measured on this device ({key})"
    shares = ", ".join(f"{name} in {n}" for name, n in sorted(counts.items()))
    return f"measured on {key}: {shares} ranges of shapes ({dispatch.sources[key]})"
