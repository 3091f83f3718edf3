"""Arguments become words that Hydra reads back unchanged; a wrong one is an error that names the nearest."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import finetune
from finetune.config.grammar import decode_keys
from finetune.config.overrides import add_force_prefix, choices, compose, parse
from finetune.errors import FinetuneError
from finetune.python.words import SHORT, UNSET, plain, word, words_of

GROUPS = choices()
TEXT = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "${" not in text)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def read(text: str):
    (override,) = parse(add_force_prefix([text]))
    assert not override.is_sweep_override()
    return decode_keys(override.value())


@settings(max_examples=200, deadline=None, database=None)
@given(TEXT)
@example("a b,c=d: 'e' \"f\" \\")
@example("\\\\'\\'")
@example("null")
@example("1e3")
@example("C:\\images\\[1]")
@example("$HOME {x} ~ ??? @ #")
@example("a\nb\r\tc\x00")
def test_any_text_arrives_unchanged(text):
    assert read(word("data.root", text, GROUPS)) == text
    assert read(word("data.label", [text, text], GROUPS)) == [text, text]


@settings(max_examples=60, deadline=None, database=None)
@given(st.dictionaries(TEXT, VALUES, min_size=1, max_size=3))
@example({"naevus, benign": 0.5, "it's": 1e-05, "": -1})
@example({"a": {"b c": ["x\ty", {"d": None}]}})
def test_any_mapping_of_a_free_key_arrives_unchanged(mapping):
    for key in ("loss.class_weight", "callbacks.extra.mine"):
        assert read(word(key, mapping, GROUPS)) == mapping


def test_a_text_reaches_the_configuration():
    text = "a, b='c' \\ ünï"
    words = words_of(
        "fit", {"data": "csv", "table": text, "label": [text], "loss__pos_weight": {text: 2.0}, "loss": "bce"}
    )
    config = compose(words)
    assert (config.data.table, list(config.data.label), dict(config.loss.pos_weight)) == (text, [text], {text: 2.0})


def test_short_words_groups_and_keys():
    given = {
        "data": "folder", "root": Path("a"), "epochs": np.int64(3), "lr": 1e-05, "loss": "focal", "logger": None,
        "loss__gamma": 1.5, "optimizer.weight_decay": 0, "trainer__max_time": {"hours": 1}, "seed": True,
        "weights": None, "batch_size": UNSET, "folder": "x y", "devices": [0, 1],
    }  # fmt: skip
    assert words_of("preview", given) == [
        "job=preview", "data=folder", "data.root=a", "trainer.max_epochs=3", "optimizer.lr=1e-05", "loss=focal",
        "logger=none", "loss.gamma=1.5", "optimizer.weight_decay=0", "trainer.max_time={hours:1}", "seed=true",
        "backbone.weights=none", "hydra.run.dir='x y'", "trainer.devices=[0,1]",
    ]  # fmt: skip


def test_keys_of_a_job_come_before_those_of_the_data():
    assert words_of("evaluate", {"model": "m", "split": "val"}) == ["job=evaluate", "model=m", "split=val"]
    assert words_of("evaluate", {"label": "a"})[1:] == ["data.label=a"]
    assert words_of("evaluate", {"labels": "t.csv", "label": "a"})[1:] == ["labels=t.csv", "label=a"]
    assert words_of("predict", {"batch_size": 4})[1:] == ["batch_size=4"]


def test_every_short_word_is_a_key_of_the_configuration():
    config = compose(["data=csv", "data.table=x"])
    for key in set(SHORT.values()) - {"hydra.run.dir", "data.findings"}:
        group, name = key.split(".")
        assert name in config[group], key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epoch": 1}, r"epoch=1: there is no such word. Did you mean epochs\?"),
        ({"learnig_rate": 1}, r"Did you mean lr\?"),
        ({"gamma": 1}, r"Did you mean loss__gamma"),
        ({"backbon": "resnet18"}, r"Did you mean backbone\?"),
        ({"zzz": 1}, r"there is no such word. Short ones: "),
        ({"lr": 1, "optimizer__lr": 2}, r"optimizer__lr=2: lr sets optimizer.lr already"),
        ({"loss": {"gamma": 2}}, r"must be the name of a choice"),
        ({"root": "${oc.env:HOME}"}, r"holds \$\{, which a configuration reads as a reference"),
        ({"root": "\ud800"}, r"is not UTF-8"),
        ({"label": {"a"}}, r"is a set, which has no order"),
        ({"loss__gamma": object()}, r"loss__gamma is a builtins.object"),
        ({"trainer__max_time": {"a b": 1}}, r"the key 'a b' must be letters"),
        ({"job": "predict"}, r"each job is a function, such as finetune.predict"),
    ],
)
def test_what_is_no_word_or_no_value_is_an_error(arguments, message):
    with pytest.raises(FinetuneError, match=message):
        words_of("fit", arguments)


def test_values_of_numpy_and_tuples_become_plain():
    assert plain("x", {"a": (np.float32(0.5), np.arange(2), None)}) == {"a": [0.5, [0, 1], None]}


def test_the_functions_are_public():
    for name in ("fit", "resume", "preview", "evaluate", "predict", "run_job", "data_module"):
        assert name in finetune.__all__
