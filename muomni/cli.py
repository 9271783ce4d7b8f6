"""The command line: demo, train, runs, plan, doctor here; data, eval, chat, speedrun and others in their own files.

Every verb imports what it needs when it runs, so that `muomni --help` loads no torch. The user's
mistakes are one line on standard error and exit code 2; an interrupted run exits 75.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from muomni.cli_chat import chat
from muomni.cli_data import data_app
from muomni.cli_eval import eval_app
from muomni.cli_export import export
from muomni.cli_options import EXIT_INTERRUPTED, EXIT_USER_ERROR, reason
from muomni.cli_speedrun import speedrun
from muomni.cli_talk import VERBS
from muomni.errors import ToldError, UserError

Settings = Annotated[
    tuple[str, ...],
    arg(name="set", help="Settings such as optim.lr=3e-4 (several may follow).", metavar="NAME=VALUE ..."),
]

app = tyro.extras.SubcommandApp()
app.command(data_app, name="data", help="Data sets: list, prepare, stats, show, verify, embed.")
app.command(eval_app, name="eval", help="Held-out figures: all, speech.")
for verb in (speedrun, chat, *VERBS, export):
    app.command(verb)


def _console(*, quiet: bool = False) -> Any:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, quiet=quiet)


@app.command
def demo(
    *,
    out: Path = Path("out/demo"),
    size: str = "nano",
    seed: int = 0,
    shortened: bool = False,
    check: bool = False,
) -> None:
    """Train every part on the embedded real data, then answer one omni turn and write a report.

    Args:
        out: Where report.html, answer.txt, reply.wav, metrics.json and the trained model go.
        size: nano, tiny or base.
        seed: Seed of the whole run.
        shortened: Train fewer steps, as continuous integration does.
        check: Exit 1 unless every held-out figure beats its baseline by the stated margin.
    """
    from muomni.demo import run_demo

    console = _console()
    failed = run_demo(out, size=size, seed=seed, short=shortened, console=console)
    for line in failed:
        print(f"below its margin: {line}", file=sys.stderr)
    print(f"Open {out / 'report.html'}")
    if check and failed:
        sys.exit(1)


@app.command
def train(
    *,
    size: str = "nano",
    stage: str = "all",
    run: Annotated[Path | None, arg(help="Directory of the trained stages; default: runs/SIZE.")] = None,
    data: str = "embedded",
    seed: int = 0,
    compile: Literal["auto", "on", "off"] = "auto",
    graph: Literal["auto", "on", "off"] = "auto",
    track: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = (),
    settings: Settings = (),
) -> None:
    """Train one stage, or all that the size needs in order; a finished stage with the same settings is reused.

    With torchrun, processes share the work: `torchrun --nproc-per-node 2 -m -- muomni train ...`.

    Args:
        size: nano, tiny or base.
        stage: text, audio, vision, codec, vocoder, omni, talker or all.
        data: embedded, small, full, or prepared sets by name or path with commas between.
        seed: Seed of initialisation, order, augmentation and dropout.
        compile: Losses and gradients through torch.compile; auto: on CUDA only.
        graph: Steps replayed as CUDA graphs; auto: on CUDA, where the stage allows it.
        track: Trackers that are told every row; wandb stays offline unless WANDB_MODE says otherwise.
    """
    from muomni.demo import train_stage
    from muomni.recipes import recipe, stages
    from muomni.settings import override
    from muomni.train.world import Joined

    own = [f"seed={seed}", f"data={data}", f"train.compile={compile}", f"train.graph={graph}"]
    with Joined() as world:
        console = _console(quiet=not world.main)
        for name in stages(size) if stage == "all" else (stage,):
            config = override(recipe(size, name), [*own, *settings])
            result = train_stage(config, run or Path("runs", size), console=console, track=track)
            if world.main:
                print(f"{name}: {'; '.join(f'{k} {v:.4g}' for k, v in result.figures.items())}")


@app.command
def runs(
    folder: Positional[Path] = Path("."),
    *,
    json_: Annotated[bool, arg(name="json", help="Print JSON.")] = False,
) -> None:
    """List every run below a folder: each stage's state, step, last loss, speed, seconds and age.

    Args:
        folder: Where to look.
    """
    from muomni.runs import find_runs, table

    found = find_runs(folder)
    if json_:
        print(json.dumps(found, indent=2))
        return
    for line in table(found):
        print(line)


@app.command
def plan(*, size: str = "nano", stage: str = "omni", memory: str = "12GB", settings: Settings = ()) -> None:
    """Predict a training step's peak memory and pick the largest micro-batch that fits a card.

    Args:
        size: nano, tiny or base.
        stage: text, audio, vision, codec, vocoder, omni or talker.
        memory: A card's memory, such as 12GB; 0.8 GiB of it are left to the driver.
    """
    # The profiler that counts bytes writes a line for every start and stop otherwise; read when torch is loaded.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from muomni.recipes import recipe
    from muomni.settings import override
    from muomni.train import plan as planner

    config = override(recipe(size, stage), list(settings))
    usable = planner.parse_memory(memory)
    chosen, found = planner.choose(config, usable)
    for line in planner.table(found, chosen, usable):
        print(line)


@app.command
def doctor() -> None:
    """What this machine has: versions, devices, the C++ extension, and the backend of every op."""
    from muomni.doctor import report

    for line in report():
        print(line)


def _check_once(arguments: Sequence[str]) -> None:
    """Raises UserError for an option given twice: only the last would count, in silence."""
    names = Counter(a.partition("=")[0] for a in arguments if a.startswith("--") and len(a) > 2)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(f"{twice[0]}: given twice; give it once, with all its values after it.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `muomni` command."""
    # Read when torch loads OpenMP. Threads that spin at a barrier keep the one they wait for off a busy processor.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # As Ctrl-C, wherever it comes: a stage's loop has handlers of its own, which save first.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _check_once(sys.argv[1:] if arguments is None else arguments)
        app.cli(prog="muomni", description="An omni model one person can train.", args=arguments)
        # Whoever reads may have left: better seen here than when the process ends.
        sys.stdout.flush()
    except ToldError as error:
        sys.exit(EXIT_INTERRUPTED if error.interrupted else EXIT_USER_ERROR)
    except UserError as error:
        print(f"muomni: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt as error:
        print(f"muomni: interrupted{f'; {error}' if str(error) else ''}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except RuntimeError as error:
        # Looked up, not imported: the registry loads torch, and without it no backend can have failed.
        registry = sys.modules.get("muomni_kernels.registry")
        if registry is None or not isinstance(error, registry.BackendError):
            raise
        print(f"muomni: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except BrokenPipeError:
        _discard_output()
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:
        if error.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EACCES,
            errno.EROFS,
            errno.ENOENT,
            errno.ENOTDIR,
            errno.EISDIR,
        ):
            raise
        print(f"muomni: {reason(error)}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def _discard_output() -> None:
    """Nobody reads any more: what is still buffered would fail once more at the end of the process."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
