"""A tiny run to serve, made without a training, and a way to ask its application without a port."""

import asyncio
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import torch
import uvicorn
from PIL import Image

import finetune
from finetune.evaluation.classification.answers import ClassAnswers
from finetune.evaluation.classification.assessment import Assessment
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.novelty import FeatureGaussian
from finetune.files import plain
from finetune.model_file import Model
from finetune.network import NetworkSpec
from finetune.preprocessing import Preprocessing
from finetune.runs.known_images import digest_of
from finetune.serving import server as process
from finetune.serving.app import create_app
from finetune.serving.predictor import Predictor

BASE = "http://127.0.0.1:8000"
CLASSES = {"multilabel": ["Pneumonia", "Effusion <b>|x"], "multiclass": ["normal", "pneumonia", "other"]}


def draw(number: int, side: int = 24) -> np.ndarray:
    """A gray image of noise around a level."""
    rng = np.random.default_rng(number)
    return (rng.integers(0, 120, (side, side + 4)) + 4 * (number % 30)).astype(np.uint8)


def encode(image: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def make_run(folder: Path, kind: str = "multilabel", n: int = 160) -> Path:
    """A finished run of a random network: model, features, samples, scores of made-up labels."""
    torch.manual_seed(0)
    classes = CLASSES[kind]
    spec = NetworkSpec("resnet20_cifar", num_classes=len(classes), in_channels=1)
    network = spec.build().eval()
    preprocessing = Preprocessing(image_size=16, in_channels=1, mean=(0.5,), std=(0.25,))
    images = [draw(number) for number in range(n)]
    with torch.inference_mode():
        inputs = torch.stack([preprocessing(image) for image in images])
        logits = network(inputs).numpy()
        features = network.features(inputs).numpy()
    rng = np.random.default_rng(0)
    logits = logits - logits.mean(axis=0)
    with torch.no_grad():
        network.head.fc.bias -= network(inputs).mean(dim=0)
    draws = logits + rng.logistic(size=logits.shape)
    target = (draws > 0) if kind == "multilabel" else np.eye(len(classes))[draws.argmax(axis=1)]
    names = [f"images/{number}.png" for number in range(n)]
    table = Predictions.from_arrays(names, [f"p{i}" for i in range(n)], classes, kind, target.astype(float), logits)
    assessment = Assessment(resamples=20, operating_points={"youden": "youden"}, conformal=0.1)
    fitted = assessment.fit(table)
    gaussian = FeatureGaussian.fit(features)
    distances = np.sort(gaussian.distance(features))
    gaussian = FeatureGaussian(
        gaussian.mean, gaussian.directions, gaussian.variances, gaussian.residual_variance, distances
    )
    folder.mkdir(parents=True, exist_ok=True)
    provenance = {"data": {"name": "made up", "synthetic": True}}
    model = Model(network, spec, preprocessing, ClassAnswers.of(classes, kind, fitted), provenance)
    model.save(folder / "model.safetensors")
    gaussian.save(folder, model.weights_hash)
    splits = np.resize(["train", "train", "val", "test"], n)
    digests = [digest_of(image) for image in images]
    samples = {"sample": names, "patient": [f"p{i // 2}" for i in range(n)], "split": splits, "digest": digests}
    pd.DataFrame(samples).to_csv(folder / "samples.csv", index=False)
    scores = {"test": assessment.score(table, fitted)}
    (folder / "scores.json").write_text(json.dumps(plain(scores)))
    return folder


class Server:
    """An application, asked in this process; `lines` is its log."""

    def __init__(self, run: Path, **options):
        self.lines: list[str] = []
        self.model = finetune.load(run)
        self.predictor = Predictor(self.model, "cpu")
        self.app = create_app(self.predictor, say=self.lines.append, **options)
        self.service = self.app.state.service

    def ask(self, *requests: dict, at_once: bool = False) -> list[httpx.Response]:
        """The answers to some requests, one after the other or all at once."""

        async def run():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=BASE, timeout=60) as client:
                calls = [client.request(**{"method": "GET", **request}) for request in requests]
                return await asyncio.gather(*calls) if at_once else [await call for call in calls]

        return asyncio.run(run())

    def predict(self, data: bytes, url: str = "/predict", **more) -> httpx.Response:
        (response,) = self.ask(upload(data, url, **more))
        return response

    def close(self) -> None:
        self.service.close()


def upload(data: bytes, url: str = "/predict", **more) -> dict:
    return {"method": "POST", "url": url, "files": {"image": ("Jane Doe 1970.png", data)}, **more}


@contextmanager
def listening(server: Server) -> Iterator[str]:
    """The address of a port of this machine behind which the application answers."""
    socket = process.bind("127.0.0.1", 0)
    config = uvicorn.Config(server.app, log_config=None, access_log=False, lifespan="off", ws="none")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: running.run(sockets=[socket]), daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        yield process.address(socket)
    finally:
        running.should_exit = True
        thread.join(10)
        socket.close()
