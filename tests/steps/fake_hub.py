"""The answers of a hub that takes a commit: a repository, its files, and who sees it."""

import base64
import http.server
import json
import threading
from contextlib import contextmanager

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's API as a push uses; model.safetensors goes to the large files, the rest into the commit."""

    def answer(self, value, status=200, **headers):
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    @property
    def state(self):
        return self.server.state

    def allowed(self):
        self.state["logins"].add(self.headers.get("Authorization"))
        if self.headers.get("Authorization") == "Bearer hf_good":
            return True
        self.body()
        self.answer({"error": "Invalid credentials"}, 401)
        return False

    def do_HEAD(self):
        self.answer({})

    def do_GET(self):
        if self.allowed() and self.path.startswith("/api/models/"):
            repo = self.path.removeprefix("/api/models/").split("/revision")[0].split("?")[0]
            about = self.state["repos"][repo]
            files = [{"rfilename": name} for name in about["files"]]
            self.answer({"id": repo, "private": about["private"], "siblings": files, "sha": COMMIT, "tags": []})

    def do_PUT(self):
        content = self.body()
        if self.state["broken"]:
            self.answer({"error": "storage is closed"}, 403)
            return
        self.state["large"][self.path.rpartition("/")[2]] = content
        self.answer({})

    def do_POST(self):
        if not self.allowed():
            return
        path, body = self.path.split("?")[0], self.body()
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization')}/{asked['name']}"
            exists = repo in self.state["repos"]
            hidden = asked.get("private", asked.get("visibility") == "private")  # older clients, newer ones
            self.state["repos"].setdefault(repo, {"private": hidden, "files": {}})
            self.answer({"url": f"{self.state['url']}/{repo}", "error": "exists"}, 409 if exists else 200)
        elif path == "/api/validate-yaml":
            self.state["cards"].append(json.loads(body))
            self.answer({"warnings": [], "errors": []})
        elif "/preupload/" in path:
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith("tensors") else "regular"}
                for f in json.loads(body)["files"]
            ]
            self.answer({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.state['url']}/large/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            repo = path.removeprefix("/api/models/").split("/commit")[0]
            files = self.state["repos"][repo]["files"]
            for entry in map(json.loads, body.splitlines()):
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = self.state["large"][value["oid"]]
                elif entry["key"] == "deletedFile":
                    del files[value["path"]]
            self.answer({"commitUrl": f"{self.state['url']}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self.answer({"error": path}, 404)

    def log_message(self, *args):
        pass


@contextmanager
def running():
    """The state of a hub that runs: url, repos (name -> private, files), logins seen, cards checked."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    url = f"http://127.0.0.1:{server.server_port}"
    server.state = {"url": url, "repos": {}, "large": {}, "cards": [], "logins": set(), "broken": False}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
