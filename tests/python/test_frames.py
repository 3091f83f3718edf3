"""What `data=` means, and DataFrames as tables in files."""

from pathlib import Path

import pandas as pd
import pytest

from finetune.data.sources.csv_table import CsvTable
from finetune.errors import FinetuneError
from finetune.python.frames import data_of
from tests.jobs.test_fit import draw


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "images", 4)
    return tmp_path


def frame(**columns) -> pd.DataFrame:
    paths = sorted(str(path) for path in Path("images").rglob("*.png"))
    return pd.DataFrame({"path": paths, "warm": ["warm" in path for path in paths], **columns})


def test_names_of_data_sets_tables_and_folders(place):
    (place / "chestxray").mkdir()
    (place / "t.csv").write_text("path,label\n")
    assert data_of("chestxray", {}).arguments == {"data": "chestxray"}
    assert data_of(Path("chestxray"), {}).arguments == {"data": "folder", "data.root": "chestxray"}
    assert data_of("images", {}).arguments == {"data": "folder", "data.root": "images"}
    assert data_of("t.csv", {"root": "x"}).arguments == {"data": "csv", "data.table": "t.csv"}


@pytest.mark.parametrize(
    ("data", "given", "message"),
    [
        ("chestxry", {}, r"data=chestxry is not known. Did you mean chestxray"),
        ("nowhere.csv", {}, r"data=nowhere.csv does not exist \(looked at /"),
        ("images/cold/0.png", {}, r"is no table: .csv"),
        ("images", {"root": "x"}, r"data=images and root= both name where the images are"),
        (3, {}, r"data is a int; it must be the name"),
        (pd.DataFrame({"file": ["a"]}), {}, r"with the columns file. It needs rows, and a column path"),
        (pd.DataFrame({"path": []}), {}, r"of 0 rows"),
        (pd.DataFrame({"path": ["/a/b.png", "c.png"]}), {}, r"/a/b.png is absolute, c.png is not"),
        (pd.DataFrame([["a", 1, 2]], columns=["path", "x", "x"]), {}, r"several columns x"),
    ],
)
def test_what_is_no_data_is_an_error(place, data, given, message):
    with pytest.raises(FinetuneError, match=message):
        data_of(data, given)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_frame_is_read_as_its_csv_file_is(place, absolute):
    table = frame(who=["a, b\n", 'c"'] * 4, age=[1.5, None] * 4)
    table.to_csv("t.csv", index=False)
    expected = CsvTable(file="t.csv", label=["warm"], patient="who", metadata=["age"]).table()
    given = table.assign(path=[Path(p).resolve() for p in table["path"]]) if absolute else table
    data = data_of(given, {})
    assert data.arguments["data.root"] == str(place / "images" if absolute else place)
    (place / "run").mkdir()
    file = data.write(place / "run")
    read = CsvTable(
        file=file, root=data.arguments["data.root"], label=["warm"], patient="who", metadata=["age"]
    ).table()
    if absolute:
        expected.frame["path"] = expected.frame["path"].str.removeprefix("images/")
    pd.testing.assert_frame_equal(read.frame, expected.frame)


def test_a_parquet_file_starts_from_its_folder(place):
    pytest.importorskip("pyarrow")
    (place / "tables").mkdir()
    frame().to_parquet("tables/t.parquet")
    data = data_of("tables/t.parquet", {})
    assert data.arguments["data.root"] == "tables"
    pd.testing.assert_frame_equal(pd.read_csv(data.write(place)), frame())
    (place / "broken.parquet").write_text("no parquet")
    with pytest.raises(FinetuneError, match=r"broken\.parquet cannot be read as parquet"):
        data_of("broken.parquet", {})
