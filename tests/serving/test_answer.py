"""POST /predict: every field is that of model.predict, or says how far to trust it."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

import finetune
from finetune.serving.card import NOTICE
from tests.serving.served import CLASSES, Server, draw, encode


def image_of(url):
    assert url.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


@pytest.mark.parametrize("kind", CLASSES)
def test_the_answer_is_that_of_model_predict(runs, kind):
    server = Server(runs[kind])
    for image in (draw(500), draw(3)):
        answer = server.predict(encode(image)).json()
        row = server.model.predict([image]).iloc[0]
        for of_class in answer["classes"]:
            name = of_class["name"]
            assert of_class["probability"] == pytest.approx(row[f"prob_{name}"], abs=1e-12)
            assert of_class["calibrated"] == pytest.approx(row[f"calibrated_{name}"], abs=1e-12)
            assert of_class["operating_point"] == "youden"
            assert of_class["threshold"] == answer["operating_points"][0]["thresholds"][name]
            if kind == "multilabel":
                assert of_class["conformal"] == [s for s in ("yes", "no") if s in row[f"set_{name}"].split("|")]
                assert of_class["positive"] == (of_class["probability"] >= of_class["threshold"])
                above = of_class["calibrated"] >= of_class["threshold_calibrated"]  # the same place on another scale
                assert above == of_class["positive"]
        assert answer["decision"]["text"] == row["decision"]
        assert answer["decision"]["classes"] == [c["name"] for c in answer["classes"] if c["positive"]]
        assert answer["conformal"]["coverage"] == pytest.approx(0.9)
        if kind == "multiclass":
            assert "|".join(answer["conformal"]["classes"]) == row["set"]
            assert answer["decision"]["rule"] == "the most probable class"
        assert answer["novelty"]["percent"] == pytest.approx(row["novelty"], abs=1)
        assert answer["novelty"]["unusual"] == (row["unusual"] == "yes")
        assert (answer["height"], answer["width"]) == image.shape
        assert answer["notice"] == NOTICE
        assert "not a medical device" in NOTICE
    server.close()


def test_images_of_the_fit_and_images_unlike_them_are_warned_of(server):
    def warned(image):
        answer = server.predict(encode(image)).json()
        return answer["split_of_fit"], [warning["kind"] for warning in answer["warnings"]]

    assert warned(draw(0)) == ("train", ["trained on"])
    assert warned(draw(2)) == ("val", ["chosen by"])
    assert warned(draw(3))[0] == "test"
    stripes = np.tile(np.where(np.arange(24) // 6 % 2, 255, 0), (24, 1)).astype(np.uint8)
    assert warned(stripes) == (None, ["unusual"])
    assert warned(np.full((20, 20), 90, np.uint8))[0] is None  # of one colour: all such images look alike


def test_a_model_without_its_run_says_what_is_unknown(runs, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((runs["multilabel"] / "model.safetensors").read_bytes())
    server = Server(tmp_path / "model.safetensors")
    answer = server.predict(encode(draw(0))).json()
    assert [warning["kind"] for warning in answer["warnings"]] == ["novelty unknown", "known images unknown"]
    assert answer["novelty"] is None
    assert answer["model"]["scores"] == answer["model"]["splits"] == []
    server.close()


def test_the_card_has_the_facts_of_the_run(server):
    card = server.ask({"url": "/model"})[0].json()
    assert card == server.predict(encode(draw(0))).json()["model"]
    assert card["trained_on"] == "made up"
    assert card["synthetic"] is True
    assert card["splits"][0] == {"split": "train", "images": 80, "patients": 40}
    assert (card["scored_split"], card["scored_images"]) == ("test", 160)
    (score,) = card["scores"]
    assert score["title"] == "macro AUROC"
    assert score["low"] < score["value"] < score["high"]
    assert [c["name"] for c in card["class_scores"]] == card["classes"] == CLASSES["multilabel"]
    assert card["weights_hash"] == server.model.weights_hash


def test_a_heat_map_is_that_of_explain_and_a_preview_is_the_image(server):
    image = draw(7)
    answer = server.predict(encode(image), "/predict?heatmap=Pneumonia&preview=true").json()
    assert answer["heat_map"]["name"] == "Pneumonia"
    heated = np.asarray(image_of(answer["heat_map"]["image"])).astype(int)
    explanation = finetune.explain(server.model, [image], finding="Pneumonia")
    expected = np.asarray(explanation.overlay(0))[:, 16:]
    assert np.abs(heated - expected).mean() < 15  # a JPEG of it
    shown = np.asarray(image_of(answer["preview"]).convert("L")).astype(int)
    assert shown.shape == image.shape
    assert np.abs(shown - image).mean() < 10
    plain = server.predict(encode(image)).json()
    assert plain["heat_map"] is plain["preview"] is None
    assert plain["classes"] == answer["classes"]


def test_wrong_parameters_are_named_without_their_values(server):
    wrong = server.predict(encode(draw(0)), "/predict?heatmap=Pneumonla")
    assert wrong.status_code == 400
    assert wrong.json()["error"] == (
        "heatmap=Pneumonla is not known. Did you mean Pneumonia? Choose from Pneumonia, Effusion <b>|x."
    )
    assert server.predict(encode(draw(0)), "/predict?preview=Doe").json()["error"] == (
        "The parameter preview has a wrong value."
    )


def test_jpeg_colour_and_dicom_are_read(server, shared_data):
    colour = np.stack([draw(1), draw(2), draw(3)], axis=2)
    answer = server.predict(encode(colour, "JPEG", quality=95)).json()
    assert (answer["height"], answer["width"]) == (24, 28)
    for path in sorted((shared_data / "dicom").glob("*.dcm")):
        response = server.predict(path.read_bytes())
        assert response.status_code == 200, (path.name, response.json())
        row = server.model.predict([path]).iloc[0]
        assert response.json()["classes"][0]["probability"] == pytest.approx(row["prob_Pneumonia"], abs=1e-12)
