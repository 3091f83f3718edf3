"""A run onto a hub that the test runs: what arrives there, what never leaves, and what is refused."""

import json
import re

import pytest
import torch
import yaml
from huggingface_hub import constants

import finetune
from finetune.__main__ import main
from finetune.backbones import build
from finetune.errors import FinetuneError
from finetune.evaluation.answers import answers_named
from finetune.model_file import Model
from finetune.network import NetworkSpec
from finetune.pages.card import Facts, write_card
from finetune.preprocessing import Preprocessing
from finetune.steps import private
from finetune.steps.push import NAMES, upload
from finetune.weights import load_into
from tests.evaluation.runs import CLASSES, write_run
from tests.pages import made_up
from tests.steps.fake_hub import COMMIT, running

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's client, to httpx
NAME = "resnet20_cifar"
REPO = "org/chest_net"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # plain HTTP for large files
    with running() as state:
        monkeypatch.setenv("HF_ENDPOINT", state["url"])
        yield state


def make_run(folder, **options):
    """A finished run with made-up scores, whose files name a person's folder and patients."""
    folder.mkdir()
    write_run(folder, n=60, n_boot=0, **options)
    spec = NetworkSpec(NAME, len(CLASSES))
    answers = answers_named("classify")(list(CLASSES), "multilabel")
    provenance = json.loads((folder / "environment.json").read_text())
    Model(spec.build(), spec, Preprocessing(32), answers, provenance).save(folder / "model.safetensors")
    scores = json.loads((folder / "scores.json").read_text())
    scores["test"]["harms"] = [{"rule": "x", "short": "Hernia is missed", "text": "Hernia is missed in all images."}]
    scores["val"]["notes"] = ["job=evaluate model=/home/jane/runs/7 split=test opens it."]
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / "report.html").write_text("<img>")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("push") / "run")


def test_a_run_arrives_with_its_card_and_without_places_and_patients(run, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["job=push", f"model={run}", f"to={REPO}", "licence=cc-by-nc-4.0", "dataset=org/xrays", "hydra.run.dir=job"])
    printed = capsys.readouterr().out
    assert re.search(
        rf"Uploading from .*run to {REPO} \(private\):\n  README.md +0\.0\d+ MB\n  model.safetensors +", printed
    )
    assert "hf_good" not in printed + (tmp_path / "job" / "log.txt").read_text()
    about = hub["repos"][REPO]
    assert about["private"] is True
    assert set(about["files"]) == {"README.md", "model.safetensors", "scores.json"}
    everything = b"".join(about["files"].values())
    for secret in (b"jane", b"ptest", b"images/test", b"data.root", b"hf_good"):
        assert secret not in everything
    listed = json.loads((tmp_path / "job" / "upload.json").read_text())
    assert listed["files"] == {name: len(content) for name, content in about["files"].items()}
    assert listed["url"].startswith(hub["url"])

    ours = finetune.load(run)
    (tmp_path / "model.safetensors").write_bytes(about["files"]["model.safetensors"])
    theirs = finetune.load(tmp_path / "model.safetensors")
    assert theirs.weights_hash == ours.weights_hash  # the network is the same, to the last bit
    assert theirs.provenance["weights"] == {
        "tag": "a1_in1k",
        "licence": "apache-2.0",
        "sha256": "ab" * 32,
        "random": False,
    }
    assert "command" in ours.provenance
    assert "command" not in theirs.provenance


def read_card(run, tmp_path, **options):
    pushed = finetune.push(run, REPO, dry_run=True, folder=tmp_path / "dry", say=lambda line: None, **options)
    assert pushed.url is None
    text = (tmp_path / "dry" / "upload" / "README.md").read_text()
    _, matter, body = text.split("---\n", 2)
    return yaml.safe_load(matter), body


def test_the_card_says_what_the_run_says(run, tmp_path):
    matter, body = read_card(run, tmp_path, licence="cc-by-nc-4.0", dataset="org/xrays")
    assert matter["license"] == "cc-by-nc-4.0"
    assert (matter["library_name"], matter["pipeline_tag"]) == ("finetune", "image-classification")
    assert matter["tags"] == ["finetune", "resnet50", "classify"]
    assert matter["datasets"] == ["org/xrays"]
    scores = json.loads((run / "scores.json").read_text())["test"]
    (result,) = matter["model-index"][0]["results"]
    assert result["dataset"] == {"type": "org/xrays", "name": "org/xrays", "split": "test"}
    assert {"type": "roc_auc", "name": "macro AUROC", "value": scores["macro"]["auroc"]["value"]} in result["metrics"]
    for words in (
        "**A research tool, not a medical device.**",
        "| train | 240 | 120 |",
        "- **Hernia is missed in all images.**",
        f"{scores['macro']['auroc']['value']:.3f}",
        'hf_hub_download("org/chest_net", "model.safetensors")',  # not escaped within code
        "The starting weights (a1\\_in1k) have the licence apache-2.0",
        "Calibration",
    ):
        assert words in body, words
    assert "timm.create_model" not in body
    assert "SYNTHETIC" not in body
    assert not re.search(r"\n\n\n\n", body)


def test_without_a_licence_and_with_a_config_for_timm(run, tmp_path):
    other = tmp_path / "with_config"
    make_run(other)
    (other / "config.json").write_text(json.dumps({"architecture": "resnet50"}))
    matter, body = read_card(other, tmp_path)
    assert (matter["license"], matter["license_name"], matter["library_name"]) == ("other", "not-stated", "timm")
    assert "datasets" not in matter
    assert 'timm.create_model("hf-hub:org/chest_net", pretrained=True)' in body
    assert "No licence was stated." in body
    assert (tmp_path / "dry" / "upload" / "config.json").is_file()


def test_scores_of_synthetic_images_are_said_to_be_and_not_listed_by_the_hub(tmp_path):
    matter, body = read_card(make_run(tmp_path / "run", synthetic=True, random=True), tmp_path)
    assert "**SYNTHETIC IMAGES.**" in body
    assert "synthetic-data" in matter["tags"]
    assert "model-index" not in matter
    assert "started from random weights" in body


def test_names_of_classes_are_text_in_the_card(tmp_path):
    make_run(tmp_path / "run")
    path = tmp_path / "run" / "scores.json"
    path.write_text(path.read_text().replace("Pleural effusion", "a|b <script>*x*\\n# y"))
    _, body = read_card(tmp_path / "run", tmp_path)
    assert "a\\|b \\<script\\>\\*x\\* \\# y" in body
    assert "<script>" not in body


def test_ids_of_patients_in_the_scores_stop_it_before_a_file_is_written(tmp_path):
    make_run(tmp_path / "run")
    path = tmp_path / "run" / "scores.json"
    scores = json.loads(path.read_text())
    scores["test"]["by_name"] = {"groups": {"ptest1": {"n": 3}}}
    path.write_text(json.dumps(scores))
    with pytest.raises(FinetuneError, match=r"scores\.json holds the id of a patient .* in test\.by_name") as error:
        finetune.push(tmp_path / "run", REPO, dry_run=True, folder=tmp_path / "out")
    assert "ptest1" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_ids_are_values_or_words_of_a_text():
    ids = {"JD42", "p0001", "case_17.png", "2000"}
    private.check(
        {"a": {"x": [1, "2000 resamples", "JD4"], "Mass": {"n": 2000}}, "b": "JD42 in a text is too short"}, ids, set()
    )
    private.check({"a": {"JD42": 1}}, ids, {"JD42"})  # a class of that name
    for content in ({"JD42": 1}, ["2000"], "case_17.png is missing.", "see p0001/case_17.png, case_17.png"):
        with pytest.raises(FinetuneError, match="nothing is uploaded"):
            private.check({"a": content}, ids, set())


def test_ids_with_odd_characters_are_found_also_where_markdown_escapes_them():
    ids = {"PAT_00123", "DOE^JOHN", "Doe, John", "scan 7 (b)"}
    private.check({"a": "PAT_001234 and XDOE^JOHN"}, ids, set())
    for content in (r"of PAT\_00123.", "of doe^john, male", "(Doe, John)", "see scan 7 (b)"):
        with pytest.raises(FinetuneError, match="nothing is uploaded"):
            private.check({"a": content}, ids, set())


def test_provenance_that_is_no_mapping_and_paths_in_keys_stay_at_home():
    assert private.public_provenance({"weights": "/home/bob/x.pth", "seed": 3}) == {"seed": 3}
    assert private.without_paths({"/home/bob/x.png": 1}) == {"…/x.png": 1}


@pytest.mark.parametrize("to", ["a/b.", "a/b-", f"a/{'b' * 120}"])
def test_names_that_the_hub_refuses_are_refused_first(to, run, tmp_path):
    with pytest.raises(FinetuneError, match="to="):
        finetune.push(run, to, dry_run=True, folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_pushed_is_said(run, tmp_path, hub, monkeypatch):
    for words, message in {
        (run, "name"): "to=name is no repository: write ORG/NAME",
        (run, "../x"): "is no repository",
        (tmp_path, REPO): "is not a run folder",
        (tmp_path / "nowhere", REPO): "is not a run folder",
    }.items():
        with pytest.raises(FinetuneError, match=message):
            finetune.push(*words, folder=tmp_path / "out")
    with pytest.raises(FinetuneError, match=r"licence=MIT License is no identifier"):
        finetune.push(run, REPO, licence="MIT License")
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "config.yaml").write_text("job: fit\n")
    with pytest.raises(FinetuneError, match="is not a finished run"):
        finetune.push(tmp_path / "stopped", REPO)
    with pytest.raises(FinetuneError, match=r"samples\.csv is never uploaded; README\.md, model"):
        upload(run, [*NAMES, "samples.csv"], REPO, private=True)
    assert hub["repos"] == {}


def test_logins_and_repositories_that_do_not_fit_are_said(run, tmp_path, hub, monkeypatch):
    folder = tmp_path / "dry" / "upload"
    read_card(run, tmp_path)
    names = ["README.md", "scores.json"]
    hub["repos"][REPO] = {"private": False, "files": {"config.json": b"{}", "notes.md": b"mine"}}
    with pytest.raises(FinetuneError, match=r"org/chest_net is a public repository\. Add private=false"):
        upload(folder, names, REPO, private=True)
    assert upload(folder, names, REPO, private=False).endswith("/commit/" + COMMIT)
    assert set(hub["repos"][REPO]["files"]) == {*names, "notes.md"}  # the config.json of an earlier model is gone
    hub["broken"] = True
    with pytest.raises(FinetuneError, match=r"was not uploaded: Error while uploading 'model\.safetensors'"):
        upload(folder, [*names, "model.safetensors"], REPO, private=False)
    assert "model.safetensors" not in hub["repos"][REPO]["files"]
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(
        FinetuneError, match=r"was not uploaded: .*401.* right to write there\? The files are in"
    ) as error:
        upload(folder, names, REPO, private=True)
    assert "hf_bad" not in str(error.value)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FinetuneError, match=r"http://127\.0\.0\.1:9 is out of reach"):
        upload(folder, names, REPO, private=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FinetuneError, match="HF_HUB_OFFLINE is set: nothing can be uploaded"):
        upload(folder, names, REPO, private=True)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_login"))
    with pytest.raises(FinetuneError, match="There is no login"):
        upload(folder, names, REPO, private=True)


def test_what_was_pushed_starts_another_fit(run, tmp_path):
    read_card(run, tmp_path)
    net = build(NAME, num_classes=0)
    report = load_into(net, NAME, tmp_path / "dry" / "upload")
    assert torch.equal(net.conv1.weight, finetune.load(run).network.backbone.conv1.weight)
    assert report.preprocessing == Preprocessing(32)


@pytest.mark.parametrize(
    ("make", "pipeline", "score"),
    [("write_segment_run", "image-segmentation", "Dice"), ("write_detect_run", "object-detection", "AP")],
)
def test_cards_of_masks_and_boxes(tmp_path, make, pipeline, score):
    (tmp_path / "run").mkdir()
    text = write_card(getattr(made_up, make)(tmp_path / "run"), Facts(REPO, "mit", None, False))
    assert f"pipeline_tag: {pipeline}" in text
    assert f"| class | {score}" in text
    assert "Undefined" not in text
