"""One optimizer step of every phase: counts, forward, backward, update. Nothing is read back from the device."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from muomni.config import RunConfig
from muomni.data.batch import to_device
from muomni.errors import UserError
from muomni.models.memory import draws_again, recompute
from muomni.train import parallel
from muomni.train.graphed import Record, Replay, recorder, update_is_capturable
from muomni.train.optim import Optimizer, Outcome
from muomni.train.schedule import learning_rate
from muomni.train.stage import Stage, step_seed
from muomni.train.world import in_turn, world

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

    def __init__(
        self, stage: Stage, run: RunConfig, model: nn.Module, *, record: Record | None = None
    ) -> None:
        """Make the optimizers, and the function of the losses; the model is on its device.

        record: how gradients and updates are recorded, by default what train.graph says.
        """
        self.stage, self.run, self.model = stage, run, model
        self.device = next(model.parameters()).device
        self.world = world()
        self.net = parallel.spread(stage, run, model, self.world)
        self.optimizers = {
            p: Optimizer(self.net.parameters(p), run.optim, norm=functools.partial(self.net.norm, p))
            for p in stage.phases
        }
        recompute(model, run.train.recompute)
        self.half = in_half(run.train.precision, self.device)
        alone, draws = self.world.size == 1, draws_again(model)
        self.record = record or recorder(stage, run.train, device=self.device, alone=alone, draws_again=draws)
        self._gradient: dict[str, Replay[tuple[torch.Tensor, dict[str, torch.Tensor]]]] = {}
        self._update: dict[str, Replay[Outcome]] = {}
        self._kept: dict[str, list[tuple[torch.Tensor, ...]]] = {}
        self.parts = 1
        """Pieces of a micro-batch; doubled when one does not fit in memory."""

    def __call__(self, micro: Sequence[Sequence[Any]], fetch: Fetch, *, step: int) -> Taken:
        """Step number `step` with the pieces of this process's micro-batches.

        A micro-batch that does not fit in memory is fetched again in twice as many parts, for this step and all later
        ones. Raises OutOfMemory when MOST_PARTS do not fit either, or other processes take part.
        """
        lr = learning_rate(self.run.optim, step=step, steps=self.run.train.steps)
        buffers = [b for n, b in self.model.named_buffers() if n.split(".", 1)[0] in self.stage.saved]
        before = [b.clone() for b in buffers]
        bad, spiked = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        seen: dict[str, torch.Tensor] = {}
        totals = self._totals(micro)
        terms: set[str] = set()
        for number, phase in enumerate(self.optimizers):
            if not self.stage.takes(phase, micro[0][0]):
                continue
            gathered = list(self.stage.gathered)
            while True:
                try:
                    total, means = self._gradients(micro, totals, phase=phase, seeds=(step, number))
                    break
                except torch.OutOfMemoryError as error:
                    self._halve(error)
                # Outside the handler: its traceback holds the tensors that did not leave room.
                self.forget()
                # Of the phases before, whose updates are made.
                self.stage.gathered.extend(gathered)
                micro = fetch(self.parts)
                totals = self._totals(micro)
            outcome = self._updated(phase, total, lr)
            bad, spiked = torch.maximum(bad, outcome.skipped), torch.maximum(spiked, outcome.spiked)
            terms |= means.keys()
            for key, value in means.items():
                seen[f"loss/{key}"] = seen.get(f"loss/{key}", 0) + value
            seen["grad_norm"] = seen.get("grad_norm", 0) + outcome.norm
        if terms != totals.keys():
            raise ValueError(
                f"stage {self.stage.name}: losses without {sorted(totals.keys() - terms)} of counts."
            )
        self.stage.gather(self.model)
        self.stage.gathered[:] = in_turn(self.stage.gathered)
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
        return self.world.totals(totals)

    def _gradients(
        self,
        micro: Sequence[Sequence[Any]],
        totals: Mapping[str, torch.Tensor | int],
        *,
        phase: str,
        seeds: tuple[int, int],
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Add up the gradients of all pieces. Returns the weighted loss () and each term's mean ()."""
        self.optimizers[phase].zero_grad(in_place=self.record is not None)
        total = torch.zeros((), device=self.device)
        means: dict[str, torch.Tensor] = {}
        for i, pieces in enumerate(micro):
            for j, batch in enumerate(pieces):
                # Dropout depends on (seed, step, phase, micro-batch, piece): a resume needs no generator state.
                number = i * self.world.size + self.world.rank
                seed = step_seed(self.run.seed, 2, *seeds, number, *([j] if j else []))
                last = (i, j) == (len(micro) - 1, len(pieces) - 1)
                with self.net.passing(phase, last=last):
                    loss, parts = self._differentiated(phase, batch, totals, seed)
                total = total + loss
                for key, value in parts.items():
                    means[key] = means.get(key, 0) + value
        self.net.collect(phase)
        total, *values = self.world.sums([total, *means.values()])
        return total, dict(zip(means, values, strict=True))

    def _differentiated(
        self, phase: str, batch: Any, totals: Mapping[str, torch.Tensor | int], seed: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`_differentiate` under a seed, replayed where steps are recorded."""
        work = functools.partial(self._differentiate, phase)
        if self.record is None:
            torch.manual_seed(seed)
            return work(to_device(batch, self.device), totals)
        numbers = {k: int(v) for k, v in totals.items()}
        if phase not in self._gradient:
            # Recording runs the work: what it adds to gradients and buffers is taken back.
            state = [*self.optimizers[phase].gradients, *self.model.buffers()]
            before, gathered = [t.clone() for t in state], list(self.stage.gathered)

            def alone(
                batch: Any, totals: Mapping[str, torch.Tensor]
            ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
                self.stage.gathered.clear()
                return work(batch, totals)

            try:
                self._gradient[phase] = Replay(alone, batch, numbers, record=self.record, device=self.device)
                self._kept[phase] = list(self.stage.gathered)
            finally:
                self.stage.gathered[:] = gathered
                _put_back(state, before)
        torch.manual_seed(seed)
        result = self._gradient[phase](batch, numbers)
        self.stage.gathered.extend(tuple(t.clone() for t in entry) for entry in self._kept[phase])
        return result

    def _differentiate(
        self, phase: str, batch: Any, totals: Mapping[str, torch.Tensor | int]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Add one piece's gradients to the parameters'. Returns its weighted loss () and its terms over the totals."""
        # A recorded region must hold its casts itself.
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.half, cache_enabled=self.record is None
        ):
            sums = self.net(batch, phase)
        self.stage.gather(self.model)
        _check_terms(sums, totals, self.stage)
        # At least float32; a test in float64 stays there.
        parts = {
            k: v.to(torch.promote_types(v.dtype, torch.float32)) / _at_least_one(totals[k])
            for k, v in sums.items()
        }
        loss = torch.stack([self.stage.weights[k] * v for k, v in parts.items()]).sum()
        loss.backward()
        return loss.detach(), {k: v.detach() for k, v in parts.items()}

    def _updated(self, phase: str, total: torch.Tensor, lr: float) -> Outcome:
        """Update a phase's parameters, replayed where steps are recorded."""
        optimizer = self.optimizers[phase]
        if self.record is None or not update_is_capturable(self.run.optim):
            return optimizer.step(total, lr)
        if phase not in self._update:
            # Recording runs the update: a loss that is not finite makes it leave all but the gradients as it is.
            gradients = optimizer.gradients
            before = [g.clone() for g in gradients]
            self._update[phase] = Replay(
                lambda _, numbers: optimizer.step(numbers["loss"], numbers["lr"]), None,
                {"loss": torch.full_like(total, torch.nan), "lr": lr}, record=self.record, device=self.device,
            )  # fmt: skip
            _put_back(gradients, before)
        return self._update[phase](None, {"loss": total, "lr": lr})

    def forget(self) -> None:
        """Free what an attempt left: gradients, statistics, and recordings, whose shapes will be others."""
        for recorded in (self._gradient, self._update, self._kept, self.stage.gathered):
            recorded.clear()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        self.stage.gather(self.model)
        self.stage.gathered.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _halve(self, error: torch.OutOfMemoryError) -> None:
        if self.world.size > 1:
            # The others are in the middle of a backward that this process cannot join again.
            raise OutOfMemory(
                f"stage {self.stage.name}: out of memory on process {self.world.rank} of {self.world.size}; go on with "
                "train.recompute=true or train.shard=true, or choose more and smaller train.micro_batches."
            ) from error
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


def _check_terms(sums: Mapping[str, Any], totals: Mapping[str, Any], stage: Stage) -> None:
    """Raise ValueError for a loss term without a count or a weight: it would be left out of the sum unseen."""
    for what, keys in (("counts", totals.keys()), ("weights", stage.weights.keys())):
        if missing := sums.keys() - keys:
            raise ValueError(f"stage {stage.name}: {what} without {sorted(missing)} of losses.")


def _put_back(tensors: Sequence[torch.Tensor], before: Sequence[torch.Tensor]) -> None:
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(old)


def _at_least_one(count: torch.Tensor | int) -> torch.Tensor | int:
    return count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1)
