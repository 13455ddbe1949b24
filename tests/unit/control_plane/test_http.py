"""Base addresses; the rest of the HTTP transport needs sockets (tests/integration)."""

import pytest

from netsonde.control_plane.http import HttpControlPlaneTransport, normalise_base_url
from netsonde.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("http://api-gw:8088/v1/agents/", "http://api-gw:8088"),
        ("http://api-gw:8088/v1/agents", "http://api-gw:8088"),
        ("https://example.net/probes/", "https://example.net/probes"),
        ("https://example.net/probes/v1/agents//", "https://example.net/probes"),
        ("http://h/v1", "http://h/v1"),
        ("http://[::1]:8080/api/v1/", "http://[::1]:8080/api/v1"),
        (" http://h \n", "http://h"),
    ],
)
def test_a_base_address_ends_without_a_slash(written: str, meant: str) -> None:
    assert normalise_base_url(written) == meant
    assert HttpControlPlaneTransport(written).base_url == meant


@pytest.mark.parametrize(
    "written",
    ["", "127.0.0.1:8080", "ftp://h", "http://", "http://h:0", "http://h:99999", "http://[::1",
     "http://user:secret@h", "http://h?x=1", "http://h#x", "/v1"],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_an_example(written: str) -> None:
    with pytest.raises(ConfigError, match="write http://host:port") as caught:
        HttpControlPlaneTransport(written)

    assert "secret" not in str(caught.value)
