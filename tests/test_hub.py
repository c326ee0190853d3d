"""Checkpoints of the Hub, against a loopback server with the part of the Hub's HTTP contract that pulling takes."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import recipe_file, tiny_recipe, tl_nlp
from safetensors.torch import load_file, save_file

from tl_nlp import Run


class LoopbackHub(ThreadingHTTPServer):
    """Serves folders as the revisions of the repository team/tiny; `asked` are the files that clients fetched."""

    def __init__(self, revisions: dict[str, Path]):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.commits = {name: hashlib.sha1(name.encode()).hexdigest() for name in revisions}
        self.folders = {self.commits[name]: folder for name, folder in revisions.items()}
        self.asked: set[str] = set()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: LoopbackHub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        api, file = "/api/models/team/tiny", "/team/tiny/resolve/"
        if path.startswith(f"{api}/revision/") or path == api:
            commit = self.server.commits.get(path.rpartition("/")[2] if path != api else "main")
            if commit is None:
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            names = [{"rfilename": each.name} for each in self.server.folders[commit].iterdir()]
            return self.answer(200, json.dumps({"id": "team/tiny", "sha": commit, "siblings": names}).encode())
        if path.startswith(f"{api}/tree/"):
            files = sorted(self.server.folders[path.rpartition("/")[2]].iterdir())
            entries = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _oid(f)} for f in files]
            return self.answer(200, json.dumps(entries).encode())
        if path.startswith(file):
            commit, _, name = path.removeprefix(file).partition("/")
            wanted = self.server.folders[commit] / name
            if not wanted.is_file():
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            self.server.asked.add(name)
            return self.answer(200, wanted.read_bytes(), {"ETag": f'"{_oid(wanted)}"', "X-Repo-Commit": commit})
        return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture
def hub(tiny_bert: Path, tmp_path: Path) -> Iterator[LoopbackHub]:
    old = tmp_path / "old"
    shutil.copytree(tiny_bert, old)
    tensors = {name: tensor * 0.5 for name, tensor in load_file(old / "model.safetensors").items()}
    save_file(tensors, old / "model.safetensors", metadata={"format": "pt"})
    main = tmp_path / "main"
    shutil.copytree(tiny_bert, main)
    (main / "pytorch_model.bin").write_bytes(b"never fetched")
    server = LoopbackHub({"main": main, "v1": old})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


LOCATE = """
import json, sys
from tl_nlp import Checkpoint
from tl_nlp.errors import TLError
from tl_nlp.artifact import locate
from tl_nlp.pretrained import _sha256
for name, revision in json.loads(sys.argv[1]):
    try:
        print(_sha256(locate(Checkpoint(name=name, revision=revision)) / "model.safetensors"))
    except TLError as error:
        print(type(error).__name__, error)
"""


def test_a_hub_checkpoint_is_fetched_at_its_revision_and_then_cached(
    hub: LoopbackHub, reviews: Path, tmp_path: Path
) -> None:
    environment = {
        "HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"),
    }  # fmt: skip

    unfit = tiny_recipe(Path("team/tiny"), reviews).override("method=top_layers", "method.n_blocks=9")
    refused = tl_nlp("train", str(recipe_file(unfit, tmp_path)), **{**environment, "HF_HOME": str(tmp_path / "other")})
    assert refused.returncode == 2 and "the checkpoint has 2 blocks, not 9" in refused.stderr
    assert "config.json" in hub.asked and "model.safetensors" not in hub.asked

    def located(*checkpoints: tuple[str, str | None]) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", LOCATE, json.dumps(checkpoints)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    main, v1 = (
        hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest() for name in ("main", "old")
    )
    found = located(("team/tiny", None), ("team/tiny", "v1"), ("team/none", None), ("team/tiny", "v9"))
    assert found[:2] == [main, v1]
    assert found[2].startswith("HubError checkpoint 'team/none': the Hub has no such repository, or it is private")
    assert found[3].startswith("HubError checkpoint 'team/tiny': the Hub has no revision 'v9' of it")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= hub.asked
    assert "pytorch_model.bin" not in hub.asked

    hub.shutdown()
    hub.server_close()
    found = located(("team/tiny", "v1"), ("team/other", None))
    assert found[0] == v1
    assert "neither cached here nor reachable" in found[1]

    recipe = recipe_file(tiny_recipe(Path("team/tiny"), reviews, method="lora"), tmp_path)
    done = tl_nlp("train", str(recipe), **environment)
    assert done.returncode == 0, done.stderr
    adapter = Run.open(done.stdout.splitlines()[-1]).model_dir / "adapter_config.json"
    assert json.loads(adapter.read_text())["base_model_name_or_path"] == "team/tiny"
