"""The values of a job's own keys have their type before anything is read."""

import pytest

from finetune.__main__ import main
from finetune.config import compose
from finetune.config.settings import parse
from finetune.errors import FinetuneError
from finetune.steps.image_files import image_files


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["job=predict", "input=x", "model=2"], "model=2 should be a valid string"),
        (["job=predict", "input=x", "output=[a]"], r"output=\['a'\] should be a valid string"),
        (["job=predict", "input=x", "batch_size=abc"], "batch_size=abc should be a valid integer"),
        (["job=predict", "input=x", "batch_size=true"], "batch_size=True should be a valid integer"),
        (["job=evaluate", "model=null"], "model=null must be given a value"),
        (["job=evaluate", "predictions=1.5"], "predictions=1.5 should be a valid string"),
        (["job=evaluate", "data.num_workers=1e3"], r"data.num_workers=1000.0 should be a valid integer"),
        (["job=evaluate", "data.batch_size='4'"], "data.batch_size=4 should be a valid integer"),
        (["job=explain", "method=[]"], r"method=\[\] should be a valid string"),
        (["job=explain", "data.cache=1"], "data.cache=1 should be a valid string"),
        (["job=compare", "runs=true"], "runs=True should be a valid list or a valid string"),
        (["job=preview", "steps=null"], "steps=null must be given a value"),
    ],
)
def test_a_value_of_another_type_is_named(words, message):
    with pytest.raises(FinetuneError, match=message):
        parse(compose.plain(compose.compose(words)))


def test_every_job_asks_before_it_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["job=compare", "runs=1"])
    assert "error: runs=1 should be a valid list or a valid string." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_image_at_all_is_named():
    with pytest.raises(FinetuneError, match=r"input=\[\] names nothing"):
        image_files([])
