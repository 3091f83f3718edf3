"""The space of a search: entries as written and as typed, their draws, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import FinetuneError
from finetune.tuning.space import Entry, draw, read, shown, values_of


class Fixed:
    """A trial that draws the low end of each range, and the last value of a choice."""

    def __init__(self):
        self.asked = {}

    def suggest_float(self, name, low, high, *, log=False):
        self.asked[name] = (low, high, log)
        return low

    def suggest_int(self, name, low, high, *, step=1, log=False):
        self.asked[name] = (low, high, step, log)
        return low

    def suggest_categorical(self, name, choices):
        self.asked[name] = choices
        return choices[-1]


def test_every_kind_is_drawn_from_with_its_bounds():
    space = read(
        {
            "optimizer.lr": {"log": [1e-5, 1e-2]},
            "head.dropout": {"uniform": [0, 0.5]},
            "data.image_size": {"int": [64, 256], "step": 32},
            "data.batch_size": {"log_int": [8, 128]},
            "loss": {"choice": ["bce", "focal"]},
            "optimizer.betas": {"choice": [[0.9, 0.99], [0.9, 0.999]]},
        }
    )
    trial = Fixed()
    values = draw(space, trial)
    assert trial.asked == {
        "optimizer.lr": (1e-5, 1e-2, True),
        "head.dropout": (0.0, 0.5, False),
        "data.image_size": (64, 256, 32, False),
        "data.batch_size": (8, 128, 1, True),
        "loss": ["bce", "focal"],
        "optimizer.betas": ["[0.9, 0.99]", "[0.9, 0.999]"],
    }
    assert values["loss"] == "focal"
    assert values["optimizer.betas"] == [0.9, 0.999]
    parameters = {"optimizer.betas": "[0.9, 0.99]", "loss": "bce"}
    assert values_of(space, parameters) == {"loss": "bce", "optimizer.betas": [0.9, 0.99]}
    assert space["data.image_size"].describe() == "64 to 256, whole numbers, steps of 32"


def test_of_two_entries_the_later_holds_and_null_leaves_one_out():
    """`search.optimizer.lr={...}` typed is nested, the file has dots."""
    space = read(
        {
            "optimizer.lr": {"log": [1e-5, 1e-2]},
            "schedule": {"choice": ["cosine", "step"]},
            "optimizer": {"lr": {"uniform": [1, 2]}, "choice": ["adamw", "sgd"]},
            "loss": {"choice": ["bce", "focal"]},
            "schedule.rise": None,
        }
    )
    assert list(space) == ["optimizer.lr", "schedule", "optimizer", "loss"]
    assert space["optimizer.lr"] == Entry("optimizer.lr", "uniform", (1, 2))
    assert list(read({"a.b": {"log": [1, 2]}, "c": {"log": [1, 2]}, "a": {"b": None}})) == ["c"]


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({}, "search has no entries"),
        ({"loss": None}, "search has no entries"),
        ({"a": 3}, "search.a=3 must be a range or a choice"),
        ({"a": {"lgo": [1, 2]}}, "search.a=lgo is not known. Did you mean log?"),
        ({"a": {"log": [1, 2], "uniform": [1, 2]}}, "search.a has log and uniform: name one"),
        ({"a": {"log": 3}}, "search.a={log: 3} must be a list"),
        ({"a": {"log": [1e-2, 1e-5]}}, "the first bound must be below the second"),
        ({"a": {"log": [0, 1]}}, "must begin above 0"),
        ({"a": {"log": ["x", 1]}}, "two numbers"),
        ({"a": {"uniform": [1, 2, 3]}}, r"must be \[low, high\]"),
        ({"a": {"int": [1, 2.5]}}, "two whole numbers"),
        ({"a": {"int": [True, 3]}}, "two whole numbers"),
        ({"a": {"int": [0, 10], "step": 3}}, "step=3 does not lead from 0 to 10"),
        ({"a": {"uniform": [0, 10], "step": 3}}, "step=3 must be .* for int alone"),
        ({"a": {"choice": ["x"]}}, "two values or more"),
        ({"a": {"choice": ["x", "x"]}}, "each once"),
        ({"a": {"uniform": [0, float("inf")]}}, "two numbers"),
        ({"seed": {"choice": [0, 1]}}, "seed cannot be searched: the best trials are repeated over seeds"),
        ({"data": {"seed": {"choice": [0, 1]}}}, "data.seed cannot be searched: it decides the splits"),
    ],
)
def test_what_makes_no_sense_is_named(search, message):
    with pytest.raises(FinetuneError, match=message):
        read(search)


@given(st.floats(1e-5, 1e-2))
def test_a_value_within_a_range_is_its_own_parameter(value):
    entry = Entry("optimizer.lr", "log", (1e-5, 1e-2))
    assert entry.value_of(entry.parameter_of(value)) == value


def test_values_outside_have_no_parameter():
    whole = Entry("a", "int", (2, 8), step=3)
    assert [whole.parameter_of(value) for value in (2, 5, 8, 3, 11, True, 2.0, "x")] == [2, 5, 8, *[None] * 5]
    assert Entry("a", "uniform", (0, 1)).parameter_of(1) == 1.0
    choice = Entry("a", "choice", (1, "x", None, True))
    assert [choice.parameter_of(value) for value in (1, "x", None, True, 2)] == ["1", "x", "null", "true", None]
    assert choice.value_of("null") is None


def test_numbers_are_shown_short_and_stored_whole():
    assert shown(0.000123456) == "0.0001235"
    assert Entry("a", "choice", (0.123456, 0.123457)).values == (0.123456, 0.123457)
