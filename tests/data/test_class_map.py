"""Which classes of a data set stand for a model's: by name, by `data.map`, and what to type where neither says so."""

import numpy as np
import pytest

from finetune.data.class_map import match, proposals, read_map, to_model_classes
from finetune.errors import FinetuneError
from tests.data.making import make_table

NAN = np.nan


def labelled(classes: list[str], targets: list[list[float]], kind: str, tmp_path):
    table = make_table(tmp_path, targets=targets, kind=kind)
    table.frame = table.frame.rename(columns={f"target_c{k}": f"target_{name}" for k, name in enumerate(classes)})
    table.classes = classes
    return table.check()


def test_a_multiclass_model_is_evaluated_on_a_finding(tmp_path):
    table = labelled(["Mass", "Pneumonia"], [[1, 1], [0, 0], [1, NAN]], "multilabel", tmp_path)
    asked = to_model_classes(table, ["NORMAL", "PNEUMONIA"], "multiclass", {"PNEUMONIA": "Pneumonia"}).check()
    assert (asked.classes, asked.kind) == (["PNEUMONIA"], "multilabel")
    np.testing.assert_array_equal(asked.targets()[:, 0], [1, 0, NAN])
    assert "scored separately, PNEUMONIA against Pneumonia" in asked.notes[-1]


def test_a_multilabel_model_is_evaluated_on_classes(tmp_path):
    table = labelled(["NORMAL", "Pneumonia"], [[1, 0], [0, 1], [NAN, NAN]], "multiclass", tmp_path)
    asked = to_model_classes(table, ["Mass", "Pneumonia"], "multilabel").check()
    assert (asked.classes, asked.kind) == (["Mass", "Pneumonia"], "multilabel")
    np.testing.assert_array_equal(asked.targets(), [[NAN, 0], [NAN, 1], [NAN, NAN]])


def test_several_classes_of_the_data_may_mean_one(tmp_path):
    given = {"mel": ["melanoma", "lentigo maligna"]}
    two = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [NAN, NAN, NAN]]
    table = labelled(["melanoma", "lentigo maligna", "nv"], two, "multiclass", tmp_path)
    asked = to_model_classes(table, ["bcc", "mel", "nv"], "multiclass", given).check()
    np.testing.assert_array_equal(asked.targets(), [[0, 1, 0], [0, 1, 0], [0, 0, 1], [NAN] * 3])
    findings = labelled(["melanoma", "lentigo maligna"], [[1, NAN], [0, NAN], [0, 0], [0, 1]], "multilabel", tmp_path)
    asked = to_model_classes(findings, ["mel"], "multilabel", given)
    np.testing.assert_array_equal(asked.targets()[:, 0], [1, NAN, 0, 1])  # not known as long as one is not


def test_findings_meet_by_their_shared_name_and_it_is_said():
    result = match(["Effusion", "Mass"], "multilabel", ["Pleural Effusion", "Mass"], "multilabel", {})
    assert result.classes == {"Effusion": ["Pleural Effusion"], "Mass": ["Mass"]}
    assert result.notes == ["Effusion is the data set's Pleural Effusion."]


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        ((["NORMAL", "PNEUMONIA"], "multiclass"), (["Mass", "Pneumonia"], "multilabel"),
         "'data.map={PNEUMONIA: Pneumonia}' scores the probability of the one against the other"),
        ((["Pneumonia"], "multilabel"), (["NORMAL", "PNEUMONIA"], "multiclass"),
         "'data.map={Pneumonia: PNEUMONIA}' reads the findings from the classes"),
        ((["mel", "nv"], "multiclass"), (["MEL", "NV"], "multiclass"), "'data.map={mel: MEL, nv: NV}' takes them"),
        ((["mel", "nv"], "multiclass"), (["melanoma", "nv"], "multiclass"),
         "melanoma is no class of the model. 'data.map={mel: melanoma}' takes them for the same."),
        ((["mel", "nv"], "multiclass"), (["mel", "nv", "scc"], "multiclass"),
         "'data.map={mel: [mel, scc]}' would take scc for mel as well; or leave its rows out of the table."),
        ((["a", "b"], "multiclass"), (["x", "y"], "multiclass"),
         "'data.map={a: x}' would say that a is the data set's x"),
    ],
)  # fmt: skip
def test_the_error_names_what_to_type(model, data, said):
    with pytest.raises(FinetuneError) as error:
        match(*model, *data, {})
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"Pneumonia": "PNEUMONIA"}, r"wrong way round: .*'data.map=\{PNEUMONIA: Pneumonia\}'"),
        ({"PNEUMONA": "Pneumonia"}, "data.map=PNEUMONA is not known. Did you mean PNEUMONIA"),
        ({"PNEUMONIA": "Pneumona"}, "data.map.PNEUMONIA=Pneumona is not known. Did you mean Pneumonia"),
        ({"PNEUMONIA": "Mass", "NORMAL": "Mass"}, "gives Mass to two classes of the model"),
        (["PNEUMONIA"], "must say which class"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(given, said):
    with pytest.raises(FinetuneError, match=said):
        read_map(given, ["NORMAL", "PNEUMONIA"], ["Mass", "Pneumonia"])


def test_proposals_take_the_nearest_and_never_guess_between_two():
    assert proposals(["MEL", "nv"], ["melanoma", "mel"]) == {"MEL": ["mel"]}
    assert proposals(["mel"], ["melanoma", "melasma"]) == {}
    assert proposals(["df"], ["dfx"]) == {}  # two letters are the short form of anything
