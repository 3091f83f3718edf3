"""A finished run onto the Hugging Face hub: which files, what is left out of them, the model card, and the upload."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune import __version__, model_file
from finetune.errors import FinetuneError
from finetune.files import write_json_atomic, write_text_atomic
from finetune.model_file import Model
from finetune.pages.card import Facts, write_card
from finetune.runs.folder import RunFolder
from finetune.runs.read import read_run
from finetune.steps import private as privacy
from finetune.weights import hub

CARD, MODEL_FILE, CONFIG, SCORES = "README.md", "model.safetensors", "config.json", "scores.json"
NAMES = (CARD, MODEL_FILE, CONFIG, SCORES)
"""All that is ever uploaded. Of the other files of a run report.html has images, the tables have patients."""
FOLDER, LIST = "upload", "upload.json"
"""Below the job's folder: the files to upload, and the list of them."""
REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)
LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True)
class Pushed:
    """What was uploaded, or would be."""

    to: str
    private: bool
    folder: str
    """Where the files lie, as they were uploaded."""
    files: dict[str, int]
    """Name -> size in bytes."""
    url: str | None
    """Of the commit; None of a dry run."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def push(
    run: str | Path,
    to: str,
    *,
    private: bool = True,
    licence: str | None = None,
    dataset: str | None = None,
    dry_run: bool = False,
    folder: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Pushed:
    """Upload a finished run to the Hugging Face hub: model.safetensors, scores.json, config.json where the run has one,
    and a model card (README.md) made from them. Paths, commands and ids of patients stay here.

    The login is that of `hf auth login` or of HF_TOKEN.

    Args:
        run: a finished run folder.
        to: the repository, ORG/NAME; it is made if there is none.
        private: whether only its organisation sees it.
        licence: the hub's identifier of the licence of these weights, such as apache-2.0.
        dataset: name of the data for the card; an ORG/NAME is a data set of the hub.
        dry_run: write the files to upload and their list, and stop.
        folder: where they are written; by default outputs/push/STAMP.
        say: takes a sentence for the user.

    Raises:
        FinetuneError: no finished run; an id of a patient in a file; no login; the hub is out of reach or refuses.

    Example:
        >>> finetune.push("outputs/latest", "my-hospital/chest", licence="cc-by-nc-4.0", dry_run=True).files
        {'README.md': 3904, 'model.safetensors': 94329612, 'scores.json': 60211}
    """
    if not REPOSITORY.fullmatch(to) or ".." in to or "--" in to:
        raise FinetuneError(f"to={to} is no repository: write ORG/NAME, of letters, digits and any of . _ -")
    hub.check_name("to", to, to)
    if licence is not None and not LICENCE.fullmatch(licence):
        raise FinetuneError(
            f"licence={licence} is no identifier of the hub, such as apache-2.0 or cc-by-nc-4.0: lower case, no spaces."
        )
    source = RunFolder(Path(run))
    folder = Path(folder or Path("outputs", "push", f"{datetime.now():%Y-%m-%d_%H-%M-%S}"))
    files = write_files(source, folder / FOLDER, Facts(to, licence, dataset, _has_config(source)))
    seen_by = "private" if private else "PUBLIC"
    say(f"{'To upload' if dry_run else 'Uploading'} from {source} to {to} ({seen_by}):")
    for name, size in files.items():
        say(f"  {name:<18} {size / 1e6:>9.3f} MB")
    if licence is None:
        say("No licence was stated (licence=...): the card says so.")
    url = None if dry_run else upload(folder / FOLDER, list(files), to, private=private)
    pushed = Pushed(to, private, str(folder / FOLDER), files, url)
    write_json_atomic(folder / LIST, pushed.to_dict())
    say(f"dry run: nothing was uploaded. The files are in {folder / FOLDER}." if dry_run else f"uploaded: {url}")
    return pushed


def write_files(source: RunFolder, folder: Path, facts: Facts) -> dict[str, int]:
    """Write what is uploaded of a run into `folder`, after all checks; returns sizes by name.

    Raises:
        FinetuneError: not the folder of a finished fit or soup, or an id of a patient in what would be uploaded.
    """
    if not source.path.is_dir() or not source.config.is_file():
        raise FinetuneError(
            f"model={source} is not a run folder: the card is made from its files. Name a finished run."
        )
    model = model_file.load(source.path)
    model.provenance = privacy.public_provenance(model.provenance)
    scores = privacy.without_paths(read_run(source.path).scores)
    config = json.loads((source.path / CONFIG).read_text(encoding="utf-8")) if facts.has_config else None
    card = write_card(source.path, facts)
    contents = {CARD: card, SCORES: scores, CONFIG: config, MODEL_FILE: header(model)}
    privacy.check(contents, privacy.known_ids(source), set(model.classes))
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder / CARD, card)
    write_json_atomic(folder / SCORES, scores)
    if config is not None:
        write_json_atomic(folder / CONFIG, config)
    model.save(folder / MODEL_FILE)
    return {name: (folder / name).stat().st_size for name in NAMES if (folder / name).is_file()}


def header(model: Model) -> dict[str, Any]:
    """What a model file says beside its tensors, as far as texts of a user may be in it."""
    return {"provenance": model.provenance, "answers": model.answers.to_dict(), "network": model.spec.to_dict()}


def upload(folder: Path, names: list[str], to: str, *, private: bool) -> str:
    """Commit the files to a repository, which is made if there is none; returns the address of the commit.

    Raises:
        FinetuneError: offline, no login, out of reach, refused, or a public repository where a private one is meant.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if unknown := sorted(set(names) - set(NAMES)):
        raise FinetuneError(f"{', '.join(unknown)} is never uploaded; {', '.join(NAMES)} are.")
    endpoint = hub.hub_endpoint()
    again = f"The files are in {folder}."
    if hub.is_offline():
        raise FinetuneError(f"HF_HUB_OFFLINE is set: nothing can be uploaded. {again}")
    if not get_token():
        raise FinetuneError(f"There is no login for {endpoint}: type `hf auth login`, or set HF_TOKEN. {again}")
    if (problem := hub.find_problem(endpoint)) and not problem.status:
        raise FinetuneError(f"{endpoint} {problem.text}. {again}")
    api = HfApi(endpoint=endpoint, library_name="finetune", library_version=__version__)
    try:
        api.create_repo(to, private=private, exist_ok=True)
        there = api.model_info(to)
        if private and not there.private:  # the hub leaves an existing one as it is
            raise FinetuneError(f"{to} is a public repository. Add private=false, or name another. {again}")
        stale = {file.rfilename for file in there.siblings or []} & set(NAMES) - set(names)  # of an earlier model
        operations: list[Any] = [CommitOperationAdd(name, str(folder / name)) for name in names]
        operations += [CommitOperationDelete(name) for name in sorted(stale)]
        commit = api.create_commit(to, operations, commit_message=f"Model and card, written by finetune {__version__}")
    except FinetuneError:
        raise
    except hub.CLIENT_ERRORS + (ValueError, RuntimeError) as error:  # noqa: RUF005 (mypy cannot follow a star)
        # its ValueErrors are of a card or a file, its RuntimeErrors of an upload that broke off
        reason = " ".join(str(error).split())[:300]
        raise FinetuneError(
            f"{to} was not uploaded: {reason} Does the login have the right to write there? {again}"
        ) from error
    return str(commit.commit_url)


def _has_config(source: RunFolder) -> bool:
    """Whether the fit wrote a config.json, by which timm builds the network."""
    return (source.path / CONFIG).is_file()
