"""How much of each text set a run draws: by temperature, with a bound on technical text."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def mix(
    sizes: Mapping[str, float], technical: Collection[str] = (), *, temperature: float, technical_share: float
) -> dict[str, float]:
    """Shares that add up to 1, in the order of sizes.

    sizes: how much there is of each set, in bytes or tokens. temperature: 1 draws in proportion to size, more draws
    small sets more often (size ** (1 / temperature)), as for languages in mT5 (arXiv:2010.11934). technical: names
    whose shares together are at most technical_share, if there is other text; what is above goes to the others in
    proportion. Raises ValueError for a temperature below 1, a share outside [0, 1], a size that is not positive, a
    technical name that is not in sizes, or no sizes.
    """
    if temperature < 1:
        raise ValueError(f"temperature: {temperature}, expected 1 or more.")
    if not 0 <= technical_share <= 1:
        raise ValueError(f"technical_share: {technical_share}, expected 0 to 1.")
    if not sizes or min(sizes.values()) <= 0:
        raise ValueError(f"sizes: {dict(sizes)}, expected at least one set, and none empty.")
    if unknown := sorted(set(technical) - set(sizes)):
        raise ValueError(f"technical: {unknown[0]!r} is not among the sets {', '.join(sizes)}.")
    weights = {name: size ** (1 / temperature) for name, size in sizes.items()}
    total = sum(weights.values())
    shares = {name: weight / total for name, weight in weights.items()}
    bounded = sum(shares[name] for name in set(technical))
    others = sum(shares[name] for name in sizes if name not in technical)
    if bounded <= technical_share or others == 0:
        return shares
    return {
        name: share * (technical_share / bounded if name in technical else (1 - technical_share) / others)
        for name, share in shares.items()
    }
