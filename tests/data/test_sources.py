import gzip

import numpy as np
import pandas as pd
import pytest

from finetune.data.audit.audit import check_trainable
from finetune.data.sources.chestxray import FINDINGS, ChestXray
from finetune.data.sources.csv_table import CsvTable
from finetune.data.sources.folder import Folder
from finetune.data.splits import assign_splits
from finetune.errors import FinetuneError

HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
HEADER += "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
ROWS = [
    "00000001_000.png,Cardiomegaly|Emphysema,0,1,{58},M,PA,2682,2749,0.143,0.143",
    "00000002_000.png,No Finding,0,2,{81},F,AP,2500,2048,0.171,0.171",
    "00000002_001.png,Hernia,1,2,{414},F,PA,2500,2048,0.171,0.171",
    "00000003_000.png,Pneumonia,0,3,{6M},M,AP,2500,2048,0.171,0.171",
]


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def nih(root, *, year=2020, images="images/{}", present=4, header=HEADER):
    root.mkdir(parents=True, exist_ok=True)
    rows, name = [], "Data_Entry_2017_v2020.csv"
    for row in ROWS:
        age = row[row.index("{") + 1 : row.index("}")]
        if year == 2017:
            age = f"{int(age):03d}Y" if age.isdigit() else f"{int(age[:-1]):03d}{age[-1]}"
        rows.append(row[: row.index("{")] + age + row[row.index("}") + 1 :] + ("," if year == 2017 else ""))
    if year == 2017:
        name, header = "Data_Entry_2017.csv", header + ","
    (root / name).write_text("\n".join([header, *rows]) + "\n")
    touch(root, *(images.format(row.split(",")[0]) for row in ROWS[:present]))
    return root


# -- NIH ChestX-ray14 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", [2017, 2020])
def test_both_published_tables_read_the_same(tmp_path, year):
    table = ChestXray(nih(tmp_path, year=year)).table()
    assert table.classes == FINDINGS
    assert (table.kind, table.has_patients, table.name) == ("multilabel", True, "chestxray")
    assert table.paths[0] == "images/00000001_000.png"
    assert table.frame["patient"].tolist() == ["1", "2", "2", "3"]
    frame = table.frame
    assert frame["target_Cardiomegaly"].tolist() == [1, 0, 0, 0]
    assert frame["target_Emphysema"].tolist() == [1, 0, 0, 0]
    assert frame["target_Hernia"].tolist() == [0, 0, 1, 0]
    assert frame["target_Pneumonia"].tolist() == [0, 0, 0, 1]
    assert table.targets().sum() == 4
    np.testing.assert_array_equal(frame["age"], [58, 81, np.nan, 0.5])
    assert frame["sex"].tolist() == ["M", "F", "F", "M"]
    assert frame["view"].tolist() == ["PA", "AP", "PA", "AP"]
    assert frame["follow_up"].tolist() == [0, 0, 1, 0]
    assert table.notes == ["1 row(s) give no possible age (0 to 120 years); their age is unknown."]
    assert frame["split"].isna().all()


@pytest.mark.parametrize("images", ["images_003/images/{}", "images_003/{}", "{}"])
def test_archives_unpacked_in_their_own_folders(tmp_path, images):
    table = ChestXray(nih(tmp_path, images=images)).table()
    assert len(table) == 4
    assert table.file(0).is_file()


def test_a_partial_download_says_what_is_absent(tmp_path):
    table = ChestXray(nih(tmp_path, present=2)).table()
    assert table.notes == [f"2 of 4 listed images are absent under {tmp_path}; continuing with the 2 present."]
    assert table.paths == ["images/00000001_000.png", "images/00000002_000.png"]


def test_findings_are_chosen_by_name(tmp_path):
    nih(tmp_path)
    table = ChestXray(tmp_path, findings=["Pneumonia", "No Finding"]).table()
    assert table.classes == ["Pneumonia", "No Finding"]
    np.testing.assert_array_equal(table.targets(), [[0, 0], [0, 1], [0, 0], [1, 0]])
    assert ChestXray(tmp_path, findings=["Pleural Effusion"]).table().classes == ["Effusion"]
    with pytest.raises(FinetuneError, match=r"data.findings=Pnuemonia is not known. Did you mean Pneumonia\?"):
        ChestXray(tmp_path, findings=["Pnuemonia"]).table()
    with pytest.raises(FinetuneError, match="each once"):
        ChestXray(tmp_path, findings=["Edema", "Edema"]).table()


def test_missing_data_say_where_to_get_them(tmp_path):
    for root in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FinetuneError, match=r"nihcc.app.box.com.*data.root=DIR") as caught:
            ChestXray(root).table()
        assert f"data.root={root}" in str(caught.value)
    with pytest.raises(FinetuneError, match=r"none of the 4 images.*nihcc.app.box.com.*data.root=DIR"):
        ChestXray(nih(tmp_path, present=0)).table()


def test_a_strange_table_is_named(tmp_path):
    nih(tmp_path, header=HEADER.replace("Patient ID", "Patient"))
    with pytest.raises(FinetuneError, match=r"Patient ID is not a column of .*Data_Entry.*It has: Patient, "):
        ChestXray(tmp_path).table()
    nih(tmp_path)
    listing = tmp_path / "Data_Entry_2017_v2020.csv"
    listing.write_text(listing.read_text().replace("Hernia", "Hernja"))
    with pytest.raises(FinetuneError, match="line 4: Finding Labels 'Hernja' holds unknown Hernja"):
        ChestXray(tmp_path).table()


def test_a_column_of_a_findings_own_name_is_refused(tmp_path):
    nih(tmp_path)
    listing = tmp_path / "Data_Entry_2017_v2020.csv"
    head, *lines = listing.read_text().splitlines()
    listing.write_text("\n".join([f"{head},Pneumonia", *(f"{line},1" for line in lines)]))
    with pytest.raises(FinetuneError, match="a column 'Finding Labels' and a column 'Pneumonia': which of them is the"):
        ChestXray(tmp_path).table()
    assert ChestXray(tmp_path, findings=["Hernia"]).table().targets().sum() == 1


def test_the_choice_of_findings_moves_no_patient(shared_data):
    choices = (None, ["Pneumonia", "Effusion"], ["Hernia"], ["No Finding"])
    for options in ({}, {"folds": 5, "fold": 2}):
        tables = [assign_splits(ChestXray(shared_data / "nih", findings=f).table(), seed=0, **options) for f in choices]
        assert all(table.frame["split"].equals(tables[0].frame["split"]) for table in tables)
    pneumonia = tables[1].frame["target_Pneumonia"]
    assert abs(pneumonia[tables[1].rows("test")].mean() - pneumonia.mean()) < 0.03


def test_the_official_lists_are_the_split(tmp_path):
    nih(tmp_path)
    with pytest.raises(FinetuneError, match=r"official_split=true needs train_val_list.txt, test_list.txt"):
        ChestXray(tmp_path, official_split=True).table()
    (tmp_path / "test_list.txt").write_text("00000002_000.png\n00000002_001.png\n")
    assert "official split is not used" in ChestXray(tmp_path).table().notes[0]
    (tmp_path / "train_val_list.txt").write_text("00000001_000.png\n")
    table = ChestXray(tmp_path).table()
    assert table.frame["split"].tolist() == ["train", "test", "test"]
    assert "1 images are in neither train_val_list.txt nor test_list.txt and are left out." in table.notes
    assert ChestXray(tmp_path, official_split=False).table().frame["split"].isna().all()
    (tmp_path / "train_val_list.txt").write_text("00000001_000.png\n00000002_000.png\n")
    with pytest.raises(FinetuneError, match="in both lists"):
        ChestXray(tmp_path).table()


def test_the_real_table(shared_data):
    table = ChestXray(shared_data / "nih").table()
    assert len(table) == 350
    assert table.frame["patient"].nunique() == 248
    assert table.notes[0].startswith("111,770 of 112,120 listed images are absent under ")
    assert 0.4 < table.frame["target_Pneumonia"].mean() < 0.6
    assert all(table.file(row).is_file() for row in range(0, 350, 50))


# -- CSV --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def csv(tmp_path):
    """Write a table beside images a.png to d.png and read it."""

    def csv(text, label="label", name="t.csv", **options):
        touch(tmp_path, *(f"{letter}.png" for letter in "abcd"))
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return CsvTable(tmp_path / name, label, **options).table()

    return csv


def test_one_column_of_names_is_multiclass(csv):
    table = csv("path,label,who\na.png,dog,1\nb.png,cat,1\nc.png,,2\n", patient="who")
    assert (table.kind, table.classes, table.has_patients) == ("multiclass", ["cat", "dog"], True)
    np.testing.assert_array_equal(table.targets(), [[0, 1], [1, 0], [np.nan, np.nan]])
    assert table.frame["patient"].tolist() == ["1", "1", "2"]
    assert table.notes == ["1 row(s) have a blank label: their class is unknown."]
    assert table.name == "t"


def test_numbers_as_classes_are_in_order_of_size(csv):
    table = csv("path,label\na.png,10\nb.png,9\nc.png,0\n")
    assert table.classes == ["0", "9", "10"]
    assert "No patient column" in table.notes[0]
    assert table.frame["patient"].tolist() == table.paths
    assert table.notes[-1] == "label holds 3 whole numbers and is read as 3 classes, without an order."
    for two in (("1", "0"), ("True", "False"), ("yes", "No")):
        messages = csv("path,label\na.png,{}\nb.png,{}\n".format(*two)).notes[-1]
        assert "is read as two classes; data.label=[label] reads one finding" in messages


def test_whole_numbers_are_the_same_classes_with_and_without_decimals(csv):
    table = csv("path,label\na.png,10.0\nb.png,2.0\nc.png,\nd.png,nan\n")  # as a table with blanks is written
    assert table.classes == ["2", "10"]
    assert np.isnan(table.targets()).all(axis=1).tolist() == [False, False, True, True]
    assert "label holds whole numbers with decimals: 10.0 is read as 10." in table.notes
    assert "2 row(s) have a blank label: their class is unknown." in table.notes
    assert csv("path,label\na.png,1.0\nb.png,1\nc.png,2\n").classes == ["1", "2"]


def test_a_column_of_numbers_or_texts_is_no_column_of_classes(tmp_path):
    lines = [f"{i}.png,{i % 191},note {i // 2},{i % 3}" for i in range(400)]
    touch(tmp_path, *(f"{i}.png" for i in range(400)))
    (tmp_path / "t.csv").write_text("\n".join(["path,months,note,grade", *lines]))
    with pytest.raises(
        FinetuneError, match=r"data.label=months holds 191 distinct numbers from 0 to 190 .*Neither is learned yet"
    ):
        CsvTable(tmp_path / "t.csv", "months").table()
    note = [line.replace(",note", f",{i} note") for i, line in enumerate(lines)]
    (tmp_path / "u.csv").write_text("\n".join(["path,months,note,grade", *note]))
    with pytest.raises(
        FinetuneError, match=r"data.label=note holds 400 distinct texts in 400 images.*data.label_type=class"
    ):
        CsvTable(tmp_path / "u.csv", "note").table()
    months = CsvTable(tmp_path / "t.csv", "months", label_type="class").table()
    assert months.classes == [str(i) for i in range(191)]
    assert len(CsvTable(tmp_path / "u.csv", "note", label_type="class").table().classes) == 400
    assert CsvTable(tmp_path / "t.csv", "grade").table().classes == ["0", "1", "2"]


def test_another_label_column_moves_no_patient(tmp_path):
    rng = np.random.default_rng(0)
    touch(tmp_path, *(f"{i}.png" for i in range(120)))
    kinds, marks = rng.choice(["mel", "nv", "bcc"], 120, p=[0.1, 0.7, 0.2]), rng.random((120, 2)) < 0.2
    lists = ["|".join(name for name, yes in zip(["x", "y"], row, strict=True) if yes) for row in marks]
    rows = zip(range(120), kinds, marks[:, 0].astype(int), marks[:, 1], lists, rng.normal(size=120), strict=True)
    lines = [f"{i}.png,p{i // 2},{kind},{one},{two},{names},{size}" for i, kind, one, two, names, size in rows]
    (tmp_path / "t.csv").write_text("\n".join(["path,who,kind,one,two,names,size", *lines]))
    splits = []
    for label in ("kind", "names", ["one"], ["two", "one"]):
        options = {"uncertain": "one", "missing": "zero"} if isinstance(label, list) else {"metadata": "size"}
        table = CsvTable(tmp_path / "t.csv", label, "who", **options).table()
        splits.append(assign_splits(table, seed=0).frame["split"].tolist())
    assert all(split == splits[0] for split in splits)
    result = assign_splits(CsvTable(tmp_path / "t.csv", "kind", "who").table(), seed=0)
    for name in result.target_columns:  # and each column is balanced all the same
        number = (result.frame[name] == 1).sum()
        assert abs((result.frame[name][result.rows("test")] == 1).sum() - 0.2 * number) <= 2.5


def test_splits_are_balanced_over_columns_of_few_cells_that_several_patients_share(tmp_path):
    touch(tmp_path, *(f"{i}.png" for i in range(40)))
    head = "path,who,kind,marks,study,size,note,same"
    rows = [f"{i}.png,p{i % 8},{'abcd'[i % 4]},{'x|y' if i % 3 else 'y;z'},s{i % 8},{i / 3},n{i},k" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join([head, *rows]))
    labels = CsvTable(tmp_path / "t.csv", "kind", "who").table().strata.labels
    assert labels.shape == (40, 4 + 3)  # kind and marks: a study is of one patient, the others say too much or nothing
    assert labels.sum(axis=0).tolist() == [10, 10, 10, 10, 26, 40, 14]


def test_columns_that_are_not_used_are_named_once(csv):
    text = "path,label,who,age,sex\na.png,x,1,5,F\nb.png,y,2,6,M\n"
    messages = [note for note in csv(text, patient="who").notes if "not used" in note]
    assert messages == ["Columns not used: age, sex (data.metadata=[age,sex] gives scores by them)."]
    table = csv(text, patient="who", metadata="sex")  # one name without brackets
    assert table.metadata == ["sex"]
    assert table.notes == ["Columns not used: age (data.metadata=[age] gives scores by them)."]
    assert csv(text, patient="who", metadata=["age", "sex"]).notes == []


def test_several_columns_are_findings(csv):
    text = "path,Edema,Mass\na.png,1,0\nb.png,,1.0\nc.png,-1,0.25\nd.png,NaN,True\n"
    nan = np.nan
    for uncertain, value in {"ignore": nan, "zero": 0.0, "one": 1.0}.items():
        table = csv(text, ["Edema", "Mass"], uncertain=uncertain)
        assert (table.kind, table.classes) == ("multilabel", ["Edema", "Mass"])
        np.testing.assert_array_equal(table.targets(), [[1, 0], [nan, 1], [value, 0.25], [nan, 1]])
    assert csv(text, ["Mass"]).classes == ["Mass"]
    table = csv(text, ["Edema", "Mass"], uncertain={"Edema": "one"}, missing={"default": "zero"})
    np.testing.assert_array_equal(table.targets(), [[1, 0], [0, 1], [1, 0.25], [0, 1]])


def test_several_findings_in_one_cell(csv):
    table = csv("path,label\na.png,Edema|Mass\nb.png,No Finding\nc.png,\nd.png,Mass\n")
    assert (table.kind, table.classes) == ("multilabel", ["Edema", "Mass"])
    np.testing.assert_array_equal(table.targets(), [[1, 1], [0, 0], [0, 0], [0, 1]])
    semicolon = csv("path,label\na.png,Edema;Mass\nb.png,Mass\n", separator=";")
    assert semicolon.classes == ["Edema", "Mass"]
    assert csv("path,label\na.png,x|y\nb.png,z\n", separator=None).classes == ["x|y", "z"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"\xef\xbb\xbfpath,label\r\na.png,Gr\xc3\xbcn\r\nb.png,Blau\r\n", "t.csv"),
        ("path\tlabel\na.png\tGrün\nb.png\tBlau\n", "t.tsv"),
        ("path;label\na.png;Grün\nb.png;Blau\n", "t.csv"),
        ('"path","label"\n"a.png","Grün"\n"b.png","Blau"\n', "t.txt"),
    ],
)
def test_forms_of_a_table(csv, text, name):
    table = csv(text, name=name)
    assert table.classes == ["Blau", "Grün"]
    assert table.paths == ["a.png", "b.png"]


def test_a_packed_table(csv, tmp_path):
    text = "path,label\na.png,Grün\nb.png,Blau\n"
    packed = gzip.compress(text.encode())
    assert csv(packed, name="t.csv.gz").classes == csv(text).classes
    assert csv(gzip.compress(text.replace(",", "\t").encode()), name="t.tsv.gz").paths == ["a.png", "b.png"]
    for broken in (b"path,label\n", packed[:-12], packed[:15] + b"xxxx" + packed[19:]):
        with pytest.raises(FinetuneError, match=r"t.csv.gz (cannot be read|is not UTF-8)"):
            csv(broken, name="t.csv.gz")


def test_paths_are_made_plain(csv, tmp_path):
    touch(tmp_path, "sub/e.png")
    table = csv(f"path,label\n./a.png,x\nsub\\e.png,y\n{tmp_path}/b.png,x\n")
    assert table.paths == ["a.png", "sub/e.png", "b.png"]
    assert csv("path,label\na,x\nb,y\n", suffix=".png").paths == ["a.png", "b.png"]
    with pytest.raises(FinetuneError, match="listed twice"):
        csv("path,label\na.png,x\n./a.png,y\n")
    with pytest.raises(FinetuneError, match="line 3: column path is blank"):
        csv("path,label\na.png,x\n,y\n")


def test_paths_outside_root_are_refused(csv, tmp_path):
    (tmp_path / "inner").mkdir()
    with pytest.raises(FinetuneError, match=r"must stay under data.root="):
        csv("path,label\n../a.png,x\n../b.png,y\n", root=tmp_path / "inner")


def test_root_and_links(csv, tmp_path):
    touch(tmp_path, "far/a.png", "far/b.png")
    (tmp_path / "near").symlink_to(tmp_path / "far")  # data on another disk
    table = csv("path,label\na.png,x\nb.png,y\n", root=tmp_path / "near")
    assert table.file(0) == tmp_path / "near" / "a.png"
    absolute = csv(f"path,label\n{tmp_path}/far/a.png,x\nb.png,y\n", root=tmp_path / "near")
    assert absolute.paths == ["a.png", "b.png"]


def test_absent_images_are_counted_and_all_absent_is_an_error(csv, tmp_path):
    table = csv("path,label\na.png,x\nz.png,y\nb.png,y\n")
    assert table.paths == ["a.png", "b.png"]
    assert table.notes[0] == f"1 of 3 listed images are absent under {tmp_path}; continuing with the 2 present."
    with pytest.raises(FinetuneError, match=rf"none of the 1 images of .* is under {tmp_path}, e.g. y.png"):
        csv("path,label\ny.png,x\n")


def test_splits_by_any_of_their_names(csv):
    table = csv("path,label,s\na.png,x,Training\nb.png,y,valid\nc.png,x,dev\nd.png,y,TEST\n", split="s")
    assert table.frame["split"].tolist() == ["train", "val", "val", "test"]
    for wrong in ("", "holdout"):
        with pytest.raises(FinetuneError, match=rf"line 3: data.split=s holds '{wrong}' \(1 such row"):
            csv(f"path,label,s\na.png,x,train\nb.png,y,{wrong}\n", split="s")


def test_metadata_become_numbers_or_stay_text(csv):
    table = csv("path,label,age,split\na.png,x,5,p\nb.png,y,,q\n", metadata=["age", "split"])
    assert table.metadata == ["age", "split_"]
    np.testing.assert_array_equal(table.frame["age"], [5, np.nan])
    assert table.frame["split_"].tolist() == ["p", "q"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("path,label\na.png,x\n", {"label": "lable"}, r"data.label=lable is not a column of .*It has: label, path"),
        ("path,label\na.png,x\n", {"patient": "id"}, "data.patient=id is not a column"),
        ("path,label\na.png,x\n", {"path": "Path"}, "data.path=Path is not a column.*It has: path"),
        ("path,label\na.png,x\n", {"metadata": ["age"]}, "data.metadata=age"),
        ("path,label\na.png,1\nb.png,2\n", {"label": ["label"]}, r"line 3: column label holds '2' \(1 such"),
        ("path,label\na.png,dog\n", {"label": ["label"]}, "line 2: column label holds 'dog'.*data.label=label"),
        ("path;label\na.png;0,3\n", {"label": ["label"]}, "holds '0,3'.*For 0,3 write 0.3, with a decimal point"),
        ("path,label\na.png,3%\n", {"label": ["label"]}, "For 3% write 0.03: divide percentages by 100"),
        ("path,label\na.png,1.5\nb.png,2\n", {}, r"data.label=label holds 2 distinct numbers from 1.5 to 2 \(decimals"),
        ("path,label\na.png,1\n", {"label_type": "grade"}, "data.label_type=grade: nothing here learns a grade yet"),
        ("path,label\na.png,1\n", {"label_type": "id"}, "data.label_type=id is not known. Choose from class"),
        ("path,label\na.png,1\n", {"label": ["label"], "label_type": "class"}, r"data.label=\['label'\] are findings"),
        ("path,label\na.png,inf\n", {"label": ["label"]}, "holds 'inf'"),
        ("path,label,p\na.png,x,1\nb.png,y,\n", {"patient": "p"}, "data.patient=p is blank in 1 row.*line 3"),
        ("path,label\na.png,\n", {}, "label is blank in every row"),
        ("path,label\na.png,x\nb.png,x\n", {}, "has the one class 'x'"),
        ("path,label\n", {}, "no rows"),
        ("", {}, "cannot be read as CSV"),
        ("path,label,label\na.png,x,y\n", {}, r"\['label'\] appear twice"),
        ("path,label\na.png,x,1,2\nb.png,y,1,2\n", {}, "more fields than the header"),
        (b"path,label\na.png,Gr\xfcn\n", {}, "not UTF-8"),
        ("path,label\na.png,x\n", {"uncertain": "maybe"}, "data.uncertain=maybe is not known"),
        (
            "path,label\na.png,x\n",
            {"missing": "zero"},
            r"data.missing=zero is for 0/1 columns.*data.label=\[label\]",
        ),
        ("path,label\na.png,1\n", {"label": ["label"], "uncertain": {"Edema": "one"}}, "Choose from default, label"),
        ("path,label\na.png,x\n", {"label": None}, "data=csv needs data.label=COLUMN"),
    ],
)
def test_errors_of_a_table_name_column_value_and_line(csv, text, options, message):
    with pytest.raises(FinetuneError, match=message):
        csv(text, **options)


def test_no_table(tmp_path):
    with pytest.raises(FinetuneError, match=r"data=csv needs data.table=FILE"):
        CsvTable(label="x")
    with pytest.raises(FinetuneError, match=r"gone.csv is missing"):
        CsvTable(tmp_path / "gone.csv", "x").table()
    with pytest.raises(FinetuneError, match="is a folder"):
        CsvTable(tmp_path, "x").table()


def test_the_kermany_table(shared_data):
    table = CsvTable(shared_data / "kermany" / "metadata.csv", "label", "patient_id", "split").table()
    assert table.classes == ["NORMAL", "PNEUMONIA"]
    assert table.frame["split"].value_counts().to_dict() == {"train": 1600, "test": 618, "val": 402}
    assert table.notes == ["Columns not used: subtype (data.metadata=[subtype] gives scores by them)."]
    assert assign_splits(table, seed=1) is table


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_per_class(tmp_path):
    touch(
        tmp_path, "dog/1.png", "dog/2.JPG", "cat/1.png", "cat/.hidden", "cat/notes.txt", "cat/more/3.png", "readme.md"
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / ".git").mkdir()
    table = Folder(tmp_path).table()
    assert (table.kind, table.classes, table.has_patients) == ("multiclass", ["cat", "dog"], False)
    assert table.paths == ["cat/1.png", "dog/1.png", "dog/2.JPG"]
    np.testing.assert_array_equal(table.targets(), [[1, 0], [0, 1], [0, 1]])
    assert table.frame["split"].isna().all()
    assert table.notes == [
        "No patient column: every image counts as its own patient; data=csv takes data.patient=COLUMN.",
        "Class folder(s) without images are left out: empty.",
        "1 files that are no images (.txt) are left out.",
        "1 folders inside class folders (with all that is in them) are left out.",
        "1 hidden files are left out.",
    ]


def test_folders_as_splits(tmp_path):
    touch(tmp_path, *(f"train/{c}/{i}.png" for c in "ab" for i in range(10)), "valid/a/1.png", "test/b/1.png")
    touch(tmp_path, "other/x/1.png")
    table = Folder(tmp_path).table()
    assert table.frame["split"].value_counts().to_dict() == {"train": 20, "val": 1, "test": 1}
    assert "Folder(s) beside train, val and test are left out: other." in table.notes
    assert assign_splits(table, seed=0) is table


def test_a_missing_val_folder_is_cut_from_train(tmp_path):
    touch(tmp_path, *(f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in range(10)))
    table = assign_splits(Folder(tmp_path).table(), seed=0)
    assert table.frame["split"].value_counts().to_dict() == {"train": 18, "test": 20, "val": 2}
    assert all(path.startswith("train/") for path in table.frame["path"][table.frame["split"] == "val"])
    assert "val split is given: it is cut from train" in table.notes[-1]


def test_a_class_that_train_never_shows_is_an_error(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/2.png", "test/c/1.png")
    with pytest.raises(FinetuneError, match="class c is in test but never in train"):
        check_trainable(Folder(tmp_path).table())


def test_folders_that_hold_nothing(tmp_path):
    for root, message in {
        None: "data=folder needs data.root=DIR",
        tmp_path / "gone": "is not a folder",
        tmp_path: "no images in class folders; its folders are: none",
    }.items():
        with pytest.raises(FinetuneError, match=message):
            Folder(root).table()
    touch(tmp_path, "a/x.txt")
    with pytest.raises(FinetuneError, match="its folders are: a"):
        Folder(tmp_path).table()
    touch(tmp_path, "a/x.png")
    with pytest.raises(FinetuneError, match="the one class 'a'"):
        Folder(tmp_path).table()


def test_cifar_folders(shared_data):
    table = Folder(shared_data / "cifar10_test2000").table()
    assert len(table.classes) == 10
    assert isinstance(table.frame, pd.DataFrame)
    np.testing.assert_array_equal(table.targets().sum(axis=0), np.full(10, 200))
