"""job=serve as a process: it says where it is, answers, logs, and ends in order on SIGTERM."""

import os
import re
import signal
import subprocess
import sys

import httpx
import pytest

from finetune.__main__ import main
from finetune.config import compose
from finetune.config.settings import parse
from finetune.errors import FinetuneError, MissingExtra
from finetune.evaluation.segmentation.answers import SegmentAnswers
from finetune.serving.predictor import Predictor
from tests.conftest import ROOT
from tests.serving.served import draw, encode, make_run

TOKEN = "a-token-of-sixteen"


def test_the_process_answers_and_ends_on_sigterm(tmp_path):
    make_run(tmp_path / "run")
    words = ["job=serve", f"model={tmp_path / 'run'}", "host=0.0.0.0", "port=0", "hydra.run.dir=served", "threads=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FINETUNE_TOKEN": TOKEN}
    with subprocess.Popen(
        [sys.executable, "-m", "finetune", *words],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            answer, rest = ask_and_end(process)
        finally:
            process.kill()
    assert process.returncode == 143, rest
    log = (tmp_path / "served" / "log.txt").read_text()
    assert "resnet20_cifar of Pneumonia, Effusion <b>|x" in log
    assert f"{answer['request_id']} POST /predict 200" in log
    assert "warning: host" not in log  # there is a token
    assert "Traceback" not in log + rest
    assert TOKEN not in log + rest
    assert "Jane" not in log + rest


def ask_and_end(process):
    """An answer of the server, and what it prints from then on until SIGTERM has ended it."""
    match, lines = None, []
    while match is None and (line := process.stdout.readline()):
        lines.append(line)
        match = re.search(r"page: http://0\.0\.0\.0:(\d+)  API", line)
    assert match, "".join(lines)
    address = f"http://127.0.0.1:{match[1]}"
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    files, headers = {"image": ("Jane Doe.png", encode(draw(0)))}, {"Authorization": f"Bearer {TOKEN}"}
    assert httpx.post(f"{address}/predict", files=files).status_code == 401
    answer = httpx.post(f"{address}/predict", files=files, headers=headers).json()
    assert answer["split_of_fit"] == "train"
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    process.wait(30)
    return answer, rest


def test_what_is_wrong_is_said_before_a_port_is_opened(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETUNE_TOKEN", "short")
    with pytest.raises(SystemExit):
        main(["job=serve", "model=run"])
    assert "FINETUNE_TOKEN must hold one token of at least 16" in capsys.readouterr().err
    monkeypatch.delenv("FINETUNE_TOKEN")
    with pytest.raises(SystemExit):
        main(["job=serve", "model=run"])
    assert "model=run does not exist" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_models_of_other_tasks_are_refused_in_words():
    class Segmenter:
        task, path, answers = SegmentAnswers.task, "outputs/masks", None

    with pytest.raises(FinetuneError, match=r"model=outputs/masks is of task=segment.*job=predict"):
        Predictor(Segmenter())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["port=70000"], "port=70000"),
        (["max_mb=0"], "max_mb=0"),
        (["max_megapixels=1000"], "max_megapixels=1000"),
        (["max_batch=0"], "max_batch=0"),
        (["threads=0"], "threads=0"),
        (["hosts=x"], "hosts=x"),
    ],
)
def test_settings_have_bounds(words, message):
    with pytest.raises(FinetuneError, match=message):
        parse(compose.plain(compose.compose(["job=serve", *words])))


def test_missing_packages_are_named(monkeypatch):
    config = compose.plain(compose.compose(["job=serve"]))
    monkeypatch.setattr("finetune.config.settings.find_spec", lambda name: None if name == "uvicorn" else name)
    with pytest.raises(MissingExtra, match=r"job=serve needs the packages uvicorn: pip install -e \"\.\[serve\]\""):
        parse(config)
