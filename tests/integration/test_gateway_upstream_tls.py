"""The gateway's client over real TLS, with a certificate authority made for the test."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from doubles.raw_http_server import Reader, Writer, answering, plain, read_request, serving
from event_loops import both, run, until

from inference_service.gateway.upstream import ConnectFailed, Origin, Pool, Reset


@dataclass(frozen=True)
class Authority:
    """A CA's certificate, and a server's that it signed for localhost and 127.0.0.1."""

    ca: Path
    certificate: Path
    key: Path

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = tmp_path_factory.mktemp("ca")
    ec = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    ca, ca_key, request, key, certificate, extensions = (
        made / name for name in ("ca.pem", "ca.key", "server.csr", "server.key", "server.pem", "extensions")
    )
    openssl("req", "-x509", *ec, "-keyout", ca_key, "-out", ca, "-subj", "/CN=test CA", "-days", "2")
    openssl("req", *ec, "-keyout", key, "-out", request, "-subj", "/CN=localhost")
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    signing = ("-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "2", "-extfile", extensions)
    openssl("x509", "-req", "-in", request, *signing, "-out", certificate)
    return Authority(ca, certificate, key)


async def ask(pool: Pool, body: bytes | AsyncIterator[bytes] = b"{}", target: bytes = b"/") -> bytes:
    response = await pool.send(b"POST", target, b"", body, timeout=10)
    return await response.read(1 << 26)


@both
def test_requests_and_answers_of_any_size_pass_and_the_connection_is_kept(loop_kind: str, authority: Authority) -> None:
    async def echo(reader: Reader, writer: Writer) -> None:
        while True:
            request = await read_request(reader)
            writer.write(plain(request.body))
            await writer.drain()

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"z" * 50_000

    async def main() -> None:
        async with serving(echo, tls=authority.server()) as server:
            for host in ("localhost", "127.0.0.1"):
                pool = Pool(Origin(host, server.port, True), ssl=authority.client())
                for size in (0, 2, 70_000, 3_000_000):
                    assert await ask(pool, b"y" * size) == b"y" * size
                assert await ask(pool, pieces()) == b"z" * 2_000_000
                assert (pool.connections, pool.idle) == (1, 1)
                pool.close()
            assert server.accepted == 2
            await until(lambda: server.open == 0)

    run(loop_kind, main())


@both
def test_streams_cuts_and_bodies_until_the_end_are_told_apart(loop_kind: str, authority: Authority) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        request = await read_request(reader)
        if request.target == "/close":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n")
            await writer.drain()

    async def main() -> None:
        async with serving(script, tls=authority.server()) as server:
            pool = Pool(Origin("localhost", server.port, True), ssl=authority.client())
            assert await ask(pool, target=b"/close") == b"until the end"
            response = await pool.send(b"POST", b"/cut", b"", b"", timeout=5)
            assert await response.piece() == b"short"
            with pytest.raises(Reset):
                await response.piece()
            assert pool.connections == 0

    run(loop_kind, main())


@both
def test_a_certificate_that_nobody_vouches_for_is_refused_with_the_reason(loop_kind: str, authority: Authority) -> None:
    async def main() -> None:
        async with serving(answering(plain(b"secret")), tls=authority.server()) as server:
            pool = Pool(Origin("localhost", server.port, True), ssl=ssl.create_default_context())
            with pytest.raises(
                ConnectFailed, match=rf"https://localhost:{server.port}: its certificate is not trusted"
            ):
                await ask(pool)
            assert pool.connections == 0
            await until(lambda: server.open == 0)

    run(loop_kind, main())


@both
def test_a_certificate_of_another_name_is_refused(
    loop_kind: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def addresses(*_: object) -> list[str]:
        return ["127.0.0.1"]

    monkeypatch.setattr("inference_service.gateway.upstream.connecting._addresses", addresses)

    async def main() -> None:
        async with serving(answering(plain(b"secret")), tls=authority.server()) as server:
            pool = Pool(Origin("other.test", server.port, True), ssl=authority.client())
            with pytest.raises(ConnectFailed, match=r"not trusted \(Hostname mismatch"):
                await ask(pool)
            assert pool.connections == 0

    run(loop_kind, main())


@both
def test_a_server_that_speaks_no_tls_is_said_to(loop_kind: str, authority: Authority) -> None:
    async def talkative(reader: Reader, writer: Writer) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await reader.read()

    async def main() -> None:
        async with serving(talkative) as server:
            pool = Pool(Origin("localhost", server.port, True), ssl=authority.client())
            with pytest.raises(ConnectFailed, match="the TLS handshake failed"):
                await ask(pool)
            assert pool.connections == 0
            await until(lambda: server.open == 0)

    run(loop_kind, main())


@both
def test_a_handshake_that_never_ends_is_given_up_and_leaves_nothing_open(loop_kind: str, authority: Authority) -> None:
    async def mute(reader: Reader, writer: Writer) -> None:
        while await reader.read(1000):
            pass

    async def main() -> None:
        async with serving(mute) as server:
            pool = Pool(Origin("127.0.0.1", server.port, True), ssl=authority.client(), connect_timeout=0.2)
            with pytest.raises(ConnectFailed, match="did not answer within"):
                await ask(pool)
            asking = asyncio.create_task(ask(pool))
            await until(lambda: server.accepted == 2)
            asking.cancel()
            await asyncio.wait((asking,))
            assert pool.connections == 0
            await until(lambda: server.open == 0)

    run(loop_kind, main())


@both
def test_a_stream_is_read_no_faster_than_it_is_taken(loop_kind: str, authority: Authority) -> None:
    size = 1 << 25
    written = 0

    async def fast(reader: Reader, writer: Writer) -> None:
        nonlocal written
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while written < size:
            writer.write(b"x" * 65536)
            written += 65536
            await writer.drain()
        await reader.read()

    async def main() -> None:
        async with serving(fast, tls=authority.server()) as server:
            pool = Pool(Origin("localhost", server.port, True), ssl=authority.client())
            response = await pool.send(b"GET", b"/", b"", timeout=5)
            await asyncio.sleep(0.3)
            paused_at = written
            await asyncio.sleep(0.2)
            assert written == paused_at < size
            assert len(await response.read(size)) == size
            assert pool.idle == 1

    run(loop_kind, main())
