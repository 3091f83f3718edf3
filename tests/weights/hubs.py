"""A cache that a test fills, and the answers of a hub that it runs: nothing outside is asked."""

import hashlib
import http.server
from typing import ClassVar

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put(folder, repo, file):
    """A file in huggingface_hub's own layout: blobs, snapshots, refs."""
    root = folder / f"models--{repo.replace('/', '--')}"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for place in ("blobs", f"snapshots/{COMMIT}", "refs"):
        (root / place).mkdir(parents=True, exist_ok=True)
    file.rename(root / "blobs" / digest)
    (root / "snapshots" / COMMIT / file.name).symlink_to(root / "blobs" / digest)
    (root / "refs" / "main").write_text(COMMIT)
    return digest


class Hub(http.server.BaseHTTPRequestHandler):
    """The two answers of a hub that the client needs."""

    files: ClassVar[dict[str, bytes]] = {}
    moved: ClassVar[dict[str, str]] = {}
    needs: ClassVar[str | None] = None
    """The login without which nothing is given."""

    def do_HEAD(self):
        if self.needs not in (None, self.headers.get("Authorization")):
            self.send_error(401)
            return None
        if target := self.moved.get(self.path):
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
            return None
        body = self.files.get(self.path)
        if body is None:
            self.send_error(404)
            return None
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        return body

    def do_GET(self):
        if body := self.do_HEAD():
            self.wfile.write(body)

    def log_message(self, *args):
        pass
