"""The bootstrap listener: HTTPS, one path, one use, which is to enrol. Refuses everything else, and anything slow.

It presents the broker's certificate, which a new device cannot check and does not: the token authenticates both sides
(edge_sdk.protocol.enrolment). At most 32 connections at a time, ten seconds each, one small request on each.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from aggregator.errors import AggregatorError
from aggregator.fleet.authority import Authority
from aggregator.fleet.registry import Registry
from edge_sdk.protocol import enrolment
from edge_sdk.protocol.enrolment import (
    EnrolmentAnswer,
    EnrolmentRefusal,
    EnrolmentRefused,
    EnrolmentRequest,
    TrustBundle,
)
from edge_sdk.protocol.errors import MalformedMessage

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 32
DEADLINE_S: Final = 10.0

Enrol = Callable[[EnrolmentRequest], EnrolmentAnswer]


class BootstrapError(AggregatorError):
    """The listener cannot start."""


def enroller(
    registry: Registry,
    authority: Authority,
    *,
    bundle: Callable[[], TrustBundle],
    clock: Callable[[], float],
    on_enrolled: Callable[[], object] = lambda: None,
) -> Enrol:
    """What the listener calls. `registry` has a connection of its own; `on_enrolled` reloads the broker's list."""

    def enrol(request: EnrolmentRequest) -> EnrolmentAnswer:
        now = clock()
        answer = registry.redeem(
            request,
            issue=lambda csr: authority.issue(csr, now=now),
            bundle=bundle(),
            sign=authority.roster_key.sign,
            now=now,
        )
        on_enrolled()
        return answer

    return enrol


class BootstrapListener:
    """Serves until stopped. `enrol` runs on the listener's threads, one call at a time."""

    def __init__(self, enrol: Enrol, *, credentials: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        """`enrol` comes from `enroller`; `credentials` is the authority's directory.

        Raises BootstrapError where the port is taken."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(credentials / "broker.crt", credentials / "broker.key")
        try:
            self._server = _Server((host, port), enrol, context)
        except OSError as error:
            raise BootstrapError(
                f"cannot listen on {host}:{port}: {error.strerror}",
                "stop what listens there, or set another enrol_port in aggregator.toml",
                reason="port-taken",
            ) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="bootstrap", daemon=True)

    @property
    def counters(self) -> dict[str, int]:
        """Requests by outcome: "enrolled", or the reason of a refusal."""
        return dict(self._server.counters)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Close the port and end the thread."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = CONNECTIONS_MAX

    def __init__(self, address: tuple[str, int], enrol: Enrol, context: ssl.SSLContext) -> None:
        super().__init__(address, _Handler)
        self.counters: dict[str, int] = {}
        self._enrol = enrol
        self._context = context
        self._one_at_a_time = threading.Lock()
        self._slots = threading.BoundedSemaphore(CONNECTIONS_MAX)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """The TLS handshake happens here, on the connection's own thread: a stalled one holds up nobody."""
        request.settimeout(DEADLINE_S / 2)
        with self._context.wrap_socket(request, server_side=True) as secured:
            # One who sends a byte at a time never times out; this ends him.
            end = threading.Timer(DEADLINE_S, _cut, (secured,))
            end.daemon = True
            end.start()
            try:
                _Handler(secured, client_address, self)
            finally:
                end.cancel()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the signature is socketserver's
        log.info("a bootstrap connection from %s ended early", client_address, exc_info=True)

    def answer(self, body: bytes) -> tuple[HTTPStatus, bytes]:
        """One request's outcome. Never raises."""
        try:
            request = enrolment.from_json(body, EnrolmentRequest)
            with self._one_at_a_time:
                return self._count("enrolled", HTTPStatus.OK, enrolment.to_json(self._enrol(request)))
        except EnrolmentRefused as error:
            return self._refuse(HTTPStatus.FORBIDDEN, error.reason, str(error))
        except MalformedMessage as error:
            return self._refuse(HTTPStatus.BAD_REQUEST, "malformed", str(error))
        except Exception:
            log.exception("an enrolment failed")
            return self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "the aggregator failed; see its log")

    def _refuse(self, status: HTTPStatus, reason: str, message: str) -> tuple[HTTPStatus, bytes]:
        log.warning("enrolment refused (%s): %s", reason, message)
        return self._count(reason, status, enrolment.to_json(EnrolmentRefusal(reason, message)))

    def _count(self, outcome: str, status: HTTPStatus, body: bytes) -> tuple[HTTPStatus, bytes]:
        self.counters[outcome] = self.counters.get(outcome, 0) + 1
        return status, body


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "chorale"
    sys_version = ""

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > enrolment.MAX_BODY_BYTES:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        # Read even what is refused: closing over unread bytes would cut off the answer.
        body = self.rfile.read(int(length))
        if self.path != enrolment.PATH:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        status, answer = self.server.answer(body)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)
