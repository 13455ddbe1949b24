import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.probe.http.response import ProtocolFault, ResponseReader

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


def read(
    *chunks: bytes, method: str = "GET", max_body: int = 100, end: bool = False
) -> ResponseReader:
    reader = ResponseReader(method, max_body)
    for chunk in chunks:
        reader.feed(chunk)
    if end:
        reader.finish()
    return reader


def test_a_body_of_known_length_ends_by_itself() -> None:
    reader = read(HEAD + b"Content-Length: 5\r\n\r\nhello")

    assert reader.done
    assert reader.value() == {
        "status": 200,
        "reason_phrase": "OK",
        "http_version": "1.1",
        "headers": {"content-type": "text/plain", "content-length": "5"},
        "body": {
            "size": 5,
            "sha256": hashlib.sha256(b"hello").hexdigest(),
            "truncated": False,
        },
    }


def test_a_chunked_body_counts_without_its_framing() -> None:
    reader = read(
        HEAD
        + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: t\r\n\r\n"
    )

    assert reader.done
    assert reader.size == 5
    assert reader.sha256 == hashlib.sha256(b"abcde").hexdigest()


def test_a_body_of_unknown_length_ends_with_the_connection() -> None:
    reader = read(HEAD + b"\r\n", b"abc", b"de")
    assert not reader.done

    reader.finish()

    assert reader.done
    assert reader.size == 5


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"),
    ],
)
def test_some_answers_have_no_body(method: str, head: bytes) -> None:
    reader = read(head, method=method)

    assert reader.done
    assert reader.size == 0


def test_informational_answers_are_passed_over() -> None:
    reader = read(
        b"HTTP/1.1 100 Continue\r\nX: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    )

    assert (reader.status, reader.reason_phrase, reader.informational) == (404, "Not Found", 2)
    assert reader.headers == [("content-length", "0")]
    assert reader.done


def test_bytes_after_the_answer_are_not_part_of_it() -> None:
    reader = read(HEAD + b"Content-Length: 2\r\n\r\nokHTTP/1.1 500 Evil\r\n\r\n")

    assert (reader.status, reader.size, reader.done) == (200, 2, True)


def test_a_body_beyond_the_limit_is_cut_and_said_so() -> None:
    reader = read(HEAD + b"Content-Length: 500\r\n\r\n", b"x" * 60, b"y" * 60, max_body=100)

    assert reader.done
    assert reader.truncated
    assert reader.size == 100
    assert reader.sha256 == hashlib.sha256(b"x" * 60 + b"y" * 40).hexdigest()


def test_a_body_at_the_limit_is_whole() -> None:
    reader = read(HEAD + b"Content-Length: 100\r\n\r\n" + b"x" * 100, max_body=100)

    assert (reader.size, reader.truncated, reader.done) == (100, False, True)


def test_a_limit_of_nothing_reads_the_head_only() -> None:
    reader = read(HEAD + b"Content-Length: 500\r\n\r\nx", max_body=0)

    assert (reader.size, reader.truncated) == (0, True)


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ((), "before any answer"),
        ((b"HTTP/1.1 200 OK\r\nConte",), "within the headers"),
        ((HEAD + b"Content-Length: 5\r\n\r\nhel",), "after 3 body bytes of 5"),
        ((HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nab",), "after 2 body bytes of a chunked"),
    ],
)
def test_an_early_end_is_a_fault_that_says_where(chunks: tuple[bytes, ...], words: str) -> None:
    with pytest.raises(ProtocolFault, match=words):
        read(*chunks, end=True)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x16", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300, "more than 256 headers"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, "headers exceed 65536"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20, "more than 16 informational"),
    ],
)
def test_what_is_no_answer_is_a_fault(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolFault, match=words):
        read(data)


def test_kept_headers_are_bounded() -> None:
    reader = read(
        b"HTTP/1.1 302 Found\r\nServer: "
        + b"s" * 2000
        + b"\r\nLocation: /"
        + b"l" * 5000
        + b"\r\nX-Other: y\r\nContent-Length: 0\r\n\r\n"
    )

    kept = reader.kept_headers()
    assert (len(kept["server"]), len(kept["location"])) == (256, 1024)
    assert "x-other" not in kept
    assert len(reader.header("location") or "") == 5001


@given(st.lists(st.binary(max_size=80), max_size=8))
def test_any_bytes_are_an_answer_or_a_fault(chunks: list[bytes]) -> None:
    reader = ResponseReader("GET", 50)
    try:
        for chunk in chunks:
            reader.feed(chunk)
        reader.finish()
    except ProtocolFault:
        return
    assert reader.done


@given(st.integers(1, 200), st.binary(max_size=120))
def test_how_the_bytes_are_cut_changes_nothing(step: int, body: bytes) -> None:
    wire = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    whole = read(wire, max_body=1000)

    pieces = read(*(wire[at : at + step] for at in range(0, len(wire), step)), max_body=1000)

    assert pieces.value() == whole.value()
    assert pieces.done


@pytest.mark.parametrize("endless", [b"0\r\nX: ", b"0\r\nX", b"1;x=", b"000000"])
def test_framing_without_end_is_a_fault(endless: bytes) -> None:
    filler = endless[-1:] if endless[-1:] != b" " else b"y"
    with pytest.raises(ProtocolFault, match=r"not HTTP|without a byte of the body"):
        read(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + endless, *[filler * 65_536] * 4)


def test_trailers_add_no_headers() -> None:
    reader = read(
        b"HTTP/1.1 302 Found\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\na\r\n0\r\nLocation: http://example.org/\r\n\r\n"
    )
    assert reader.done
    assert reader.header("location") is None
