"""The whole path in one run: train every stage, measure on held-out items, answer one omni turn, report."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from muomni.config import RunConfig
from muomni.data import embedded
from muomni.data.audio import audio_frames, denormalise, log_mel
from muomni.data.items import PictureItem
from muomni.data.media import read_image, write_wav
from muomni.data.quarantine import NAME as QUARANTINE
from muomni.doctor import device_name, versions
from muomni.evaluate import margins
from muomni.evaluate import run as evaluation
from muomni.evaluate.curves import curve
from muomni.evaluate.family import spread
from muomni.evaluate.report import Report, Section, Sound, Turn, picture, render, text
from muomni.infer.session import Session, load
from muomni.models.omni import parameter_table
from muomni.progress import bar, training
from muomni.recipes import recipe, shortened, stages
from muomni.train import checkpoint
from muomni.train.built import Built
from muomni.train.loop import Result, train
from muomni.train.stage import Stage
from muomni.train.stages import stage

N_EXAMPLES = 8
"""Held-out examples shown in each of the report's tables."""


def train_stage(
    run: RunConfig,
    root: Path,
    *,
    console: Console,
    track: Sequence[str] = (),
    timed: tuple[Stage, Built] | None = None,
) -> Result:
    """Train one stage and show how it goes; a finished one is reused. track: see train/trackers.py.

    timed: the stage, and what it built, if it was timed before.
    Raises what the loop raises: a missing prerequisite, a checkpoint of another size, an interruption.
    """
    own, built = timed or (stage(run), None)
    with training(run.stage, console) as update:
        result = train(own, run, root, progress=update, track=track, built=built)
    if result.reused:
        console.print(f"{run.stage:<10} finished before, reused")
    for split, count in result.quarantined.items():
        console.print(
            f"{run.stage:<10} {count} unusable {split} samples left out, listed in {result.directory / QUARANTINE}"
        )
    for split, count in result.dropped.items():
        if count:
            console.print(f"{run.stage:<10} {count} {split} samples left out: they do not fit")
    return result


def run_demo(out: Path, *, size: str, seed: int, short: bool, console: Console) -> list[str]:
    """Write report.html, answer.txt, reply.wav and metrics.json into out, the trained stages into out/model.

    Returns one line for every held-out figure that misses its margin.
    """
    started, device = time.perf_counter(), device_name()
    root = out / "model"
    root.mkdir(parents=True, exist_ok=True)
    for name in stages(size):
        run = shortened(size, name) if short else recipe(size, name)
        train_stage(dataclasses.replace(run, seed=seed), root, console=console)
    measured = measure(root, console=console)
    figures, failed = margins.judge(measured["figures"], margins.SHORTENED if short else margins.DEMO)
    # Decoding is many tiny operations: a second thread only makes them wait for each other.
    torch.set_num_threads(1)
    session = load(root)
    turn, timings = omni_turn(session, out)
    records = {name: checkpoint.read_record(root / name) or {} for name in stages(size)}
    seconds = {name: float(record.get("seconds", 0.0)) for name, record in records.items()}
    seconds |= {"evaluation": sum(measured["seconds"].values()), "this call": time.perf_counter() - started}
    parts = [(name, f"{count:,}") for name, count in parameter_table(session.config)]
    page = Report(
        title=f"muomni {size}: an omni model trained from scratch",
        lead=f"Every part below was trained from random weights on {device} in "
        f"{sum(v for k, v in seconds.items() if k in records) / 60:.1f} minutes, on the recordings, pictures and "
        "texts that come with the package. Everything shown was held out from training.",
        turn=turn,
        figures=figures,
        curves={name: curve(root / name) for name in records},
        sections=examples(session),
        tables={
            "Parameters": [("part", "parameters"), *parts],
            "Time": [("part", "seconds"), *((name, f"{value:.1f}") for name, value in seconds.items())],
            "Versions": [("what", "version"), *versions().items(), ("device", device)],
        },
        attribution=embedded.attribution(),
    )
    (out / "report.html").write_text(render(page), encoding="utf-8")
    result = {
        "size": size,
        "seed": seed,
        "shortened": short,
        "figures": figures,
        "seconds": seconds,
        "turn": {"question": turn.question, "answer": turn.answer, "truth": turn.picture_label, **timings},
        "parameters": dict(parameter_table(session.config)),
        "device": device,
        "versions": versions(),
    }
    checkpoint.write_json(out / "metrics.json", result)
    return failed


def measure(root: Path, *, console: Console) -> dict[str, Any]:
    """Held-out figures of the run, measured again only when a stage changed."""
    state = {path.name: checkpoint.manifest_hash(path) for path in sorted(root.iterdir()) if path.is_dir()}
    path = root / "evaluation.json"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.get("stages") == state:
            console.print(f"{'measure':<10} stages unchanged, reused")
            return kept
    with bar("measure", console) as update:
        found = evaluation.evaluate(
            load(root), root, families=evaluation.TRAINING, split="test", progress=update
        )
        measured = found.to_dict()
    measured["stages"] = state
    checkpoint.write_json(path, measured)
    return measured


def sound(waveform: np.ndarray, session: Session) -> Sound:
    """A waveform with its log-mel, for the report."""
    return Sound(waveform=waveform, log_mel=log_mel(waveform, session.config.mel).numpy())


def png(item: PictureItem) -> bytes:
    """A picture of the embedded set as PNG."""
    buffer = io.BytesIO()
    read_image(embedded.SET.file(item)).save(buffer, "PNG")
    return buffer.getvalue()


def omni_turn(session: Session, out: Path) -> tuple[Turn, dict[str, Any]]:
    """The first held-out picture with the first held-out spoken question: text and speech, written into out."""
    shown = embedded.SET.pictures("test")[0]
    asked = next(q for q in embedded.SET.questions("test") if q.kind == "group")
    session.reset()
    reply = session.chat(image=embedded.SET.file(shown), audio=embedded.SET.file(asked), seed=0)
    (out / "answer.txt").write_text(reply.text + "\n", encoding="utf-8")
    write_wav(out / "reply.wav", reply.audio.waveform, reply.audio.sample_rate)
    (out / "picture.png").write_bytes(png(shown))
    timings = {name: value for name, value in reply.timings.items() if value is not None}
    said = {
        "first text": f"{timings['first_text'] * 1e3:.0f} ms",
        "text": f"{timings.get('tokens_per_second', 0.0):.0f} tokens/s",
    }
    if "first_audio" in timings:
        said["first sound"] = f"{timings['first_audio'] * 1e3:.0f} ms"
        said["speech"] = f"made in {timings['rtf']:.2f} x its duration"
    turn = Turn(
        picture_png=png(shown),
        picture_label=f"{shown.label} ({shown.group})",
        question=asked.text,
        question_note=f"synthetic voice {asked.voice}; wording and picture never seen in training",
        question_sound=sound(embedded.SET.waveform(asked), session),
        answer=reply.text,
        reply_sound=sound(reply.audio.waveform, session),
        timings=said,
    )
    return turn, timings


@torch.inference_mode()
def codec_copy(session: Session, waveform: np.ndarray) -> np.ndarray:
    """A waveform through the codec's codes and the vocoder: (n_samples,) float32."""
    codec, mel = session.engine.model.codec, session.config.mel
    frames = audio_frames(waveform, mel, factor=session.config.codec.factor)[None].to(session.engine.device)
    decoded = denormalise(codec.decode(codec.encode(frames))[0].reshape(-1, mel.n_mels), mel)
    return session.engine.model.vocoder(decoded).cpu().numpy()


def examples(session: Session) -> list[Section]:
    """Held-out examples, evenly spaced over the test split, good and bad alike."""
    asked = embedded.SET.questions("test")
    named: list[tuple[str, ...]] = []
    for i, item in enumerate(spread(embedded.SET.pictures("test"), N_EXAMPLES)):
        answers = []
        for kind in ("name", "group"):
            question = [q for q in asked if q.kind == kind][i % 10]
            session.reset()
            reply = session.chat(
                image=embedded.SET.file(item), audio=embedded.SET.file(question), speak=False
            )
            answers.append(reply.text)
        named.append(
            (picture(png(item), item.label), text(f"{item.label}: {item.group}"), *map(text, answers))
        )
    heard: list[tuple[str, ...]] = []
    fitting = [c for c in embedded.SET.speech("test") if c.n_samples <= session.config.max_audio_samples]
    for clip in spread(fitting, N_EXAMPLES):
        waveform = embedded.SET.waveform(clip)
        session.reset()
        thought = session.chat("what is said here", audio=embedded.SET.file(clip), speak=False).text
        player = sound(waveform, session).player(spectrogram=False)
        heard.append(
            (player, text(clip.text), text(session.transcribe(embedded.SET.file(clip))), text(thought))
        )
    spoken: list[tuple[str, ...]] = []
    for clip in spread(sorted(fitting, key=lambda c: c.n_samples)[len(fitting) // 3 :], 3):
        real, copied = embedded.SET.waveform(clip), codec_copy(session, embedded.SET.waveform(clip))
        own = session.speak(clip.text, seed=0).waveform
        spoken.append((text(clip.text), *(sound(w, session).player() for w in (real, copied, own))))
    session.reset()
    return [
        Section(
            title="Pictures never seen, asked by voice",
            note="One token a picture. Two spoken questions each: what it is, and what kind of thing it is.",
            header=("picture", "truth", "name, answered", "kind, answered"),
            rows=named,
        ),
        Section(
            title="Recordings never heard",
            note="Real speech. Spelled by the CTC head of the audio encoder, and written by the Thinker.",
            header=("recording", "what is said", "CTC head", "Thinker"),
            rows=heard,
        ),
        Section(
            title="Speech",
            note="The recording; its copy through 8 codes a frame at 12.5 Hz and the Griffin-Lim vocoder; the Talker "
            "reading the same text. The neural vocoder comes with the speech issue.",
            header=("text", "recording", "codec copy", "Talker"),
            rows=spoken,
        ),
    ]
