"""A training step of the text stage in place: forward, backward and AdamW on one packed batch, kernels on and off.

`python -m benchmarks.train_step --sizes tiny,base --out rows.jsonl`. Eager and compiled; "reference" turns off every op
that has a Triton backend and leaves attention as it is. Then 100 steps of the same batches with kernels on and off:
their losses must stay together. Random documents of 32 to 512 tokens; bf16 autocast over fp32 weights on a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from muomni_kernels import linear_cross_entropy, registry, use_backend

from benchmarks import harness, provenance
from benchmarks.kernels import Log
from benchmarks.make import integers
from benchmarks.measure import FAILURES, Row, first_line
from muomni import recipes
from muomni.models.thinker import Thinker
from muomni.tokens import IGNORE_INDEX
from muomni.train.optim import Optimizer

MODES = ("kernels", "reference", "reference compiled", "kernels compiled")
BLOCK = 4
"""Steps timed together: the host must not wait between them."""
N_BATCHES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """A packed row of whole documents."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int


def batch(device: torch.device, seed: int, *, n_tokens: int, vocab_size: int, longest: int) -> Batch:
    """Random documents of a sixteenth of `longest` up to it."""
    generator = torch.Generator().manual_seed(seed)
    ends = [0]
    while ends[-1] < n_tokens:
        length = int(torch.randint(max(2, longest // 16), longest + 1, (1,), generator=generator))
        ends.append(min(n_tokens, ends[-1] + length))
    size = n_tokens // max(2, longest // 16) + 2
    cu = torch.tensor(ends + [n_tokens] * (size - len(ends)), dtype=torch.int32)
    positions = torch.cat([torch.arange(b - a) for a, b in zip(ends, ends[1:], strict=False)])
    ids = integers(device, seed, vocab_size, n_tokens)
    labels = torch.roll(ids, -1)
    labels[torch.tensor(ends[1:], device=device) - 1] = IGNORE_INDEX
    return Batch(
        input_ids=ids,
        labels=labels,
        positions=positions[:, None].expand(-1, 3).contiguous().to(device),
        cu_seqlens=cu.to(device),
        max_seqlen=longest,
    )


@contextmanager
def without_kernels() -> Iterator[None]:
    """Every op that has a Triton backend runs its reference."""
    registry.load()
    with ExitStack() as stack:
        for op in registry.ops():
            if any(row.name == "triton" for row in registry.backends(op)):
                stack.enter_context(use_backend(op, "reference"))
        yield


@contextmanager
def _as_is() -> Iterator[None]:
    yield


class Trainer:
    """One model, its optimizer and one way to run its ops."""

    def __init__(self, size: str, mode: str, device: torch.device, *, n_tokens: int) -> None:
        """The same initial weights for every mode."""
        run = recipes.recipe(size, "text")
        self.mode, self.device, self.n_tokens = mode, device, n_tokens
        torch.manual_seed(0)
        self.model = Thinker(run.model.thinker).to(device)
        self.optimizer = Optimizer(dict(self.model.named_parameters()), run.optim)
        longest = min(run.model.max_seq_len, n_tokens)
        vocab = run.model.thinker.vocab_size
        self.batches = [
            batch(device, i, n_tokens=n_tokens, vocab_size=vocab, longest=longest) for i in range(N_BATCHES)
        ]
        self.scope: Callable[[], Any] = without_kernels if mode.startswith("reference") else _as_is
        self.forward: Callable[[Batch], torch.Tensor] = self._forward
        if mode.endswith("compiled"):
            backend = "inductor" if device.type == "cuda" else "aot_eager"
            compiled = torch.compile(self._loss, backend=backend, dynamic=False)
            self.forward = lambda b: compiled(b.input_ids, b.labels, b.positions, b.cu_seqlens, b.max_seqlen)
        self.n_steps = 0

    def _forward(self, b: Batch) -> torch.Tensor:
        return self._loss(b.input_ids, b.labels, b.positions, b.cu_seqlens, b.max_seqlen)

    def _loss(
        self, ids: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor, cu: torch.Tensor, longest: int
    ) -> torch.Tensor:
        hidden = self.model(self.model.embed(ids), positions, cu, longest)
        loss, count = linear_cross_entropy(hidden, self.model.embedding, labels, ignore_index=IGNORE_INDEX)
        return loss / count

    def step(self) -> torch.Tensor:
        """One optimizer step; () the loss before it, on the device."""
        self.optimizer.zero_grad()
        cuda = self.device.type == "cuda"
        with self.scope():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=cuda):
                loss = self.forward(self.batches[self.n_steps % N_BATCHES])
            loss.backward()
        self.optimizer.step(loss.detach(), 1e-3)
        self.n_steps += 1
        return loss.detach()

    def block(self) -> float:
        """Microseconds a step, of a few steps that end with the device done."""
        harness.synchronize(self.device)
        began = time.perf_counter()
        for _ in range(BLOCK):
            self.step()
        harness.synchronize(self.device)
        return (time.perf_counter() - began) * 1e6 / BLOCK


def _row(size: str, n_tokens: int, mode: str, status: str, **values: Any) -> Row:
    return {
        "op": "train_step", "variant": f"{size}, {n_tokens} tokens", "shape": {"tokens": n_tokens}, "dtype": "bfloat16",
        "model": True, "pass": "step", "contender": mode, "status": status, **values,
    }  # fmt: skip


def speed(size: str, device: torch.device, *, n_tokens: int, rounds: int, deadline: float) -> Iterator[Row]:
    """Tokens a second and peak memory of every mode, timed in turn."""
    ready: dict[str, Trainer] = {}
    peaks: dict[str, int | None] = {}
    for mode in MODES:
        if time.monotonic() > deadline:
            yield _row(size, n_tokens, mode, "not run: out of time")
            continue
        try:
            trainer = Trainer(size, mode, device, n_tokens=n_tokens)
            trainer.step()
            peaks[mode] = harness.peak_bytes(trainer.step, device)
            trainer.block()
            ready[mode] = trainer
        except FAILURES as error:
            yield _row(size, n_tokens, mode, f"failed: {first_line(error)}")
            gc.collect()
    times: dict[str, list[float]] = {mode: [] for mode in ready}
    for turn in range(rounds):
        if turn >= 3 and time.monotonic() > deadline:
            break
        for mode, trainer in ready.items():
            times[mode].append(trainer.block())
    for mode, values in times.items():
        figures = harness.percentiles(values)
        yield _row(
            size, n_tokens, mode, "ok", **figures, n_rounds=len(values), peak_bytes=peaks[mode],
            tokens_per_s=round(n_tokens / figures["p50"] * 1e6),
        )  # fmt: skip


def loss_pair(size: str, device: torch.device, *, n_tokens: int, steps: int) -> Row:
    """The losses of the same steps with kernels on and off, and how far apart they get."""
    losses = {}
    for mode in MODES[:2]:
        trainer = Trainer(size, mode, device, n_tokens=n_tokens)
        losses[mode] = torch.stack([trainer.step() for _ in range(steps)]).tolist()
    on, off = losses[MODES[0]], losses[MODES[1]]
    return {
        **_row(size, n_tokens, "kernels and reference", "ok"),
        "op": "loss_pair",
        "steps": steps,
        "largest_difference": max(abs(a - b) for a, b in zip(on, off, strict=True)),
        "last": [on[-1], off[-1]],
        "losses": {mode: [round(v, 5) for v in values] for mode, values in losses.items()},
    }


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.add_argument("--sizes", default="tiny,base", help="comma-separated")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path, default=Path("benchmark-rows.jsonl"))
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--command", default=None)
    arguments = parser.parse_args(argv)
    smoke = arguments.device == "cpu"
    if not smoke and not torch.cuda.is_available():
        print("needs a CUDA device; --device cpu runs a smoke test")
        return 2
    if smoke:
        print(harness.SMOKE)
    device = torch.device(arguments.device)
    deadline = time.monotonic() + arguments.seconds
    log = Log(arguments.out, provenance.describe(arguments.device, arguments.command))
    steps = 4 if smoke else 100
    for i, size in enumerate(arguments.sizes.split(",")):
        n_tokens = 128 if smoke else recipes.recipe(size, "text").train.batch_tokens
        torch.compiler.reset()
        rounds = 2 if smoke or arguments.quick else 8
        for entry in speed(size, device, n_tokens=n_tokens, rounds=rounds, deadline=deadline):
            log.add(entry | ({"dtype": "float32"} if smoke else {}))
            print(
                f"{entry['variant']}, {entry['contender']}: {entry.get('tokens_per_s', entry['status'])}",
                flush=True,
            )
        gc.collect()
        if i == 0:
            try:
                log.add(loss_pair(size, device, n_tokens=n_tokens, steps=steps))
            except FAILURES as error:
                log.add(
                    {**_row(size, n_tokens, "loss pair", f"failed: {first_line(error)}"), "op": "loss_pair"}
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
