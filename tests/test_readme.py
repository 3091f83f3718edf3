"""The README keeps its word: every command in it composes, every file it names is there."""

import re
import shlex
from pathlib import Path

import pytest

from finetune.config import compose

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    {
        line.split("#")[0].split("&&")[-1].strip()
        for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
        for line in block.splitlines()
        if "python -m finetune" in line
    }
)


def test_the_two_commands_stand_there():
    assert 'pip install -e ".[dev]" && python -m finetune backbone=resnet50 data=chestxray' in README
    assert re.search(r'^pip install -e "\.\[dev\]" && pytest$', README, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command):
    words = shlex.split(command)[3:]
    if "--help" in words or any(word.startswith("resume=") for word in words):
        return
    sweep = "-m" in words
    compose.compose([word for word in words if word != "-m" and not word.startswith("config=")], sweep=sweep)


def test_files_named_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_keys_and_groups_in_the_pages_exist():
    groups = compose.choices()
    for group, chosen in re.findall(r"`(\w+)=(\w+)`", README):
        if group in groups:
            assert chosen in groups[group], f"{group}={chosen}"
