"""What bench_infer times: the Thinker's decoding by every contender, whole turns of a session, encoders, memory."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import harness, infer_peers, train_cases
from benchmarks.infer_peers import Decode, DecodeShape, PlainDecoder
from benchmarks.infer_report import LLAMA, OURS, PLAIN
from benchmarks.train_peers import NotRun, load_adapter
from muomni.config import ModelConfig, ThinkerConfig
from muomni.data import embedded
from muomni.data.text import train_tokenizer
from muomni.infer.batch import Batch
from muomni.infer.decoding import TextDecoder
from muomni.infer.engine import Engine
from muomni.infer.sampling import Sampler, Sampling
from muomni.infer.session import Session
from muomni.models.omni import OmniModel
from muomni.models.recording import cuda_record
from muomni.models.thinker import Thinker
from muomni.tokens import N_SPECIAL

N_PROMPT, N_NEW = 64, 64
"""Tokens of a prompt, and tokens after the first of its answer."""
AUDIO_SECONDS = 5.0
"""The clip of a turn and of the encoder."""
TURN_TOKENS = 48
"""Text of a turn's answer."""
VOCABULARY = 512
"""Entries of a random model's tokenizer."""


def config(size: str) -> ModelConfig:
    """A recipe's model, or that of the size START."""
    return train_cases.run_of(size, "text").model


@dataclass(frozen=True, kw_only=True)
class DecodeCase:
    """Greedy decoding of several prompts."""

    size: str
    batch: int
    threads: int
    """Of a CPU; 0 on a GPU."""

    @property
    def variant(self) -> str:
        """Its name."""
        return f"decode {self.size}, batch {self.batch}" + (
            f", {self.threads} threads" if self.threads else ""
        )


def prompts(cfg: ThinkerConfig, batch: int, device: torch.device) -> torch.Tensor:
    """(batch, N_PROMPT) random text ids."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(N_SPECIAL, cfg.vocab_size, (batch, N_PROMPT), generator=generator).to(device)


def ours(thinker: Thinker, ids: torch.Tensor, *, graph: bool) -> Decode:
    """The engine's decoder and batch: decode(n) -> (B, n) tokens; the end of a text is never chosen."""
    n_rows, n_prompt = ids.shape
    forbidden = list(range(N_SPECIAL))
    decoder = TextDecoder(
        thinker, n_rows=n_rows, max_len=N_PROMPT + N_NEW + 2, forbidden=forbidden,
        record=cuda_record() if graph else None,
    )  # fmt: skip
    batch = Batch(decoder)
    positions = torch.arange(n_prompt, device=ids.device)[:, None].expand(-1, 3)

    def decode(n: int) -> torch.Tensor:
        tickets = []
        for row in range(n_rows):
            decoder.cut(row, 0)
            with torch.inference_mode():
                hidden = decoder.prefill(row, thinker.embed(ids[row]), positions)
            tickets.append(
                batch.join(row, hidden[-1], n_prompt, sampling=Sampling(), seed=0, max_new_tokens=n, room=n)
            )
        found: list[list[int]] = [[tickets[row].pending] for row in range(n_rows)]
        for _ in range(n - 1):
            for row, ticket in enumerate(tickets):
                next(ticket)
                found[row].append(ticket.pending)
        for ticket in tickets:
            batch.leave(ticket)
        return torch.tensor(found)

    return decode


def contenders(
    case: DecodeCase, device: torch.device, *, peers: tuple[str, ...] = ()
) -> Iterator[tuple[str, Callable[[], Decode], torch.Tensor | None]]:
    """(name, what makes it, the tokens it must give), ours first; None for weights of its own or rounded ones."""
    cfg = config(case.size).thinker
    torch.manual_seed(0)
    thinker = Thinker(cfg).eval().to(device)
    # As trained ones are: a greedy choice must not hang on the last bit.
    thinker.embedding.data *= 4.0
    ids = prompts(cfg, case.batch, device)
    wanted = PlainDecoder(thinker, ids).decode(4) if case.size != "base" or case.batch == 1 else None

    def packed(weights: Any) -> Decode:
        # A copy: packing drops what was packed before.
        own = copy.deepcopy(thinker)
        if reason := own.pack(n_positions=N_PROMPT + N_NEW + 2, weights=weights):
            raise NotRun(reason)
        return ours(own, ids, graph=False)

    def half(make: Callable[[Thinker], Decode]) -> Decode:
        own = Thinker(cfg).eval().to(device, torch.bfloat16)
        own.load_state_dict(thinker.state_dict())
        return make(own)

    if device.type == "cuda":
        yield f"{OURS}, graph, fp32", lambda: ours(thinker, ids, graph=True), wanted
        yield f"{OURS}, eager, fp32", lambda: ours(thinker, ids, graph=False), wanted
        yield f"{OURS}, graph, bf16", lambda: half(partial(ours, ids=ids, graph=True)), None
        yield f"{OURS}, eager, bf16", lambda: half(partial(ours, ids=ids, graph=False)), None
    else:
        yield f"{OURS}, fp32", partial(packed, "float32"), wanted
        yield f"{OURS}, int8", partial(packed, "int8"), None
    yield f"{PLAIN}, fp32", lambda: PlainDecoder(thinker, ids).decode, wanted
    yield f"{LLAMA}, fp32", lambda: infer_peers.llama(cfg, ids, torch.float32, most=N_NEW + 1), None
    if device.type == "cuda":
        yield f"{PLAIN}, bf16", lambda: half(lambda own: PlainDecoder(own, ids).decode), None
        yield f"{LLAMA}, bf16", lambda: infer_peers.llama(cfg, ids, torch.bfloat16, most=N_NEW + 1), None
    for spec in peers:
        yield f"{spec}, fp32", partial(_foreign, spec, case, cfg, device), None


def _foreign(spec: str, case: DecodeCase, cfg: ThinkerConfig, device: torch.device) -> Decode:
    shape = DecodeShape(
        device=str(device), precision="fp32", batch=case.batch, n_prompt=N_PROMPT, n_new=N_NEW + 1,
        vocab_size=cfg.vocab_size, d_model=cfg.d_model, n_layers=cfg.n_layers, n_heads=cfg.n_heads,
        n_kv_heads=cfg.n_kv_heads, d_ff=cfg.d_ff,
    )  # fmt: skip
    return load_adapter(spec)[1](shape)


def step_bytes(cfg: ThinkerConfig, *, bytes_a_weight: int) -> int:
    """Weights that a step reads whatever its batch: the blocks' and the output layer's."""
    attention = cfg.d_model * cfg.head_dim * (2 * cfg.n_heads + 2 * cfg.n_kv_heads)
    layer = attention + 3 * cfg.d_model * cfg.d_ff
    return bytes_a_weight * (cfg.n_layers * layer + cfg.vocab_size * cfg.d_model)


def session_of(size: str, device: torch.device, *, weights: Any = "float32") -> Session:
    """A session with random weights and the vocoder, as a trained one of this size is loaded."""
    torch.manual_seed(0)
    cfg = config(size)
    model = OmniModel(cfg)
    # An untrained Talker would say anything between nothing and the longest utterance.
    model.talker.mean_advance = lambda hidden: hidden.new_full((len(hidden),), 1.2)  # type: ignore[method-assign]
    tokenizer = train_tokenizer([item.text for item in embedded.SET.speech("train")], VOCABULARY)
    engine = Engine(model.to(device), n_ids=VOCABULARY, weights=weights)
    # A text as long as asked for, of what the tokenizer knows.
    unsaid = [*range(N_SPECIAL), *range(VOCABULARY, cfg.thinker.vocab_size)]
    engine.decoder.sampler = Sampler(engine.decoder.cache.batch, device=engine.device, forbidden=unsaid)
    return Session(engine, tokenizer)


def media(cfg: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W, 3) uint8 and a clip of AUDIO_SECONDS."""
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    clip = random.normal(0, 0.1, round(AUDIO_SECONDS * cfg.mel.sample_rate)).astype(np.float32)
    return picture, clip


def turns(session: Session, *, n: int) -> dict[str, list[float]]:
    """Figures of n spoken turns about a picture and a clip, a conversation each; the first are not counted."""
    picture, clip = media(session.config)
    found: dict[str, list[float]] = {}
    for i in range(n + 2):
        session.reset()
        before = time.process_time()
        reply = session.chat(
            "what is this, and who says so",
            image=picture,
            audio=clip,
            max_new_tokens=TURN_TOKENS,
            max_repeats=0,
        )
        cpu = time.process_time() - before
        if i < 2:
            continue
        timings = reply.timings | {"cpu": cpu, "cpu_rtf_all": cpu / max(reply.audio.seconds, 1e-9)}
        for name in (
            "first_text",
            "first_audio",
            "rtf",
            "tokens_per_second",
            "total",
            "audio_seconds",
            "cpu_rtf_all",
        ):
            found.setdefault(name, []).append(float(timings[name] or 0.0))
    return found


def encoders(session: Session, *, n: int) -> dict[str, list[float]]:
    """Seconds of the picture encoder, and of hearing a clip in a turn and in transcribing, from network input on."""
    cfg, device = session.config, session.engine.device
    size = cfg.vision.image_size
    image = torch.randn(1, 3, size, size)
    n_frames = cfg.audio_tokens(round(AUDIO_SECONDS * cfg.mel.sample_rate))
    frames = torch.randn(n_frames, cfg.audio.factor * cfg.mel.n_mels)
    found: dict[str, list[float]] = {}
    for name, call in (
        ("image", lambda: session.engine.see(image)),
        ("hear", lambda: session.engine.hear(frames)),
        ("transcribe", lambda: session.engine.spell(frames)),
    ):
        for i in range(n + 2):
            harness.synchronize(device)
            began = time.perf_counter()
            call()
            harness.synchronize(device)
            if i >= 2:
                found.setdefault(name, []).append(time.perf_counter() - began)
    return found


def memory(size: str, device: torch.device, *, weights: Any = "float32") -> dict[str, float]:
    """Megabytes that a session and a turn of it take at most: of a GPU's memory, else what this process grows by."""
    before = _now_and_peak(device, forget=True)[0]
    session = session_of(size, device, weights=weights)
    turns(session, n=1)
    return {"process_mb": before / 1e6, "peak_mb": (_now_and_peak(device)[1] - before) / 1e6}


def _now_and_peak(device: torch.device, *, forget: bool = False) -> tuple[int, int]:
    """Bytes of memory now and at most; forget: what was before counts no more. Linux alone tells a process's."""
    if device.type == "cuda":
        if forget:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(status[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak
