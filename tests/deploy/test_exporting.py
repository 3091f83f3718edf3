"""An exported file gives what the model gives, elsewhere too; what it cannot give is refused in words."""

import csv
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from finetune import export
from finetune.deploy import exporting, formats
from finetune.errors import FinetuneError, MissingExtra
from finetune.evaluation.detection.answers import DetectAnswers
from finetune.evaluation.segmentation.answers import SegmentAnswers
from finetune.model_file import Model
from finetune.network import NetworkSpec
from finetune.preprocessing import Preprocessing
from tests import package_cases as cases

pytest.importorskip("onnxruntime")


def classifier(**values) -> Model:
    """The multilabel model of the cases, with random weights in its norms."""
    torch.manual_seed(0)
    model = cases.multilabel()
    for name, value in values.items():
        setattr(model, name, value)
    return model


def isotonic() -> Model:
    """Three exclusive classes with an isotonic calibration, cut out of the centre of an image."""
    torch.manual_seed(0)
    other, spec = cases.multiclass(), NetworkSpec("resnet20_cifar", 3, 3)
    return Model(spec.build().eval(), spec, other.preprocessing, other.answers)


def segmenter(overlapping: bool, fit: str, tta: tuple[str, ...] = ()) -> Model:
    torch.manual_seed(0)
    spec = NetworkSpec("resnet20_cifar", 3, 3, head="unet", head_options={"channels": 4})
    names = ["a", "b", "c"] if overlapping else ["background", "a", "b"]
    return Model(spec.build().eval(), spec, Preprocessing(16, fit=fit), SegmentAnswers(names, overlapping), tta=tta)


def detector(head: str = "retinanet") -> Model:
    torch.manual_seed(0)
    options = {"score_thresh": 0.3, "topk_candidates": 50} if head == "retinanet" else {}
    neck = {"channels": 8, "extra": "p6p7" if head == "retinanet" else "pool"}
    spec = NetworkSpec("resnet18", 2, 3, neck="pyramid", neck_options=neck, head=head, head_options=options)
    network = spec.build().eval()
    for values in network.head.parameters():
        torch.nn.init.normal_(values, std=0.1)
    return Model(network, spec, Preprocessing(64, fit="pad"), DetectAnswers(["x", "y"]))


ABSENT = ("torch", "finetune", "scipy", "pandas", "onnx")


def run_apart(path: Path, words: list, capsys) -> str:
    """What run_onnx.py prints in a process of its own, in which other packages cannot be imported."""
    code = f"import sys, runpy; sys.modules.update(dict.fromkeys({ABSENT})); sys.argv = sys.argv[1:]; "
    command = [sys.executable, "-I", "-c", f"{code}runpy.run_path(sys.argv[0], run_name='__main__')"]
    command += map(str, [path.with_name("run_onnx.py"), path, *words])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout


def run_beside(path: Path, words: list, capsys) -> str:
    """The same in this process, which is faster."""
    module = runpy.run_path(str(path.with_name("run_onnx.py")))
    capsys.readouterr()
    module["main"](str(path), *([words[0], words[1:]] if "folder" in module["main"].__code__.co_varnames else [words]))
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """Gray and coloured images, wide and tall, one a large JPEG that is decoded at a fraction of its size."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = []
    for number, shape in enumerate([(20, 24, 3), (40, 9, 3), (8, 8), (100, 90, 3)]):
        paths.append(folder / f"{number}.{'jpg' if number == 3 else 'png'}")
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(paths[-1])
    return paths


@pytest.mark.parametrize(
    ("make", "run"),
    [
        (classifier, run_apart),
        (isotonic, run_beside),
        (lambda: classifier(tta=("flip", "shifts", "crops")), run_beside),
    ],
)
def test_the_file_and_its_program_give_the_models_table(make, run, pictures, tmp_path, capsys):
    model, path = make(), tmp_path / "model.onnx"
    about = export(model, path, images=pictures)
    assert about == json.loads((tmp_path / "model.onnx.json").read_text())
    assert about["parity"]["fp32"]["largest"] < 1e-5
    assert about["tta"] == list(model.tta)
    table = model.predict(pictures)
    rows = list(csv.DictReader(io.StringIO(run(path, [str(p) for p in pictures], capsys))))
    assert [row["path"] for row in rows] == [str(p) for p in pictures]
    assert [row["decision"] for row in rows] == table["decision"].tolist()
    columns = [name for name in table if name.startswith(("prob_", "calibrated_"))]
    assert list(rows[0]) == ["path", *columns, "decision"]
    found = np.array([[float(row[name]) for name in columns] for row in rows])
    np.testing.assert_allclose(found, table[columns].to_numpy(float), atol=2e-6)


@pytest.mark.parametrize(("format", "suffix"), [("torchscript", ".pt"), ("torch_export", ".pt2")])
def test_the_formats_of_torch(format, suffix, tmp_path):
    model = classifier()
    about = export(model, tmp_path / f"model{suffix}", format=format, size="any" if suffix == ".pt" else "square")
    assert about["parity"]["fp32"]["largest"] < 1e-5
    assert not (tmp_path / "run_onnx.py").exists()


def test_images_in_the_networks_square(tmp_path):
    about = export(classifier(), tmp_path / "model.onnx", size="square")
    run = formats.read(tmp_path / "model.onnx", "onnx", about["outputs"])
    assert run(np.zeros((3, 8, 8, 3), np.uint8))["logits"].shape == (3, 2)
    assert "resize" not in about["in_graph"]


@pytest.mark.parametrize(("overlapping", "fit", "tta"), [(False, "pad", ("flip",)), (True, "crop", ())])
def test_masks_have_the_size_of_the_images(overlapping, fit, tta, pictures, tmp_path, capsys):
    model, path = segmenter(overlapping, fit, tta), tmp_path / "model.onnx"
    about = export(model, path, images=pictures[:3])
    assert about["parity"]["fp32"]["label_pixels"] < 1e-3
    run_beside(path, [tmp_path, *pictures[:3]], capsys)
    for picture, placed in zip(pictures[:3], model.predict(pictures[:3]).to_dict("records"), strict=True):
        mask = np.asarray(Image.open(tmp_path / picture.name))
        assert mask.shape == np.asarray(Image.open(picture)).shape[:2]
        area = (mask & 1) if overlapping else (mask == 1)
        assert abs(int(area.sum()) - placed["pixels_a"]) <= 1


def test_boxes_are_those_of_the_model_after_suppression(pictures, tmp_path, capsys):
    model, path = detector(), tmp_path / "model.onnx"
    about = export(model, path, images=pictures[:2])
    assert "non-maximum suppression" in about["not_in_graph"]
    rows = list(csv.DictReader(io.StringIO(run_beside(path, pictures[:2], capsys))))
    for picture, expected in zip(pictures[:2], model.predict(pictures[:2]).to_dict("records"), strict=True):
        for name in ("x", "y"):
            scores = [float(r["score"]) for r in rows if (r["path"], r["class"]) == (str(picture), name)]
            assert max(scores, default=0.0) == pytest.approx(expected[f"score_{name}"], abs=1e-5)
            assert sum(score >= 0.5 for score in scores) == expected[f"boxes_{name}"]


def test_eight_bits_differ_little(tmp_path):
    images = [np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8) for i in range(8)]
    about = export(classifier(), tmp_path / "model.onnx", precision="int8", images=images)
    assert about["parity"]["fp32"]["largest"] < 1e-5 < about["parity"]["int8"]["largest"] < 0.5
    assert about["quantisation"]["images"] == 8


def test_a_graph_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "TOLERANCE", 1e-12)
    with pytest.raises(FinetuneError, match=r"Largest difference of logits .*: [\d.]+e-\d+, more than 1e-12"):
        export(classifier(), tmp_path / "model.pt", format="torchscript")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("output", "message"), [("logits", "nan"), ("probabilities", "probabilities differ")])
def test_a_graph_that_fails_on_a_later_image_is_not_written(output, message, tmp_path, monkeypatch):
    """NaN is larger than any number here, and probabilities are compared with those of the same logits."""

    def read(*arguments):
        run, calls = formats.read(*arguments), []

        def broken(batch):
            found, _ = run(batch), calls.append(batch)
            return {**found, output: found[output] * np.nan} if len(calls) > 2 else found

        return broken

    monkeypatch.setattr(exporting, "formats", SimpleNamespace(**{**vars(formats), "read": read}))
    with pytest.raises(FinetuneError, match=message):
        export(classifier(), tmp_path / "model.pt", format="torchscript")
    assert not list(tmp_path.iterdir())


def test_what_is_refused(tmp_path, monkeypatch):
    path, images = tmp_path / "m.onnx", [np.zeros((8, 8), np.uint8)]
    for values, message in [
        ({"format": "tflite"}, "format=tflite is not known"),
        ({"precision": "int4"}, "precision=int4 is not known"),
        ({"size": "small"}, "size=small is not known"),
        ({"format": "torchscript"}, r"must end in \.pt"),
        ({"precision": "int8"}, "needs images"),
    ]:
        with pytest.raises(FinetuneError, match=message):
            export(classifier(), path, **values)
    with pytest.raises(FinetuneError, match="int8 does not go with format=torchscript"):
        export(classifier(), tmp_path / "m.pt", format="torchscript", precision="int8", images=images)
    with pytest.raises(FinetuneError, match="int8 is not supported for task=segment"):
        export(segmenter(False, "pad"), path, precision="int8", images=images)
    with pytest.raises(FinetuneError, match="head=faster_rcnn is not exported"):
        export(detector("faster_rcnn"), path)
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"onnx, onnxruntime.*\[onnx\]"):
        export(classifier(), path)
    assert not list(tmp_path.iterdir())
