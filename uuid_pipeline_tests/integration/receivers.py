"""What listens on loopback where alerts and notices go to: a webhook, and a mail server."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from aiosmtpd.controller import Controller


@dataclass
class Webhook:
    """A receiver of JSON; ``answer`` is its HTTP status."""

    port: int = 0
    answer: int = 200
    received: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.port}/hook/s3cr3t-hook-token"


@contextmanager
def webhook() -> Iterator[Webhook]:
    state = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if state.answer == 200:
                state.received.append(body)
            self.send_response(state.answer)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        state.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Mail:
    port: int
    received: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"mailto://127.0.0.1:{self.port}?from=pipeline@example.org&to=ops@example.org&mode=insecure"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 (aiosmtpd's name)
        message = message_from_bytes(envelope.content, policy=policy.default)
        body = message.get_body(("plain", "html"))
        assert body is not None
        self.received.append(f"{message['subject']}\n{body.get_content()}")
        return "250 taken"


@contextmanager
def mail_server() -> Iterator[Mail]:
    mail = Mail(0)
    # aiosmtpd tries the port it was told, so a free one is found first.
    with socket.create_server(("127.0.0.1", 0)) as free:
        mail.port = free.getsockname()[1]
    controller = Controller(mail, hostname="127.0.0.1", port=mail.port)
    controller.start()
    try:
        yield mail
    finally:
        controller.stop()
