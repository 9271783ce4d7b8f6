"""CTC over packed clips as one operator of static shape: the loss, and its gradient found on the way.

torch's own kernels (Graves et al., 2006) take padded clips, whose size changes with every batch. Here padding exists
inside the operator alone, so a compiled step sees fixed shapes and the head computes no padded position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_BLANK = 0


@torch.library.custom_op(
    "muomni_train::ctc",
    mutates_args=(),
    schema="(Tensor log_probs, Tensor targets, Tensor input_lengths, Tensor target_lengths) -> (Tensor, Tensor)",
)
def _ctc(
    log_probs: torch.Tensor, targets: torch.Tensor, input_lengths: torch.Tensor, target_lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    gradient = torch.zeros_like(log_probs)
    there = input_lengths > 0
    lengths, spelled = input_lengths[there], target_lengths[there]
    n_clips = len(lengths)
    if not n_clips:
        return log_probs.new_zeros(()), gradient
    device, sizes = log_probs.device, lengths.tolist()
    used = sum(sizes)
    padded = nn.utils.rnn.pad_sequence(list(log_probs[:used].split(sizes)))
    own = nn.utils.rnn.pad_sequence(
        list(targets[: int(spelled.sum())].split(spelled.tolist())), batch_first=True
    )
    arguments = (padded, own, lengths.to(device), spelled.to(device))
    if device.type == "cpu":
        arguments = (padded, own, lengths, spelled)
    nll, log_alpha = torch.ops.aten._ctc_loss.Tensor(*arguments, _BLANK, False)
    ones = torch.ones_like(nll)
    d_padded = torch.ops.aten._ctc_loss_backward.Tensor(ones, *arguments, nll, log_alpha, _BLANK, False)
    # Row t * n_clips + clip of the padded gradient, made on the CPU where the lengths are.
    rows = torch.cat([clip + n_clips * torch.arange(size) for clip, size in enumerate(sizes)]).to(device)
    gradient[:used] = d_padded.reshape(-1, log_probs.shape[1])[rows]
    return nll.sum(), gradient


@_ctc.register_fake
def _(
    log_probs: torch.Tensor, targets: torch.Tensor, input_lengths: torch.Tensor, target_lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return log_probs.new_empty(()), torch.empty_like(log_probs)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, d_loss: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    return gradient * d_loss, None, None, None


_ctc.register_autograd(_backward, setup_context=_keep)


def packed_ctc_loss(
    logits: torch.Tensor, targets: torch.Tensor, *, input_lengths: torch.Tensor, target_lengths: torch.Tensor
) -> torch.Tensor:
    """Summed CTC loss in nats of clips one after another; symbol 0 is the blank. `losses.ctc_loss` unpadded.

    logits: (N, n_symbols), rows behind the last clip cost nothing; targets: (S,) int64, transcripts one after
    another; lengths: (n,) int64 on the CPU, 0 behind the last clip. Differentiable once in logits.
    A target that does not fit is infinite: the stage leaves it out beforehand.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_probs = wide.log_softmax(-1)
    return _ctc(log_probs, targets, input_lengths, target_lengths)[0]
