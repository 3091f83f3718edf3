"""Sources put together, from the command line's words to the table."""

import numpy as np
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from finetune.config import build, compose
from finetune.config.settings import parse
from finetune.data.audit.audit import audit_table
from finetune.data.class_map import to_model_classes
from finetune.data.sources.chestxray import ChestXray
from finetune.data.sources.chexpert import CheXpert
from finetune.data.sources.csv_table import CsvTable
from finetune.data.sources.folder import Folder
from finetune.data.sources.joint import Joint
from finetune.data.sources.mimic import MimicCxr
from finetune.data.sources.rsna import MAPPING, Rsna
from finetune.data.splits import assign_splits
from finetune.errors import FinetuneError
from finetune.runs.folder import RunFolder
from tests.data.making import make_table
from tests.data.test_chest_sources import STUDIES, make_chexpert, make_mimic, make_rsna
from tests.data.test_sources import nih, touch

NAN = np.nan


@pytest.fixture
def two(tmp_path):
    return {
        "nih": ChestXray(nih(tmp_path / "nih")),
        "chexpert": CheXpert(make_chexpert(tmp_path / "stanford" / "chexpert")),
    }


def test_what_a_source_does_not_label_is_unknown(two, tmp_path):
    table = Joint(two).table()
    assert (table.name, table.kind, table.root, table.has_patients) == ("nih+chexpert", "multilabel", tmp_path, True)
    assert len(table) == 7
    assert all(table.file(row).is_file() for row in range(7))
    assert table.paths[0] == "nih/images/00000001_000.png"
    assert table.paths[-1] == "stanford/chexpert/CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg"
    frame = table.frame
    assert frame["patient"].tolist()[:2] == ["nih:1", "nih:2"]
    assert frame["patient"].tolist()[-1] == "chexpert:patient64541"
    assert frame["source"].tolist() == ["nih"] * 4 + ["chexpert"] * 3
    assert table.classes[:14] == ChestXray(tmp_path / "nih").table().classes
    assert len(table.classes) == 14 + 14 - 7  # Atelectasis, Cardiomegaly, Effusion, Pneumonia, ... are in both
    np.testing.assert_array_equal(frame["target_Hernia"], [0, 0, 1, 0, NAN, NAN, NAN])
    np.testing.assert_array_equal(frame["target_Fracture"], [NAN] * 4 + [0, 1, 0])
    np.testing.assert_array_equal(frame["target_Effusion"], [0, 0, 0, 0, 0, NAN, 1])
    assert table.metadata[0] == "source"
    assert frame["follow_up"].isna().tolist() == [False] * 4 + [True] * 3
    assert frame["study"].isna().tolist() == [True] * 4 + [False] * 3
    assert "chexpert: 1 images are no frontal views and are left out (data.views=frontal)." in table.notes
    assert audit_table(table).counts == {}


def test_findings_are_chosen_from_the_union(two):
    table = Joint(two, findings=["Pleural Effusion", "Hernia"]).table()
    assert table.classes == ["Effusion", "Hernia"]
    with pytest.raises(FinetuneError, match=r"data.findings=ILD is not known. Choose from|Near"):
        Joint(two, findings=["ILD"]).table()
    with pytest.raises(FinetuneError, match=r"data.sources.chexpert labels none of Hernia: leave it out"):
        Joint(two, findings=["Hernia"]).table()


def test_splits_are_kept_where_all_give_them(two, tmp_path):
    table = Joint(two).table()
    assert table.frame["split"].isna().all()
    assert table.notes[-1] == "The split of chexpert is not used: nih give(s) none."
    with pytest.raises(FinetuneError, match=r"data.own_split=true: nih give\(s\) no split"):
        Joint(two, own_split=True).table()
    train = [f"p{n}" for n in range(1, 21)]
    (tmp_path / "own").mkdir()
    touch(tmp_path / "own", *(f"{name}.png" for name in train))
    lines = [f"{name}.png,{n % 2},{name},train" for n, name in enumerate(train)]
    (tmp_path / "own" / "t.csv").write_text("\n".join(["path,Edema,who,s", *lines]) + "\n")
    own = CsvTable(tmp_path / "own" / "t.csv", ["Edema"], patient="who", split="s")
    make_mimic(tmp_path / "mimic", studies=[*STUDIES, "10000898,50771383" + "," * 14])
    both = {"mimic": MimicCxr(tmp_path / "mimic"), "own": own}
    table = Joint(both).table()  # each source's missing splits are cut from its own train
    counts = table.frame.groupby(["source", "split"]).size().to_dict()
    assert counts == {
        ("mimic", "train"): 1,
        ("mimic", "val"): 1,
        ("mimic", "test"): 1,
        ("own", "train"): 14,
        ("own", "val"): 2,
        ("own", "test"): 4,
    }
    assert assign_splits(table, seed=0) is table
    assert "own: No val and test split is given: it is cut from train by patient (data.seed=0)." in table.notes
    drawn = Joint(both, own_split=False).table()
    assert drawn.frame["split"].isna().all()
    assert drawn.notes[-1] == "The split of mimic, own is not used: data.own_split=false."


def test_each_set_is_split_as_it_would_be_alone(tmp_path):
    for name in ("a", "b"):
        touch(tmp_path / name, *(f"{i}.png" for i in range(40)))
        lines = [f"{i}.png,{int(i % 3 == 0)},{int(i % 5 == 0)},p{i // 2}" for i in range(40)]
        (tmp_path / name / "t.csv").write_text("\n".join(["path,Edema,Mass,who", *lines]))
    own = {name: CsvTable(tmp_path / name / "t.csv", ["Edema"], patient="who") for name in ("a", "b")}
    own["b"].label = ["Mass", "Edema"]
    own["c"] = Folder(tmp_path / "c")
    touch(tmp_path / "c", *(f"{label}/{i}.png" for label in "xy" for i in range(20)))
    for names, shared in (("ab", False), ("ab", True), ("a", False)):
        joint = Joint({name: own[name] for name in names}, shared_patients=shared).table()
        result = assign_splits(joint, seed=0)
        splits = {name: result.frame["split"][result.frame["source"] == name].tolist() for name in names}
        if shared:  # a person is in one split, whatever set the image is from
            assert result.frame.groupby("patient")["split"].nunique().max() == 1
            continue
        for name in names:
            assert splits[name] == assign_splits(own[name].table(), seed=0).frame["split"].tolist()
        few = assign_splits(Joint({name: own[name] for name in names}, findings=["Edema"]).table(), seed=0)
        assert few.frame["split"].equals(result.frame["split"])
        assert result.generated_splits == ("train", "val", "test")
    classes = assign_splits(Joint({"c": own["c"]}).table(), seed=0)  # no patients: by the paths in the set's own folder
    assert classes.frame["split"].equals(assign_splits(own["c"].table(), seed=0).frame["split"])


def test_patients_shared_between_sources(tmp_path):
    make_rsna(tmp_path / "rsna")
    names = {"0004cfab": "00000002_001.png", "00436515": "00012508_000.png", "00704310": "00012508_004.png"}
    entries = ", ".join(f'{{"subset_img_id": "{a}", "img_id": "{b}"}}' for a, b in names.items())
    (tmp_path / "rsna" / MAPPING).write_text(f"[{entries}]")
    sources = {"nih": ChestXray(nih(tmp_path / "nih")), "rsna": Rsna(tmp_path / "rsna")}
    apart = Joint(sources).table().frame["patient"]
    assert apart.nunique() == 5
    assert (
        Joint(sources, shared_patients=True).table().frame["patient"].tolist() == list("1223") + ["2"] + ["12508"] * 2
    )


def test_sources_without_patients_count_images(tmp_path, two):
    table = Joint({"nih": two["nih"], "rsna": Rsna(make_rsna(tmp_path / "rsna"))}).table()
    assert table.has_patients
    assert table.frame["patient"].tolist()[-1] == table.paths[-1] == "rsna/stage_2_train_images/00704310.dcm"


def test_classes_that_exclude_one_another(tmp_path):
    for root, names in (("a", ("cat", "dog")), ("b", ("cat", "owl"))):
        touch(tmp_path / root, *(f"{name}/1.png" for name in names))
    table = Joint({root: Folder(tmp_path / root) for root in "ab"}).table()
    assert (table.kind, table.classes) == ("multiclass", ["cat", "dog", "owl"])
    np.testing.assert_array_equal(table.targets(), [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
    with pytest.raises(FinetuneError, match="exclude one another"):
        Joint({"a": Folder(tmp_path / "a")}, findings=["cat"]).table()
    mixed = {"a": Folder(tmp_path / "a"), "nih": ChestXray(nih(tmp_path / "nih"))}
    with pytest.raises(FinetuneError, match="a is multiclass, nih is multilabel"):
        Joint(mixed).table()


def test_an_error_names_its_source(two, tmp_path):
    two["chexpert"] = CheXpert(tmp_path / "nowhere")
    with pytest.raises(FinetuneError, match=r"^data.sources.chexpert: data.root=.* is not a folder"):
        Joint(two).table()
    with pytest.raises(FinetuneError, match="is listed twice"):
        Joint({"a": two["nih"], "b": two["nih"]}).table()


# -- the command line -------------------------------------------------------------------------------------------------


def built(*words):
    config = compose.plain(compose.compose(["data=joint", *words]))
    return build.source(build.check(config))


@pytest.mark.parametrize(
    "words",
    [
        ["data.sources.chestxray=A", "data.sources.chexpert=B"],
        ["data.sources={chestxray: A, chexpert: B}"],
        ["data.sources={chestxray: {root: A}, chexpert: {data: chexpert, root: B}}"],
        ["data.sources={chestxray: C}", "data.sources={chestxray: A}", "data.sources.chexpert=B"],
    ],
)
def test_forms_of_the_sources(words):
    sources = built(*words).sources
    assert list(sources) == ["chestxray", "chexpert"]
    assert (type(sources["chestxray"]), sources["chestxray"].root) == (ChestXray, "A")
    assert (type(sources["chexpert"]), sources["chexpert"].root) == (CheXpert, "B")


def test_options_of_a_source_and_default_roots():
    sources = built("data.sources=[chestxray,chexpert]").sources
    assert sources["chestxray"].root == "data/chestxray"
    one = "one: {data: chexpert, views: all, uncertain: {Edema: zero}}"
    joint = built(f"data.sources={{{one}, two: {{data: chexpert, uncertain: one}}}}", "data.seed=3")
    assert (joint.sources["one"].views, joint.sources["two"].views, joint.seed) == ("all", "frontal", 3)
    assert joint.sources["one"].uncertain == {"default": "ignore", "Edema": "zero"}
    assert joint.sources["two"].uncertain == "one"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"data=joint needs data.sources, e.g. data.sources.chestxray=DIR"),
        (["data.sources=[chestxray,chexprt]"], r"data.sources=chexprt is not known. Did you mean chexpert\?"),
        (["data.sources=[joint]"], "data.sources=joint is not known"),
        (["data.sources={a: {data: os}}"], "data.sources.a.data=os is not known"),
        (["data.sources={chestxray: {rot: A}}"], r"data.sources.chestxray.rot=A: .*Did you mean root\?"),
        (["data.sources={chestxray: {batch_size: 4}}"], "data.sources.chestxray.batch_size=4: there is no such key"),
        (["data.sources={chestxray: {root: 3}}"], "data.source.sources.chestxray.root=3 should be"),
        (["data.sources={chestxray: [A]}"], "must be the set's root, or its options"),
        (["data.sources=[chestxray,chestxray]"], "names a data set twice"),
        (["data.sources=3"], "must be names of data sets"),
        (["data.sources=[chestxray]", "data.root=A"], "data.root=A: data=joint takes none"),
    ],
)
def test_what_is_wrong_with_the_sources_is_named(words, message):
    with pytest.raises(FinetuneError, match=message):
        built(*words)


def test_a_joint_configuration_is_plain_and_builds_again(tmp_path, two):
    words = [f"data.sources.chestxray={tmp_path}/nih", f"data.sources.chexpert={tmp_path}/stanford/chexpert"]
    config = compose.plain(compose.compose(["data=joint", *words]))
    (tmp_path / "config.yaml").write_text(compose.as_yaml(config))
    again = RunFolder(tmp_path).read_config()
    assert build.source(build.check(again)).table().hash() == build.source(parse(config)).table().hash()


def test_sources_are_composed_while_a_job_runs():
    with initialize_config_dir(str(compose.conf_dir().resolve()), version_base="1.3"):  # as inside hydra.main
        running = GlobalHydra.instance().hydra
        assert list(built("data.sources=[chestxray]").sources) == ["chestxray"]
        assert GlobalHydra.instance().hydra is running


# -- models meet data sets by name ------------------------------------------------------------------------------------


def test_a_model_of_one_set_is_evaluated_on_another(two):
    nih_classes = two["nih"].table().classes
    table = to_model_classes(two["chexpert"].table(), nih_classes, "multilabel")
    assert table.classes == nih_classes
    np.testing.assert_array_equal(table.frame["target_Effusion"], [0, NAN, 1])
    assert table.frame["target_Hernia"].isna().all()  # CheXpert does not label it


def test_findings_of_a_table_of_your_own_meet_by_their_meaning(tmp_path):
    own = make_table(tmp_path, targets=[[1, 0, 1], [0, 1, 0]])
    own.frame.columns = ["path", "patient", "split", "target_Pleural Effusion", "target_Lung Opacity", "target_Edema"]
    own.classes = ["Pleural Effusion", "Lung Opacity", "Edema"]
    table = to_model_classes(own, ["Edema", "Effusion", "Infiltration"], "multilabel")
    np.testing.assert_array_equal(table.targets(), [[1, 1, NAN], [0, 0, NAN]])
    two_alike = to_model_classes(own, ["Edema", "Effusion", "Pulmonary Edema"], "multilabel")
    np.testing.assert_array_equal(two_alike.targets(), [[1, 1, NAN], [0, 0, NAN]])
