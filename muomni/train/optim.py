"""AdamW with warm-up and cosine decay, and an update that skips itself on non-finite gradients.

Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from muomni.config import OptimConfig


def learning_rate(config: OptimConfig, *, step: int, steps: int) -> float:
    """The rate of step 0 <= step < steps: linear warm-up, then a cosine down to lr * min_lr_ratio."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
    low = config.lr * config.min_lr_ratio
    return low + (config.lr - low) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


class Optimizer:
    """One phase's AdamW over named parameters, with state as named tensors."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimConfig) -> None:
        """Matrices decay; vectors, scalars and embeddings do not."""
        self.config = config
        self.parameters = dict(parameters)
        decayed = {n for n, p in self.parameters.items() if p.ndim >= 2 and "embed" not in n}
        groups = [
            {
                "params": [p for n, p in self.parameters.items() if (n in decayed) == flag],
                "weight_decay": decay,
            }
            for flag, decay in ((True, config.weight_decay), (False, 0.0))
        ]
        self._adam = torch.optim.AdamW(
            [g for g in groups if g["params"]],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            fused=True,
        )
        self._start()

    def _start(self) -> None:
        """Zero moments and steps, made at once so that a checkpoint of step 0 has them."""
        for parameter in self.parameters.values():
            self._adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self._adam.zero_grad(set_to_none=True)

    def step(self, loss: torch.Tensor, lr: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Clip the gradients and update, unless the loss or a gradient is not finite.

        loss: () the summed loss. The decision is made on the device: nothing is read back.
        Returns (gradient norm before clipping, 1.0 where the update was skipped), both () float32.
        """
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        skipped = (~(torch.isfinite(norm) & torch.isfinite(loss))).float()
        torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.config.grad_clip, norm)
        for group in self._adam.param_groups:
            group["lr"] = lr
        # The fused kernels leave parameters, moments and step count alone where found_inf is 1.
        self._adam.found_inf = skipped  # type: ignore[attr-defined]
        self._adam.step()
        return norm, skipped

    def state(self) -> dict[str, torch.Tensor]:
        """Moments and step counts as `<parameter>/<field>`."""
        return {
            f"{name}/{field}": value
            for name, parameter in self.parameters.items()
            for field, value in self._adam.state[parameter].items()
        }

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over a saved state. Raises KeyError or ValueError when it is not of these parameters."""
        own: dict[str, Any] = self.state()
        if own.keys() != state.keys():
            raise KeyError(f"optimizer: {len(own.keys() ^ state.keys())} names differ from the checkpoint's.")
        with torch.no_grad():
            for name, value in own.items():
                if value.shape != state[name].shape:
                    raise ValueError(
                        f"optimizer: {name} is {tuple(value.shape)}, saved {tuple(state[name].shape)}."
                    )
                value.copy_(state[name])
