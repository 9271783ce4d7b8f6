"""What is timed: training steps of every stage and size, ours and their peers', on batches without any trained parent.

Ours is `muomni.train.step.Step`, what training runs. Batches are full ones, noise of a stage's largest items, and for
text also real packing: rows of the embedded documents, which is where useful tokens a second come from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch

from benchmarks import train_peers
from benchmarks.train_peers import PLAIN, PlainModel, PlainStep, liger_ops, rows_of
from benchmarks.train_report import LIGER, OURS, PLAIN_COMPILED, PLAIN_EAGER, START
from muomni import recipes
from muomni.config import RunConfig, ThinkerConfig
from muomni.data import embedded
from muomni.data.batch import Order
from muomni.train import plan
from muomni.train.schedule import learning_rate
from muomni.train.stages import omni as omni_module
from muomni.train.stages import stage as make_stage
from muomni.train.stages.audio import AudioStage
from muomni.train.stages.omni import OmniStage
from muomni.train.stages.text import TextStage
from muomni.train.step import Step, in_half

PACKED_VOCAB = 8_192
"""Tokenizer of real packing where a model's own is larger: the embedded texts do not fill one."""
N_BATCHES = 4

Taken = tuple[torch.Tensor, torch.Tensor | None]
"""A step's loss before the update and its gradient's norm, () on the device; None where a peer does not tell."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of batches."""

    size: str
    stage: str
    kind: Literal["full", "packed"]
    run: RunConfig

    @property
    def n(self) -> int:
        """Positions of a batch; pairs of stage vision."""
        return self.run.train.batch_items if self.stage == "vision" else self.run.train.batch_tokens

    @property
    def variant(self) -> str:
        """The case in words."""
        return f"{self.size} {self.stage}, {self.kind}, {self.n:,} {'pairs' if self.stage == 'vision' else 'positions'}"


def run_of(size: str, stage: str, *, most: int | None = None) -> RunConfig:
    """A recipe, or that of the size START (stage text only), with at most so many positions a batch."""
    run = recipes.recipe("tiny" if size == START else size, stage)
    if size == START:
        thinker = ThinkerConfig(
            vocab_size=32_000, d_model=256, n_layers=4, n_heads=4, n_kv_heads=4, head_dim=64, d_ff=1_024
        )
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, size=START, thinker=thinker))
    if most is not None and stage != "vision" and run.train.batch_tokens > most:
        run = plan.scaled(run, most)
    # The peers know no warm-up; at a full rate a wrong gradient shows in the next loss.
    return dataclasses.replace(run, optim=dataclasses.replace(run.optim, lr=1e-3, warmup_steps=0))


def batches(case: Case, root: Path) -> list[Any]:
    """N_BATCHES batches of a case on the CPU; root: where a tokenizer is trained on first use."""
    torch.manual_seed(0)
    if case.kind == "full":
        stage = make_stage(case.run)
        return [plan.full_batch(stage, case.run) for _ in range(N_BATCHES)]
    stage = TextStage(_packing(case.run))
    stage.build(stage.run, root)
    return [stage.batch(position)[0] for position in range(N_BATCHES)]


def _packing(run: RunConfig) -> RunConfig:
    """The run with a vocabulary that the embedded texts fill."""
    thinker = run.model.thinker
    small = dataclasses.replace(thinker, vocab_size=min(thinker.vocab_size, PACKED_VOCAB))
    return dataclasses.replace(run, model=dataclasses.replace(run.model, thinker=small))


def fill(run: RunConfig, root: Path) -> float | None:
    """Share of positions that an epoch of the embedded set fills; None where that needs a trained parent.

    root: where a tokenizer is trained on first use.
    """
    if run.stage in ("codec", "vocoder"):
        return 1.0
    if run.stage == "vision":
        n = len(embedded.SET.pictures("train"))
        room = min(run.train.batch_items, n)
        return n / (-(-n // room) * room)
    if run.stage == "talker":
        return None
    order: Order
    if run.stage == "audio":
        audio = AudioStage(run)
        audio.build(run, root)
        order = audio.order("train")[1]
    else:
        text = TextStage(_packing(run))
        text.build(text.run, root)
        if run.stage == "omni":
            omni = OmniStage(text.run)
            # Its data need no trained parent, only the text stage's tokenizer.
            with mock.patch.object(omni_module, "load_parent"):
                omni.build(text.run, root)
            order = omni._training[2]
        else:
            order = text._order("train")[1]
    return float(order.lengths[:, 0].sum() / (len(order.epoch(0)) * order.capacity[0]))


@dataclass(kw_only=True)
class Contender:
    """One way to take a case's steps."""

    name: str
    step: Callable[[int], Taken]
    """Step number i, on batch i modulo N_BATCHES."""
    held: Callable[[], int]
    """Bytes of weights, buffers and moments now."""
    positions: int
    half: bool
    """bfloat16 arithmetic."""


def contenders(
    case: Case,
    made: Sequence[Any],
    device: torch.device,
    *,
    precisions: Sequence[str],
    peers: Sequence[str],
    backend: str,
) -> Iterator[tuple[str, Callable[[], Contender]]]:
    """Names of those that may run in a case, ours first, and what makes each: it may raise NotRun or fail.

    made: the case's batches. precisions: fp32 or bf16. peers: specifications of adapters.
    backend: of torch.compile.
    """
    for precision in precisions:
        suffix = f", {precision}"
        yield OURS + suffix, lambda p=precision: ours(case, made, device, precision=p, name=f"{OURS}, {p}")
        if case.stage != "text":
            continue
        kinds = ((PLAIN_EAGER, None, False), (PLAIN_COMPILED, backend, False), (LIGER, None, True))
        for name, chosen, liger in kinds:
            yield (
                name + suffix,
                lambda p=precision, n=name, b=chosen, ops=liger: plain(
                    case, made, device, precision=p, name=f"{n}, {p}", backend=b, liger=ops
                ),
            )
        for spec in peers if case.kind == "full" else ():
            yield (
                f"{spec}{suffix}",
                lambda p=precision, s=spec: foreign(case, device, spec=s, precision=p, name=f"{s}, {p}"),
            )


def ours(case: Case, made: Sequence[Any], device: torch.device, *, precision: str, name: str) -> Contender:
    """A step of ours as training takes it on this device: train.compile and train.graph are auto."""
    train = dataclasses.replace(case.run.train, precision=precision)
    run = dataclasses.replace(case.run, train=train)
    stage = make_stage(run)
    model = fresh(run, device)
    stage.set_mode(model)
    take = Step(stage, run, model)
    term = next(iter(stage.weights))

    def step(i: int) -> Taken:
        batch = made[i % N_BATCHES]
        taken = take([[batch]], lambda parts: [[batch]], step=i)
        return taken.seen[f"loss/{term}"], taken.seen["grad_norm"]

    def held() -> int:
        states = [t for o in take.optimizers.values() for t in o.state().values()]
        return _nbytes([*model.buffers(), *states], model)

    return Contender(name=name, step=step, held=held, positions=case.n, half=in_half(precision, device))


def fresh(run: RunConfig, device: torch.device) -> Any:
    """The model of a run with the same weights every time."""
    torch.manual_seed(1)
    return plan.stage_model(run).to(device)


def plain(
    case: Case,
    made: Sequence[Any],
    device: torch.device,
    *,
    precision: str,
    name: str,
    backend: str | None,
    liger: bool,
) -> Contender:
    """A plain model with the same weights. Raises NotRun."""
    model = PlainModel(case.run.model.thinker, liger_ops(device) if liger else PLAIN).to(device)
    model.take(fresh(case.run, device).thinker)
    rows = [rows_of(batch.to(device)) for batch in made]
    take = PlainStep(model, case.run.optim, half=precision == "bf16", backend=backend)

    def step(i: int) -> Taken:
        return take(rows[i % N_BATCHES], learning_rate(case.run.optim, step=i, steps=case.run.train.steps))

    def held() -> int:
        states = [t for state in take.optimizer.state.values() for t in state.values()]
        return _nbytes(states, model)

    return Contender(name=name, step=step, held=held, positions=case.n, half=precision == "bf16")


def foreign(case: Case, device: torch.device, *, spec: str, precision: str, name: str) -> Contender:
    """Another repository's step, by its adapter."""
    _, make = train_peers.load_adapter(spec)
    cfg, longest = case.run.model.thinker, case.run.model.max_seq_len
    call, positions = make(
        train_peers.Shape(
            device=str(device), precision=precision, batch=case.n // longest, seq_len=longest,
            vocab_size=cfg.vocab_size, d_model=cfg.d_model, n_layers=cfg.n_layers, n_heads=cfg.n_heads,
            n_kv_heads=cfg.n_kv_heads, d_ff=cfg.d_ff, lr=case.run.optim.lr,
        )
    )  # fmt: skip

    def step(i: int) -> Taken:
        return torch.as_tensor(call()), None

    return Contender(name=name, step=step, held=lambda: 0, positions=positions, half=precision == "bf16")


def _nbytes(states: Sequence[torch.Tensor], model: torch.nn.Module) -> int:
    return sum(t.nbytes for t in (*model.parameters(), *states))


def expected(case: Case, batch: Any, device: torch.device) -> float:
    """The first loss of a text case, by the stage's own function in float32 and without a graph: nats a target."""
    stage, model = make_stage(case.run), fresh(case.run, device)
    stage.set_mode(model)
    with torch.no_grad():
        sums = stage.losses(model, batch.to(device), stage.phases[0])
    return float(sums["token"] / stage.counts(batch)["token"])
