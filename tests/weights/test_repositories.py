"""hf-hub:ORG/NAME and timm/NAME: repositories in timm's form, and models of this project, from a cache and a hub."""

import json
import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from finetune.backbones import build
from finetune.config import compose
from finetune.errors import FinetuneError
from finetune.preprocessing import Preprocessing
from finetune.weights import load_into, resolve, sources
from finetune.weights.hub import find_problem
from tests.weights.hubs import COMMIT, Hub, put

CFG = {
    "tag": "mine", "input_size": [3, 96, 96], "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3], "crop_pct": 0.9,
    "interpolation": "bilinear", "crop_mode": "center", "license": "cc-by-4.0", "num_classes": 3, "first_conv": "conv1",
}  # fmt: skip
REPO = "org/name"


@pytest.fixture(scope="module")
def theirs():
    return timm.create_model("resnet18", num_classes=3).state_dict()


def fill(place, theirs, config, name="model.safetensors", repo=REPO):
    """A repository in the cache below `place`."""
    if config is not None:
        (place / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        put(place / "hub", repo, place / "config.json")
    file = place / name
    if name.endswith(".safetensors"):
        save_file(theirs, file)
    else:
        torch.save(theirs, file)
    put(place / "hub", repo, file)


def loaded(weights, **options):
    net = build("resnet18", num_classes=0, **options)
    return net.state_dict(), load_into(net, "resnet18", weights)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_cached_repository_in_timms_form_starts_a_backbone_offline(cache, no_network, monkeypatch, theirs, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fill(cache, theirs, {"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": CFG}, name)
    state, report = loaded(f"hf-hub:{REPO}")
    assert all(torch.equal(value, theirs[key]) for key, value in state.items())
    assert (report.tag, report.licence) == (f"hf-hub:{REPO}", "cc-by-4.0")
    assert sorted(report.dropped) == ["fc.bias", "fc.weight"]
    assert report.source.endswith(f"snapshots/{COMMIT}/{name}")  # the commit is on record
    assert report.preprocessing == Preprocessing(
        96, 3, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), interpolation="bilinear", fit="crop", crop_fraction=0.9
    )
    assert not sources.may_fill_parts(f"hf-hub:{REPO}")


def test_weights_of_another_network_with_the_same_tensors_are_refused(cache, no_network, theirs):
    """resnetblur18 has the tensors of resnet18, and other layers between them."""
    fill(cache, theirs, {"architecture": "resnetblur18", "num_classes": 3, "pretrained_cfg": CFG})
    with pytest.raises(FinetuneError, match="are of resnetblur18, and the backbone is resnet18"):
        loaded(f"hf-hub:{REPO}")


@pytest.mark.parametrize("name", ["a--b/c", "../..", "-a/b", "a/b."])
def test_names_that_the_hub_does_not_have(cache, no_network, name):
    with pytest.raises(FinetuneError, match=re.escape(f"weights=hf-hub:{name}")):
        loaded(f"hf-hub:{name}")


def test_timms_own_repositories_and_revisions_by_name(cache, no_network, theirs):
    fill(cache, theirs, {"architecture": "resnet18", "pretrained_cfg": CFG}, repo="timm/resnet18.mine_in1k")
    for weights in (
        "timm/resnet18.mine_in1k",
        "hf-hub:timm/resnet18.mine_in1k",
        f"hf-hub:timm/resnet18.mine_in1k@{COMMIT}",
    ):
        assert loaded(weights)[1].licence == "cc-by-4.0"
        assert compose.compose([f"backbone.weights={weights}"]).backbone.weights == weights


def test_configs_of_older_timm_are_flat_and_missing_keys_take_timms_defaults(cache, no_network, theirs):
    fill(cache, theirs, {"architecture": "resnet18", **CFG}, repo="org/old")
    assert loaded("hf-hub:org/old")[1].preprocessing.mean == (0.4, 0.5, 0.6)
    fill(cache, theirs, {"architecture": "resnet18", "pretrained_cfg": {"tag": "short"}}, repo="org/short")
    report = loaded("hf-hub:org/short", in_channels=1)[1]
    expected = Preprocessing(interpolation="bicubic", fit="crop", crop_fraction=0.875).with_channels(1)
    assert (report.preprocessing, report.licence) == (expected, None)


def test_squashed_images_are_known(cache, no_network, theirs):
    cfg = {**CFG, "crop_mode": "squash", "crop_pct": 1}
    fill(cache, theirs, {"architecture": "resnet18", "pretrained_cfg": cfg})
    assert loaded(f"hf-hub:{REPO}")[1].preprocessing.fit == "squash"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["ResNetForImageClassification"], "model_type": "resnet"}, "is not in timm's form"),
        ({"architecture": "resnet18", "pretrained_cfg": {"mean": "gray"}}, r"cannot be used: pretrained_cfg\.mean"),
        ({"architecture": "resnet18", "pretrained_cfg": {"input_size": [3, 96, 64]}}, "images are squares"),
        ({"architecture": "resnet18", "pretrained_cfg": {"crop_mode": "border"}}, "crop_mode=border .* not known"),
        ({"architecture": "resnet18", "pretrained_cfg": {"interpolation": "random"}}, "choose from bilinear, bicubic"),
        ("{", r"cannot be used: no JSON"),
    ],
)
def test_what_is_wrong_with_a_config_is_an_error_that_names_the_repository(cache, no_network, theirs, config, message):
    fill(cache, theirs, config)
    with pytest.raises(FinetuneError, match=rf"weights=hf-hub:org/name: .*{message}"):
        resolve("resnet18", f"hf-hub:{REPO}")


def test_no_config_no_tensors_and_no_name_are_errors(cache, no_network, monkeypatch, theirs):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FinetuneError, match=r"weights=hf-hub:a/b: a/b is not in the cache .* HF_HUB_OFFLINE is set"):
        resolve("resnet18", "hf-hub:a/b")
    with pytest.raises(FinetuneError, match=r"repositories are named MODEL\.TAG"):
        resolve("resnet18", "timm/resnet18")
    with pytest.raises(FinetuneError, match="names no repository: write hf-hub:ORG/NAME"):
        resolve("resnet18", "hf-hub:name")
    fill(cache, theirs, None)
    with pytest.raises(FinetuneError, match=r"org/name has no config\.json in timm's form, and no model\."):
        resolve("resnet18", f"hf-hub:{REPO}")


def test_a_model_of_this_project_needs_no_config(cache, no_network, monkeypatch, theirs):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    header = json.dumps({"preprocessing": Preprocessing(48, fit="pad").to_dict()})
    save_file({f"backbone.{key}": value for key, value in theirs.items()}, cache / "model.safetensors",
              metadata={"finetune": header})  # fmt: skip
    put(cache / "hub", REPO, cache / "model.safetensors")
    assert loaded(f"hf-hub:{REPO}")[1].preprocessing == Preprocessing(48, fit="pad")
    cfg = {**CFG, "crop_mode": "border"}  # timm's nearest word
    (cache / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": cfg}))
    put(cache / "hub", REPO, cache / "config.json")
    report = loaded(f"hf-hub:{REPO}")[1]
    assert (report.preprocessing.fit, report.licence) == ("pad", "cc-by-4.0")  # the header is the more exact


def test_a_repository_is_downloaded_once_with_the_users_login(cache, running_hub, monkeypatch, theirs):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(Hub, "needs", "Bearer hf_secret")
    torch.save(theirs, cache / "weights.bin")
    base = f"/{REPO}/resolve/v1"
    Hub.files[f"{base}/config.json"] = json.dumps({"architecture": "resnet18", "pretrained_cfg": CFG}).encode()
    Hub.files[f"{base}/pytorch_model.bin"] = (cache / "weights.bin").read_bytes()
    path = resolve("resnet18", f"hf-hub:{REPO}@v1").path
    assert path.name == "pytorch_model.bin"
    Hub.files.clear()
    assert resolve("resnet18", f"hf-hub:{REPO}@v1").path == path
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(FinetuneError, match=r"answers 401 .*There is no such repository, or it is private.*HF_TOKEN"):
        resolve("resnet18", "hf-hub:org/other")


def test_a_hub_without_the_files_says_which(cache, running_hub, theirs):
    with pytest.raises(FinetuneError, match=r"org/name has no config\.json in timm's form"):
        resolve("resnet18", f"hf-hub:{REPO}")
    Hub.files[f"/{REPO}/resolve/main/config.json"] = json.dumps({"architecture": "resnet18"}).encode()
    with pytest.raises(FinetuneError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        resolve("resnet18", f"hf-hub:{REPO}")


def test_the_login_is_not_sent_where_the_hub_redirects_to(cache, running_hub, monkeypatch):
    """Files lie on other servers; the hub's answer that it has one is enough to begin the download."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(Hub, "moved", {"/a": "http://127.0.0.1:9/elsewhere"})
    assert find_problem(f"{running_hub}/a", with_login=True) is None


def test_the_commands_of_the_page_compose():
    page = (Path(__file__).parents[2] / "docs" / "weights.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python -m finetune (.*)$", page, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert compose.compose(shlex.split(command)).backbone.name == "resnet50"
