"""What a model was trained on, stage by stage, and the licences of those data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from muomni.data import embedded, prepared

UNKNOWN = "unknown: the set is not on the machine that saved this model"


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """One set of data, or one source of the embedded set."""

    name: str
    licence: str


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One stage's training."""

    stage: str
    data: str
    """As the run names them."""
    steps: int
    seed: int
    sets: tuple[TrainingSet, ...] = ()
    """What `data` stands for; empty until `with_licences`."""


def of_record(stage: str, record: Mapping[str, Any]) -> Trained:
    """Of a checkpoint's run.json."""
    config = record["config"]
    return Trained(
        stage=stage, data=str(config.get("data", "embedded")), steps=int(record.get("step", 0)),
        seed=int(config.get("seed", 0)),
    )  # fmt: skip


def with_licences(history: Sequence[Trained]) -> tuple[Trained, ...]:
    """The same with the sets and their licences as they are on this machine; what is there already is kept."""
    return tuple(stage if stage.sets else replace(stage, sets=_sets(stage.data)) for stage in history)


def _sets(data: str) -> tuple[TrainingSet, ...]:
    if data == "embedded":
        sources = embedded.manifest()["sources"]
        return tuple(TrainingSet(name=f"embedded: {s['name']}", licence=s["licence"]) for s in sources)
    found: list[TrainingSet] = []
    for name in (part.strip() for part in data.split(",")):
        try:
            manifests = [prepared.manifest(folder) for folder in prepared.folders(name)]
        except prepared.PreparedDataError:
            found.append(TrainingSet(name=name, licence=UNKNOWN))
        else:
            found += [TrainingSet(name=str(m["name"]), licence=str(m["licence"])) for m in manifests]
    return tuple(dict.fromkeys(found))


def to_plain(history: Sequence[Trained]) -> list[dict[str, Any]]:
    """As JSON types."""
    return [
        {
            "stage": one.stage, "data": one.data, "steps": one.steps, "seed": one.seed,
            "sets": [{"name": s.name, "licence": s.licence} for s in one.sets],
        }
        for one in history
    ]  # fmt: skip


def from_plain(rows: Any) -> tuple[Trained, ...]:
    """The inverse of `to_plain`. Raises KeyError, TypeError or ValueError for anything else."""
    return tuple(
        Trained(
            stage=str(row["stage"]), data=str(row["data"]), steps=int(row["steps"]), seed=int(row["seed"]),
            sets=tuple(TrainingSet(name=str(s["name"]), licence=str(s["licence"])) for s in row["sets"]),
        )
        for row in rows
    )  # fmt: skip
