"""docs/serve.md is true: its commands compose, the addresses, fields, keys and files that it names are there."""

import re
import shlex

from finetune.config import compose
from finetune.config.settings import parse
from finetune.serving.answer import Answer
from finetune.serving.app import REASONS
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"(?s)```bash\n(.*?)```", PAGE) for line in block.splitlines()]


def test_each_command_composes():
    commands = [line for line in COMMANDS if "python -m finetune" in line]
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command.partition("#")[0].partition("python -m finetune")[2])
        assert parse(compose.plain(compose.compose(words))).job == "serve"


def test_keys_have_the_defaults_that_are_named():
    settings = parse(compose.plain(compose.compose(["job=serve"])))
    named = dict(re.findall(r"`(max_\w+|timeout|decoders)=(\d+)`", PAGE))
    assert len(named) == 7
    for key, value in named.items():
        assert getattr(settings, key) == float(value), key


def test_addresses_fields_and_statuses_are_those_of_the_server(server):
    table = PAGE.partition("## The API")[2]
    addresses = set(re.findall(r"`(?:GET|POST) (/[\w.]*)", table))
    routes = {route.path for route in server.app.routes if hasattr(route, "path")}
    assert addresses == routes
    fields = set(re.findall(r"`(\w+)`", "".join(re.findall(r"(?m)^\| ((?:`\w+`(?:, )?)+) \|", table))))
    assert fields == set(Answer.model_fields) - {"request_id", "height", "width", "heat_map", "preview"}
    for status in REASONS:
        assert f"{status} " in table, status


def test_files_that_are_named_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        if "://" not in target:
            assert (ROOT / "docs" / target).exists(), target


def test_the_container_starts_the_job_and_is_no_root():
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    entry = re.search(r"ENTRYPOINT (\[.*\])", text)
    words = [word.strip(' "') for word in entry[1].strip("[]").split(",")][3:]
    assert parse(compose.plain(compose.compose(words))).host == "0.0.0.0"
    assert text.index("USER finetune") < text.index("ENTRYPOINT")
    for source in re.findall(r"(?m)^COPY (.+) \S+$", text):
        assert all((ROOT / name).exists() for name in source.split())
