"""Uploads: broken ones are refused in words, whatever they are; limits hold; nothing is written to a disk."""

import asyncio
import io
import os
import struct
import tempfile
import time
import warnings
import zlib
from collections import Counter

import httpx
import numpy as np
import pytest
from PIL import Image

from finetune.data.decoding import png as decoder
from finetune.serving import images
from finetune.serving.limits import Limits
from finetune.serving.server import silence_readers
from tests.serving import broken
from tests.serving.served import BASE, Server, draw, encode, upload

COUNT = 400  # benchmarks/serve.py sends 2,000


@pytest.fixture(autouse=True, scope="module")
def silenced():
    with warnings.catch_warnings():
        silence_readers()
        yield


def test_the_files_that_are_broken_here_are_read_whole(server):
    assert [server.predict(data).status_code for data in broken.WHOLE] == [200] * len(broken.WHOLE)


def test_every_broken_upload_is_refused_and_the_server_lives(server, capfd):
    server.lines.clear()
    codes: dict[str, Counter] = {}
    for kind, data in broken.uploads(COUNT):
        response = server.predict(data)
        assert 400 <= response.status_code < 500, (kind, response.text, data[:80])
        assert set(response.json()) == {"error", "request_id"}
        assert "Doe" not in response.text
        codes.setdefault(kind, Counter())[response.status_code] += 1
    assert set(codes) == {kind.__name__ for kind in broken.KINDS}
    assert server.predict(encode(draw(1))).status_code == 200
    assert len(server.lines) == COUNT + 1
    assert not any("Doe" in line or "error" in line for line in server.lines)
    assert "Doe" not in "".join(capfd.readouterr())


def test_an_endless_dicom_header_is_refused_soon(server):
    start = time.perf_counter()
    response = server.predict(broken.endless_header(4))
    assert (response.status_code, "very long" in response.json()["error"]) == (422, True)
    assert time.perf_counter() - start < 6


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "I;16", "interlaced"])
def test_every_kind_of_whole_png_is_whole(mode):
    image = draw(1, 13)
    if mode == "interlaced":  # Pillow writes none
        data = interlace(image)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), image)
    elif mode == "I;16":
        data = encode(image.astype(np.uint16) * 200)
    else:
        file = io.BytesIO()
        Image.fromarray(image).convert(mode).save(file, "PNG")
        data = file.getvalue()
    assert decoder.is_whole(data)
    assert not decoder.is_whole(data[:-12])
    damaged = bytearray(data)
    damaged[-17] ^= 1  # the checksum of the last data, which Pillow does not read
    assert not decoder.is_whole(bytes(damaged))


def interlace(image):
    rows = b""
    for left, top, across, down in decoder.PASSES:
        part = image[top::down, left::across]
        rows += b"".join(b"\0" + row.tobytes() for row in part if len(row))
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 0, 0, 0, 1)
    parts = [broken.chunk(b"IHDR", header), broken.chunk(b"IDAT", zlib.compress(rows)), broken.chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_codestreams_say_their_own_size():
    siz = struct.pack(">HHIIIIIIIIH", 41, 0, 300, 200, 10, 20, 64, 64, 0, 0, 1)
    assert list(images.codestream_sizes(b"\xff\x4f\xff\x51" + siz)) == [(180, 290, 1)]
    wrong = struct.pack(">HHIIIIIIIIH", 40, 0, 300, 200, 10, 20, 64, 64, 0, 0, 1)
    assert list(images.codestream_sizes(b"\xff\x4f\xff\x51" + wrong)) == []
    assert list(images.codestream_sizes(encode(draw(1, 40), "JPEG"))) == [(40, 44, 1)]


def test_the_type_is_that_of_the_content_and_limits_are_told(runs):
    server = Server(runs["multilabel"], limits=Limits(max_bytes=20_000, max_pixels=3000))
    assert server.predict(encode(draw(1))).status_code == 200
    refused = {
        b"GIF89a" + bytes(90): (415, "This is no PNG, JPEG or DICOM file, by its first bytes."),
        bytes(30_000): (413, "The upload has more than 0.02 MB, which is the most."),
        encode(draw(1, 60)): (413, "The image has more than 0.003 megapixels, which is the most."),
        encode(draw(1, 60), "JPEG"): (413, "The image has more than 0.003 megapixels, which is the most."),
        b"": (400, "The image is empty (0 bytes)."),
    }
    for data, (status, sentence) in refused.items():
        response = server.predict(data)
        assert (response.status_code, response.json()["error"]) == (status, sentence)
    named = {"method": "POST", "url": "/predict", "files": {"image": ("a.png", b"GIF89a", "image/png")}}
    assert server.ask(named)[0].status_code == 415
    server.close()


@pytest.mark.parametrize(
    ("request_", "status", "sentence"),
    [
        ({"content": b"x"}, 415, "Send the image as the field image of a form: multipart/form-data."),
        ({"json": {"image": "x"}}, 415, "Send the image as the field image"),
        ({"headers": {"Content-Type": "multipart/form-data"}, "content": b"x"}, 415, "Send the image as the field"),
        ({"files": {"photo": b"x"}}, 400, "The form has another field than image"),
        ({"files": [("image", b"x"), ("image", b"y")]}, 400, "The form has several images"),
        ({"files": {"image": b"x"}, "data": {"name": "x"}}, 400, "The form has another field than image"),
        (
            {"headers": {"Content-Type": "multipart/form-data; boundary=b"}, "content": b"x"},
            400,
            "The form is damaged.",
        ),
        (
            {
                "headers": {"Content-Type": "multipart/form-data; boundary=b"},
                "content": b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nxyz',
            },
            400,
            "The form is cut short.",
        ),
        ({"headers": {"Content-Type": "multipart/form-data; boundary=b"}, "content": b"--b--\r\n"}, 400, "The form"),
        (
            {
                "headers": {"Content-Type": "multipart/form-data; boundary=b"},
                "content": b"--b\r\nX: " + b"x" * 5_000 + b"\r\n\r\n",
            },
            400,
            "",
        ),
    ],
)
def test_forms_that_are_no_image_are_refused_in_words(server, request_, status, sentence):
    (response,) = server.ask({"method": "POST", "url": "/predict", **request_})
    assert response.status_code == status
    assert response.json()["error"].startswith(sentence)


def stream_to(server: Server, chunks, headers=()):
    """POST /predict of a body that comes in parts, without a length."""

    async def run():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url=BASE) as client:
            kind = {"Content-Type": "multipart/form-data; boundary=b", **dict(headers)}
            return await client.post("/predict", content=chunks(), headers=kind)

    return asyncio.run(run())


HEAD = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'


def test_an_upload_of_no_declared_length_is_read_no_further_than_the_limit(runs):
    server = Server(runs["multilabel"], limits=Limits(max_bytes=50_000))
    sent = 0

    async def chunks():
        nonlocal sent
        yield HEAD
        for _ in range(10_000):
            sent += 10_000
            yield bytes(10_000)

    assert stream_to(server, chunks).status_code == 413
    assert sent < 10_000 * 10_000  # the test's transport hands on part by part
    huge = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": "9" * 30}
    assert server.ask({"method": "POST", "url": "/predict", "headers": huge, "content": b"x"})[0].status_code == 413
    assert server.service.admission.bytes == 0
    server.close()


def test_slow_uploads_and_slow_answers_end(runs, monkeypatch):
    server = Server(runs["multilabel"], limits=Limits(timeout=0.3))

    async def chunks():
        yield HEAD
        await asyncio.sleep(5)

    start = time.perf_counter()
    assert stream_to(server, chunks).status_code == 408
    assert time.perf_counter() - start < 4
    predict = server.service.batcher.predict

    def slow(inputs):
        time.sleep(0.8)
        return predict(inputs)

    monkeypatch.setattr(server.service.batcher, "predict", slow)
    response = server.predict(encode(draw(1)))
    assert (response.status_code, response.json()["error"]) == (504, "The answer took more than 0.3 s.")
    monkeypatch.undo()
    assert server.service.admission.requests == 0
    server.close()


def test_no_file_is_written(server, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def fail(*args, **kwargs):
        raise AssertionError("a file in /tmp")

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", fail)
    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    rng = np.random.default_rng(0)
    data = encode(rng.integers(0, 256, (1500, 1500)).astype(np.uint8))  # 2 MB: servers often spool from 1 MB on
    before = set(os.listdir("."))
    assert server.ask(upload(data), upload(data, "/predict?preview=true"))[1].status_code == 200
    assert set(os.listdir(".")) == before
    assert not list(tmp_path.iterdir())
