"""The timeline of one real turn as a picture: `python -m benchmarks.timeline RUN --image P --audio P --out turn.svg`.

Every call of an encoder, the prefill, each decode step, each frame of speech (Talker, codec, vocoder) is timed where
the engine makes it; what a listener hears begins with the first samples and goes on as long as samples last.
"""

from __future__ import annotations

import argparse
import html
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import muomni
from benchmarks import provenance
from benchmarks.mel_report import processor
from muomni.errors import UserError
from muomni.infer.lane import Lane
from muomni.infer.session import Session

LANES = ("picture encoder", "audio encoder", "prefill", "text step", "speech frame", "heard")
COLOURS = dict(zip(LANES, ("#9333ea", "#d97706", "#475569", "#2563eb", "#059669", "#94a3b8"), strict=True))
WIDTH, LEFT, TOP, ROW = 760, 112, 50, 30


@dataclass
class Watch:
    """Spans of work by lane, seconds from the start of the turn."""

    began: float = 0.0
    spans: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {lane: [] for lane in LANES})
    texts: list[tuple[float, str]] = field(default_factory=list)
    """When each piece of text was there."""

    def over(self, lane: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, its time kept."""

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments, **named)
            self.spans[lane].append((start - self.began, time.perf_counter() - self.began))
            return result

        return timed


def watched(session: Session, watch: Watch, **asked: Any) -> Any:
    """One turn, its calls timed; gives the reply."""
    engine, decoder = session.engine, session.engine.decoder
    frame = Lane.frame
    places = [(engine, "see"), (engine, "hear"), (decoder, "prefill"), (decoder, "step")]
    for (owner, name), lane in zip(places, LANES, strict=False):
        setattr(owner, name, watch.over(lane, getattr(owner, name)))
    Lane.frame = watch.over("speech frame", frame)  # type: ignore[method-assign]
    try:
        watch.began = time.perf_counter()
        stream, rate = session.stream(**asked), session.config.mel.sample_rate
        until = 0.0
        for chunk in stream:
            now = time.perf_counter() - watch.began
            if chunk.text:
                watch.texts.append((now, chunk.text))
            if len(chunk.pcm):
                start = max(now, until)
                until = start + len(chunk.pcm) / rate
                watch.spans["heard"].append((start, until))
    finally:
        Lane.frame = frame  # type: ignore[method-assign]
        for owner, name in places:
            delattr(owner, name)
    return stream.reply


def picture(watch: Watch, titles: tuple[str, str], *, until: float) -> str:
    """An SVG of the first `until` seconds, under two lines."""
    scale = (WIDTH - LEFT - 10) / until
    height = TOP + ROW * (len(LANES) + 1) + 32
    parts = [
        f'<text x="8" y="{18 + 16 * i}" font-weight="600">{html.escape(t)}</text>'
        for i, t in enumerate(titles)
    ]
    for i, lane in enumerate(LANES):
        y = TOP + ROW * i
        parts.append(f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{lane}</text>')
        for start, end in watch.spans[lane]:
            if start < until:
                width = max(1.0, (min(end, until) - start) * scale)
                parts.append(
                    f'<rect x="{LEFT + start * scale:.1f}" y="{y}" width="{width:.1f}" height="20" '
                    f'fill="{COLOURS[lane]}" stroke="white" stroke-width="0.4"/>'
                )
    y = TOP + ROW * len(LANES)
    parts.append(f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">text is there</text>')
    last = -1e9
    for at, text in watch.texts:
        x = LEFT + at * scale
        if at < until and x > last:
            parts.append(f'<text x="{x:.1f}" y="{y + 15}">{html.escape(text.strip() or "·")}</text>')
            last = x + 7.0 * (len(text) + 1)
    for i in range(11):
        x = LEFT + until * i / 10 * scale
        parts.append(f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{height - 20}" stroke="#e2e8f0"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle" fill="#64748b">{until * i * 100:.0f}</text>'
        )
    parts.append(f'<text x="8" y="{height - 6}" fill="#64748b">ms</text>')
    grid = [part for part in parts if part.startswith("<line")]
    body = "".join([*grid, *(part for part in parts if not part.startswith("<line"))])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{body}</svg>\n'
    )


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timeline", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--text", default=None)
    parser.add_argument("--image", type=Path, default=None)
    parser.add_argument("--audio", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ms", type=float, default=400.0, help="how much of the turn is drawn")
    parser.add_argument("--out", type=Path, default=Path("turn.svg"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    asked = {
        "text": arguments.text,
        "image": arguments.image,
        "audio": arguments.audio,
        "max_new_tokens": 48,
        "max_repeats": 0,
    }
    try:
        session = muomni.load(arguments.run)
        for _ in range(3):
            # Caches and lazily made buffers.
            session.chat(**asked)
            session.reset()
        watch = Watch()
        reply = watched(session, watch, **asked)
    except UserError as error:
        print(f"timeline: {error}", file=sys.stderr)
        return 2
    name = processor() if session.engine.device.type == "cpu" else provenance.device_name("cuda")
    first_text, total = (1e3 * float(reply.timings[key] or 0.0) for key in ("first_text", "total"))
    titles = (
        f"size {session.config.size}, {arguments.threads} thread(s) of {name}, torch {torch.__version__}, "
        f"commit {provenance.commit()}",
        f"first text {first_text:.0f} ms, first sound {1e3 * (reply.timings['first_audio'] or 0.0):.0f} ms, "
        f"all of {reply.audio.seconds:.1f} s of speech made after {total:.0f} ms",
    )
    arguments.out.write_text(picture(watch, titles, until=arguments.ms / 1e3), encoding="utf-8")
    print("\n".join(titles))
    print(f"{reply.text!r}\nwritten to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
