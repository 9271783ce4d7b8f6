"""AdamW whose two moments are kept in bfloat16: half the optimizer's memory, arithmetic in float32.

Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, in the form of `torch.optim.AdamW`.
"""

from __future__ import annotations

from typing import Any

import torch


class HalfMomentsAdamW(torch.optim.Optimizer):
    """`torch.optim.AdamW` with bfloat16 `exp_avg` and `exp_avg_sq`; `step` is a () float32 tensor."""

    def __init__(
        self, params: Any, *, lr: float, betas: tuple[float, float], weight_decay: float, eps: float = 1e-8
    ) -> None:
        """Arguments as torch's. Above config.MOST_BETA2_BF16 the second moment would not move."""
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.found_inf: torch.Tensor | None = None
        """() float32: 1.0 leaves parameters, moments and step counts alone, as in torch's fused form."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. lr: a number, or a () tensor on the device."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad.float(), group)

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        taken = torch.ones_like(state["step"]) if self.found_inf is None else 1.0 - self.found_inf
        step = state["step"] + taken
        mean = torch.lerp(state["exp_avg"].float(), gradient, 1.0 - beta1)
        square = torch.lerp(state["exp_avg_sq"].float(), gradient.square(), 1.0 - beta2)
        # Of a first step that is left out step is 0: what comes of it is not used.
        size = group["lr"] / (1.0 - beta1**step)
        scale = (square / (1.0 - beta2**step)).sqrt() + group["eps"]
        new = parameter * (1.0 - group["lr"] * group["weight_decay"]) - size * mean / scale
        keep = taken > 0
        parameter.copy_(torch.where(keep, new, parameter))
        state["step"].copy_(step)
        for name, value in (("exp_avg", mean), ("exp_avg_sq", square)):
            state[name].copy_(torch.where(keep, value.to(state[name].dtype), state[name]))
