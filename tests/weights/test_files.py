"""Reading tensors, and nothing but tensors."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finetune.errors import FinetuneError
from finetune.weights import read_tensors

STATE = {"conv1.weight": torch.arange(4.0), "bn1.running_var": torch.ones(2)}


def same(result):
    return set(result) == set(STATE) and all(torch.equal(result[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".ckpt", ".bin", ".pth.tar"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
def test_checkpoints_are_unwrapped(tmp_path, suffix, wrapper):
    path = tmp_path / f"weights{suffix}"
    torch.save(STATE if wrapper is None else {"epoch": 3, wrapper: STATE, "optimizer": {"lr": 0.1}}, path)
    assert same(read_tensors(path))


def test_safetensors_are_read(tmp_path):
    save_file(STATE, tmp_path / "weights.safetensors")
    assert same(read_tensors(tmp_path / "weights.safetensors"))


def test_averaged_weights_come_first_and_wrappers_may_lie_in_each_other(tmp_path):
    other = {"conv1.weight": torch.zeros(4)}
    torch.save({"state_dict": other, "state_dict_ema": STATE}, tmp_path / "a.pth")
    torch.save({"model": {"state_dict": STATE, "name": "net"}}, tmp_path / "b.pth")
    assert same(read_tensors(tmp_path / "a.pth"))
    assert same(read_tensors(tmp_path / "b.pth"))


def test_old_files_without_a_zip_are_read(tmp_path):
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_tensors(tmp_path / "old.pth"))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("plain", [False, True])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, plain):
    trace, path = tmp_path / "ran", tmp_path / "evil.pth"
    if plain:
        path.write_bytes(pickle.dumps({"state_dict": STATE, "bomb": Bomb(trace)}))
    else:
        torch.save({"state_dict": STATE, "bomb": Bomb(trace)}, path)
    with pytest.raises(FinetuneError, match=r"evil\.pth is not opened: .* can run any program"):
        read_tensors(path)
    assert not trace.exists()
    torch.load(path, weights_only=False) if not plain else pickle.loads(path.read_bytes())
    assert trace.exists()  # the bomb was live


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(tmp_path, bad):
    torch.save({**STATE, "fc.bias": torch.tensor([1.0, bad])}, tmp_path / "w.pth")
    with pytest.raises(FinetuneError, match=r"NaN or infinity in fc\.bias"):
        read_tensors(tmp_path / "w.pth")


def test_whole_networks_and_other_contents_are_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "net.pth")
    torch.save({"epoch": 3, "weights": {"a": 1}}, tmp_path / "odd.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    torch.save({}, tmp_path / "empty.pth")
    torch.save({**STATE, "note": "mine"}, tmp_path / "mixed.pth")
    for name, message in {
        "net.pth": "is not opened",
        "odd.pth": "its keys are epoch, weights",
        "tensor.pth": "holds a Tensor",
        "empty.pth": "holds no tensors",
        "mixed.pth": "its keys are conv1.weight, bn1.running_var, note",
    }.items():
        with pytest.raises(FinetuneError, match=message):
            read_tensors(tmp_path / name)


def test_files_that_are_missing_damaged_or_of_another_kind_are_said_to_be(tmp_path):
    torch.save(STATE, tmp_path / "cut.pth")
    whole = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    (tmp_path / "none.pth").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00{}")
    (tmp_path / "image.png").write_bytes(b"png")
    for name, message in {
        "cut.pth": "cannot be read",
        "text.pth": "is not opened|cannot be read",
        "none.pth": "cannot be read",
        "cut.safetensors": "cannot be read as safetensors",
        "image.png": "not a kind of weight file",
        "missing.pth": "does not exist",
        ".": "is a folder",
    }.items():
        with pytest.raises(FinetuneError, match=message):
            read_tensors(tmp_path / name)
