"""Sessions whose model writes what it is told to."""

from collections.abc import Callable, Sequence

import pytest
import torch

from muomni.infer.session import Session
from muomni.tokens import EOS


def _scripted(session: Session, text: str) -> None:
    tokens = iter([*session.tokenizer.encode(text), EOS])

    class Scripted:
        def replace(self, row: int, sampling: object, *, seed: int) -> None:
            pass

        def __call__(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
            return torch.tensor([next(tokens, EOS)])

    session.engine.decoder.sampler = Scripted()  # type: ignore[assignment]


@pytest.fixture
def scripted() -> Callable[[Session, str], None]:
    """scripted(session, text): its next answer is that text."""
    return _scripted
