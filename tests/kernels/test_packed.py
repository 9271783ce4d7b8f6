"""Decoding in C++: products and whole stacks against fp64, for every instruction set; rows never see each other."""

import math

import pytest
import torch
from muomni_kernels import cpp
from muomni_kernels.packed import LayerWeights, PackedMatrix, PackedStack, quantise, reason_against

native = cpp.extension()
pytestmark = pytest.mark.skipif(native is None, reason=str(cpp.available()))
LEVELS = native.simd_levels() if native else []

D, H, HKV, HD, FF = 24, 4, 2, 10, 40


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(cpp.SIMD_ENVIRONMENT, request.param)
    return request.param


@pytest.mark.parametrize(("n_out", "n_in"), [(1, 1), (63, 5), (64, 96), (65, 7), (200, 33)])
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_products_match_fp64_for_any_number_of_rows(level: str, n_out: int, n_in: int, weights: str) -> None:
    torch.manual_seed(n_out)
    weight = torch.randn(n_out, n_in)
    packed = PackedMatrix(weight, weights=weights)  # type: ignore[arg-type]
    numbers, scales = quantise(weight)
    exact = weight.double() if weights == "float32" else numbers.double() * scales.double()[:, None]
    for n_rows in (0, 1, 2, 5, 6, 7, 13):
        x = torch.randn(n_rows, n_in)
        expected = x.double() @ exact.T
        torch.testing.assert_close(packed(x).double(), expected, atol=2e-6 * math.sqrt(n_in), rtol=1e-5)


def test_quantised_numbers_are_the_nearest_of_255(level: str) -> None:
    weight = torch.randn(9, 50)
    weight[3] = 0.0
    numbers, scales = quantise(weight)
    off = (numbers.double() * scales.double()[:, None] - weight.double()).abs()
    assert (off <= 0.5000001 * scales.double()[:, None]).all()
    assert numbers.abs().amax(1).tolist() == [127, 127, 127, 0, 127, 127, 127, 127, 127]


def _layers(n: int, *, late_keys: bool = False) -> list[LayerWeights]:
    def matrix(n_out: int, n_in: int) -> torch.Tensor:
        return torch.randn(n_out, n_in) / math.sqrt(n_in)

    return [
        LayerWeights(
            attention_norm=torch.rand(D) + 0.5, q_norm=torch.rand(HD) + 0.5, k_norm=torch.rand(HD) + 0.5,
            ff_norm=torch.rand(D) + 0.5, qkv=matrix((H + 2 * HKV) * HD, D), out=matrix(D, H * HD),
            gate_up=matrix(2 * FF, D), down=matrix(D, FF), late_keys=late_keys and number == 0,
        )
        for number in range(n)
    ]  # fmt: skip


def _norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()


def _formula(
    layers: list[LayerWeights], norm: torch.Tensor, mix: torch.Tensor, x: torch.Tensor, angles: torch.Tensor
) -> torch.Tensor:
    """The blocks of one sequence (T, D) in fp64, written without the ops; angles (T, HD / 2)."""
    rows = [[mix[j].double() * x[t - j].double() for j in range(min(len(mix), t + 1))] for t in range(len(x))]
    x = torch.stack([torch.stack(row).sum(0) for row in rows])

    def turn(heads: torch.Tensor) -> torch.Tensor:
        z = torch.complex(heads[..., : HD // 2], heads[..., HD // 2 :]) * torch.polar(
            torch.ones_like(angles), angles
        ).unsqueeze(1)
        return torch.cat([z.real, z.imag], -1)

    for layer in layers:
        heads = (_norm(x, layer.attention_norm) @ layer.qkv.double().T).view(len(x), -1, HD)
        q, k, v = heads[:, :H], heads[:, H : H + HKV], heads[:, H + HKV :]
        q, k = _norm(q, layer.q_norm), _norm(k, layer.k_norm)
        if layer.late_keys:
            k = torch.cat([torch.zeros_like(k[:1]), k[:-1]])
        else:
            q, k = turn(q), turn(k)
        seen = torch.ones(len(x), len(x), dtype=torch.bool).tril()
        gathered = []
        for head in range(H):
            scores = q[:, head] @ k[:, head * HKV // H].T / math.sqrt(HD)
            shares = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            gathered.append(shares @ v[:, head * HKV // H])
        x = x + torch.cat(gathered, -1) @ layer.out.double().T
        gate, up = (_norm(x, layer.ff_norm) @ layer.gate_up.double().T).chunk(2, -1)
        x = x + (gate * gate.sigmoid() * up) @ layer.down.double().T
    return _norm(x, norm)


class Case:
    """A stack, three sequences of nine positions, and their states by the formula."""

    def __init__(self, weights: str = "float32", *, late_keys: bool = True, n_taps: int = 3) -> None:
        torch.manual_seed(0)
        self.layers, self.norm = _layers(2, late_keys=late_keys), torch.rand(D) + 0.5
        mix = torch.randn(n_taps, D)
        angles = torch.rand(20, HD // 2) * 6
        self.axes = [0, 2, 1, 0, 2]
        self.stack = PackedStack(
            self.layers, self.norm, n_heads=H, n_kv_heads=HKV, head_dim=HD, eps=1e-6,
            tables=(angles.cos(), angles.sin()), axes=self.axes, weights=weights,  # type: ignore[arg-type]
            mix=mix if n_taps > 1 else None,
        )  # fmt: skip
        self.x, self.positions = torch.randn(3, 9, D), torch.randint(0, 20, (3, 9, 3))
        chosen = [angles[p[:, self.axes], torch.arange(HD // 2)].double() for p in self.positions]
        mix = mix if n_taps > 1 else torch.ones(1, D)
        self.expected = [
            _formula(self.layers, self.norm, mix, x, a) for x, a in zip(self.x, chosen, strict=True)
        ]

    def cache(self, batch: int = 3, max_len: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shape = (2, batch, max_len + 1, HKV, HD)
        return torch.full(shape, 7.0), torch.full(shape, 7.0), torch.full((batch, max_len, D), 7.0)

    def step(
        self,
        cache: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        rows: list[int],
        start: list[int],
        n: int,
        at: list[int],
    ) -> torch.Tensor:
        """n positions from `start` of the sequences `at`, in `rows` of the cache."""
        x = torch.stack([self.x[s, b : b + n] for s, b in zip(at, start, strict=True)])
        positions = torch.stack([self.positions[s, b : b + n] for s, b in zip(at, start, strict=True)])
        return self.stack.step(x, positions, *cache, rows=rows, lengths=start)


@pytest.mark.parametrize(("late_keys", "n_taps"), [(False, 1), (True, 1), (False, 2), (True, 4)])
def test_a_stack_matches_the_formula_in_fp64(level: str, late_keys: bool, n_taps: int) -> None:
    case = Case(late_keys=late_keys, n_taps=n_taps)
    found = case.step(case.cache(), [0, 1, 2], [0, 0, 0], 9, [0, 1, 2])
    for own, expected in zip(found, case.expected, strict=True):
        torch.testing.assert_close(own.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_single_steps_of_any_rows_give_the_bits_of_one_prefill(level: str, weights: str) -> None:
    case = Case(weights)
    whole = case.step(case.cache(), [0, 1, 2], [0, 0, 0], 9, [0, 1, 2])
    cache, done, found = case.cache(4), [0, 0, 0], [[], [], []]
    draw = torch.Generator().manual_seed(1)
    while min(done) < 9:
        n = int(torch.randint(1, 4, (), generator=draw))
        chosen = [s for s in torch.randperm(3, generator=draw).tolist() if done[s] + n <= 9]
        chosen = chosen[: int(torch.randint(1, 4, (), generator=draw))]
        if not chosen:
            continue
        # Sequence s lives in row 3 - s.
        states = case.step(cache, [3 - s for s in chosen], [done[s] for s in chosen], n, chosen)
        for s, own in zip(chosen, states, strict=True):
            found[s].append(own)
            done[s] += n
    assert all(torch.equal(torch.cat(own), expected) for own, expected in zip(found, whole, strict=True))
    assert all((kept[0] == 7.0).all() for kept in (cache[0][0], cache[0][1], cache[2])), (
        "a row that nobody named was written"
    )


def test_threads_change_no_bit(level: str) -> None:
    case, before = Case(), torch.get_num_threads()
    one = case.step(case.cache(), [0, 1, 2], [0, 0, 0], 9, [0, 1, 2])
    try:
        torch.set_num_threads(3)
        several = [case.step(case.cache(), [0, 1, 2], [0, 0, 0], 9, [0, 1, 2]) for _ in range(20)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, own) for own in several)


def test_int8_is_near_and_not_the_same() -> None:
    exact, rounded = Case(), Case("int8")
    off = [c.step(c.cache(), [0], [0], 9, [0]) for c in (exact, rounded)]
    assert 0 < (off[0] - off[1]).abs().max() < 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [0, 0]}, "each row once"),
        ({"rows": [0, 4]}, "below 3"),
        ({"lengths": [0, 9]}, "at most 8"),
        ({"x": torch.zeros(2, 1, 5)}, "expected"),
        ({"x": torch.zeros(2, 1, D, dtype=torch.float64)}, "float32"),
        ({"positions": torch.zeros(2, 1, 2, dtype=torch.int64)}, "positions"),
        ({"k": torch.zeros(2, 3, HKV, 10, HD).transpose(2, 3)}, "contiguous"),
        ({"inputs": torch.zeros(3, 8, D)}, "inputs: expected"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(change: dict, message: str) -> None:
    case = Case()
    k, v, inputs = case.cache()
    arguments: dict = {
        "x": case.x[:2, :1], "positions": case.positions[:2, :1], "k": k, "v": v, "inputs": inputs, "rows": [0, 1],
        "lengths": [0, 0],
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        case.stack.step(**(arguments | change))
    assert all((kept == 7.0).all() for kept in (k, v, inputs))


def test_a_position_beyond_the_tables_is_refused() -> None:
    case = Case()
    case.positions[0, 0, 1] = 20
    with pytest.raises(IndexError, match="below 20"):
        case.step(case.cache(), [0], [0], 1, [0])


def test_what_cannot_be_packed_says_why() -> None:
    assert reason_against(torch.zeros(1, dtype=torch.bfloat16)) == "needs float32, got torch.bfloat16"
    with pytest.raises(ValueError, match="needs float32"):
        PackedMatrix(torch.zeros(2, 2, dtype=torch.float64))
    case = Case()
    wrong = [*case.layers[:1], _layers(1)[0]]
    object.__setattr__(wrong[1], "down", torch.zeros(D, FF + 1))
    with pytest.raises(ValueError, match="one stack"):
        PackedStack(wrong, case.norm, n_heads=H, n_kv_heads=HKV, head_dim=HD, eps=1e-6)
