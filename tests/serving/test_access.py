"""Who may ask, and what the server says and logs."""

import json
import re
import socket

import pytest

from finetune.errors import FinetuneError
from finetune.serving import server as process
from finetune.serving.access import Access, is_local, read_token
from finetune.serving.limits import Limits
from finetune.serving.refusal import Refused
from tests.serving.served import Server, draw, encode, upload

TOKEN = "a-token-of-sixteen"


def test_a_token_opens_what_says_something_of_the_model(runs):
    server = Server(runs["multilabel"], access=Access(TOKEN))
    data = encode(draw(0))
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": "Bearer ü"}):
        header = {name: value.encode("latin-1") for name, value in header.items()}
        response = server.predict(data, headers=header)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
    allowed = {"Authorization": f"bearer {TOKEN}"}
    assert server.predict(data, headers=allowed).status_code == 200
    for url, is_open in {
        "/": 1,
        "/docs": 1,
        "/health": 1,
        "/openapi.json": 1,
        "/model": 0,
        "/metrics": 0,
        "/x": 0,
    }.items():
        assert (server.ask({"url": url})[0].status_code == 401) != is_open
    assert TOKEN not in " ".join(server.lines)
    assert 'id="access">' in server.ask({"url": "/"})[0].text  # the page asks for it
    server.close()


def test_other_names_and_other_origins_are_refused_on_a_local_address(runs):
    server = Server(runs["multilabel"], access=Access.of("127.0.0.1", None, ["my-host"]))
    for host in ("127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "my-host"):
        assert server.ask({"url": "/health", "headers": {"Host": host}})[0].status_code == 200
    for host in ("evil.example:8000", "127.0.0.1.evil.example", "localhost@evil.example:80", "[::1", "", "a b"):
        assert server.ask({"url": "/health", "headers": {"Host": host}})[0].status_code == 421
    own = {"Origin": "http://127.0.0.1:8000", "Host": "127.0.0.1:8000"}
    assert server.predict(encode(draw(0)), headers=own).status_code == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9000", "http://["):
        response = server.predict(encode(draw(0)), headers={**own, "Origin": origin})
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers
    assert Access.of("0.0.0.0", None).hosts == ()
    named = Access.of("0.0.0.0", None, ["xray"])
    named.check_host("xray:80", None)
    named.check_host("127.0.0.1:8000", None)  # the health check of a container
    with pytest.raises(Refused):
        named.check_host("evil.example", None)
    server.close()


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)]
)
def test_addresses_of_this_machine_alone(host, local):
    assert is_local(host) is local


def test_a_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("FINETUNE_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("FINETUNE_TOKEN", "short")
    with pytest.raises(FinetuneError, match="FINETUNE_TOKEN must hold one token of at least 16"):
        read_token(None)
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token(str(file)) == TOKEN  # the file has precedence
    monkeypatch.setenv("FINETUNE_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    for text in (f"{TOKEN} and more", "", f"{TOKEN}\n{TOKEN}"):
        file.write_text(text)
        with pytest.raises(FinetuneError, match="must hold one token"):
            read_token(str(file))
    with pytest.raises(FinetuneError, match=r"token_file=.*missing cannot be read: No such file"):
        read_token(str(tmp_path / "missing"))


def test_request_ids_are_given_or_made_and_cannot_forge_the_log(runs):
    server = Server(runs["multilabel"])
    (response,) = server.ask({"url": "/health", "headers": {"X-Request-ID": "run-7.image_3"}})
    assert response.headers["x-request-id"] == "run-7.image_3"
    for bad in ("two words", "x" * 65, "a\tb", "ü".encode().decode("latin-1")):
        (response,) = server.ask({"url": "/health", "headers": [(b"X-Request-ID", bad.encode("latin-1"))]})
        assert re.fullmatch(r"[0-9a-f]{16}", response.headers["x-request-id"])
    answer = server.predict(encode(draw(0)), headers={"X-Request-ID": "mine"}).json()
    assert answer["request_id"] == "mine"
    server.close()


def test_nothing_of_the_upload_is_logged_or_answered(runs):
    server = Server(runs["multilabel"])
    data = encode(draw(0))
    server.ask(
        upload(data),  # its file is called Jane Doe 1970.png
        upload(b"Jane Doe 1970"),
        upload(data, "/predict?heatmap=Pneumonia&patient=Doe"),
        {"url": "/patients/Doe"},
        {"method": "DOE", "url": "/predict"},
        {"method": "POST", "url": "/predict", "files": {"Doe": ("Doe", b"Doe")}},
    )
    text = "\n".join(server.lines)
    assert "Doe" not in text
    assert len(server.lines) == 6
    assert [line.split()[1:4] for line in server.lines] == [
        ["POST", "/predict", "200"], ["POST", "/predict", "415"], ["POST", "/predict", "200"],
        ["GET", "other", "404"], ["other", "/predict", "405"], ["POST", "/predict", "400"],
    ]  # fmt: skip
    assert "Doe" not in server.ask({"url": "/metrics"})[0].text
    server.close()


def test_an_error_of_the_program_is_answered_and_logged_without_its_text(runs, monkeypatch):
    server = Server(runs["multilabel"])

    def fail(inputs):
        raise KeyError("Doe^Jane")

    monkeypatch.setattr(server.service.batcher, "predict", fail)
    response = server.predict(encode(draw(0)))
    assert response.status_code == 500
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "Doe" not in response.text + "\n".join(server.lines)
    assert any("error KeyError at test_access.py:" in line for line in server.lines)
    monkeypatch.undo()
    assert server.predict(encode(draw(0))).status_code == 200
    server.close()


def test_every_answer_has_its_headers_and_pages_load_nothing(server):
    for url in ("/", "/docs", "/health", "/model", "/missing"):
        (response,) = server.ask({"url": url})
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe-eval" not in policy
        assert "http" not in policy
    page = server.ask({"url": "/"})[0].text
    assert not re.findall(r"(?:src|href)=\"(?!data:|/docs|/openapi\.json|/\")[^\"]", page)
    docs = server.ask({"url": "/docs"})[0].text
    assert "<code>POST /predict</code>" in docs
    assert "<script" not in docs


def test_the_openapi_document_names_form_answer_and_refusals(server):
    document = json.loads(server.ask({"url": "/openapi.json"})[0].text)
    about = document["paths"]["/predict"]["post"]
    form = about["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["image"]
    assert {"200", "400", "401", "408", "413", "415", "422", "503", "504"} <= set(about["responses"])
    answer = document["components"]["schemas"]["Answer"]["properties"]
    assert {"classes", "decision", "conformal", "novelty", "warnings", "model", "notice"} <= set(answer)
    assert set(document["paths"]) == {"/predict", "/model", "/health", "/metrics"}


def test_a_port_in_use_or_another_machines_address_is_an_error():
    with process.bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert process.address(listening) == f"http://127.0.0.1:{port}"
        assert listening.proto == socket.IPPROTO_TCP  # or asyncio sets no TCP_NODELAY: 40 ms more for each answer
        with pytest.raises(FinetuneError, match=f"port={port} of 127.0.0.1 is in use"):
            process.bind("127.0.0.1", port)
    with pytest.raises(FinetuneError, match=r"host=192\.0\.2\.1 port=0 cannot be opened"):
        process.bind("192.0.2.1", 0)


def test_too_many_requests_are_told_when_to_come_again(runs):
    server = Server(runs["multilabel"], limits=Limits(max_waiting=4))
    responses = server.ask(*[upload(encode(draw(n))) for n in range(40)], at_once=True)
    codes = [response.status_code for response in responses]
    assert set(codes) == {200, 503}
    assert all(r.headers["retry-after"] == "1" for r in responses if r.status_code == 503)
    assert server.service.admission.requests == server.service.admission.bytes == 0
    assert server.predict(encode(draw(0))).status_code == 200
    server.close()
