"""Parquet files of data sets on the Hugging Face hub, one after another as their rows are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from muomni import files
from muomni.data.sources.fetch import Package, SourceError, build_tool

BATCH = 256
"""Rows that are in memory at once."""


def revision(package: Package, cache: Path) -> str:
    """The commit that is read: the pinned one, or the newest when it was first asked for, which is kept in the cache.

    Raises SourceError when the hub does not say.
    """
    kept = cache / "hub" / f"{package.name.replace('/', '--')}.revision"
    if package.version or kept.is_file():
        return package.version or kept.read_text(encoding="utf-8")
    hub = build_tool("huggingface_hub")
    try:
        found = str(hub.HfApi().dataset_info(package.name).sha)
    except (hub.errors.HfHubHTTPError, OSError) as error:
        raise SourceError(f"{package.name}: cannot be asked for ({_line(error)}); try again later.") from None
    kept.parent.mkdir(parents=True, exist_ok=True)
    files.replace(kept, found)
    return found


def parquet_rows(
    package: Package, cache: Path, *, columns: Sequence[str], under: str = "data/"
) -> Iterator[dict[str, Any]]:
    """Rows of a data set's Parquet files in order; a file is fetched when the one before it is used up.

    under: what the files' names begin with. Raises SourceError when the repository has no such files, a column is
    missing, or it cannot be fetched.
    """
    hub, parquet = build_tool("huggingface_hub"), build_tool("pyarrow.parquet")
    repository, commit = package.name, revision(package, cache)
    try:
        listed = hub.list_repo_files(repository, revision=commit, repo_type="dataset")
    except (hub.errors.HfHubHTTPError, OSError) as error:
        raise SourceError(f"{repository}: cannot be listed ({_line(error)}); try again later.") from None
    names = sorted(name for name in listed if name.startswith(under) and name.endswith(".parquet"))
    if not names:
        raise SourceError(f"{repository}: has no Parquet files under {under}; its layout has changed.")
    for name in names:
        try:
            path = hub.hf_hub_download(
                repository, name, revision=commit, repo_type="dataset", cache_dir=str(cache / "hub")
            )
        except (hub.errors.HfHubHTTPError, OSError) as error:
            raise SourceError(
                f"{repository}: {name} cannot be fetched ({_line(error)}); try again."
            ) from None
        file = parquet.ParquetFile(path)
        missing = sorted(set(columns) - set(file.schema_arrow.names))
        if missing:
            raise SourceError(f"{repository}: {name} has no column {missing[0]!r}; its layout has changed.")
        for batch in file.iter_batches(batch_size=BATCH, columns=list(columns)):
            yield from batch.to_pylist()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
