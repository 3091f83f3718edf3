"""A resolved configuration, read from its file."""

from pathlib import Path
from typing import Any

import yaml

from finetune.errors import FinetuneError
from finetune.runs.renames import renamed

CONFIG = "config.yaml"
"""Of a run folder."""


def read_config_file(file: Path) -> dict[str, Any]:
    """A resolved configuration, as plain values, with current names.

    Raises:
        FinetuneError: no such file, one that is damaged, or one that holds interpolations.
    """
    try:
        text = file.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except OSError as error:
        raise FinetuneError(f"{file} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FinetuneError(f"{file} cannot be read as YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(config, dict):
        raise FinetuneError(f"{file} is empty or not a configuration.")
    if "${" in text:
        raise FinetuneError(
            f"{file} holds an interpolation (${{...}}); a run's configuration is resolved. Refusing it."
        )
    return {str(key): value for key, value in renamed(config).items()}
