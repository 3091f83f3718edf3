"""The command line: help without imports, bad input with one clear error and no run that looks complete."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import finetune
from finetune.__main__ import help_text, main
from finetune.config.compose import choices
from tests.jobs.test_fit import TINY, draw


def test_help_shows_groups_choices_and_examples_and_imports_nothing():
    for group, names in choices().items():
        assert group in help_text()
        assert all(name in help_text() for name in names)
    code = "import sys; from finetune.__main__ import main; main(['--help']); "
    code += "print(len(sys.modules.keys() & {'torch', 'hydra', 'numpy'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("\n0")
    assert "python -m finetune backbone=resnet50 data=chestxray" in done.stdout
    assert all(f"job={job}" in done.stdout for job in choices()["job"] if job != "fit")


def test_no_words_print_the_help_and_a_flag_the_version(capsys, monkeypatch):
    main([])
    assert capsys.readouterr().out == help_text() + "\n"
    main(["--version"])
    assert capsys.readouterr().out == f"finetune {finetune.__version__}\n"
    monkeypatch.setenv("RANK", "1")  # a rank has no words either: it gets the first one's
    monkeypatch.setattr("finetune.__main__.dispatch", lambda argv: print(f"dispatched {argv}"))
    main([])
    assert capsys.readouterr().out == "dispatched []\n"


def test_another_package_of_the_same_import_name_is_named(capsys, tmp_path, monkeypatch):
    import importlib.metadata

    folder = tmp_path / "finetune-0.10.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: finetune\nVersion: 0.10.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.metadata.version("finetune") == "0.10.0"
    with pytest.raises(SystemExit):
        main(["nonsense"])
    assert "the package finetune 0.10.0 is installed besides finetune-vision" in capsys.readouterr().err


def test_an_unknown_flag_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["--dry-run", "data=csv"])
    assert "--dry-run is not a flag of this program" in capsys.readouterr().err


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(capsys, *words: str) -> str:
    """The one error of a command; nothing that looks like a complete run is left."""
    with pytest.raises(SystemExit) as stopped:
        main([*TINY, "trainer.max_epochs=1", *words])
    assert stopped.value.code == 1
    messages = capsys.readouterr().err.strip()
    assert messages.startswith("error: "), messages
    assert "Traceback" not in messages
    assert len(messages.splitlines()) <= 8
    for name in ("scores.json", "model.safetensors", "latest"):
        assert not list(Path().rglob(name))
    return messages


def csv(place: Path, labels: list, **columns) -> str:
    draw(place / "images", len(labels) // 2 or 1)
    paths = sorted(str(p.relative_to(place)) for p in (place / "images").rglob("*.png"))
    pd.DataFrame({"path": paths[: len(labels)], "label": labels, **columns}).to_csv("t.csv", index=False)
    return "data.table=t.csv"


def test_missing_root(place, capsys):
    messages = fails(capsys, "data=chestxray", "data.root=nowhere")
    assert "data.root" in messages
    assert "nowhere" in messages
    assert "https://" in messages
    assert not Path("outputs").exists()  # what failed before it began leaves nothing


def test_empty_folder(place, capsys):
    (place / "empty").mkdir()
    assert "empty" in fails(capsys, "data=folder", "data.root=empty")


def test_table_without_the_column(place, capsys):
    messages = fails(capsys, "data=csv", csv(place, ["a", "b"] * 4), "data.label=lable")
    assert "lable" in messages
    assert "label" in messages.replace("lable", "")


def test_label_never_seen_in_train(place, capsys):
    splits = ["train"] * 6 + ["test", "val"]
    messages = fails(
        capsys,
        "data=csv",
        csv(place, ["a", "b"] * 3 + ["c", "a"], split=splits),
        "data.label=label",
        "data.split=split",
    )
    assert "c" in messages
    assert "train" in messages


@pytest.mark.parametrize("kind", ["truncated", "zero", "text"])
def test_unreadable_images_stop_before_the_first_epoch(place, capsys, kind):
    draw(place / "images", 12)
    victim = place / "images" / "cold" / "3.png"
    whole = victim.read_bytes()
    victim.write_bytes({"truncated": whole[: len(whole) // 2], "zero": b"", "text": b"no image at all"}[kind])
    messages = fails(capsys, "data=folder", "data.root=images")
    assert "1 of 24 images cannot be read" in messages
    assert "cold/3.png" in messages
    assert "data.on_bad=skip" in messages
    main([*TINY, "trainer.max_epochs=1", "data=folder", "data.root=images", "data.on_bad=skip", "hydra.run.dir=run"])
    assert "cold/3.png" in Path("run/audit.json").read_text()
    assert Path("run/scores.json").exists()


def test_weights_of_another_architecture(place, capsys):
    import finetune

    draw(place / "images", 12)
    torch.save(finetune.create_model("resnet32_cifar").state_dict(), "other.pth")
    messages = fails(capsys, "data=folder", "data.root=images", "backbone.weights=other.pth")
    assert "other.pth" in messages
    assert "resnet20_cifar" in messages


def test_a_pickle_that_runs_code_is_refused(place, capsys):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch harmed",)

    draw(place / "images", 12)
    Path("evil.pth").write_bytes(pickle.dumps({"conv1.weight": Evil()}))
    fails(capsys, "data=folder", "data.root=images", "backbone.weights=evil.pth")
    torch.save({"conv1.weight": Evil()}, "evil.pth")
    fails(capsys, "data=folder", "data.root=images", "backbone.weights=evil.pth")
    assert not Path("harmed").exists()


def test_a_loss_that_is_not_finite(place, capsys):
    draw(place / "images", 12)
    messages = fails(
        capsys, "data=folder", "data.root=images", "optimizer=sgd", "optimizer.lr=1e30", "trainer.max_epochs=3"
    )
    assert "Lower optimizer.lr" in messages


def test_a_file_standing_where_outputs_should_be(place, capsys):
    draw(place / "images", 12)
    Path("outputs").write_text("in the way")
    messages = fails(capsys, "data=folder", "data.root=images")
    assert "outputs" in messages
    assert "hydra.run.dir=DIR" in messages
    long = "x" * 300
    assert f"{long} (File name too long)" in fails(capsys, "data=folder", "data.root=images", f"hydra.run.dir={long}")


def test_patients_in_two_splits_stop_the_run_by_default(place, capsys):
    table = csv(
        place, ["a", "b"] * 12, split=(["train"] * 4 + ["val", "test"]) * 4, who=[f"p{i // 6}" for i in range(24)]
    )
    words = ["data=csv", table, "data.label=label", "data.split=split", "data.patient=who"]
    assert "data.audit.on_leak=warn" in fails(capsys, *words)
    (stopped,) = Path("outputs").glob("*/*")
    assert sorted(path.name for path in stopped.iterdir()) == [
        "audit.json",
        "config.yaml",
        "environment.json",
        "log.txt",
    ]
    assert "error: " in (stopped / "log.txt").read_text()
    assert json.loads((stopped / "audit.json").read_text())["leaks"]
    main([*TINY, "trainer.max_epochs=1", *words, "data.audit.on_leak=warn", "hydra.run.dir=run"])
    assert Path("run/scores.json").exists()


def test_evaluating_without_data_never_makes_synthetic_ones(place, capsys):
    draw(place / "images", 12)
    main([*TINY, "trainer.max_epochs=1", "data=folder", "data.root=images", "hydra.run.dir=run"])
    (place / "model").mkdir()
    Path("run/model.safetensors").rename("model/model.safetensors")
    with pytest.raises(SystemExit):
        main(["job=evaluate", "model=model/model.safetensors"])
    assert "data.root" in capsys.readouterr().err
    assert not Path("data").exists()


def test_a_gray_16_bit_and_an_rgba_image_in_one_set(place):
    draw(place / "images", 12)
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(place / "images" / "warm" / "deep.png")
    Image.fromarray(np.full((20, 20, 4), 255, np.uint8)).save(place / "images" / "warm" / "alpha.png")
    main([*TINY, "trainer.max_epochs=1", "data=folder", "data.root=images", "hydra.run.dir=run"])
    assert Path("run/scores.json").exists()
