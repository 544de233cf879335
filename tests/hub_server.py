"""A Hugging Face Hub on this machine: enough of its API to take one commit of small files."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """What was asked for.

    Attributes:
        address: Where the server is.
        created: Bodies of the requests that made repositories.
        files: Path to content of the files that were committed.
        tokens: Authorizations that came with requests.
        refuse: Answer every request with 403.
    """

    def __init__(self) -> None:
        self.address = ""
        self.created: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuse = False

    def answer(self, path: str, body: bytes) -> tuple[int, dict]:
        if self.refuse:
            return 403, {"error": "You don't have the rights to create a model under the namespace"}
        if path.startswith("/api/repos/create"):
            self.created.append(json.loads(body))
            made = self.created[-1]
            return 200, {"url": f"{self.address}/{made['organization']}/{made['name']}"}
        if path.startswith("/api/validate-yaml"):
            return 200, {"warnings": [], "errors": []}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
        if "/commit/" in path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return 200, {"commitUrl": f"{self.address}/me/bowls/commit/{'a' * 40}", "commitOid": "a" * 40}
        return 404, {"error": path}


@contextmanager
def local_hub() -> Iterator[Hub]:
    """A server that runs until the context ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline().strip(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.tokens.add(self.headers.get("Authorization"))
            status, answer = hub.answer(self.path, body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
