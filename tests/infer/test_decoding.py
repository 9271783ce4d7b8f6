"""Many answers at once against each alone; recorded steps against those made one by one."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch

from muomni.config import ThinkerConfig
from muomni.infer.batch import AHEAD, Batch, Ticket
from muomni.infer.decoding import TextDecoder
from muomni.infer.sampling import Sampling
from muomni.models.thinker import Thinker
from muomni.tokens import EOS, N_SPECIAL

MAX_LEN = 48
CONFIG = ThinkerConfig(vocab_size=96, d_model=64, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=32, d_ff=64)


def played_back(work: Callable[[], None]) -> Callable[[], None]:
    """Stands in for a CUDA graph: runs the work as often as recording does, and again for every replay."""
    for _ in range(4):
        work()
    return work


@pytest.fixture(scope="module")
def thinker() -> Thinker:
    torch.manual_seed(0)
    model = Thinker(CONFIG).eval()
    # Sharp enough that answers differ and some end by themselves.
    model.embedding.data *= 4.0
    return model


@dataclass(frozen=True)
class Asked:
    """A request."""

    seed: int
    sampling: Sampling
    n_tokens: int

    @property
    def prompt(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        n = 1 + self.seed % 9
        return torch.randint(N_SPECIAL, 96, (n,), generator=generator)


def _join(batch: Batch, decoder: TextDecoder, thinker: Thinker, row: int, asked: Asked) -> Ticket:
    ids = asked.prompt
    decoder.cut(row, 0)
    positions = torch.arange(len(ids))[:, None].expand(-1, 3)
    with torch.inference_mode():
        hidden = decoder.prefill(row, thinker.embed(ids), positions)
    return batch.join(
        row, hidden[-1], len(ids), sampling=asked.sampling, seed=asked.seed, max_new_tokens=asked.n_tokens,
        room=MAX_LEN - len(ids) - 1,
    )  # fmt: skip


def _decoder(thinker: Thinker, n_rows: int, **more: object) -> TextDecoder:
    return TextDecoder(thinker, n_rows=n_rows, max_len=MAX_LEN, forbidden=[0, 1], **more)  # type: ignore[arg-type]


def _result(ticket: Ticket) -> tuple[list[int], list[torch.Tensor], str | None]:
    written = list(ticket)
    return [w.token for w in written], [w.state for w in written], ticket.ended


def _alone(thinker: Thinker, asked: Asked) -> tuple[list[int], list[torch.Tensor], str | None]:
    decoder = _decoder(thinker, 1)
    return _result(_join(Batch(decoder), decoder, thinker, 0, asked))


def _requests(chance: random.Random, greedy: bool) -> Iterator[Asked]:
    while True:
        how = Sampling() if greedy else chance.choice(
            [Sampling(), Sampling(temperature=1.0), Sampling(temperature=0.8, top_k=7, repetition_penalty=1.2)]
        )  # fmt: skip
        yield Asked(chance.randrange(40), how, chance.choice([1, 3, 8, 20, 99]))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
def test_batched_equals_alone_over_random_schedules(thinker: Thinker, packed: bool, greedy: bool) -> None:
    thinker.train().eval()
    if packed:
        assert thinker.pack(n_positions=MAX_LEN) is None
    known: dict[Asked, tuple[list[int], list[torch.Tensor], str | None]] = {}
    chance, n_shared, ends = random.Random(5), 0, set()
    # 200 schedules with greedy choices, packed; fewer where a row costs more.
    for _ in range(200 if packed and greedy else 12):
        n_rows = chance.randint(2, 5)
        decoder = _decoder(thinker, n_rows)
        batch, requests = Batch(decoder), _requests(chance, greedy)
        going: dict[int, tuple[Asked, Ticket, list]] = {}
        for _ in range(chance.randint(6, 30)):
            row = chance.randrange(n_rows)
            if row not in going:
                asked = next(requests)
                going[row] = asked, _join(batch, decoder, thinker, row, asked), []
                continue
            asked, ticket, written = going[row]
            if chance.random() < 0.15:
                # Leaves in the middle: what it gave is a beginning of what it gives alone.
                batch.leave(going.pop(row)[1])
                ended = False
            else:
                for _ in range(chance.randint(1, 2 * AHEAD)):
                    written.extend(item for item in [next(ticket, None)] if item is not None)
                ended = ticket.ended is not None and not ticket.n_ahead
                if ended:
                    del going[row]
                elif ticket.ended is None and ticket.n_ahead < AHEAD:
                    n_shared += len(going) > 1
            if asked not in known:
                known[asked] = _alone(thinker, asked)
            tokens, states, reason = known[asked]
            assert [w.token for w in written] == tokens[: len(written)]
            assert all(torch.equal(w.state, own) for w, own in zip(written, states, strict=False))
            if ended:
                assert (len(written), ticket.ended) == (len(tokens), reason)
                ends.add(reason)
    assert n_shared > 20 and {"length", "context"} <= ends


def test_an_answer_ends_by_itself_or_by_its_limits(thinker: Thinker) -> None:
    decoder = _decoder(thinker, 1)
    batch = Batch(decoder)
    for n_tokens, ended in ((3, "length"), (99, "context")):
        tokens, _, reason = _result(_join(batch, decoder, thinker, 0, Asked(6, Sampling(), n_tokens)))
        assert reason == ended
        # One position is left for the EOS that closes the turn.
        assert len(tokens) == (3 if ended == "length" else MAX_LEN - len(Asked(6, Sampling(), 1).prompt) - 1)
        assert decoder.cache.used[0] == len(Asked(6, Sampling(), 1).prompt) + len(tokens)
    only_end = _decoder(thinker, 1)
    only_end.sampler._forbidden = torch.tensor([i for i in range(96) if i != EOS])
    tokens, _, reason = _result(_join(Batch(only_end), only_end, thinker, 0, Asked(6, Sampling(), 9)))
    assert (tokens, reason) == ([], "end")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_recorded_steps_equal_the_others(thinker: Thinker, temperature: float) -> None:
    thinker.train().eval()
    chance, how = random.Random(1), Sampling(temperature=temperature)
    decoder = _decoder(thinker, 5, record=played_back)
    batch = Batch(decoder)
    tickets: dict[int, tuple[Asked, Ticket]] = {}
    n_done = 0
    while n_done < 14:
        row = chance.randrange(5)
        if row not in tickets:
            asked = Asked(chance.randrange(30), how, chance.choice([2, 9, 99]))
            tickets[row] = asked, _join(batch, decoder, thinker, row, asked)
        for _ in range(3):
            batch.step()
        if chance.random() < 0.4:
            asked, ticket = tickets.pop(row)
            tokens, states, ended = _result(ticket)
            alone, own, reason = _alone(thinker, asked)
            assert (tokens, ended) == (alone, reason)
            torch.testing.assert_close(torch.stack(states), torch.stack(own), atol=1e-5, rtol=1e-5)
            assert decoder.cache.used[row] == len(asked.prompt) + len(tokens)
            assert torch.equal(torch.from_numpy(decoder.cache.used), decoder.cache.lengths)
            n_done += 1
    assert set(decoder._recorded) == {1, 2, 4, 5}
