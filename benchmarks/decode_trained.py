"""What only a trained model tells of decoding: `python -m benchmarks.decode_trained RUN [--data SETS]`, on a CPU.

Two questions on held-out conversations. What do int8 weights cost, in nats a token of the answers? And would guessing
several tokens at once pay: where the last two tokens stood before, those that followed them there are checked together
with the next step (prompt lookup); how many of them are what greedy decoding writes, and what does a step of so many
positions cost beside a step of one?
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import provenance
from benchmarks.mel_report import processor
from muomni.data.prepared import open_source
from muomni.data.template import Turn, render
from muomni.errors import UserError
from muomni.infer.loading import load_model
from muomni.metrics.intervals import bootstrap_interval
from muomni.models.thinker import Thinker

N_GUESSED = 4
"""Tokens checked with a step."""
N_KEY = 2
"""Last tokens that must have stood before."""
ROUNDS = 60


@torch.inference_mode()
def nats(
    thinker: Thinker, documents: Sequence[torch.Tensor], answers: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Mean nats a token of each document's answer, by the decode step."""
    found = []
    for ids, (start, end) in zip(documents, answers, strict=True):
        cache = thinker.new_cache(1, len(ids))
        positions = torch.arange(len(ids))[None, :, None].expand(-1, -1, 3)
        logits = thinker.logits(thinker.step(thinker.embed(ids)[None], positions, cache)[0]).log_softmax(-1)
        own = torch.arange(start, end)
        found.append(-float(logits[own - 1, ids[own]].mean()))
    return np.array(found)


@torch.inference_mode()
def written(thinker: Thinker, prompt: torch.Tensor, n: int) -> list[int]:
    """n greedy tokens behind a prompt."""
    cache = thinker.new_cache(1, len(prompt) + n)
    ids, place, found = prompt, 0, list[int]()
    for _ in range(n):
        positions = torch.arange(place, place + len(ids))[None, :, None].expand(-1, -1, 3)
        state = thinker.step(thinker.embed(ids)[None], positions, cache)[0, -1]
        place += len(ids)
        ids = thinker.logits(state).argmax(keepdim=True)
        found.append(int(ids))
    return found


def guesses(before: Sequence[int]) -> list[int]:
    """What followed the last N_KEY tokens where they last stood before."""
    key = list(before[-N_KEY:])
    for at in range(len(before) - N_KEY - 1, -1, -1):
        if list(before[at : at + N_KEY]) == key:
            return list(before[at + N_KEY : at + N_KEY + N_GUESSED])
    return []


def accepted(prompt: Sequence[int], answer: Sequence[int]) -> tuple[int, int]:
    """(steps, tokens) of an answer written with guesses."""
    steps, at = 0, 0
    while at < len(answer):
        right = 0
        for guess, token in zip(guesses([*prompt, *answer[:at]]), answer[at:], strict=False):
            if guess != token:
                break
            right += 1
        steps, at = steps + 1, at + right + 1
    return steps, len(answer)


@torch.inference_mode()
def cost(thinker: Thinker, n_positions: int) -> float:
    """CPU seconds of a step of so many positions behind 64, the output layer's included: the best."""
    cache = thinker.new_cache(1, 64 + n_positions)
    width = thinker.cfg.d_model
    places = torch.arange(64 + n_positions)[None, :, None].expand(-1, -1, 3)
    thinker.step(torch.randn(1, 64, width), places[:, :64], cache)
    x, best = torch.randn(1, n_positions, width), float("inf")
    for _ in range(ROUNDS):
        cache.truncate([64])
        began = time.process_time()
        thinker.logits(thinker.step(x, places[:, 64:], cache))
        best = min(best, time.process_time() - began)
    return best


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode_trained", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--n", type=int, default=100, help="conversations at most")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        model, tokenizer, *_ = load_model(arguments.run)
        source = open_source(arguments.data)
    except UserError as error:
        print(f"decode_trained: {error}", file=sys.stderr)
        return 2
    thinker, config = model.thinker, model.config
    documents, answers, prompts = [], [], []
    for item in source.conversations("test")[: arguments.n]:
        document = render(
            [Turn(text=tokenizer.encode(item.turns[0]), answer=tokenizer.encode(item.turns[1]))],
            n_image_tokens=config.vision.n_image_tokens, max_seq_len=4_096,
        )  # fmt: skip
        if len(document) > config.max_seq_len:
            continue
        documents.append(document.input_ids)
        answers.append(document.answers[0])
        prompts.append(document.input_ids[: document.answers[0][0]])
    losses = {}
    for weights in ("int8", "float32"):
        if reason := thinker.pack(n_positions=config.max_seq_len, weights=weights):
            print(f"decode_trained: {reason}", file=sys.stderr)
            return 2
        losses[weights] = nats(thinker, documents, answers)
    steps = tokens = 0
    for prompt in prompts[:40]:
        answer = written(thinker, prompt, 48)
        own = accepted(prompt.tolist(), answer)
        steps, tokens = steps + own[0], tokens + own[1]
    more, single = cost(thinker, 1 + N_GUESSED), cost(thinker, 1)
    difference = losses["int8"] - losses["float32"]
    low, high = bootstrap_interval(difference)
    found = {
        "size": config.size, "processor": processor(), "torch": torch.__version__, "commit": provenance.commit(),
        "conversations": len(documents), "nats_float32": float(losses["float32"].mean()),
        "int8_more_nats": float(difference.mean()), "int8_more_nats_95": [low, high],
        "tokens_a_step_with_guesses": tokens / steps, "cost_of_a_step_with_guesses": more / single,
        "times_faster_with_guesses": tokens / steps / (more / single),
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
