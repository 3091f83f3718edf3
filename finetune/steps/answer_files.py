"""The table of job=predict as csv, jsonl or parquet, in pieces: each chunk is encoded alone, and all are joined."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from finetune.errors import FinetuneError, MissingExtra
from finetune.files import write_bytes_atomic

Contents = Callable[[], Iterator[bytes]]
"""Gives the bytes of all chunks in their order, whenever it is called."""
ROWS_PER_GROUP = 65_536  # of a parquet file, at least; the last group has the rest


class AnswerFormat(Protocol):
    """How a table becomes the bytes of a chunk, and chunks become a file."""

    def encode(self, table: pd.DataFrame) -> bytes:
        """The rows of a chunk; unreadable cells are NaN."""
        ...

    def join(self, path: Path, columns: Sequence[str], chunks: Contents) -> None:
        """Write the file, atomically."""
        ...


class Csv:
    """Numbers have nine digits, which keep 32 bits; what is unknown is blank."""

    def encode(self, table: pd.DataFrame) -> bytes:
        text = table.to_csv(index=False, header=False, float_format="%.9g", lineterminator="\n")
        return text.encode("utf-8", "surrogateescape")  # file names that are not UTF-8

    def join(self, path: Path, columns: Sequence[str], chunks: Contents) -> None:
        header = pd.DataFrame(columns=list(columns)).to_csv(index=False, lineterminator="\n").encode()
        write_bytes_atomic(path, _after(header, chunks()))


class JsonLines:
    """An object per line; what is unknown is null."""

    def encode(self, table: pd.DataFrame) -> bytes:
        columns = {name: [_plain(value) for value in table[name].tolist()] for name in table}
        rows = (dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True))
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        return text.encode("utf-8", "surrogateescape")

    def join(self, path: Path, columns: Sequence[str], chunks: Contents) -> None:
        write_bytes_atomic(path, chunks())


class Parquet:
    """A column of numbers is float64 or int64; what is unknown is null. Through pyarrow."""

    def __init__(self) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise MissingExtra("output=*.parquet needs the package pyarrow", "parquet") from None
        self.arrow, self.parquet = pyarrow, pyarrow.parquet

    def encode(self, table: pd.DataFrame) -> bytes:
        columns = {name: [_plain(value) for value in table[name].tolist()] for name in table}
        columns = {name: [_utf8(value) for value in values] for name, values in columns.items()}
        buffer = io.BytesIO()
        self.parquet.write_table(self.arrow.table(columns), buffer)
        return buffer.getvalue()

    def join(self, path: Path, columns: Sequence[str], chunks: Contents) -> None:
        tables = [self.parquet.read_schema(io.BytesIO(chunk)) for chunk in chunks()]
        # a chunk without a readable image has columns of nulls, one with unreadable ones floats for whole numbers
        schema = self.arrow.unify_schemas(tables, promote_options="permissive")
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with self.parquet.ParquetWriter(partial, schema) as writer:
                for group in self._groups(chunks()):
                    writer.write_table(group.cast(schema))
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _groups(self, chunks: Iterable[bytes]) -> Iterator[Any]:
        """Tables of at least ROWS_PER_GROUP rows, but for the last."""
        waiting: list[Any] = []
        for chunk in chunks:
            waiting.append(self.parquet.read_table(io.BytesIO(chunk)))
            if sum(table.num_rows for table in waiting) >= ROWS_PER_GROUP:
                yield self.arrow.concat_tables(waiting, promote_options="permissive")
                waiting = []
        if waiting:
            yield self.arrow.concat_tables(waiting, promote_options="permissive")


FORMATS: dict[str, Callable[[], AnswerFormat]] = {".csv": Csv, ".jsonl": JsonLines, ".parquet": Parquet}
"""Ending of the output -> its format."""


def format_of(output: Path) -> AnswerFormat:
    """The format that the ending of `output=` asks for.

    Raises:
        FinetuneError: another ending, or a package that is not installed.
    """
    if output.suffix.lower() not in FORMATS:
        raise FinetuneError(f"output={output} must end in {', '.join(FORMATS)}: the ending says what is written.")
    return FORMATS[output.suffix.lower()]()


@dataclass(frozen=True)
class Written:
    """The table that job=predict wrote."""

    path: Path
    text: Sequence[str]
    """Its columns of text; the others hold numbers."""

    def read(self) -> pd.DataFrame:
        """The table: unknown numbers are NaN, unknown texts blank, and texts stay texts, as the id 007 does."""
        if self.path.suffix.lower() == ".parquet":
            table = pd.read_parquet(self.path)
        elif self.path.suffix.lower() == ".jsonl":
            with self.path.open(encoding="utf-8", errors="surrogateescape") as file:
                rows = [json.loads(line) for line in file]
            kinds = {name: object if name in self.text else None for name in (rows[0] if rows else self.text)}
            table = pd.DataFrame({n: pd.Series([row[n] for row in rows], dtype=kind) for n, kind in kinds.items()})
        else:
            options: dict[str, Any] = {"encoding_errors": "surrogateescape"}
            names = pd.read_csv(self.path, nrows=0, **options).columns
            table = pd.read_csv(
                self.path,
                dtype=dict.fromkeys(self.text, object),
                keep_default_na=False,
                na_values={name: [""] for name in names if name not in self.text},
                **options,
            )
        texts = [name for name in self.text if name in table]
        return table.assign(**{name: table[name].astype(object).fillna("") for name in texts})


def _after(header: bytes, chunks: Iterable[bytes]) -> Iterator[bytes]:
    yield header
    yield from chunks


def _plain(value: Any) -> Any:
    """A cell; NaN as None."""
    return None if value is None or value != value else value


def _utf8(value: Any) -> Any:
    """Text without the bytes of a file name that are not UTF-8, which parquet cannot hold."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
