"""Published weights: from a cache that the test fills, from a hub that it runs, and from one that is out of reach."""

import hashlib
import socket
import time

import pytest
import timm
import torch
from safetensors.torch import save_file

from benchmarks.parity import uninitialised
from finetune.backbones import build, list_models
from finetune.errors import FinetuneError
from finetune.weights import hub, load_into, resolve, sources
from tests.weights.hubs import Hub, put


def published_resnet18(folder, in_chans=3):
    theirs = timm.create_model("resnet18", in_chans=in_chans)
    file = folder / "model.safetensors"
    save_file(theirs.state_dict(), file)
    return theirs, file


@pytest.mark.parametrize("how", ["default", "a1_in1k", "resnet18.a1_in1k"])
def test_a_cached_file_is_used_without_a_question(cache, no_network, how):
    theirs, file = published_resnet18(cache)
    digest = put(cache / "hub", "timm/resnet18.a1_in1k", file)
    net = build("resnet18")
    report = load_into(net, "resnet18", how)
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in net.state_dict().items())
    assert (report.sha256, report.tag, report.licence) == (digest, "a1_in1k", "apache-2.0")
    assert (report.dropped, report.adapted, report.random_init) == ([], [], [])
    preprocessing = report.preprocessing
    assert (preprocessing.image_size, preprocessing.interpolation) == (224, "bicubic")
    assert (preprocessing.fit, preprocessing.crop_fraction) == ("crop", 0.95)
    assert preprocessing.mean == (0.485, 0.456, 0.406)
    assert str(report).startswith("122 tensors from ")


def test_gray_images_and_few_classes_from_published_weights(cache, no_network):
    theirs, file = published_resnet18(cache)
    put(cache / "hub", "timm/resnet18.tv_in1k", file)
    net = build("resnet18", in_channels=1, num_classes=2)
    report = load_into(net, "resnet18", "tv_in1k", mean=(0.5,))
    assert torch.equal(net.conv1.weight, theirs.conv1.weight.sum(1, keepdim=True))
    assert (sorted(report.dropped), report.adapted) == (["fc.bias", "fc.weight"], ["conv1.weight"])
    assert report.random_init == ["fc.weight", "fc.bias"]
    assert report.preprocessing.mean == (0.5,)  # what the caller knows better
    assert report.preprocessing.std == pytest.approx(((0.229 + 0.224 + 0.225) / 3,))
    assert report.licence == "bsd-3-clause"
    assert report.to_dict()["preprocessing"]["in_channels"] == 1


def test_the_hubs_home_is_respected(cache, no_network, monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(cache / "home"))
    _, file = published_resnet18(cache)
    put(cache / "home" / "hub", "timm/resnet18.a1_in1k", file)
    assert resolve("resnet18", "default").path.is_relative_to(cache / "home")


def test_offline_means_no_question_and_the_error_says_what_to_do(cache, no_network, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("resnet18", "legacy_seresnet18"):
        with pytest.raises(FinetuneError, match=r"HF_HUB_OFFLINE is set.*=PATH.*HF_HOME.*backbone\.weights=none"):
            resolve(name, "default")


def silent_server():
    """Takes connections and never answers."""
    server = socket.create_server(("127.0.0.1", 0), backlog=8)
    return server, f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_hub_that_never_answers_is_given_up_in_time(cache, monkeypatch):
    server, address = silent_server()
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr(hub, "PATIENCE", 0.5)
    with server:
        started = time.monotonic()
        with pytest.raises(FinetuneError, match=r"out of reach|has not answered") as error:
            resolve("resnet18", "default")
        assert time.monotonic() - started < 5
    assert "backbone.weights=none" in str(error.value)
    assert str(cache / "hub") in str(error.value)


def test_a_name_that_is_looked_up_for_ever_is_given_up_in_time(cache, monkeypatch):
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(1) or [])
    started = time.monotonic()
    with pytest.raises(FinetuneError, match="has not answered in"):
        resolve("legacy_seresnet18", "default")
    assert time.monotonic() - started < 0.9
    time.sleep(1)  # the thread that waited ends with the patch still in place


def test_a_refused_connection_is_out_of_reach_at_once(cache, monkeypatch):
    server, address = silent_server()
    server.close()
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(FinetuneError, match="out of reach"):
        resolve("resnet18", "a1_in1k")


def test_a_reachable_hub_is_downloaded_from_once(cache, running_hub, monkeypatch):
    _, file = published_resnet18(cache)
    Hub.files["/timm/resnet18.a1_in1k/resolve/main/model.safetensors"] = file.read_bytes()
    first = resolve("resnet18", "default").path
    assert first.is_relative_to(cache / "hub")
    assert first.read_bytes() == file.read_bytes()
    Hub.files.clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve("resnet18", "default").path == first


def test_the_error_names_a_file_that_the_hub_lacks(cache, running_hub):
    with pytest.raises(FinetuneError, match=r"resnet18\.a2_in1k.* answers 404"):
        resolve("resnet18", "a2_in1k")


def old_weights(cache, monkeypatch, address, body):
    """The address of legacy_seresnet18, moved to the running hub; its name promises the start of the sha256."""
    name = f"seresnet18-{hashlib.sha256(body).hexdigest()[:8]}.pth"
    recipe = sources.published("legacy_seresnet18")["in1k"]
    recipe.url = f"{address}/{name}"
    monkeypatch.setattr(sources, "published", lambda _: {"in1k": recipe})
    return name


def test_models_with_an_address_alone_come_through_torchs_cache(cache, running_hub, monkeypatch):
    with uninitialised():
        net = build("legacy_seresnet18", num_classes=4)
    torch.nn.init.ones_(net.last_linear.weight)
    torch.save({key: torch.ones_like(value) for key, value in net.state_dict().items()}, cache / "weights.pth")
    body = (cache / "weights.pth").read_bytes()
    name = old_weights(cache, monkeypatch, running_hub, body)
    Hub.files[f"/{name}"] = body
    report = load_into(net, "legacy_seresnet18", "default")
    path = cache / "torch" / "hub" / "checkpoints" / name
    assert report.source == str(path)
    assert (report.tag, report.licence) == ("in1k", "apache-2.0")
    Hub.files.clear()
    assert resolve("legacy_seresnet18", "in1k").path == path  # from the cache

    path.write_bytes(body[:-1] + b"x")
    with pytest.raises(FinetuneError, match=r"is damaged: its sha256 does not start with .* Delete it"):
        resolve("legacy_seresnet18", "default")


def test_a_download_with_other_bytes_than_promised_is_refused(cache, running_hub, monkeypatch):
    name = old_weights(cache, monkeypatch, running_hub, b"promised")
    Hub.files[f"/{name}"] = b"delivered"
    with pytest.raises(FinetuneError, match="could not be downloaded"):
        resolve("legacy_seresnet18", "default")
    assert not (cache / "torch" / "hub" / "checkpoints" / name).exists()


def test_every_default_is_published_or_an_error_that_names_the_ways_out(no_network):
    for name in list_models():
        tags = sources.published(name)
        if tags:
            assert sources.default_tag(name) in tags, name
            assert all(recipe.hf_hub_id or recipe.url for recipe in tags.values()), name
        else:
            with pytest.raises(FinetuneError, match=rf"{name} has no published weights.*=none .*=PATH"):
                resolve(name, "default")


def test_an_unknown_tag_lists_the_known_ones(no_network):
    with pytest.raises(FinetuneError, match=r"weights=b5_in1k is neither .* resnet34.* a1_in1k, .*none .*PATH"):
        resolve("resnet34", "b5_in1k")


def test_what_is_no_name_at_all_is_refused():
    with pytest.raises(FinetuneError, match="weights=True is neither default, a tag, a repository, "):
        resolve("resnet18", True)


@pytest.mark.parametrize("nothing", [None, "none"])
def test_none_is_random_weights(nothing):
    net = build("resnet20_cifar")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    report = load_into(net, "resnet20_cifar", nothing)
    assert (report.source, report.preprocessing, str(report)) == ("none", None, "random weights")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
