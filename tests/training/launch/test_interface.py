"""The interface that gloo is given between machines."""

import sys

import pytest

from finetune.training.launch import interface

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for addresses")


@linux
def test_the_interface_has_the_address_that_is_sent_from(monkeypatch):
    assert interface.address_of("lo") == "127.0.0.1"
    assert interface.address_of("nowhere0") is None
    assert interface.interface_towards("127.0.0.1") is None  # rank 0 on this machine: others would not reach it there
    assert interface.interface_towards("no.such.host.invalid") is None
    monkeypatch.setattr(interface.socket, "if_nameindex", lambda: [(1, "lo"), (2, "cable")])
    monkeypatch.setattr(interface, "address_of", {"lo": "127.0.0.1", "cable": "10.0.0.7"}.get)

    class Probe:
        def __init__(self, *_): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def connect(self, address):
            assert address == ("first", 9)

        def getsockname(self):
            return "10.0.0.7", 1234

    monkeypatch.setattr(interface.socket, "socket", Probe)
    assert interface.interface_towards("first") == "cable"


def test_what_the_user_names_is_kept(monkeypatch):
    monkeypatch.setattr(interface, "interface_towards", lambda host: "eth7")
    monkeypatch.setenv(interface.VARIABLE, "ib0")
    assert interface.choose_interface("first") == "ib0"
    monkeypatch.setenv(interface.VARIABLE, "")
    assert interface.choose_interface("first") == "eth7"
    assert interface.os.environ[interface.VARIABLE] == "eth7"
