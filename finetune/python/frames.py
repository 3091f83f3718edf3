"""`data=` of a function: the name of a data set, a table, a folder, or a DataFrame, which becomes a table in a file."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from finetune.config.overrides import choices
from finetune.errors import FinetuneError, MissingExtra, one_of
from finetune.files import write_text_atomic

TABLES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz")
PARQUET = (".parquet", ".pq")
TABLE = "table.csv"
"""The file of a DataFrame, in the run folder."""


@dataclass(frozen=True)
class Data:
    """The arguments that `data=` means, and the table to write before the job reads it."""

    arguments: dict[str, Any]
    frame: pd.DataFrame | None = None

    def write(self, folder: Path) -> Path:
        """The table as a file of data=csv."""
        assert self.frame is not None
        text = self.frame.to_csv(index=False, lineterminator="\n", date_format="%Y-%m-%dT%H:%M:%S")
        try:
            return write_text_atomic(folder / TABLE, text)
        except UnicodeEncodeError:
            raise FinetuneError(
                "data: a cell of the DataFrame holds a name of bytes that are not UTF-8. Rename such files."
            ) from None


def data_of(data: Any, given: dict[str, Any]) -> Data:
    """What `data=` means.

    Args:
        data: name of a group (chestxray), path of a table (csv, tsv, parquet) or of a folder, or a DataFrame.
        given: the other arguments.

    Raises:
        FinetuneError: neither a data set nor a file or folder that exists, or a frame without a column of paths.
    """
    if isinstance(data, pd.DataFrame):
        return _of_frame(data, given, Path.cwd())
    if not isinstance(data, str | Path):
        raise FinetuneError(
            f"data is a {type(data).__qualname__}; it must be the name of a data set, a path, or a DataFrame."
        )
    names, path = choices()["data"], Path(data).expanduser()
    if isinstance(data, str) and data in names:
        return Data({"data": data})
    if path.is_dir():
        _check_single(data, given, "data.root", "root")
        return Data({"data": "folder", "data.root": str(path)})
    if not path.is_file():
        if isinstance(data, Path) or os.sep in str(data) or str(data).lower().endswith((*TABLES, *PARQUET)):
            raise FinetuneError(f"data={data} does not exist (looked at {path.absolute()}).")
        raise one_of("data", data, names)
    if str(path).lower().endswith(PARQUET):
        return _of_frame(_read_parquet(path), given, path.parent)
    if not str(path).lower().endswith(TABLES):
        raise FinetuneError(f"data={data} is no table: {', '.join((*TABLES, *PARQUET))} are read, or a folder.")
    _check_single(data, given, "data.table", "table")
    return Data({"data": "csv", "data.table": str(path)})


def _of_frame(frame: pd.DataFrame, given: dict[str, Any], home: Path) -> Data:
    """A frame as data=csv. Relative paths start from `home`, unless `root` is given; absolute ones from their own."""
    _check_single("a DataFrame", given, "data.table", "table")
    frame = frame.rename(columns=str)
    column = str(next((given[name] for name in ("path", "data.path", "data__path") if name in given), "path"))
    if not len(frame) or column not in frame.columns:
        raise FinetuneError(
            f"data is a DataFrame of {len(frame):,} rows with the columns {', '.join(map(str, frame.columns[:12]))}. "
            f"It needs rows, and a column {column} with the images' paths. path=COLUMN names another."
        )
    if repeated := sorted({name for name in frame.columns if list(frame.columns).count(name) > 1}):
        raise FinetuneError(f"data is a DataFrame with several columns {repeated[0]}. Rename them.")
    arguments: dict[str, Any] = {"data": "csv", "data.table": TABLE}
    if not {"root", "data.root", "data__root"} & set(given):
        paths = [str(path) for path in frame[column]]
        absolute = [os.path.isabs(path) for path in paths]
        if any(absolute) and not all(absolute):
            first, other = paths[absolute.index(True)], paths[absolute.index(False)]
            raise FinetuneError(f"data: {first} is absolute, {other} is not. Make all paths alike, or give root=DIR.")
        arguments["data.root"] = os.path.commonpath([os.path.dirname(p) for p in paths]) if all(absolute) else str(home)
    return Data(arguments, frame)


def _check_single(data: Any, given: dict[str, Any], key: str, short: str) -> None:
    if twice := {key, short, key.replace(".", "__")} & set(given):
        raise FinetuneError(f"data={data} and {twice.pop()}= both name where the images are. Give one of them.")


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError:
        raise MissingExtra(f"data={path} needs the package pyarrow", "parquet") from None
    except (ValueError, OSError) as error:
        raise FinetuneError(f"data={path} cannot be read as parquet: {str(error).splitlines()[0]}") from None
