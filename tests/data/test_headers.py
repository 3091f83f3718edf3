"""Whose image a DICOM file is, by the PatientID of its header."""

import builtins
import os

import numpy as np
import pytest
from PIL import Image

from finetune.data.audit.audit import audit_table
from finetune.data.decoding.dicom import read_patient
from finetune.data.sources.csv_table import CsvTable
from finetune.data.sources.folder import Folder
from finetune.data.sources.headers import header_patients
from finetune.data.splits import assign_splits
from finetune.errors import MissingExtra
from tests.data.making import noise, save, save_dicom

pytest.importorskip("pydicom")

NAMED = "Patients are the PatientID of the DICOM headers; like a patient column, it is written into the run."
UNNAMED = "No patient column: every image counts as its own patient"


def test_what_a_header_says(tmp_path):
    def of(name, **header):
        return read_patient(save_dicom(tmp_path / name, **header))

    assert of("a.dcm", PatientID=" 007 ", PatientName="Doe^Jane", PatientBirthDate="19700101") == "007"
    assert of("b.dcm", PatientID="7", IssuerOfPatientID="North") == "North:7"
    assert of("c.dcm", PatientID="", IssuerOfPatientID="North") == ""
    assert of("d.dcm") == ""
    (tmp_path / "e.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:200])  # cut short
    (tmp_path / "f.dcm").write_bytes(b"no DICOM")
    (tmp_path / "g.dcm").mkdir()
    os.mkfifo(tmp_path / "h.dcm")  # to read from it would never end
    assert [read_patient(tmp_path / f"{name}.dcm") for name in ("e", "f", "g", "h", "absent")] == [""] * 5


def test_real_headers(shared_data):
    names = sorted(path.name for path in (shared_data / "dicom").iterdir())
    result = dict(zip(names, header_patients(shared_data / "dicom", names), strict=True))
    assert result["pydicom_693_UNCI.dcm"] == "CQ500-CT-310"
    assert result["Fake_MONOHR1.dcm"] == result["rsna_6904.dcm"] != ""
    assert result["pydicom_JPGLosslessP14SV1_1s_1f_8b.dcm"] == result["nih_00000001_000.png"] == ""


def test_which_files_are_read_for_a_patient(tmp_path):
    save_dicom(tmp_path / "IM0001", PatientID="p")  # as scanners name them
    save_dicom(tmp_path / "b.DCM", PatientID="q")
    save_dicom(tmp_path / "c.dcm", PatientID="Anonymous")
    save(noise(4, 4), tmp_path / "d.png")
    np.savez(tmp_path / "e.npz", x=noise(2, 4, 4))
    paths = ["IM0001", "b.DCM", "b.DCM::frame/0", "c.dcm", "d.png", "e.npz::x/1"]
    assert header_patients(tmp_path, paths) == ["p", "q", "q", "", "", ""]


def test_a_folder_of_dicom_files_knows_its_patients(tmp_path):
    """20 files of 5 patients: no patient is in two splits."""
    for n in range(20):
        save_dicom(tmp_path / "ab"[n % 2] / f"{n}.dcm", noise(4, 4, seed=n), PatientID=f"P{n % 5}")
    table = assign_splits(Folder(tmp_path).table(), seed=0)
    assert table.has_patients
    assert table.frame["patient"].tolist()[:3] == ["P0", "P0", "P2"]  # a/0, a/10, a/12
    assert table.frame["patient"].nunique() == 5
    assert table.frame.groupby("patient")["split"].nunique().max() == 1
    assert table.notes[0] == NAMED
    assert not any(UNNAMED in note for note in table.notes)


def test_a_given_split_that_tears_a_patient_apart_is_a_leak(tmp_path):
    for n, split in enumerate(["train", "train", "val", "test"]):
        save_dicom(tmp_path / split / "ab"[n % 2] / f"{n}.dcm", PatientID="P1" if n in (0, 3) else f"Q{n}")
    leaks = audit_table(Folder(tmp_path).table()).leaks
    assert [(leak.kind, leak.splits, leak.examples) for leak in leaks] == [("patient", ["train", "test"], ["P1"])]


def test_some_headers_without_a_patient(tmp_path):
    for n, patient in enumerate(["P1", "P1", "P2", "", "unknown"]):
        save_dicom(tmp_path / "ab"[n % 2] / f"{n}.dcm", PatientID=patient)
    save(noise(4, 4), tmp_path / "a" / "5.png")
    table = Folder(tmp_path).table()
    assert table.has_patients
    assert table.paths == ["a/0.dcm", "a/2.dcm", "a/4.dcm", "a/5.png", "b/1.dcm", "b/3.dcm"]
    assert table.frame["patient"].tolist() == ["P1", "P2", "a/4.dcm", "a/5.png", "P1", "b/3.dcm"]
    assert table.notes[1] == "3 images have no PatientID in a DICOM header; each counts as a separate patient."


@pytest.mark.parametrize("patient", ["", "ANONYMIZED", "study-1"])
def test_headers_that_all_say_the_same_say_nothing(tmp_path, patient):
    for n in range(4):
        save_dicom(tmp_path / "ab"[n % 2] / f"{n}.dcm", PatientID=patient)
    table = Folder(tmp_path).table()
    assert not table.has_patients
    assert table.frame["patient"].tolist() == table.paths
    assert (patient == "study-1") == any(
        "All 4 DICOM headers" in note and "the same one" in note for note in table.notes
    )
    assert any(UNNAMED in note for note in table.notes)


def test_a_table_without_a_patient_column_takes_the_headers(tmp_path):
    for n in range(6):
        save_dicom(tmp_path / f"{n}.dcm", PatientID=f"P{n // 2}")
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *(f"{n}.dcm,{'xy'[n % 2]}" for n in range(6))]))
    table = CsvTable(tmp_path / "t.csv", "label").table()
    assert table.frame["patient"].tolist() == ["P0", "P0", "P1", "P1", "P2", "P2"]
    assert (table.has_patients, table.notes) == (True, [NAMED])


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (
            "PPQR",
            "1 PatientID(s) of the DICOM headers belong to several patients of data.patient=who, the first to 0, 1",
        ),
        ("PQRS", None),
        ("PPPP", None),  # the mark of some software
    ],
)
def test_a_patient_column_wins_and_headers_that_contradict_it_are_named(tmp_path, ids, said):
    for n, patient in enumerate(ids):
        save_dicom(tmp_path / f"{n}.dcm", PatientID=patient)
    whose = ["0", "1", "2", "2"]  # one patient with two PatientIDs is no danger
    lines = [f"{n}.dcm,{'xy'[n % 2]},{who}" for n, who in enumerate(whose)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,who", *lines]))
    table = CsvTable(tmp_path / "t.csv", "label", "who").table()
    assert table.frame["patient"].tolist() == whose
    assert [note.partition(":")[0] for note in table.notes] == ([said] if said else [])
    assert not any("PatientID P" in note for note in table.notes)


def test_pydicom_is_required_only_for_dicom(tmp_path, monkeypatch):
    save_dicom(tmp_path / "dicom" / "a" / "1.dcm", PatientID="P")
    for place in ("plain/a/1.png", "plain/b/2.png", "dicom/b/2.png"):
        save(noise(4, 4), tmp_path / place)
    Image.new("L", (4, 4)).save(tmp_path / "plain" / "a" / "x.png")
    real = builtins.__import__

    def without(module, *args, **kwargs):
        if module == "pydicom":
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert len(Folder(tmp_path / "plain").table()) == 3
    with pytest.raises(MissingExtra, match=r"1.dcm is DICOM, which needs pydicom"):
        Folder(tmp_path / "dicom").table()
