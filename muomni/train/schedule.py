"""The learning rate of a step: linear warm-up, then a cosine, or a constant and a short decay (WSD).

Sources: Loshchilov and Hutter, "SGDR", 2017 (cosine); Hu et al., "MiniCPM", 2024 (warm-up, stable, decay);
Haegele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", 2024 (1 - sqrt).
"""

from __future__ import annotations

import math

from muomni.config import OptimConfig


def learning_rate(config: OptimConfig, *, step: int, steps: int) -> float:
    """The rate of step 0 <= step < steps.

    Warm-up: lr * (step + 1) / warmup_steps; a run shorter than that never reaches lr. Then
    cosine: down to lr * min_lr_ratio at the last step;
    wsd: lr until the last decay_share of all steps, then lr less a share sqrt(done) of the way to
    lr * min_lr_ratio, which the last step has. A warm-up longer than the stable part shortens the decay.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    low = config.lr * config.min_lr_ratio
    if config.schedule == "wsd":
        start = max(config.warmup_steps, steps - round(config.decay_share * steps))
        if step < start:
            return config.lr
        return low + (config.lr - low) * (1.0 - math.sqrt((step - start + 1) / (steps - start)))
    done = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
    return low + (config.lr - low) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
