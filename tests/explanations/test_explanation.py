"""finetune.explain and what is made of maps for the eye."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

import finetune
from finetune.errors import FinetuneError
from finetune.evaluation.classification.answers import ClassAnswers
from finetune.explanations import overlays
from finetune.model_file import Model
from finetune.network import NetworkSpec
from finetune.pages import explanation as page
from finetune.preprocessing import Preprocessing

SIDE = 24


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    spec = NetworkSpec("resnet20_cifar", 2, in_channels=1)
    preprocessing = Preprocessing(image_size=SIDE, in_channels=1, mean=(0.5,), std=(0.25,))
    return Model(spec.build(), spec, preprocessing, ClassAnswers(["Mass", "Nodule"], "multilabel"))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, shape in (("gray.png", (40, 60)), ("rgb.jpg", (300, 200, 3))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    return [str(folder / name) for name in ("gray.png", "rgb.jpg")]


def test_explain_takes_what_predict_takes(model, files):
    result = finetune.explain(model, files)
    probabilities = model.predict(files)[["prob_Mass", "prob_Nodule"]].to_numpy()
    np.testing.assert_allclose(result.probabilities, probabilities, atol=1e-6)
    assert result.heat.shape == (2, SIDE, SIDE)
    assert result.explained == [model.classes[k] for k in probabilities.argmax(axis=1)]
    assert result.sizes == [(40, 60), (300, 200)]  # of the file, though a JPEG is decoded at a part of it
    output = result.to_dict(0)
    assert output["sample"] == files[0]
    assert output["probability"] == result.probability(0)
    again = finetune.explain(model, [Image.open(files[0])], finding="Mass", method="occlusion", patch=8)
    assert again.explained == ["Mass"]
    assert again.names == ["0"]
    each = finetune.explain(model, files, finding=["Mass", "Nodule"], batch_size=1)
    assert each.explained == ["Mass", "Nodule"]
    assert len(finetune.explain(model, [])) == 0


def test_an_overlay_is_the_image_beside_itself_with_heat(model, files):
    result = finetune.explain(model, files, finding="Mass")
    image = result.overlay(1, boxes=[(50, 75, 100, 150)])
    assert image.size == (2 * SIDE, SIDE)
    assert image.getpixel((6, 6)) == overlays.BOX  # 50 of 200 and 75 of 300 are a quarter of 24
    left = np.asarray(result.overlay(0))[:, :SIDE]
    assert (left == left[..., :1]).all()  # gray


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"finding": "Mas"}, "finding=Mas is not known. Did you mean Mass"),
        ({"finding": ["Mass"]}, "finding has 1 names for 2 images"),
        ({"method": "lime"}, "method=lime is not known"),
        ({"steps": 3}, "method=grad_cam takes no steps"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_cannot_be_explained_is_said(model, files, options, message):
    with pytest.raises(FinetuneError, match=message):
        finetune.explain(model, files, **options)
    with pytest.raises(FinetuneError, match="put a single one into brackets"):
        finetune.explain(model, files[0])


def test_heat_is_scaled_for_the_eye_alone():
    heat = np.zeros((4, 4), np.float32)
    heat[1, 2] = 1e-3
    image = np.full((4, 4), 100, np.uint8)
    seen = overlays.heated(image, heat)
    assert (seen[0, 0] == 100).all()
    hottest = 0.3 * 100 + 0.7 * overlays.colours(np.ones((1, 1)))[0, 0].astype(float)
    np.testing.assert_allclose(seen[1, 2], hottest, atol=1)
    assert (overlays.heated(image, np.zeros((4, 4))) == 100).all()
    luminance = overlays.colours(np.linspace(0, 1, 50)[None])[0] @ [0.299, 0.587, 0.114]
    assert (np.diff(luminance) > 0).all()  # so it reads in gray as well


def test_jpegs_stay_small_whatever_the_image():
    noise = np.random.default_rng(0).integers(0, 256, (400, 300, 3), dtype=np.uint8)
    data = base64.b64decode(overlays.jpeg(noise, 160, 9000))
    assert len(data) <= 9000
    with Image.open(io.BytesIO(data)) as image:
        assert max(image.size) == 160


def test_the_page_escapes_loads_nothing_and_describes_its_images(tmp_path):
    about = {
        "sample": "<b>.png",
        "class": "Mass",
        "kind": "missed",
        "probability": 0.031,
        "maximum": {"x": 0.2, "y": 0.7},
    }
    figure = page.Figure.make("errors", about, np.zeros((8, 8), np.uint8), np.eye(8), [(1.0, 1.0, 4.0, 4.0)])
    output = {"method": "grad_cam", "model": {"weights_hash": "abc"}, "wrong": 1, "errors": [about]}
    output["data"] = {"name": "toy", "split": "test", "images": 3, "synthetic": True}
    text = page.write(tmp_path / "explain.html", output, [figure], "python -m finetune job=explain").read_text()
    assert "<b>.png" not in text
    assert "Mass: false negative (missed), 3.1 %: &lt;b&gt;.png; hottest 20 % from the left, 70 % from the top" in text
    assert "SYNTHETIC" in text
    assert "default-src 'none'" in text
    assert "http://" not in text.replace("http-equiv", "")
    assert page.where({"maximum": None}) == "the map is constant"
