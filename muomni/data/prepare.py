"""`muomni data prepare`: an adapter's items, admitted in parallel, into tar shards with an index; whole or not at all.

ROOT/.<set>.partial/        what a stopped run goes on from: key, done-00000.json with the rows of each shard,
ROOT/.<set>.partial/set/    and the shards
ROOT/<set>/                 the finished set, put there by one rename
ROOT/.<set>.lock            held while it is prepared
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from muomni import files
from muomni.data import index
from muomni.data.admit import Admitted, Refused, admit, record
from muomni.data.items import KINDS, SAMPLE_RATE, SPLITS
from muomni.data.prepared import FORMAT, MANIFEST, PreparedDataError
from muomni.data.sources.adapter import Adapter
from muomni.data.sources.hub import revision

SHARD_BYTES = 64 * 2**20
"""A shard is closed beyond it."""
SHARD_ITEMS = 8_192
"""Most items of a shard: after so many a stopped run need not repeat them."""
BAD_SHARE = 0.01
"""Of the items found, how many may be bad."""
JUDGED_FROM = 1_000
"""Items after which the share of bad ones is judged while items are still coming."""
AHEAD = 8
"""Items a worker may be ahead."""

Progress = Callable[[int, str], None]
"""Called as progress(items so far, about them)."""


def prepare(
    adapter: Adapter,
    root: Path,
    *,
    cache: Path,
    n_workers: int = 1,
    bad_share: float = BAD_SHARE,
    progress: Progress = lambda done, about: None,
) -> Path:
    """Prepare a set, or find that it is there; the same bytes for any number of workers.

    Returns its folder. Raises SourceError when something cannot be fetched, PreparedDataError when more than bad_share
    of its items are bad or another process prepares it, OSError for a full disk; what was done is gone on from by the
    next call.
    """
    try:
        with files.locked(root / f".{adapter.name}.lock"):
            if not is_there(adapter, root):
                _prepare(
                    adapter, root, cache=cache, n_workers=n_workers, bad_share=bad_share, progress=progress
                )
    except BlockingIOError:
        raise PreparedDataError(
            f"data: another process prepares {adapter.name} in {root}; wait for it, or use another --root."
        ) from None
    return root / adapter.name


def _prepare(
    adapter: Adapter, root: Path, *, cache: Path, n_workers: int, bad_share: float, progress: Progress
) -> None:
    target, key = root / adapter.name, _key(adapter)
    writer = _Writer(root / f".{adapter.name}.partial", key)
    for result in _admitted(adapter, cache, skip=writer.n_found, n_workers=n_workers):
        writer.add(result)
        if writer.is_full:
            writer.close_shard()
            _judge(adapter.name, writer, bad_share, judged_from=JUDGED_FROM)
        progress(writer.n_found, writer.about())
    writer.close_shard()
    _judge(adapter.name, writer, bad_share, judged_from=1)
    writer.finish(adapter, target, cache=cache)


def is_there(adapter: Adapter, root: Path) -> bool:
    """Whether this very set is prepared."""
    path = root / adapter.name / MANIFEST
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("key") == _key(adapter)


def _key(adapter: Adapter) -> str:
    """What decides whether a finished or partial set is this one."""
    said = {
        "format": FORMAT,
        "name": adapter.name,
        "packages": [(p.registry, p.name, p.version, p.sha256) for p in adapter.packages],
        "version": adapter.version,
        "held_out_speakers": adapter.held_out_speakers,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _admitted(adapter: Adapter, cache: Path, *, skip: int, n_workers: int) -> Iterator[Admitted | Refused]:
    """Every item after the first `skip`, in order."""
    found = iter(adapter.find(cache))
    for _ in range(skip):
        next(found, None)
    if n_workers <= 1:
        for one in found:
            yield admit(one, adapter.held_out_speakers)
        return
    # Not forked: the parent may have threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_workers, mp_context=context) as pool:
        waiting: deque[Future[Admitted | Refused]] = deque()
        try:
            for one in found:
                waiting.append(pool.submit(admit, one, adapter.held_out_speakers))
                if len(waiting) > AHEAD * n_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _judge(name: str, writer: _Writer, bad_share: float, *, judged_from: int) -> None:
    if writer.n_found >= judged_from and len(writer.bad) > bad_share * writer.n_found:
        first = "; ".join(f"{one['id']} ({one['reason'].rstrip('.')})" for one in writer.bad[:3])
        raise PreparedDataError(
            f"data: {len(writer.bad)} of the first {writer.n_found} items of {name} cannot be used, at most "
            f"{100 * bad_share:.3g} % may be: {first}. Mend the source, or allow more with --bad-share."
        )
    if writer.n_found == 0:
        raise PreparedDataError(f"data: {name} has no items; look at its source.")


class _Writer:
    """Shards of one set as they are made."""

    def __init__(self, folder: Path, key: str) -> None:
        """Go on with what is in the folder if it is of the same key, or else begin anew."""
        self.folder = folder
        self.set = folder / "set"
        self.rows: list[dict[str, Any]] = []
        self.bad: list[dict[str, str]] = []
        self.left_out: Counter[str] = Counter()
        self.n_found = self.n_shards = 0
        self._open: list[Admitted] = []
        self._size = self._pending = 0
        self._fresh: dict[str, list[Any]] = {"bad": [], "left_out": []}
        # Without the shards, a leftover of a finished set.
        if self.set.is_dir() and (folder / "key").is_file() and (folder / "key").read_text() == key:
            self._resume()
        else:
            shutil.rmtree(folder, ignore_errors=True)
            self.set.mkdir(parents=True)
            files.replace(folder / "key", key)
        self._ids = {row["record"]["id"] for row in self.rows}

    def _resume(self) -> None:
        for path in sorted(self.folder.glob("done-*.json")):
            done = json.loads(path.read_text(encoding="utf-8"))
            self.rows += done["rows"]
            self.bad += done["bad"]
            self.left_out.update(done["left_out"])
            self.n_found, self.n_shards = done["n_found"], done["n_shards"]

    @property
    def is_full(self) -> bool:
        """Whether the shard is to be closed."""
        return self._size >= SHARD_BYTES or self._pending >= SHARD_ITEMS

    def about(self) -> str:
        """A line for progress."""
        return f"{len(self.bad)} bad" if self.bad else ""

    def add(self, result: Admitted | Refused) -> None:
        """Take the next item. Raises PreparedDataError for an id that was there before."""
        self.n_found += 1
        self._pending += 1
        if isinstance(result, Refused):
            if result.bad:
                self._fresh["bad"].append({"id": result.id, "reason": result.reason})
                self.bad.append(self._fresh["bad"][-1])
            else:
                self._fresh["left_out"].append(result.reason)
                self.left_out[result.reason] += 1
            return
        if result.item.id in self._ids:
            raise PreparedDataError(
                f"data: two items are named {result.item.id}; the source gives ids twice."
            )
        self._ids.add(result.item.id)
        self._open.append(result)
        self._size += len(result.payload)

    def close_shard(self) -> None:
        """Write the open items, and only then that they are done."""
        if not self._pending:
            return
        name = f"shard-{self.n_shards:05d}.tar"
        rows = _write_tar(self.set / name, self._open, self.n_shards)
        n_shards = self.n_shards + any(row["size"] for row in rows)
        if n_shards == self.n_shards:
            (self.set / name).unlink()
        number = len(list(self.folder.glob("done-*.json")))
        done = {
            "rows": rows, "bad": self._fresh["bad"], "left_out": self._fresh["left_out"], "n_found": self.n_found,
            "n_shards": n_shards,
        }  # fmt: skip
        files.replace(self.folder / f"done-{number:05d}.json", json.dumps(done, ensure_ascii=False))
        self.rows += json.loads(json.dumps(rows))
        self.n_shards = n_shards
        self._open, self._size, self._pending = [], 0, 0
        self._fresh = {"bad": [], "left_out": []}

    def finish(self, adapter: Adapter, target: Path, *, cache: Path) -> None:
        """Index and manifest, then the rename."""
        with (self.set / "records.jsonl").open("wb") as file:
            for row in self.rows:
                row["start"] = file.tell()
                file.write(json.dumps(row["record"], ensure_ascii=False, sort_keys=True).encode() + b"\n")
        index.save(
            self.set / "index",
            [
                {**{k: row[k] for k in ("place", "length", "fingerprint", "shard", "offset", "size")},
                 "record": row["start"]}
                for row in self.rows
            ],
        )  # fmt: skip
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.bad)
        (self.set / "quarantine.jsonl").write_text(lines, encoding="utf-8")
        # What a stopped run left half-written is no part of the set.
        for leftover in [*self.set.glob(".*"), self.set / MANIFEST]:
            leftover.unlink(missing_ok=True)
        named = sorted(p for p in self.set.rglob("*") if p.is_file())
        manifest = {
            "format": FORMAT,
            "key": _key(adapter),
            "name": adapter.name,
            "title": adapter.title,
            "stages": adapter.stages,
            "licence": adapter.licence,
            "opt_in": adapter.opt_in,
            "sources": [
                dataclasses.asdict(p) | ({"version": revision(p, cache)} if p.registry == "hub" else {})
                for p in adapter.packages
            ],
            "counts": _counts(self.rows),
            "quarantined": len(self.bad),
            "left_out": dict(sorted(self.left_out.items())),
            "files": {str(p.relative_to(self.set)): _hashed(p) for p in named},
        }
        files.replace(self.set / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        aside = self.folder.with_name(f".{target.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        if target.exists():
            target.rename(aside)
        self.set.rename(target)
        for leftover in (aside, self.folder):
            shutil.rmtree(leftover, ignore_errors=True)


def _write_tar(path: Path, admitted: Iterable[Admitted], shard: int) -> list[dict[str, Any]]:
    """A tar of the items' files, synced; their rows. Times and owners are zero: equal items give equal bytes."""
    rows: list[dict[str, Any]] = []
    with path.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number, one in enumerate(admitted):
                offset = 0
                if one.payload:
                    info = tarfile.TarInfo(f"{number:06d}{one.suffix}")
                    info.size = len(one.payload)
                    tar.addfile(info, io.BytesIO(one.payload))
                    offset = tar.offset - -(-len(one.payload) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                rows.append(
                    {
                        "record": record(one.item),
                        "place": index.place(one.item.of, _split(one)),
                        "length": one.length,
                        "fingerprint": one.fingerprint,
                        "shard": shard,
                        "offset": offset,
                        "size": len(one.payload),
                    }
                )
        file.flush()
        os.fsync(file.fileno())
    return rows


def _split(one: Admitted) -> Any:
    assert one.item.split in SPLITS
    return one.item.split


def _counts(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Items, and hours of clips or bytes of texts, by kind and split."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        kind, split = KINDS[row["place"] // len(SPLITS)], SPLITS[row["place"] % len(SPLITS)]
        own = found.setdefault(kind, {}).setdefault(split, {"items": 0, "length": 0})
        own["items"] += 1
        own["length"] += row["length"]
    for kind in ("speech", "questions"):
        for own in found.get(kind, {}).values():
            own["hours"] = round(own["length"] / SAMPLE_RATE / 3600, 4)
    return found


def _hashed(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}
