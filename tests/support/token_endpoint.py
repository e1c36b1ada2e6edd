"""A token endpoint for the client credentials grant; its tokens are unsecured JWTs, which a test broker accepts."""

from __future__ import annotations

import json
import threading
import time
from base64 import b64decode, urlsafe_b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote_plus


def unsecured_token(subject: str, seconds: float) -> str:
    """Return a JWT without a signature that expires in so many seconds."""
    now = time.time()
    parts = ({"alg": "none"}, {"sub": subject, "iat": now - 60, "exp": now + seconds})
    encoded = (urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts)
    return ".".join(encoded) + "."


class TokenEndpoint:
    """Serves ``POST /token``, and ``/token/expired`` with tokens of the past.

    Attributes
    ----------
    seconds
        Life of the tokens.
    served
        How many it has given out.
    """

    def __init__(self, client: str, secret: str, scope: str) -> None:
        self.seconds = 300.0
        self.served = 0
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                pair = b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode().split(":")
                if [unquote_plus(part) for part in pair] != [client, secret]:
                    self.respond(401, {"error": "invalid_client"})
                elif form != {"grant_type": ["client_credentials"], "scope": [scope]}:
                    self.respond(400, {"error": "invalid_scope"})
                else:
                    endpoint.served += 1
                    life = -30.0 if self.path.endswith("/expired") else endpoint.seconds + 30
                    token = unsecured_token(client, life)
                    self.respond(
                        200, {"access_token": token, "expires_in": endpoint.seconds, "token_type": "bearer"}
                    )

            def respond(self, status: int, body: dict[str, Any]) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/token"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
