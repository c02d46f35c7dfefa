#!/usr/bin/env python3
"""Fetch one repository from a hub on this machine by huggingface_hub and by qlora, and compare what lies in the caches; then
have huggingface_hub find, without the network, what qlora has fetched. Prints one JSON object; status 1 where they differ.

    python3 scripts/clients/hub.py bin/qlora > results/clients/hub.json      # where huggingface_hub is
"""
import hashlib
import http.server
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import urllib.parse

qlora = os.path.abspath(sys.argv[1])
REPO, COMMIT = "org/Some.Model-0.5B", "0123456789abcdef0123456789abcdef01234567"
random.seed(1)
FILES = {"config.json": b'{"a": 1}', "model.safetensors": random.randbytes(3_000_000), "tokenizer.json": random.randbytes(50_000), "README.md": b"# hello\n"}


def git(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def large(data):
    return len(data) >= 100


class Hub(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        path = urllib.parse.urlsplit(self.path).path
        if path.startswith(f"/api/models/{REPO}/tree/"):
            return self.send(body, json.dumps([self.entry(n, "path", "oid") for n in FILES]).encode(), {"Content-Type": "application/json"})
        if path.startswith(f"/api/models/{REPO}"):
            siblings = [self.entry(n, "rfilename", "blobId") for n in FILES]
            info = {"id": REPO, "modelId": REPO, "sha": COMMIT, "private": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}
            return self.send(body, json.dumps(info).encode(), {"Content-Type": "application/json"})
        name = path.rsplit("/", 1)[-1]
        if "/resolve/" in path and name in FILES:
            data = FILES[name]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{git(data)}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
            if large(data):
                headers |= {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
            return self.send(body, data, headers)
        self.send_error(404)

    def entry(self, name, key, oid):
        data = FILES[name]
        e = {key: name, "type": "file", "size": len(data), oid: git(data)}
        if large(data):
            e["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return e

    def send(self, body, data, headers):
        self.send_response(200)
        for k, v in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(k, v)
        self.end_headers()
        if body:
            self.wfile.write(data)


def tree(home):
    """The cache as text: every file's sha256, every link's target."""
    found = {}
    top = os.path.join(home, "hub", "models--" + REPO.replace("/", "--"))
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            short = os.path.relpath(path, top)
            found[short] = "-> " + os.readlink(path) if os.path.islink(path) else hashlib.sha256(open(path, "rb").read()).hexdigest()
    return found


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
endpoint = f"http://127.0.0.1:{server.server_port}"
theirs, ours = tempfile.mkdtemp(), tempfile.mkdtemp()
get = "import huggingface_hub, sys; print(huggingface_hub.snapshot_download(sys.argv[1], local_files_only=sys.argv[2] == 'offline'))"


def run(home, *command, **more):
    env = {**os.environ, "HF_HOME": home, "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **more}
    for name in ("HF_HUB_CACHE", "HF_TOKEN"):
        env.pop(name, None)
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.strip()


run(theirs, sys.executable, "-c", get, REPO, "online")
where = run(ours, qlora, "fetch", REPO)
a, b = tree(theirs), tree(ours)
own = {k: v for k, v in a.items() if k.split("/")[0] in ("blobs", "snapshots", "refs")}
found = run(ours, sys.executable, "-c", get, REPO, "offline", HF_HUB_OFFLINE="1")
import huggingface_hub  # after the work, for its version

result = {
    "what": "one repository of a hub on this machine, fetched by huggingface_hub and by qlora fetch",
    "huggingface_hub": huggingface_hub.__version__, "files": len(FILES),
    "the_same_blobs_links_and_refs": own == b, "found_offline_by_huggingface_hub": os.path.realpath(found) == os.path.realpath(where),
    "differ": sorted(k for k in set(own) | set(b) if own.get(k) != b.get(k)),
}
result["holds"] = result["the_same_blobs_links_and_refs"] and result["found_offline_by_huggingface_hub"] and len(b) == 2 * len(FILES) + 1
print(json.dumps(result, indent=2))
sys.exit(0 if result["holds"] else 1)
