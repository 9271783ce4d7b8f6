"""Blocks over packed documents, the KV cache, and the mixture of experts."""

import pytest
import torch
from muomni_kernels import cpp

from muomni.nn.attention import Attention
from muomni.nn.block import Block, Stack
from muomni.nn.cache import KVCache
from muomni.nn.conv import earlier_rows, later, same_document
from muomni.nn.moe import FeedForward, MoE
from muomni.nn.rope import Rotary, rotary_tables


def _softmax_attention(layer: Attention, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The formula in fp64, written without the ops."""
    x = x.double()
    hd, n, g = layer.head_dim, layer.n_heads, layer.n_kv_heads
    heads = (x @ layer.qkv.weight.double().T).view(len(x), -1, hd)

    def norm(t: torch.Tensor) -> torch.Tensor:
        return t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def turn(t: torch.Tensor) -> torch.Tensor:
        angle = positions[:, None].double() * 1e4 ** (-2 * torch.arange(hd // 2) / hd).double()
        z = (
            torch.complex(t[..., : hd // 2], t[..., hd // 2 :])
            * torch.polar(torch.ones_like(angle), angle)[:, None]
        )
        return torch.cat([z.real, z.imag], dim=-1)

    q, k, v = turn(norm(heads[:, :n])), turn(norm(heads[:, n : n + g])), heads[:, n + g :]
    out = []
    for h in range(n):
        scores = q[:, h] @ k[:, h * g // n].T / hd**0.5
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
        out.append(scores.softmax(-1) @ v[:, h * g // n])
    return torch.cat(out, dim=-1) @ layer.out.weight.double().T


def test_attention_matches_the_formula_in_fp64() -> None:
    torch.manual_seed(0)
    layer = Attention(16, n_heads=4, n_kv_heads=2, head_dim=8, causal=True)
    x, positions = torch.randn(9, 16), torch.arange(9)
    cos, sin = rotary_tables(positions, head_dim=8, theta=1e4)
    y = layer(x, cos, sin, torch.tensor([0, 9], dtype=torch.int32), 9)
    assert torch.allclose(y.double(), _softmax_attention(layer, x, positions), atol=1e-5)


def test_late_keys_stand_beside_the_value_of_the_row_after_in_each_document_alone() -> None:
    torch.manual_seed(0)
    late = Attention(16, n_heads=2, n_kv_heads=1, head_dim=8, causal=True, late_keys=True)
    x, cu = torch.randn(9, 16), torch.tensor([0, 5, 9], dtype=torch.int32)
    y = late(x, None, None, cu, 5, earlier_rows(cu, 9, n=1))
    q, k, v = (x @ late.qkv.weight.T).split([16, 8, 8], -1)
    q, k = (
        t.view(9, -1, 8) / (t.view(9, -1, 8).square().mean(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k)
    )
    for start, stop in ((0, 5), (5, 9)):
        for row in range(start, stop):
            keys = torch.cat([torch.zeros(1, 8), k[start:row, 0]])
            shares = (q[row] @ keys.T / 8**0.5).softmax(-1)
            expected = late.out((shares @ v[start : row + 1]).flatten())
            torch.testing.assert_close(y[row], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="earlier_rows"):
        late(x, None, None, cu, 5)


def test_late_keys_start_by_asking_what_followed_a_row_like_this_one() -> None:
    torch.manual_seed(0)
    layer = Attention(64, n_heads=4, n_kv_heads=2, head_dim=32, causal=True, late_keys=True)
    rows = torch.randn(10, 64)
    x, cu = torch.cat([rows, rows]), torch.tensor([0, 20], dtype=torch.int32)
    q, k, _ = layer._project(x, None, None)
    scores = torch.einsum(
        "qhd,khd->hqk",
        q,
        later(k.flatten(1), earlier_rows(cu, 20, n=1), 1).view_as(k).repeat_interleave(2, 1),
    )
    followers = scores[:, 10:19].masked_fill(~torch.ones(20, 20, dtype=torch.bool).tril()[10:19], -torch.inf)
    # Row 10 + i repeats row i; what followed it is i + 1, and itself is no choice, as its key stands further on.
    assert (followers.argmax(-1) == torch.arange(1, 10)).all()


def _step_all(stack: Stack, x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    cache = KVCache(2, x.shape[0], x.shape[1], 2, 8, d_inputs=16)
    parts = []
    for part in x.split(sizes, dim=1):
        start = cache.longest
        positions = torch.arange(start, start + part.shape[1]).expand(x.shape[0], -1)
        parts.append(stack.step(part, positions, cache))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize(
    "options",
    [{}, {"n_experts": 3}, {"late_keys": True}, {"mix_kernel": 4}, {"late_keys": True, "mix_kernel": 2}],
    ids=str,
)
@torch.no_grad()
def test_steps_of_any_size_equal_the_packed_forward(options: dict[str, int]) -> None:
    torch.manual_seed(0)
    stack = Stack(
        16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=32, causal=True,
        rotary=Rotary(head_dim=8, theta=1e4), **options,  # type: ignore[arg-type]
    )  # fmt: skip
    x = torch.randn(2, 10, 16)
    cos, sin = rotary_tables(torch.arange(10).repeat(2), head_dim=8, theta=1e4)
    full = stack(x.view(20, 16), cos, sin, torch.tensor([0, 10, 20], dtype=torch.int32), 10).view(2, 10, 16)
    for sizes in ([10], [1] * 10, [4, 1, 5]):
        assert torch.allclose(_step_all(stack, x, sizes), full, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_truncated_cache_continues_as_if_the_rest_had_never_been_there(packed: bool) -> None:
    if packed and cpp.extension() is None:
        pytest.skip(str(cpp.available()))
    stack = _packable(rotary=None)
    assert not packed or stack.pack() is None
    x, other = torch.randn(2, 6, 16), torch.randn(2, 2, 16)
    clean, dirty = (KVCache(2, 2, 6, 2, 8, d_inputs=16) for _ in range(2))
    stack.step(x[:, :4], None, clean)
    stack.step(torch.cat([x[:, :4], other], dim=1), None, dirty)
    dirty.truncate([4, 4])
    expected = stack.step(x[:, 4:], None, clean)
    assert torch.equal(stack.step(x[:, 4:], None, dirty), expected)


def test_full_cache_is_an_error_that_says_so() -> None:
    cache = KVCache(1, 1, 4, 1, 8)
    cache.advance(3)
    cache.reserve(1)
    with pytest.raises(ValueError, match="2 more do not fit in 4"):
        cache.reserve(2)


def test_moe_equals_a_loop_over_tokens_and_their_experts() -> None:
    torch.manual_seed(0)
    moe = MoE(8, 16, n_experts=5, n_active=2)
    x = torch.randn(7, 8)
    y = moe(x)
    for row, out in zip(x, y, strict=True):
        p = (moe.router.weight @ row).softmax(0)
        best = p.topk(2)
        expected = torch.zeros(8)
        for weight, e in zip(best.values / best.values.sum(), best.indices.tolist(), strict=True):
            gate, up = (row @ moe.gate_up[e]).chunk(2)
            expected = expected + weight * ((gate * gate.sigmoid() * up) @ moe.down[e])
        assert torch.allclose(out, expected, atol=1e-5)


def test_moe_with_identical_experts_is_one_expert_and_balance_of_a_uniform_router_is_one() -> None:
    torch.manual_seed(0)
    moe, dense = MoE(8, 16, n_experts=4, n_active=2), FeedForward(8, 16)
    with torch.no_grad():
        moe.gate_up.copy_(dense.gate_up.weight.T.expand_as(moe.gate_up))
        moe.down.copy_(dense.down.weight.T.expand_as(moe.down))
    x = torch.randn(2, 9, 8)
    assert torch.allclose(moe(x), dense(x), atol=1e-5)
    with torch.no_grad():
        moe.router.weight.zero_()
    moe(x)
    assert moe.balance_loss().item() == pytest.approx(1.0)


def test_balance_loss_of_a_collapsed_router_is_near_its_largest_value() -> None:
    torch.manual_seed(0)
    moe = MoE(8, 16, n_experts=4, n_active=1)
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[2] = 50.0
    moe(torch.rand(32, 8) + 0.5)
    assert moe.balance_loss().item() == pytest.approx(4.0, abs=1e-3)


def test_dropout_only_in_train_mode() -> None:
    torch.manual_seed(0)
    stack = Stack(16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=32, causal=False, dropout=0.5)
    x, cu = torch.randn(6, 16), torch.tensor([0, 6], dtype=torch.int32)
    stack.train()
    assert not torch.equal(stack(x, None, None, cu, 6), stack(x, None, None, cu, 6))
    stack.eval()
    assert torch.equal(stack(x, None, None, cu, 6), stack(x, None, None, cu, 6))


@pytest.mark.parametrize("conv_kernel", [0, 3])
@torch.no_grad()
def test_a_stack_adds_every_branch_to_the_residual_stream(conv_kernel: int) -> None:
    torch.manual_seed(0)
    stack = Stack(
        16, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=32, causal=False, conv_kernel=conv_kernel
    )
    for parameter in stack.parameters():
        parameter.mul_(1.0 + 0.3 * torch.randn_like(parameter))
    x, cu = torch.randn(6, 16), torch.tensor([0, 4, 6], dtype=torch.int32)
    found = stack(x, None, None, cu, 4)
    for block in stack.blocks:
        assert isinstance(block, Block)
        x = x + block.attention(block.attention_norm(x), None, None, cu, 4)
        if block.conv is not None and block.conv_norm is not None:
            x = x + block.conv(block.conv_norm(x), same_document(cu, 6, kernel=conv_kernel))
        x = x + block.ff(block.ff_norm(x))
    torch.testing.assert_close(found, stack.norm(x))


def test_a_block_that_sees_the_future_cannot_be_stepped() -> None:
    stack = Stack(16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=32, causal=False, conv_kernel=3)
    with pytest.raises(ValueError, match="cannot be stepped"):
        stack.step(torch.zeros(1, 1, 16), None, KVCache(1, 1, 4, 2, 8))


def _packable(**changes: object) -> Stack:
    torch.manual_seed(0)
    rotary = Rotary(head_dim=8, theta=1e4, sections=(2, 1, 1))
    settings = {
        "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "d_ff": 32, "causal": True, "rotary": rotary,
        "mix_kernel": 3, "late_keys": True,
    }  # fmt: skip
    return Stack(16, **(settings | changes)).eval()  # type: ignore[arg-type]


@pytest.mark.skipif(cpp.extension() is None, reason=str(cpp.available()))
@torch.inference_mode()
def test_a_packed_stack_steps_as_the_blocks_do() -> None:
    stack, x, positions = _packable(), torch.randn(3, 7, 16), torch.randint(0, 30, (3, 7, 3))
    plain, packed = (KVCache(2, 3, 9, 2, 8, d_inputs=16) for _ in range(2))
    expected = [stack.step(x[:, :4], positions[:, :4], plain)]
    expected.append(stack.step(x[::2, 4:], positions[::2, 4:], plain, rows=[0, 2]))
    assert stack.pack(n_positions=30) is None
    found = [stack.step(x[:, :4], positions[:, :4], packed)]
    found.append(stack.step(x[::2, 4:], positions[::2, 4:], packed, rows=[0, 2]))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed.k, plain.k, atol=1e-5, rtol=1e-5)
    assert torch.equal(packed.inputs, plain.inputs)
    assert packed.lengths.tolist() == plain.lengths.tolist() == [7, 4, 7]
    with pytest.raises(ValueError, match="do not fit"):
        stack.step(x[:1, :3], positions[:1, :3], packed, rows=[0])


@pytest.mark.skipif(cpp.extension() is None, reason=str(cpp.available()))
def test_packed_weights_are_dropped_when_they_may_have_changed() -> None:
    stack = _packable()
    for change in (stack.train, stack.float, lambda: stack.load_state_dict(stack.state_dict())):
        stack.eval()
        assert stack.pack(n_positions=30) is None and stack.packed is not None
        change()
        assert stack.packed is None
    stack.eval().pack(n_positions=30)
    assert stack.packed is not None, "eval changes no weight"


def test_what_has_no_c_plus_plus_step_says_why() -> None:
    assert "experts" in str(_packable(n_experts=3).pack())
    assert "float32" in str(_packable().bfloat16().pack())


@torch.no_grad()
def test_one_row_of_a_cache_is_the_same_memory() -> None:
    layer = Attention(16, n_heads=4, n_kv_heads=2, head_dim=8, causal=True)
    cache = KVCache(1, 3, 6, 2, 8)
    row = cache.row(1)
    layer.step(torch.randn(1, 2, 16), None, None, row.layer(0))
    row.advance(2)
    assert cache.used.tolist() == [0, 2, 0] == cache.lengths.tolist()
    assert cache.k[0, 1, :2].abs().min() > 0 and not cache.k[0, ::2].any()
    cache.truncate([0, 1, 0])
    assert row.longest == 1
