"""The server behind the page: on this machine only, for whoever knows the token, and for the files of one folder.

It listens on the loopback interface. Every address begins with a random token, so that other users of the machine and
other pages in the browser know none; requests that name another host (DNS rebinding) or come from another page are
refused. Images and annotations are named by what was found in the folder, never by a path.
"""

import json
import secrets
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from seggym.agents.annotate.desk import Desk
from seggym.cohorts.annotations.limits import parse_json_object
from seggym.errors import SeggymError

MAX_BODY = 16 << 20  # bytes of an annotation that the page may send
_SECONDS = 30  # that a request may take to arrive
_STATIC = {
    "": ("page.html", "text/html"),
    "page.js": ("page.js", "text/javascript"),
    "page.css": ("page.css", "text/css"),
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class AnnotationServer(ThreadingHTTPServer):
    """Serves the folder ``root`` on 127.0.0.1, on ``port`` or, for 0, any that is free."""

    daemon_threads = True

    def __init__(self, root: Path, port: int = 0) -> None:
        self.desk = Desk(root)
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise SeggymError(f"port {port} cannot be had ({error.strerror}): choose another, or none") from None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle is no error."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """What to open in the browser."""
        return f"http://127.0.0.1:{self.server_address[1]}/{self.token}/"


def annotate_command(folder: str, port: int, show: bool) -> int:
    """Serve ``folder`` until it is interrupted; with ``show`` the page is opened in the browser."""
    with AnnotationServer(Path(folder), port) as server:
        print(f"{server.url}\nOpen this address in a browser of this machine; end with Ctrl+C.", flush=True)
        if show:
            import webbrowser

            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: AnnotationServer
    timeout = _SECONDS
    server_version, sys_version = "seggym", ""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: addresses hold the token."""

    def _answer(self, method: str) -> None:
        try:
            content, kind = self._content(method, self._parts())
            status = HTTPStatus.OK
        except _Refused as refused:
            status, content, kind = refused.status, str(refused).encode(), "text/plain"
        except KeyError:
            status, content, kind = HTTPStatus.NOT_FOUND, b"no such image", "text/plain"
        except SeggymError as error:
            status, content, kind = HTTPStatus.UNPROCESSABLE_ENTITY, str(error).encode("utf-8", "replace"), "text/plain"
        if status != HTTPStatus.OK:
            self.close_connection = True  # a body that was not read would be taken for the next request
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind if kind.startswith("image/") else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _parts(self) -> list[str]:
        """The parts of the address behind the token; whoever may not ask is refused."""
        port = self.server.server_address[1]
        hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        if self.headers.get("Host") not in hosts:
            raise _Refused(HTTPStatus.FORBIDDEN, "foreign host")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in hosts}:
            raise _Refused(HTTPStatus.FORBIDDEN, "foreign origin")
        # Split before it is decoded: an encoded slash is part of a name, and no name has one.
        token, *parts = [unquote(part) for part in urlsplit(self.path).path.removeprefix("/").split("/")]
        if not secrets.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode()):
            raise _Refused(HTTPStatus.FORBIDDEN, "wrong token")
        return parts

    def _content(self, method: str, parts: list[str]) -> tuple[bytes, str]:
        desk = self.server.desk
        match method, *parts:
            case "GET", page if page in _STATIC:
                name, kind = _STATIC[page]
                return resources.files(__package__).joinpath(name).read_bytes(), kind
            case "GET", "images":
                return _json(desk.overview())
            case "GET", "image", name:
                return desk.picture(name), "image/png"
            case "GET", "annotation", name:
                return _json(desk.content(name))
            case "PUT", "annotation", name:
                desk.save(name, parse_json_object(self._body(), Path(name)))
                return _json({"saved": name})
        raise _Refused(HTTPStatus.NOT_FOUND, "no such page")

    def _body(self) -> bytes:
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or "Transfer-Encoding" in self.headers:
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length")
        if len(length) > 12 or int(length) > MAX_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {MAX_BODY} bytes")
        return self.rfile.read(int(length))


def _json(content: Any) -> tuple[bytes, str]:
    return json.dumps(content, allow_nan=False).encode(), "application/json"
