"""Published weights on disk: from the cache, else downloaded; an unreachable hub is detected in seconds.

What is cached is used without a question to the hub. HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT, TORCH_HOME and
the proxy variables are respected, and read when used, not when imported.
"""

import os
import re
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import build_hf_headers, validate_repo_id

from finetune.errors import FinetuneError
from finetune.weights.files import sha256

PATIENCE = 8.0
"""Seconds after which an unanswering hub counts as unreachable. Its own client tries for about a minute."""

HUB_FILE = "model.safetensors"

CLIENT_ERRORS: tuple[type[BaseException], ...] = HfHubHTTPError.__bases__
"""OSError, and the error of the HTTP library beneath the hub's client, which has changed over its versions."""


class MissingFile(FinetuneError):
    """The repository is there, and has no such file."""


@dataclass(frozen=True)
class Problem:
    """Why a file cannot be downloaded."""

    text: str
    status: int = 0
    """Of HTTP; 0 where there was no answer."""
    code: str = ""
    """Hugging Face's name of the problem, such as RepoNotFound; empty from other servers."""


def cached(repo: str, filename: str, revision: str | None = None) -> Path | None:
    """A file of a Hugging Face repository in the cache, or None."""
    path = try_to_load_from_cache(repo, filename, cache_dir=hub_cache(), revision=revision)
    return Path(path) if isinstance(path, str) else None


def check_name(argument: str, value: str, repo: str) -> None:
    """Raise a FinetuneError where the hub takes no repository of that name."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise FinetuneError(f"{argument}={value}: {str(error).splitlines()[0].rstrip('.')}.") from None
    if any(part.endswith((".", "-")) for part in repo.split("/")):
        raise FinetuneError(f"{argument}={value}: on the hub no name ends in . or -.")


def hub_endpoint() -> str:
    """The address of the hub by the current environment."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def from_hub(repo: str, filename: str = HUB_FILE, revision: str | None = None) -> Path:
    """A file of a Hugging Face repository, cached or downloaded; a private one with the user's own login.

    Raises:
        MissingFile: the repository has no such file.
        FinetuneError: not cached, and the hub is offline or out of reach, or the repository is unknown or closed.
    """
    if path := cached(repo, filename, revision):
        return path
    endpoint = hub_endpoint()
    url = f"{endpoint}/{repo}/resolve/{revision or 'main'}/{filename}"
    if is_offline():
        raise FinetuneError(f"{repo} is not in the cache {hub_cache()}, and HF_HUB_OFFLINE is set. {WAYS_OUT}")
    if problem := find_problem(url, with_login=True):
        message = f"{repo} is not in the cache {hub_cache()}, and {url} {problem.text}. "
        if problem.status in (401, 403) or problem.code in ("RepoNotFound", "GatedRepo"):
            raise FinetuneError(f"{message}{UNKNOWN_OR_CLOSED} {WAYS_OUT}")
        is_missing = problem.status == 404 and problem.code in ("", "EntryNotFound")
        raise (MissingFile if is_missing else FinetuneError)(f"{message}{WAYS_OUT}")
    try:
        return Path(hf_hub_download(repo, filename, cache_dir=hub_cache(), endpoint=endpoint, revision=revision))
    except CLIENT_ERRORS as error:
        reason = str(error).strip().split("\n")[0]
        raise FinetuneError(f"{url} could not be downloaded: {reason} {WAYS_OUT}") from error


def from_url(url: str) -> Path:
    """A file by its address, in torch's hub cache; the digits in its name are the start of its sha256.

    Raises:
        FinetuneError: not cached and out of reach, or the bytes are not those that the name promises.
    """
    name = url.rsplit("/", 1)[-1]
    path = torch_cache() / name
    digits = match.group(1) if (match := re.search(r"-([a-f0-9]{8,})\.", name)) else ""
    if path.is_file():
        if not sha256(path).startswith(digits):
            raise FinetuneError(f"{path} is damaged: its sha256 does not start with {digits}. Delete it and run again.")
        return path
    if is_offline():
        raise FinetuneError(f"{name} is not in the cache {path.parent}, and HF_HUB_OFFLINE is set. {WAYS_OUT}")
    if problem := find_problem(url):
        raise FinetuneError(f"{name} is not in the cache {path.parent}, and {url} {problem.text}. {WAYS_OUT}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digits or None, progress=False)
    except (OSError, RuntimeError) as error:
        raise FinetuneError(f"{url} could not be downloaded: {error} {WAYS_OUT}") from error
    return path


WAYS_OUT = (
    "Give a file (backbone.weights=PATH), run where the hub can be reached and take its cache along "
    "(HF_HOME, HF_HUB_OFFLINE=1), or start from random weights (backbone.weights=none)."
)


UNKNOWN_OR_CLOSED = (
    "There is no such repository, or it is private: check its name, or log in with an account that may read it "
    "(`hf auth login`, or HF_TOKEN)."
)


def hub_cache() -> str:
    """The cache of huggingface_hub by the current environment, which it reads only at import."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return str(Path(cache).expanduser())
    if home := os.environ.get("HF_HOME"):
        return str(Path(home).expanduser() / "hub")
    return constants.HF_HUB_CACHE


def torch_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def is_offline() -> bool:
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection is an answer: nothing, and no login, is sent to another place."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def find_problem(url: str, *, with_login: bool = False) -> Problem | None:
    """Why the file cannot be downloaded, or None. One request, in a thread: a DNS lookup has no time limit."""
    answer: list[Problem | None] = []

    def ask() -> None:
        headers = build_hf_headers(library_name="finetune") if with_login else {"user-agent": "finetune"}
        request = urllib.request.Request(url, method="HEAD", headers=headers)
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=PATIENCE):
                answer.append(None)
        except urllib.error.HTTPError as error:
            error.close()
            text = f"answers {error.code} {error.reason}"
            is_there = 300 <= error.code < 400
            answer.append(None if is_there else Problem(text, error.code, error.headers.get("X-Error-Code") or ""))
        except (OSError, ValueError) as error:
            answer.append(Problem(f"is out of reach ({getattr(error, 'reason', error)})"))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answer[0] if answer else Problem(f"has not answered in {PATIENCE:g} seconds")
