"""TLS on both listeners, over real sockets, with certificates that the tests make."""

import asyncio
import logging
import shutil
import signal
import ssl
import subprocess
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from netsonde.agent import Agent, AgentConfig
from netsonde.cli.exits import Exit
from netsonde.clock import SystemClock
from netsonde.control_plane.http import HttpControlPlaneTransport
from netsonde.control_plane.operator import OperatorClient
from netsonde.control_plane.transport import Headers, TransportRequest, TransportStream
from netsonde.errors import TransportError
from netsonde.listening.connections import Connection, Connections
from netsonde.model import TaskKind
from netsonde.server import Server, ServerConfig, serve
from netsonde.server.certificates import Certificates
from netsonde.tls import ClientTls, ServerTls
from netsonde.wire import NDJSON
from support.authority import Authority, Identity
from support.commands import netsonde, running
from support.stores import TERMS_MS

LIVEZ = TransportRequest(method="GET", path="/livez", timeout_s=5.0)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def identity(authority: Authority) -> Identity:
    return authority.server("127.0.0.1", "localhost")


def tls(identity: Identity, client_ca: Path | None = None, client_auth: str = "required") -> Any:
    return ServerTls(
        certificate=identity.certificate,
        key=identity.key,
        client_ca=client_ca,
        client_auth=client_auth,
    )


@asynccontextmanager
async def served(**changes: Any) -> AsyncIterator[Server]:
    fields: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "operator_listen": "127.0.0.1:0",
        "terms_ms": TERMS_MS,
        "shutdown_timeout_s": 2.0,
    }
    async with serve(ServerConfig(**(fields | changes))) as server:
        yield server


async def answer(url: str, files: ClientTls | None = None) -> int | str:
    """Return the status of a call, or what was said instead."""
    transport = HttpControlPlaneTransport(url, tls=files)
    try:
        return (await transport.call(LIVEZ)).status
    except TransportError as error:
        return str(error)
    finally:
        await transport.close()


async def test_both_listeners_speak_tls_each_with_its_own_files(
    authority: Authority, identity: Identity, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "operators authority")
    mine = tls(identity)
    theirs = tls(other.server())
    async with served(tls=mine, operator_tls=theirs) as server:
        assert server.agent_url.startswith("https://127.0.0.1:")
        assert await answer(server.agent_url, ClientTls(ca=authority.path)) == 200
        assert await answer(server.operator_url, ClientTls(ca=other.path)) == 200
        said = await answer(server.operator_url, ClientTls(ca=authority.path))
    assert "signed by an authority unknown here" in str(said)


async def test_an_unknown_authority_is_named_with_what_to_do(identity: Identity) -> None:
    async with served(tls=tls(identity)) as server:
        said = str(await answer(server.agent_url))
    assert said.startswith("GET /livez") or "127.0.0.1" in said
    assert "is signed by an authority unknown here" in said
    assert "(ca_file, or --ca)" in said


async def test_a_certificate_of_another_host_is_refused(authority: Authority) -> None:
    async with served(tls=tls(authority.server("control.test"))) as server:
        said = str(await answer(server.agent_url, ClientTls(ca=authority.path)))
    assert "is for another host" in said
    assert "reach it by a name that its certificate has" in said


async def test_an_expired_certificate_is_served_with_a_warning_and_refused(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tls=tls(authority.server(days=-1))) as server:
        said = str(await answer(server.agent_url, ClientTls(ca=authority.path)))
    assert "has expired: renew it there" in said
    (warned,) = [r for r in caplog.records if getattr(r, "action", "") == "certificate_expired"]
    assert warned.levelno == logging.WARNING
    assert "expired at 20" in warned.getMessage()


async def test_tls_1_1_is_not_spoken(authority: Authority, identity: Identity) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(authority.path)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    async with served(tls=tls(identity)) as server:
        host, port = address(server.agent_url)
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol"):
            await asyncio.open_connection(host, port, ssl=old)


def address(url: str) -> tuple[str, int]:
    host, _, port = url.rpartition("//")[2].rpartition(":")
    return host, int(port)


# ── client certificates ──


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_who_shows_no_certificate_is_told_to(
    authority: Authority,
    identity: Identity,
    version: ssl.TLSVersion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = ClientTls(ca=authority.path).context()
    context.maximum_version = version
    monkeypatch.setattr(ClientTls, "context", lambda _: context)
    async with served(tls=tls(identity, authority.path)) as server:
        said = str(await answer(server.agent_url))
    assert "client certificate" in said
    assert "client_cert_file and client_key_file, or --client-cert and --client-key" in said


async def test_the_right_client_certificate_is_let_in(
    authority: Authority, identity: Identity
) -> None:
    mine = authority.client()
    files = ClientTls(ca=authority.path, certificate=mine.certificate, key=mine.key)
    async with served(tls=tls(identity, authority.path)) as server:
        assert await answer(server.agent_url, files) == 200


@pytest.mark.parametrize(
    ("which", "why"),
    [
        ("other", "its authority is not one that the server trusts"),
        ("expired", "it has expired"),
        ("server", "it is not made for clients"),
    ],
)
async def test_the_wrong_client_certificate_is_refused_with_the_reason(
    authority: Authority,
    identity: Identity,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    which: str,
    why: str,
) -> None:
    shown = {
        "other": Authority(tmp_path, "somebody else").client(),
        "expired": authority.client(days=-1),
        "server": authority.server(),
    }[which]
    files = ClientTls(ca=authority.path, certificate=shown.certificate, key=shown.key)
    for auth in ("required", "optional"):
        async with served(tls=tls(identity, authority.path, auth)) as server:
            said = str(await answer(server.agent_url, files))
        assert f"refused this client's certificate: {why}" in said
    logged = [r.getMessage() for r in caplog.records if "handshake failed" in r.getMessage()]
    assert "the client's certificate is not valid" in logged[0]


async def test_an_optional_client_certificate_may_be_left_out(
    authority: Authority, identity: Identity
) -> None:
    async with served(tls=tls(identity, authority.path, "optional")) as server:
        assert await answer(server.agent_url, ClientTls(ca=authority.path)) == 200


# ── renewal ──


async def serial_of(url: str, authority: Authority) -> str:
    context = ssl.create_default_context(cafile=str(authority.path))
    _, writer = await asyncio.open_connection(*address(url), ssl=context)
    certificate = writer.get_extra_info("peercert")
    writer.close()
    return str(certificate["serialNumber"])


async def test_a_renewed_certificate_is_served_and_connections_stay(
    authority: Authority, identity: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    context = ssl.create_default_context(cafile=str(authority.path))
    async with served(tls=tls(identity)) as server:
        reader, writer = await asyncio.open_connection(*address(server.agent_url), ssl=context)
        before = await serial_of(server.agent_url, authority)
        authority.server(into=identity)
        await server.certificates.look(at_once=False)
        after = await serial_of(server.agent_url, authority)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        kept = await reader.read()
        writer.close()
    assert before != after
    assert writer.get_extra_info("peercert")["serialNumber"] == before
    assert kept.startswith(b"HTTP/1.1 200 OK")
    assert [r for r in caplog.records if getattr(r, "action", "") == "tls_reloaded"]


async def test_asking_reloads_at_once(authority: Authority, identity: Identity) -> None:
    async with served(tls=tls(identity)) as server:
        before = await serial_of(server.agent_url, authority)
        authority.server(into=identity)
        server.certificates.reload()
        async with asyncio.timeout(5):
            while await serial_of(server.agent_url, authority) == before:
                pass


async def test_a_half_renewed_certificate_changes_nothing_until_it_is_whole(
    authority: Authority, identity: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = Certificates(
        ServerConfig(tls=tls(identity)),
        SystemClock(),
    )
    assert certificates.agents is not None
    context = certificates.agents()
    key = identity.key.read_bytes()
    authority.server(into=identity)
    whole = identity.key.read_bytes()
    identity.key.write_bytes(key)
    await certificates.look(at_once=False)
    await certificates.look(at_once=False)
    assert certificates.agents() is context
    (failed,) = [r for r in caplog.records if getattr(r, "action", "") == "tls_reload_failed"]
    assert "does not match the certificate" in failed.getMessage()
    identity.key.write_bytes(whole + b"\n")
    await certificates.look(at_once=False)
    assert certificates.agents() is not context


async def test_a_client_uses_its_renewed_certificate(
    authority: Authority, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netsonde.control_plane.http.FILES_LOOK_S", 0.0)
    mine = authority.client(days=-1)
    files = ClientTls(ca=authority.path, certificate=mine.certificate, key=mine.key)
    async with served(tls=tls(identity, authority.path)) as server:
        transport = HttpControlPlaneTransport(server.agent_url, tls=files)
        with pytest.raises(TransportError, match="it has expired"):
            await transport.call(LIVEZ)
        fresh = authority.client()
        mine.key.write_bytes(fresh.key.read_bytes())
        mine.certificate.write_bytes(fresh.certificate.read_bytes())
        assert (await transport.call(LIVEZ)).status == 200
        await transport.close()


async def test_connections_are_kept_over_tls(
    authority: Authority, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = 0
    enter = Connections.enter

    def counted(connections: Connections, one: Connection) -> bool:
        nonlocal entered
        entered += 1
        return enter(connections, one)

    monkeypatch.setattr(Connections, "enter", counted)
    async with served(tls=tls(identity)) as server:
        transport = HttpControlPlaneTransport(server.agent_url, tls=ClientTls(ca=authority.path))
        for _ in range(5):
            assert (await transport.call(LIVEZ)).status == 200
        await transport.close()
    assert entered == 1


# ── end to end ──


async def test_an_agent_works_over_tls_with_streams(
    authority: Authority, identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: set[str] = set()
    stream = HttpControlPlaneTransport.stream

    @asynccontextmanager
    async def noted(
        transport: HttpControlPlaneTransport,
        request: TransportRequest,
        lines: AsyncIterator[bytes] | None = None,
    ) -> AsyncIterator[TransportStream]:
        async with stream(transport, request, lines) as answered:
            if Headers(answered.headers).get("Content-Type") == NDJSON:
                streams.add(request.path.rpartition("/")[2])
            yield answered

    monkeypatch.setattr(HttpControlPlaneTransport, "stream", noted)
    mine = authority.client()
    required = tls(identity, authority.path)
    files = {"ca": authority.path, "certificate": mine.certificate, "key": mine.key}
    async with served(tls=required, operator_tls=required, database=tmp_path / "db") as server:
        agent = Agent(
            AgentConfig(
                control_plane=server.agent_url.replace("127.0.0.1", "localhost"),
                state_dir=tmp_path / "agent",
                targets=("127.0.0.0/8",),
                capacities=dict.fromkeys(TaskKind, 0) | {TaskKind.TCP: 4},
                ca_file=authority.path,
                client_cert_file=mine.certificate,
                client_key_file=mine.key,
            )
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(agent.run())
            async with OperatorClient(server.operator_url, tls=ClientTls(**files)) as client:
                _, port = address(server.agent_url)
                check = {"name": "x", "kind": "tcp", "targets": [f"127.0.0.1:{port}"]}
                await client.create_check(check)
                page = await client.results({"limit": 1}, wait_ms=10_000)
            agent.drain()
    assert [result["outcome"] for result in page.items] == ["ok"]
    assert {"claim", "report"} <= streams


async def test_an_agent_says_what_is_wrong_and_begins_when_it_is_mended(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    identity = authority.server(days=-1)
    async with served(tls=tls(identity), operator_tls=tls(authority.server())) as server:
        agent = Agent(
            AgentConfig(
                control_plane=server.agent_url,
                state_dir=tmp_path / "agent",
                hostname="patient",
                capacities=dict.fromkeys(TaskKind, 0) | {TaskKind.TCP: 1},
                ca_file=authority.path,
            )
        )
        async with asyncio.TaskGroup() as group, asyncio.timeout(30):
            group.create_task(agent.run())
            while "has expired: renew it there" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            authority.server(into=identity)
            server.certificates.reload()
            async with OperatorClient(
                server.operator_url, tls=ClientTls(ca=authority.path)
            ) as client:
                while not (agents := await client.agents()):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            agent.drain()
    assert [one["hostname"] for one in agents] == ["patient"]
    lost = [r for r in caplog.records if "has expired: renew it there" in r.getMessage()]
    assert [getattr(r, "action", "") for r in lost] == ["control_plane_lost"]


def test_the_commands_speak_tls(authority: Authority, identity: Identity, tmp_path: Path) -> None:
    mine = authority.client("operator")
    with running(
        "server", "run", "--memory", "--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0",
        "--operator-tls-cert", str(identity.certificate),
        "--operator-tls-key", str(identity.key),
        "--operator-tls-client-ca", str(authority.path),
    ) as server:  # fmt: skip
        line = server.line("stderr", "operators reach it at ")
        url = line.partition("operators reach it at ")[2].split()[0]
        assert url.startswith("https://")
        options = ("--server", url, "--ca", str(authority.path))
        files = {"--client-cert": mine.certificate, "--client-key": mine.key}
        by_option = netsonde("agents", *options, *(str(x) for pair in files.items() for x in pair))
        assert (by_option.returncode, by_option.stderr) == (Exit.OK, "")
        by_environment = netsonde(
            "queues",
            env={
                "NETSONDE_OPERATOR_URL": url,
                "NETSONDE_OPERATOR_CA_FILE": str(authority.path),
                "NETSONDE_OPERATOR_CLIENT_CERT_FILE": str(mine.certificate),
                "NETSONDE_OPERATOR_CLIENT_KEY_FILE": str(mine.key),
            },
        )
        assert (by_environment.returncode, by_environment.stderr) == (Exit.OK, "")
        without = netsonde("check", "list", *options)
        assert without.returncode == Exit.CANNOT
        assert "wants a client certificate" in without.stderr
        authority.server(into=identity)
        server.process.send_signal(signal.SIGHUP)
        server.line("stderr", "serves the certificate in")
        code, _, _ = server.stop(signal.SIGTERM)
        assert code == Exit.OK


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--tls-cert", "{certificate}"), Exit.USAGE, "--tls-cert and --tls-key belong together"),
        (("--tls-client-ca", "{certificate}"), Exit.USAGE, "give --tls-cert and --tls-key"),
        (
            ("--tls-cert", "{certificate}", "--tls-key", "{other}"),
            Exit.USAGE,
            "does not match the certificate in",
        ),
        (
            ("--tls-cert", "{certificate}", "--tls-key", "{certificate}"),
            Exit.USAGE,
            "holds no private key in PEM form",
        ),
        (
            ("--operator-tls-cert", "{key}", "--operator-tls-key", "{key}"),
            Exit.USAGE,
            "holds no certificate in PEM form",
        ),
        (
            ("--tls-cert", "/nowhere/x.pem", "--tls-key", "{key}"),
            Exit.CANNOT,
            "the certificate file /nowhere/x.pem cannot be read: No such file or directory",
        ),
    ],
)
def test_bad_files_are_one_sentence_at_the_start(
    authority: Authority, identity: Identity, options: tuple[str, ...], code: Exit, said: str
) -> None:
    names = {
        "certificate": identity.certificate,
        "key": identity.key,
        "other": authority.server().key,
    }
    done = netsonde("server", "run", "--memory", *(one.format(**names) for one in options))
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1)
    assert said in done.stderr


async def test_plain_http_off_loopback_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async with served(listen="0.0.0.0:0", enrolment_token="x" * 16):
        pass
    (warned,) = [r for r in caplog.records if getattr(r, "action", "") == "plain_http"]
    assert warned.getMessage().startswith("listen 0.0.0.0:0 is reachable from other hosts")


def test_the_manuals_example_makes_certificates_that_serve(tmp_path: Path) -> None:
    if shutil.which("openssl") is None or shutil.which("bash") is None:
        pytest.skip("needs the openssl program and bash")
    manual = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
    script = manual.partition("```bash\n")[2].partition("```")[0]
    subprocess.run(["bash", "-ec", script], cwd=tmp_path, check=True, capture_output=True)
    control = Identity(tmp_path / "control.pem", tmp_path / "control.key")
    tls(control, tmp_path / "ca.pem").context()
    ClientTls(
        ca=tmp_path / "ca.pem",
        certificate=tmp_path / "agent-ams1.pem",
        key=tmp_path / "agent-ams1.key",
    ).context()
    usages = {
        "control.pem": "sslserver",
        "agent-ams1.pem": "sslclient",
        "operator.pem": "sslclient",
    }
    for name, usage in usages.items():
        subprocess.run(
            ["openssl", "verify", "-x509_strict", "-purpose", usage, "-CAfile", "ca.pem", name],
            cwd=tmp_path, check=True, capture_output=True,
        )  # fmt: skip
