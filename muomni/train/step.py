"""One optimizer step of every phase: counts, forward, backward, update. Nothing is read back from the device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from muomni.config import RunConfig
from muomni.data.batch import to_device
from muomni.errors import UserError
from muomni.train.compiled import loss_function
from muomni.train.optim import Optimizer
from muomni.train.schedule import learning_rate
from muomni.train.stage import Stage, step_seed

_LOG = logging.getLogger(__name__)

MOST_PARTS = 64
"""Pieces of a micro-batch beyond which out of memory is told instead of halving again."""

Fetch = Callable[[int], Sequence[Sequence[Any]]]
"""Called as fetch(parts): the pieces of each micro-batch of the step, again and in that many parts."""


class Taken(NamedTuple):
    """What a step did; tensors () on the device."""

    seen: dict[str, torch.Tensor]
    """Mean of each loss term as `loss/<term>`, and grad_norm summed over the phases."""
    bad: torch.Tensor
    """1.0 where an update was left out, float32."""
    spiked: torch.Tensor
    """1.0 where it was left out for the size of its gradient alone, float32."""
    lr: float


class OutOfMemory(UserError, RuntimeError):
    """A micro-batch that does not fit, in however many pieces."""


class Step:
    """Takes optimizer steps of one run."""

    def __init__(self, stage: Stage, run: RunConfig, model: nn.Module) -> None:
        """Make the optimizers, and the function of the losses; the model is on its device."""
        self.stage, self.run, self.model = stage, run, model
        self.device = next(model.parameters()).device
        self.optimizers = {p: Optimizer(stage.parameters(model, p), run.optim) for p in stage.phases}
        self.losses = loss_function(stage, run.train.compile, device=self.device)
        self.half = in_half(run.train.precision, self.device)
        self.parts = 1
        """Pieces of a micro-batch; doubled when one does not fit in memory."""

    def __call__(self, micro: Sequence[Sequence[Any]], fetch: Fetch, *, step: int) -> Taken:
        """Step number `step` with the pieces of its micro-batches.

        A micro-batch that does not fit in memory is fetched again in twice as many parts, for this step and all later
        ones. Raises OutOfMemory when MOST_PARTS do not fit either.
        """
        lr = learning_rate(self.run.optim, step=step, steps=self.run.train.steps)
        buffers = [b for n, b in self.model.named_buffers() if n.split(".", 1)[0] in self.stage.saved]
        before = [b.clone() for b in buffers]
        bad, spiked = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        seen: dict[str, torch.Tensor] = {}
        terms: set[str] = set()
        totals = self._totals(micro)
        for number, (phase, optimizer) in enumerate(self.optimizers.items()):
            while True:
                optimizer.zero_grad()
                try:
                    total, means = self._gradients(micro, totals, phase=phase, seeds=(step, number))
                    break
                except torch.OutOfMemoryError as error:
                    self._halve(error)
                # Outside the handler: its traceback holds the tensors that did not leave room.
                optimizer.zero_grad()
                self.stage.discard(self.model)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                micro = fetch(self.parts)
                totals = self._totals(micro)
            outcome = optimizer.step(total, lr)
            bad, spiked = torch.maximum(bad, outcome.skipped), torch.maximum(spiked, outcome.spiked)
            terms |= means.keys()
            for key, value in means.items():
                seen[f"loss/{key}"] = seen.get(f"loss/{key}", 0) + value
            seen["grad_norm"] = seen.get("grad_norm", 0) + outcome.norm
        if terms != totals.keys():
            raise ValueError(
                f"stage {self.stage.name}: losses without {sorted(totals.keys() - terms)} of counts."
            )
        self.stage.after_step(self.model)
        # What a non-finite step gathered goes with its update: codebook statistics and logged means alike.
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(torch.where(bad > 0, old, buffer))
        return Taken(seen, bad, spiked, lr)

    def _totals(self, micro: Sequence[Sequence[Any]]) -> dict[str, torch.Tensor | int]:
        """Counts of all micro-batches first: the gradient is that of one division by the step's total."""
        totals: dict[str, torch.Tensor | int] = {}
        for batch in (piece for pieces in micro for piece in pieces):
            for key, count in self.stage.counts(batch).items():
                totals[key] = totals.get(key, 0) + count
        return totals

    def _gradients(
        self,
        micro: Sequence[Sequence[Any]],
        totals: dict[str, torch.Tensor | int],
        *,
        phase: str,
        seeds: tuple[int, int],
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Add up the gradients of all pieces. Returns the weighted loss () and each term's mean ()."""
        total = torch.zeros((), device=self.device)
        means: dict[str, torch.Tensor] = {}
        for i, pieces in enumerate(micro):
            for j, batch in enumerate(pieces):
                # Dropout depends on (seed, step, phase, micro-batch, piece): a resume needs no generator state.
                torch.manual_seed(step_seed(self.run.seed, 2, *seeds, i, *([j] if j else [])))
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                    sums = self.losses(self.model, to_device(batch, self.device), phase)
                _check_terms(sums, totals, self.stage)
                # At least float32; a test in float64 stays there.
                parts = {
                    k: v.to(torch.promote_types(v.dtype, torch.float32)) / _at_least_one(totals[k])
                    for k, v in sums.items()
                }
                loss = torch.stack([self.stage.weights[k] * v for k, v in parts.items()]).sum()
                loss.backward()
                total = total + loss.detach()
                for key, value in parts.items():
                    means[key] = means.get(key, 0) + value.detach()
        return total, means

    def _halve(self, error: torch.OutOfMemoryError) -> None:
        self.parts *= 2
        if self.parts > MOST_PARTS:
            raise OutOfMemory(
                f"stage {self.stage.name}: out of memory with a micro-batch in {self.parts // 2} pieces; choose a "
                "smaller --size, or see what fits with `muomni plan`."
            ) from error
        note = " The contrast then compares fewer pairs." if self.stage.name == "vision" else ""
        _LOG.warning(
            "stage %s: out of memory; micro-batches go on in %d pieces, a step stays the same.%s",
            self.stage.name, self.parts, note,
        )  # fmt: skip


def in_half(precision: str, device: torch.device) -> bool:
    """Whether losses are computed in bfloat16; "auto": on CUDA devices that have it."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"


def _check_terms(sums: dict[str, Any], totals: dict[str, Any], stage: Stage) -> None:
    """Raise ValueError for a loss term without a count or a weight: it would be left out of the sum unseen."""
    for what, keys in (("counts", totals.keys()), ("weights", stage.weights.keys())):
        if missing := sums.keys() - keys:
            raise ValueError(f"stage {stage.name}: {what} without {sorted(missing)} of losses.")


def _at_least_one(count: torch.Tensor | int) -> torch.Tensor | int:
    return count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1)
