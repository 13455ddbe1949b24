import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde import __version__
from netsonde.model import HttpSpec
from netsonde.probe.http.request import BadRequest, Request, Url, check_headers, parse_url


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://example.net", Url("http", "example.net", 80, "/")),
        ("https://example.net", Url("https", "example.net", 443, "/")),
        ("HTTP://Example.NET:8080/a?b=c#d", Url("http", "example.net", 8080, "/a?b=c")),
        ("http://[2001:db8::1]:81/", Url("http", "2001:db8::1", 81, "/")),
        ("http://[fe80::1%25eth0]/", Url("http", "fe80::1%eth0", 80, "/")),
        ("http://192.0.2.1/%20", Url("http", "192.0.2.1", 80, "/%20")),
        ("http://example.net/ä?ö=ü", Url("http", "example.net", 80, "/%C3%A4?%C3%B6=%C3%BC")),
        ("http://bücher.example/", Url("http", "xn--bcher-kva.example", 80, "/")),
        ("http://example.net?q", Url("http", "example.net", 80, "/?q")),
    ],
)
def test_a_url_is_taken_apart(text: str, url: Url) -> None:
    assert parse_url(text) == url


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must begin with http://"),
        ("example.net", "must begin with http://"),
        ("ftp://example.net", "must begin with http://"),
        ("http://", "must begin with http://"),
        ("http:///path", "must begin with http://"),
        ("file:///etc/passwd", "must begin with http://"),
        ("http://example.net:0/", "the port must be 1 to 65535"),
        ("http://example.net:65536/", "is not a URL"),
        ("http://example.net:x/", "is not a URL"),
        ("http://[::1", "is not a URL"),
        ("http://[example]/", "url"),
        ("http://user:secret@example.net/", "Authorization header"),
        ("http://example.net/a b", "blanks or control characters"),
        ("http://example.net/\r\nX: y", "blanks or control characters"),
        ("http://exa\tmple.net/", "blanks or control characters"),
        ("http://a..b/", "is not a host name"),
        ("http://" + "x" * 64 + ".net/", "is not a host name"),
        ("http://ex<ample.net/", "is not a host name"),
        ("http://\xa0/", "is not a host name"),
        ("http://example.net/\udcff", "no character of UTF-8"),
        ("http://example.net/?\ud800", "no character of UTF-8"),
        ("http://example.net/" + "x" * 9000, "at most 8192"),
    ],
)
def test_a_bad_url_is_a_sentence(text: str, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_url(text)

    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_a_url_or_a_sentence(text: str) -> None:
    for candidate in (text, f"http://{text}", f"https://example.net/{text}"):
        try:
            url = parse_url(candidate)
        except BadRequest:
            continue
        wire = Request(url, "GET", {}).encode()
        assert wire.startswith(b"GET /")
        assert wire.count(b"\r\n") == 7  # request line, five headers, the empty line
        assert b"\n" not in wire.replace(b"\r\n", b"")


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=40), max_size=4))
def test_any_headers_are_sent_as_lines_of_their_own_or_refused(headers: dict[str, str]) -> None:
    spec = HttpSpec(url="http://example.net/", headers=headers)
    try:
        wire = Request.first(spec).encode()
    except BadRequest:
        return
    ours = {"host", "user-agent", "accept", "accept-encoding", "connection"}
    names = [line.partition(b":")[0].decode() for line in wire.split(b"\r\n")[1:-2]]
    assert wire.endswith(b"\r\n\r\n")
    assert set(names) <= {"Connection"} | set(headers) | {
        "Host",
        "User-Agent",
        "Accept",
        "Accept-Encoding",
    }
    assert ours <= {name.lower() for name in names}


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"X\r\nY": "z"}, "is not a header name"),
        ({"X Y": "z"}, "is not a header name"),
        ({"": "z"}, "is not a header name"),
        ({"X": "a\r\nHost: evil"}, "control characters"),
        ({"X": "a\nb"}, "control characters"),
        ({"X": "a\0b"}, "control characters"),
        ({"X": "snow \u2603"}, "control characters"),
        ({"Content-Length": "5"}, "decided by the check itself"),
        ({"transfer-encoding": "chunked"}, "decided by the check itself"),
        ({f"X-{number}": "y" for number in range(65)}, "at most 64"),
        ({"X": "y" * 20_000}, "at most 16384 bytes"),
        ({"Host": "a", "host": "b"}, "host is given twice"),
    ],
)
def test_a_bad_header_is_a_sentence(headers: dict[str, str], words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_headers(headers)

    assert words in str(caught.value)


@pytest.mark.parametrize("method", ["GET\n", "GET /x HTTP/1.1\r\nHost: y", "get", "", "G" * 21])
def test_a_method_is_a_word(method: str) -> None:
    with pytest.raises(BadRequest, match=r"method: .* capital letters"):
        Request.first(HttpSpec(url="http://example.net", method=method))


def test_connect_is_refused() -> None:
    with pytest.raises(BadRequest, match="CONNECT opens a tunnel"):
        Request.first(HttpSpec(url="http://example.net", method="CONNECT"))


def test_a_request_asks_for_one_plain_answer() -> None:
    request = Request.first(HttpSpec(url="http://example.net:81/a?b", headers={"X-Y": "z"}))

    assert request.encode().decode() == (
        "GET /a?b HTTP/1.1\r\n"
        "Host: example.net:81\r\n"
        f"User-Agent: netsonde/{__version__}\r\n"
        "Accept: */*\r\n"
        "Accept-Encoding: identity\r\n"
        "X-Y: z\r\n"
        "Connection: close\r\n"
        "\r\n"
    )


def test_given_headers_replace_ours() -> None:
    spec = HttpSpec(url="http://192.0.2.1/", headers={"host": "example.net", "user-agent": "me"})

    wire = Request.first(spec).encode().decode()

    assert "host: example.net" in wire
    assert "Host: " not in wire
    assert "netsonde" not in wire


def test_a_post_says_that_it_has_no_body() -> None:
    wire = Request.first(HttpSpec(url="http://example.net", method="POST")).encode()

    assert b"\r\nContent-Length: 0\r\n" in wire


def test_an_address_with_a_zone_is_not_told_to_the_server() -> None:
    wire = Request.first(HttpSpec(url="http://[fe80::1%25eth0]:81/")).encode()

    assert b"Host: [fe80::1]:81\r\n" in wire


SECRETS = {"Authorization": "Bearer s", "Cookie": "c=d", "Host": "other", "X-Y": "z"}


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/there", "http://example.net/there"),
        ("there?x=y", "http://example.net/a/there?x=y"),
        ("//example.org/", "http://example.org/"),
        ("https://example.org:8443/x#y", "https://example.org:8443/x"),
        (" http://example.org/ ", "http://example.org/"),
    ],
)
def test_a_location_is_resolved_against_the_url(location: str, url: str) -> None:
    first = Request.first(HttpSpec(url="http://example.net/a/b"))

    assert str(first.redirected(302, location).url) == url


def test_secrets_stay_with_their_origin() -> None:
    first = Request.first(HttpSpec(url="https://example.net/", headers=SECRETS))

    assert first.redirected(302, "/x").headers == SECRETS
    for elsewhere in ("https://example.org/", "http://example.net/", "https://example.net:444/"):
        assert first.redirected(302, elsewhere).headers == {"X-Y": "z"}


@pytest.mark.parametrize(
    ("status", "method", "becomes"),
    [
        (301, "GET", "GET"),
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (302, "PUT", "PUT"),
        (303, "PUT", "GET"),
        (303, "HEAD", "HEAD"),
        (307, "POST", "POST"),
        (308, "POST", "POST"),
    ],
)
def test_the_method_follows_the_status(status: int, method: str, becomes: str) -> None:
    first = Request.first(HttpSpec(url="http://example.net/", method=method))

    assert first.redirected(status, "/x").method == becomes


@pytest.mark.parametrize("location", ["http://[", "ftp://example.net/", "/a\r\nb", "http://u:p@h/"])
def test_a_bad_location_is_a_sentence(location: str) -> None:
    with pytest.raises(BadRequest):
        Request.first(HttpSpec(url="http://example.net/")).redirected(302, location)


@pytest.mark.parametrize(
    ("location", "host"),
    [("/x", "fe80::1%eth0"), ("http://[fe80::1]/x", "fe80::1"), ("//[fe80::2]/x", "fe80::2")],
)
def test_a_path_is_on_the_same_link(location: str, host: str) -> None:
    first = Request.first(HttpSpec(url="http://[fe80::1%25eth0]/", headers=SECRETS))

    redirected = first.redirected(302, location)
    assert redirected.url.host == host
    assert ("Cookie" in redirected.headers) == (location == "/x")
