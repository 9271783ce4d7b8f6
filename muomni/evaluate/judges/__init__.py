"""Independent judges of speech: public models that listen to what ours says and never take part in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from muomni.data.prepared import data_root
from muomni.data.sources.fetch import is_fetched
from muomni.errors import UserError
from muomni.evaluate.judges import mos, recogniser, speaker
from muomni.evaluate.judges.package import Judge

JUDGES: dict[str, Judge] = {"whisper": recogniser.JUDGE, "mos": mos.JUDGE, "speaker": speaker.JUDGE}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The judges that are asked; None for one that is not."""

    recognise: Callable[[np.ndarray], str] | None = None
    """A waveform (n_samples,) float32 at 16 kHz -> what an independent recogniser understands."""
    mos: Callable[[np.ndarray], float] | None = None
    """A waveform -> predicted mean opinion score, 1 to 5."""
    voice: Callable[[np.ndarray], np.ndarray] | None = None
    """A waveform -> (256,) float32 of length 1; the product of two is the similarity of their speakers."""
    about: dict[str, str] = field(default_factory=dict)
    """Judge -> model and package, for the report."""


def open_panel(
    names: Sequence[str],
    *,
    cache: Path | None = None,
    n_threads: int = 1,
    tell: Callable[[str], None] = lambda line: None,
) -> Panel:
    """Load judges; what is not in the cache is told with its size, and then fetched from its registry.

    cache: folder of fetched packages; None: `packages` in the data root. n_threads: of each judge.
    Raises UserError for an unknown judge and for a missing extra, before anything is fetched; SourceError.
    """
    unknown = next((name for name in names if name not in JUDGES), None)
    if unknown is not None or not names:
        given = "none" if unknown is None else repr(unknown)
        raise UserError(f"judges: expected some of {', '.join(JUDGES)}, got {given}.")
    chosen = {name: JUDGES[name] for name in names}
    for judge in chosen.values():
        judge.check_installed()
    cache = cache or data_root() / "packages"
    wanted = [p for judge in chosen.values() for p in judge.packages if not is_fetched(p, cache)]
    if wanted:
        tell(f"to download into {cache}: {sum(p.n_bytes for p in wanted) / 1e6:,.1f} MB")
        for p in wanted:
            tell(f"  {p.n_bytes / 1e6:8.1f} MB  {p.name} {p.version} ({p.registry}, {p.licence}): {p.gives}")
        cache.mkdir(parents=True, exist_ok=True)
    return Panel(
        recognise=recogniser.Recogniser(cache, n_threads=n_threads) if "whisper" in chosen else None,
        mos=mos.MosPredictor(cache, n_threads=n_threads) if "mos" in chosen else None,
        voice=speaker.SpeakerEncoder(cache) if "speaker" in chosen else None,
        about={name: judge.about for name, judge in chosen.items()},
    )
