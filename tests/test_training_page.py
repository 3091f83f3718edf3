"""docs/training.md is true: each command of it is composed and checked, and each choice that it names exists."""

import re
import shlex

import pytest

from finetune.config import build, compose
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"(?s)```bash\n(.*?)```", PAGE) for line in block.splitlines()]
CHOICES = sorted(set(re.findall(r"`((?:mixing|transforms|loss)=\w+)", PAGE)))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_checked(command):
    build.check(compose.plain(compose.compose(shlex.split(command)[3:])))


def test_each_choice_exists():
    assert len(CHOICES) > 10
    for choice in CHOICES:
        group, name = choice.split("=")
        assert name in compose.choices()[group], choice
