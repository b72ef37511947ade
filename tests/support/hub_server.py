"""A server on loopback that implements the part of the hub's protocol that downloads need.

Small files are sent by the hub itself; weights by a second host ("localhost"), to which it redirects, as the real one.
"""

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"
LARGE = (".safetensors", ".bin", ".pt")


@dataclass
class Repository:
    """Files by commit, commits by branch, and the server's behaviour.

    Attributes:
        accidents: What happens to weights, one request after the other: "cut" in the middle, or "503".
        delay: Seconds that each answer takes.
        trickle: Seconds between two halves of the weights.
        status: An error that all requests get.
        page: What is answered instead, as a hotel's network does.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    forbidden: bool = False
    accidents: list[str] = field(default_factory=list)
    delay: float = 0.0
    trickle: float = 0.0
    status: int | None = None
    page: bytes | None = None


class Hub:
    """The server; `requests` records method, path and token of every request."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": self}))
        self.port = self.server.server_port
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def publish(self, name, files, *branches, **behaviour):
        """Add a commit to a repository, created if needed, and return its hash."""
        repository = self.repositories.setdefault(name, Repository())
        vars(repository).update(behaviour)
        data = name.encode() + b"".join(key.encode() + files[key] for key in sorted(files))
        commit = hashlib.sha1(data).hexdigest()
        repository.commits[commit] = files
        repository.branches |= dict.fromkeys(("main", *branches), commit)
        return commit

    def downloads(self, name):
        """Return the files of a repository that were sent, sorted."""
        gets = [path for method, path, _ in self.requests if method == "GET"]
        found = [re.fullmatch(rf"/(?:cdn/)?{name}/resolve/[^/]+/(.+)", path) for path in gets]
        return sorted(match[1] for match in found if match)

    def stop(self):
        """Stop the server; connections are refused from then on."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class HubHandler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *arguments):
        pass

    def do_GET(self):
        self.answer()

    def do_HEAD(self):
        self.answer()

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization")
        self.hub.requests.append((self.command, path, token))
        asked = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        resolved = re.fullmatch(r"/(cdn/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name = asked[1] if asked else resolved[2] if resolved else ""
        repository = self.hub.repositories.get(name)
        if repository is not None:
            time.sleep(repository.delay)
        if resolved and resolved[1]:
            self.send_bytes(repository, repository.commits[resolved[3]][resolved[4]])
        elif token not in (None, f"Bearer {TOKEN}"):
            self.refuse(401, None, "Invalid credentials in Authorization header")
        elif repository is None or (repository.private and token is None):
            self.refuse(401 if token is None else 404, "RepoNotFound", "Repository not found")
        elif repository.status is not None:
            self.refuse(repository.status, None, "No service")
        elif repository.page is not None:
            self.reply(200, repository.page, {})
        elif asked:
            self.send_info(name, repository, asked[2] or "main")
        else:
            self.send_file(repository, *resolved.groups()[1:])

    def send_info(self, name, repository, revision):
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        info = {
            "id": name,
            "sha": commit,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "siblings": [{"rfilename": file} for file in repository.commits[commit]],
        }
        self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def send_file(self, repository, name, revision, file):
        commit = repository.branches.get(revision, revision)
        if repository.gated and self.headers.get("Authorization") is None:
            return self.refuse(401, "GatedRepo", f"Access to model {name} is restricted.")
        if repository.forbidden:
            return self.refuse(403, None, "Not for you")
        if file not in repository.commits.get(commit, {}):
            return self.refuse(404, "EntryNotFound", "Entry not found")
        data = repository.commits[commit][file]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        if file.endswith(LARGE):
            headers |= {
                "Location": f"http://localhost:{self.hub.port}/cdn/{name}/resolve/{commit}/{file}",
                "X-Linked-Size": str(len(data)),
                "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
            }
            return self.reply(302, b"", headers)
        self.reply(200, data, headers)

    def send_bytes(self, repository, data):
        """The file host, which can simulate failing downloads."""
        accident = repository.accidents.pop(0) if repository.accidents else None
        if accident == "503":
            return self.refuse(503, None, "No service")
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        time.sleep(repository.trickle)
        if accident == "cut":
            self.close_connection = True
        else:
            self.wfile.write(data[len(data) // 2 :])

    def refuse(self, status, code, message):
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply(status, json.dumps({"error": message}).encode(), headers)

    def reply(self, status, data, headers):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
