"""A web server on this machine that breaks off and lies, for what downloads."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = b"<html><head><title>Google Drive - Quota exceeded</title></head><body>no</body></html>"


class Server(ThreadingHTTPServer):
    """`files[path]` is served; `script[path]` says how, one word per request, the last for ever.

    ok; no_range: ignores Range; break N: closes after N bytes; a number: this status; redirect
    WHERE; html: a page; stall: half of it, then silence.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.script: dict[str, list[str]] = {}
        self.headers: dict[str, str] = {"ETag": '"one"'}
        self.requests: list[tuple[str, str | None]] = []  # path, Range
        self.closing = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ranges(self) -> list[str]:
        return [given for _, given in self.requests if given]

    def handle_error(self, request, client_address):  # clients go away: that is the test
        pass


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server, path = self.server, self.path
        server.requests.append((path, self.headers["Range"]))
        script = server.script.get(path, ["ok"])
        word, _, rest = (script.pop(0) if len(script) > 1 else script[0]).partition(" ")
        if word.isdecimal():
            return self.answer(int(word), {}, b"")
        if word == "redirect":
            return self.answer(302, {"Location": rest}, b"")
        if word == "html":
            return self.answer(200, {"Content-Type": "text/html"}, PAGE)
        if path not in server.files:
            return self.answer(404, {}, b"")
        self.serve(server.files[path], word, rest)

    def serve(self, body: bytes, word: str, rest: str):
        first, status, headers = 0, 200, dict(self.server.headers)
        given, condition = self.headers["Range"], self.headers["If-Range"]
        if given and word != "no_range" and condition in (None, headers.get("ETag")):
            first, status = int(given.removeprefix("bytes=").removesuffix("-")), 206
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        part = body[first:]
        headers["Content-Length"] = str(len(part))
        sent = int(rest) if word == "break" else len(part) // 2 if word == "stall" else len(part)
        self.answer(status, headers, part[:sent])
        if word == "stall":
            self.server.closing.wait(5)

    def answer(self, status: int, headers: dict[str, str], body: bytes):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            self.wfile.flush()


@contextmanager
def serving():
    """A server that is up within the block."""
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
