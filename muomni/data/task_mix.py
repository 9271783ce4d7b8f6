"""How often each task is drawn: a balance between many of one kind and few of another."""

from __future__ import annotations

import math
from collections.abc import Mapping


def mix(
    counts: Mapping[str, int], *, total: int, temperature: float, weights: Mapping[str, float]
) -> dict[str, int]:
    """Draws of each task out of `total`, in proportion to weight * count ** (1 / temperature).

    counts: things each task can ask about; a task with none is not drawn. temperature: 1 keeps the proportions of the
    counts, infinity makes all tasks alike but for their weights. weights: of each task, 0 to leave it out.
    Rounded by largest remainders, so the draws add up to total. (Temperature sampling: Arivazhagan et al. 2019,
    "Massively Multilingual Neural Machine Translation in the Wild", section 4.)
    Raises ValueError for a temperature below 1, a negative weight, a task without a weight, or a weight
    of no task.
    """
    if not temperature >= 1.0:
        raise ValueError(f"temperature: expected at least 1, got {temperature}.")
    if missing := sorted(counts.keys() - weights.keys()):
        raise ValueError(f"weights: expected one for each task, got none for {', '.join(missing)}.")
    if unknown := sorted(weights.keys() - counts.keys()):
        raise ValueError(f"weights: {unknown[0]!r} is no task; there are {', '.join(counts)}.")
    if bad := sorted(task for task in counts if not 0.0 <= weights[task] < math.inf):
        raise ValueError(f"weights: expected 0 or more, got {weights[bad[0]]} for {bad[0]}.")
    sizes = {task: weights[task] * n ** (1.0 / temperature) if n else 0.0 for task, n in counts.items()}
    whole = sum(sizes.values())
    if not whole:
        return dict.fromkeys(counts, 0)
    shares = {task: total * size / whole for task, size in sizes.items()}
    draws = {task: math.floor(share) for task, share in shares.items()}
    # Ties go to the task that comes first, so that a rounding is the same everywhere.
    rest = sorted(shares, key=lambda task: draws[task] - shares[task])
    for task in rest[: total - sum(draws.values())]:
        draws[task] += 1
    return draws
