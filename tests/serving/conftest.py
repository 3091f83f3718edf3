"""Runs and servers that several files of tests share."""

import pytest

from tests.serving.served import Server, make_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Kind -> the folder of a tiny run."""
    folder = tmp_path_factory.mktemp("served")
    return {kind: make_run(folder / kind, kind) for kind in ("multilabel", "multiclass")}


@pytest.fixture(scope="module")
def server(runs):
    """A server of the multilabel run."""
    started = Server(runs["multilabel"])
    yield started
    started.close()
