"""AdamW, or Muon for the matrices of the blocks and AdamW for the rest; an update that skips itself.

Sources: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019; Jordan, "Muon", 2024, and
Liu et al., "Muon is Scalable for LLM Training", 2025 (update scaled to AdamW's: one rate for both).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from muomni.config import OptimConfig
from muomni.train.ema import Average
from muomni.train.half_moments import HalfMomentsAdamW
from muomni.train.spikes import SpikeGuard

MOMENTUM = 0.95
"""Decay of Muon's momentum: Jordan's value, which Liu et al. keep."""


class Outcome(NamedTuple):
    """What a step of an Optimizer did; tensors () on the device, not read back."""

    norm: torch.Tensor
    """Gradient norm before clipping."""
    skipped: torch.Tensor
    """1.0 where the update was left out, float32."""
    spiked: torch.Tensor
    """1.0 where it was left out for its size alone, float32."""


def is_block_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon may update a parameter: a projection of attention, feed-forward or convolution in a block.

    Embeddings, heads, norms, taps of convolutions, routers and stacked experts are not.
    """
    return (
        parameter.ndim == 2 and ".blocks." in name and not name.endswith((".conv.weight", ".router.weight"))
    )


class Optimizer:
    """One phase's optimizer over named parameters, with state as named tensors."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: OptimConfig,
        *,
        norm: Callable[[Sequence[torch.Tensor]], torch.Tensor] = torch.nn.utils.get_total_norm,
    ) -> None:
        """Matrices decay; vectors, scalars and embeddings do not.

        norm: () of the gradients, for a process that holds a part of each parameter.
        """
        self.config, self._norm = config, norm
        self.parameters = dict(parameters)
        of_muon = {n for n, p in self.parameters.items() if config.name == "muon" and is_block_matrix(n, p)}
        decayed = {n for n, p in self.parameters.items() if p.ndim >= 2 and "embed" not in n}
        device = next(iter(self.parameters.values())).device
        groups = [
            {
                "params": [
                    p for n, p in self.parameters.items() if n not in of_muon and (n in decayed) == flag
                ],
                "weight_decay": decay,
            }
            for flag, decay in ((True, config.weight_decay), (False, 0.0))
        ]
        groups = [g for g in groups if g["params"]]
        betas = (config.beta1, config.beta2)
        self._moments = torch.bfloat16 if config.moments == "bf16" else None
        self._adam: torch.optim.AdamW | HalfMomentsAdamW = (
            HalfMomentsAdamW(groups, lr=config.lr, betas=betas, weight_decay=config.weight_decay)
            if self._moments
            else torch.optim.AdamW(
                groups, lr=config.lr, betas=betas, fused=True, capturable=device.type == "cuda"
            )
        )
        # Capturable steps that are not captured are no mistake here.
        self._adam._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]
        self._muon: torch.optim.Muon | None = None
        if of_muon:
            self._muon = torch.optim.Muon(
                [self.parameters[n] for n in self.parameters if n in of_muon],
                lr=config.lr,
                momentum=MOMENTUM,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        self._guard = (
            SpikeGuard(sigma=config.spike_sigma, window=config.spike_window, device=device)
            if config.spike_sigma
            else None
        )
        self._average = Average(self.parameters, decay=config.ema_decay) if config.ema_decay else None
        self._fields = {n: self._start(p, muon=n in of_muon) for n, p in self.parameters.items()}

    def _start(self, parameter: nn.Parameter, *, muon: bool) -> dict[str, torch.Tensor]:
        """Zero moments and steps, made at once so that a checkpoint of step 0 has them."""
        if muon and self._muon is not None:
            fields = {"momentum_buffer": torch.zeros_like(parameter)}
            self._muon.state[parameter] = fields
        else:
            fields = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, dtype=self._moments),
                "exp_avg_sq": torch.zeros_like(parameter, dtype=self._moments),
            }
            self._adam.state[parameter] = fields
        return fields

    @property
    def gradients(self) -> list[torch.Tensor]:
        """The gradients there are, in the order of the parameters."""
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    def zero_grad(self, *, in_place: bool = False) -> None:
        """Drop the gradients. in_place: keep their memory, which a recorded step writes to."""
        if not in_place:
            for parameter in self.parameters.values():
                parameter.grad = None
            return
        there = [p.grad for p in self.parameters.values() if p.grad is not None]
        if there:
            torch._foreach_zero_(there)  # pyright: ignore[reportPrivateImportUsage]
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, loss: torch.Tensor, lr: float | torch.Tensor) -> Outcome:
        """Clip the gradients and update, unless the loss or a gradient is not finite or the norm is a spike.

        loss: () the summed loss. lr: a () float32 tensor in a recorded step, which cannot have Muon.
        The decision is made on the device: nothing is read back.
        """
        norm = self._norm(self.gradients)
        skipped = ~(torch.isfinite(norm) & torch.isfinite(loss))
        spiked = torch.zeros_like(skipped)
        if self._guard is not None:
            spiked = self._guard.spiked(norm) & ~skipped
            skipped = skipped | spiked
            self._guard.update(norm, accepted=~skipped)
        skipped = skipped.float()
        torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.config.grad_clip, norm)
        for group in self._adam.param_groups:
            group["lr"] = lr
        # Both leave parameters, moments and step count alone where found_inf is 1.
        self._adam.found_inf = skipped  # type: ignore[attr-defined]
        self._adam.step()
        if self._muon is not None:
            self._muon_step(self._muon, lr, skipped > 0)
        if self._average is not None:
            self._average.update(skipped)
        return Outcome(norm, skipped, spiked.float())

    def _muon_step(self, muon: torch.optim.Muon, lr: float | torch.Tensor, skipped: torch.Tensor) -> None:
        """Muon knows no found_inf: the tensors from before are put back, whatever the update made of them."""
        tensors = [t for p, state in muon.state.items() for t in (p, state["momentum_buffer"])]
        before = [t.clone() for t in tensors]
        for group in muon.param_groups:
            group["lr"] = lr
        muon.step()
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(torch.where(skipped, old, tensor))

    @property
    def averages(self) -> dict[str, torch.Tensor]:
        """The averaged parameters by name; empty without ema_decay."""
        return {} if self._average is None else self._average.values

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters hold their averages inside, and are put back after. Nothing without ema_decay."""
        if self._average is None:
            yield
            return
        self._average.swap()
        try:
            yield
        finally:
            self._average.swap()

    def state(self) -> dict[str, torch.Tensor]:
        """Moments and step counts as `<parameter>/<field>`.

        With averages also `<parameter>/trained`, since a checkpoint's weights are then the averages, and
        `ema/n_updates`; with spike detection `spikes/n | mean | variance`.
        """
        values = {f"{name}/{k}": v for name, fields in self._fields.items() for k, v in fields.items()}
        if self._guard is not None:
            values |= {f"spikes/{k}": v for k, v in self._guard.state().items()}
        if self._average is not None:
            values |= {f"{name}/trained": p.detach() for name, p in self.parameters.items()}
            values["ema/n_updates"] = self._average.n_updates
        return values

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over a saved state, after the checkpoint's weights were loaded into the parameters.

        Raises KeyError or ValueError when it is not of these parameters.
        """
        own: dict[str, Any] = self.state()
        if own.keys() != state.keys():
            raise KeyError(f"optimizer: {len(own.keys() ^ state.keys())} names differ from the checkpoint's.")
        if self._average is not None:
            self._average.restart()
        with torch.no_grad():
            for name, value in own.items():
                if value.shape != state[name].shape:
                    raise ValueError(
                        f"optimizer: {name} is {tuple(value.shape)}, saved {tuple(state[name].shape)}."
                    )
                value.copy_(state[name])
