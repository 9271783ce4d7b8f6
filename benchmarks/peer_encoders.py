"""Our encoders against transformers' on the same data for the same CPU time: CTC on speech, CLIP on pictures.

`python -m benchmarks.peer_encoders RUN --peer ctc|clip [--minutes M] [--data SETS] [--rates R,R] [--out FILE.json]`.
RUN is a trained run. A peer with random weights (peer_models.py) is trained on one thread for the CPU seconds that its
stage took, on its recordings or pictures, by AdamW with our betas, decay and clipping, a warm-up and a cosine. The peak
rate is the one of --rates that does best on the validation split after --trial-minutes; that time is not counted. Then
both are measured on the held-out items of `muomni eval` (peer_figures.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import peer_figures, provenance
from benchmarks.mel_report import processor
from benchmarks.peer_models import ClipPeer, CtcPeer, Peer, clip_model, ctc_model, library
from muomni.config import OptimConfig, RunConfig
from muomni.data.audio import normalise_transcript
from muomni.doctor import versions
from muomni.errors import UserError
from muomni.infer.loading import find_stage
from muomni.metrics.retrieval import equal
from muomni.models.vision import ContrastModel
from muomni.settings import from_dict
from muomni.train.schedule import learning_rate
from muomni.train.stage import step_seed
from muomni.train.stages import stage as make_stage
from muomni.train.stages.audio import AudioStage
from muomni.train.stages.vision import VisionStage
from muomni.train.step import Step

STAGE = {"ctc": "audio", "clip": "vision"}
RATES = {"ctc": [1e-3, 2e-3, 4e-3], "clip": [5e-4, 1e-3, 2e-3]}
"""Peak rates that are tried."""
WARM_UP = 0.05
"""Share of the time in which the rate rises."""
POINTS = 1_000
"""Steps of the rate over the time."""
TOLD = 20
"""Parts of a training whose mean loss is kept."""
N_TRIED = 100
"""Validation clips that a rate is judged by."""
N_TIMED, N_UNTIMED = 40, 3
"""Steps of ours that are timed, and those before."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a peer's training went."""

    lr: float
    """Peak rate."""
    steps: int
    cpu_seconds: float
    """Of batches and steps."""
    wall_seconds: float
    losses: list[float]
    """Mean of each TOLDth of the time."""


def train(
    peer: Peer,
    optim: OptimConfig,
    *,
    lr: float,
    seconds: float,
    seed: int,
    clock: Callable[[], float] = time.process_time,
) -> Trained:
    """Train for so many CPU seconds, batches included; the rate follows the share of them that is spent.

    optim: betas, weight decay (of matrices that are no embeddings), clipping and last rate.
    """
    torch.manual_seed(step_seed(seed, 0))
    model, schedule = (
        peer.model.train(),
        dataclasses.replace(optim, lr=lr, warmup_steps=round(WARM_UP * POINTS)),
    )
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decayed = {name for name, p in parameters.items() if p.ndim >= 2 and "embed" not in name}
    groups = [
        {"params": [p for name, p in parameters.items() if (name in decayed) == flag], "weight_decay": decay}
        for flag, decay in ((True, optim.weight_decay), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(optim.beta1, optim.beta2), fused=True)
    sums, steps, spent, began = [[0.0, 0] for _ in range(TOLD)], 0, 0.0, time.perf_counter()
    batches = peer.batches()
    while spent < seconds:
        before, share = clock(), spent / seconds
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, step=int(share * POINTS), steps=POINTS)
        loss = peer.loss(next(batches))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        peer.after_step()
        part = sums[int(share * TOLD)]
        part[0], part[1] = part[0] + float(loss.detach()), part[1] + 1
        steps += 1
        spent += clock() - before
    return Trained(
        lr=lr, steps=steps, cpu_seconds=round(spent, 2), wall_seconds=round(time.perf_counter() - began, 2),
        losses=[round(total / n, 4) for total, n in sums if n],
    )  # fmt: skip


class Comparison:
    """One stage of a run, and its peer."""

    def __init__(self, root: Path, kind: str, *, data: str | None, folder: Path) -> None:
        """folder: for lists of unreadable samples. Raises UserError when the run's stage is not finished."""
        self.root, self.kind, self.folder = root, kind, folder
        files = find_stage(root, STAGE[kind])
        self.record = files.record
        if not self.record.get("complete"):
            raise UserError(f"{files.path}: stage {files.stage} is not finished; train it to its end first.")
        run = from_dict(RunConfig, self.record["config"])
        self.run = run if data is None else dataclasses.replace(run, data=data)
        self._weights = files.weights({"": ""})

    def ours(self) -> tuple[Any, nn.Module]:
        """The stage, built anew: nothing of the data is in memory; and our model as it is before training."""
        stage = make_stage(self.run)
        model = stage.build(self.run, self.root)
        stage.quarantine.open(self.folder, resume=False)
        return stage, model

    def trained(self) -> tuple[Any, nn.Module]:
        """The stage, built anew; and our model as the run has it, in eval mode."""
        stage, model = self.ours()
        model.load_state_dict(self._weights)
        return stage, model.eval()

    def peer(self) -> CtcPeer | ClipPeer:
        """A new one, from the run's seed."""
        stage, _ = self.ours()
        torch.manual_seed(step_seed(self.run.seed, 0))
        if isinstance(stage, AudioStage):
            return CtcPeer(stage, ctc_model(self.run.model))
        return ClipPeer(stage, clip_model(self.run.model))

    def tried(self, rates: list[float], *, seconds: float) -> list[dict[str, float]]:
        """Of each peak rate the validation loss after a training of so many seconds."""
        found = []
        for lr in rates:
            peer = self.peer()
            trained = train(peer, self.run.optim, lr=lr, seconds=seconds, seed=self.run.seed)
            peer.model.eval()
            loss = peer_figures.validation_loss(peer, n=N_TRIED)
            found.append({"lr": lr, "cpu_seconds": trained.cpu_seconds, "validation_loss": loss})
            tell(f"rate {lr:g}: {trained.steps} steps, validation loss {loss:.4f}")
        return found

    def our_step(self) -> float:
        """CPU seconds of a training step of ours, its batch included: those after the first."""
        stage, model = self.ours()
        take = Step(stage, self.run, model)
        stage.set_mode(model)
        began = 0.0
        for step in range(N_UNTIMED + N_TIMED):
            if step == N_UNTIMED:
                began = time.process_time()
            take([stage.batch(step)], lambda parts, step=step: [stage.batch(step, parts)], step=step)
        return (time.process_time() - began) / N_TIMED

    def figures(self, peer: CtcPeer | ClipPeer, *, counts: list[int]) -> list[dict[str, Any]]:
        """Of both, for each number of clips; every row says its n. The number does not change pictures."""
        _, model = self.trained()
        peer.model.eval()
        seed = 0
        if isinstance(peer, ClipPeer):
            assert isinstance(model, ContrastModel) and isinstance(peer.stage, VisionStage)
            items = peer_figures.picture_items(peer.stage, "test")
            sides = peer_figures.our_sides(peer.stage, model, items)
            alike = equal([(item.label, item.tags) for item in items])
            return peer_figures.retrieval_figures(peer=peer.embed(items), ours=sides, seed=seed, alike=alike)
        rows = []
        for n in counts:
            items = peer_figures.speech_items(peer.stage, "test", n)
            spells = [peer.spell, peer_figures.our_spelling(peer.stage, model)]
            said = peer_figures.transcripts(peer.stage, items, spells)
            references = [normalise_transcript(item.text) for item in items]
            rows += peer_figures.speech_figures(references, peer=said[0], ours=said[1], seed=seed)
        return rows

    def compare(
        self, *, rates: list[float], seconds: float, trial_seconds: float, counts: list[int]
    ) -> dict[str, Any]:
        """Choose a rate where there are several, train, measure: what goes into the file."""
        tried = self.tried(rates, seconds=trial_seconds) if len(rates) > 1 else []
        best = min(tried, key=lambda one: one["validation_loss"])["lr"] if tried else rates[0]
        peer = self.peer()
        tell(f"{type(peer.model).__name__}: {n_parameters(peer.model):,} parameters, rate {best:g}")
        trained = train(peer, self.run.optim, lr=best, seconds=seconds, seed=self.run.seed)
        tell(f"{trained.steps} steps in {trained.cpu_seconds:.0f} CPU seconds; measuring")
        figures = self.figures(peer, counts=counts)
        step = self.our_step()
        unfit = {"transcripts_that_do_not_fit": peer.unfit()} if isinstance(peer, CtcPeer) else {}
        return {
            "peer": {
                "class": f"transformers.{type(peer.model).__name__}", "parameters": n_parameters(peer.model),
                "config": peer.model.config.to_diff_dict(), "rates_tried": tried, **dataclasses.asdict(trained),
                "step_cpu_seconds": trained.cpu_seconds / trained.steps, **unfit,
            },
            "ours": {
                "parameters": sum(t.numel() for t in self._weights.values()), "lr": self.run.optim.lr,
                "steps": self.record["step"], "wall_seconds": self.record.get("seconds"),
                "step_cpu_seconds": step, "cpu_seconds_about": step * self.record["step"],
            },
            "data": self.run.data, "seed": self.run.seed, "batch_tokens": self.run.train.batch_tokens,
            "batch_items": self.run.train.batch_items, "figures": figures,
        }  # fmt: skip


def n_parameters(model: nn.Module) -> int:
    """Trainable ones."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def tell(line: str) -> None:
    """Say how it goes, on stderr."""
    print(f"peer_encoders: {line}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer_encoders", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--peer", choices=sorted(STAGE), required=True)
    parser.add_argument("--minutes", type=float, help="CPU minutes; default: what the run's stage took")
    parser.add_argument("--data", help="default: what the run was trained on")
    parser.add_argument("--rates", type=_several(float), help="peak rates to try, with commas between")
    parser.add_argument("--trial-minutes", type=float, default=1.0, help="CPU minutes of each try")
    parser.add_argument(
        "--n", type=_several(int), default=[48], help="held-out clips at most; several numbers: each"
    )
    parser.add_argument("--out", type=Path, help="default: in benchmarks/results")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    about = provenance.describe("cpu") | {
        "processor": processor(),
        "transformers": provenance.version("transformers"),
    }
    try:
        library()
        with tempfile.TemporaryDirectory() as folder:
            own = Comparison(arguments.run, arguments.peer, data=arguments.data, folder=Path(folder))
            minutes = arguments.minutes or own.record.get("seconds", 0.0) / 60
            if not minutes > 0:
                raise UserError(f"{arguments.run}: does not say how long its stage took; give --minutes.")
            found = own.compare(
                rates=arguments.rates or RATES[arguments.peer], seconds=60 * minutes,
                trial_seconds=60 * arguments.trial_minutes, counts=arguments.n,
            )  # fmt: skip
    except UserError as error:
        print(f"peer_encoders: {error}", file=sys.stderr)
        return 2
    result = (
        about | {"run": str(arguments.run), "threads": 1, "precision": "fp32", "versions": versions()} | found
    )
    out = arguments.out or default_out(about, arguments.peer)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in found["figures"]:
        sides = [f"{who} {row[who]['value']:.3f} {row[who]['interval']}" for who in ("peer", "ours")]
        print(
            f"{row['what']}, n={row['peer']['n']}: {sides[0]}, {sides[1]}, difference {row['peer_less_ours_95']}"
        )
    print(out)
    return 0


def _several(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Reads numbers with commas between."""
    return lambda text: [kind(part) for part in text.split(",")]


def default_out(about: dict[str, str], peer: str) -> Path:
    """benchmarks/results/<date>_peers-<processor>_<commit>/<peer>.json."""
    folder = f"{about['date']}_peers-{provenance.slug(about['processor'])}_{about['commit']}"
    return provenance.ROOT / "benchmarks" / "results" / folder / f"{peer}.json"


if __name__ == "__main__":
    sys.exit(main())
