"""docs/use_the_model.md is true: each command of it is composed and checked, and each file that it names is there."""

import re
import shlex

import pytest

from finetune.config import build, compose
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "use_the_model.md").read_text(encoding="utf-8")
COMMANDS = [
    line.rpartition("| ")[2]
    for block in re.findall(r"(?s)```bash\n(.*?)```", PAGE)
    for line in block.splitlines()
    if "python -m finetune" in line
]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_checked(command):
    words = shlex.split(command, comments=True)
    assert words[:3] == ["python", "-m", "finetune"]
    build.check(compose.plain(compose.compose(words[3:])))


def test_files_named_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert "://" in target or (ROOT / "docs" / target).exists(), target
