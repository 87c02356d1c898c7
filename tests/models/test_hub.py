"""Hub ids against a local server in place of the hub: downloads, the cache, and errors."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pinxit.adapters.parts import EmbeddingPart
from pinxit.cli import main
from pinxit.concepts.concept import Concept
from pinxit.concepts.metadata import Provenance
from pinxit.concepts.read import write_concept
from pinxit.errors import ModelError
from pinxit.models import hub
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.progress import Progress

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves folders as models, records requests, and can interrupt transfers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.requests: list[str] = []
        self.interruptions = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._respond(False)

    def do_GET(self) -> None:
        self._respond(True)

    def _respond(self, body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        self.server.requests.append(path)
        segments = path.removeprefix("api/models/").split("/")
        folder = self.server.models.get("/".join(segments[:2]))
        if folder is None:
            return self._refuse(401, "RepoNotFound")
        if path.startswith("api/"):
            files = [file for file in folder.rglob("*") if file.is_file()]
            tree = [_entry(file, folder) for file in files]
            info = {"id": "/".join(segments[:2]), "sha": COMMIT, "siblings": []}
            return self._send(json.dumps(tree if "tree" in segments else info).encode(), body)
        if "/".join(segments[:2]) in self.server.gated:
            return self._refuse(403, "GatedRepo")
        return self._send((folder / "/".join(segments[4:])).read_bytes(), body)

    def _send(self, content: bytes, body: bool) -> None:
        start = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hash(content):x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body and len(content) > 50_000 and self.server.interruptions:
            self.server.interruptions -= 1
            content = content[: (start + len(content)) // 2]
            self.close_connection = True
        if body:
            self.wfile.write(content[start:])

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entry(file: Path, folder: Path) -> dict[str, object]:
    name = file.relative_to(folder).as_posix()
    return {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}


@pytest.fixture
def hub_server(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has the nano base model as owner/nano, and an empty cache."""
    from huggingface_hub import constants

    with Hub() as server:
        server.models["owner/nano"] = nano
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        set_endpoint(server.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        yield server
        server.shutdown()


def set_endpoint(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Does what HF_ENDPOINT does when the library is imported."""
    from huggingface_hub import constants

    pattern = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", pattern)


def disconnect(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.shutdown()
    set_endpoint("http://127.0.0.1:9", monkeypatch)


@pytest.mark.long
def test_second_open_uses_the_cache(
    hub_server: Hub, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[Progress] = []
    with hub.progress_to(reports.append):
        opened = open_base("owner/nano")
    assert opened.name == "owner/nano"
    assert opened.hash == model.hash
    total = reports[-1].total
    assert reports[-1] == Progress("downloading owner/nano (MB)", total, total)
    assert [report.done for report in reports] == sorted(report.done for report in reports)
    downloads = {
        path.split("/resolve/")[1].partition("/")[2]
        for path in hub_server.requests
        if "resolve" in path
    }
    assert "unet/diffusion_pytorch_model.safetensors" in downloads
    hub_server.requests.clear()
    with hub.progress_to(lambda progress: pytest.fail(f"downloads again: {progress}")):
        open_base("owner/nano")
    assert not [path for path in hub_server.requests if "resolve" in path]
    disconnect(hub_server, monkeypatch)
    assert open_base("owner/nano").hash == model.hash


def test_only_required_files_are_downloaded() -> None:
    names = ["model_index.json", "unet/config.json", "unet/model.py", "safety_checker/model.bin"]
    stem = "unet/diffusion_pytorch_model"
    names += [f"{stem}.bin", f"{stem}.safetensors", f"{stem}.fp16.safetensors", "v1-5.ckpt"]
    names += ["tokenizer/merges.txt", "tokenizer/README.txt", "readme.md", "unet/x.msgpack"]
    required = {
        "model_index.json",
        "unet/config.json",
        f"{stem}.safetensors",
        "tokenizer/merges.txt",
    }
    assert set(hub._required_files(names)) == required
    assert hub._required_files(["config.json", "model.safetensors"]) == [
        "config.json",
        "model.safetensors",
    ]
    assert hub._required_files(["v1-5.ckpt", "README.md", "model.safetensors"]) == []


def test_models_named_by_files_need_consent_to_download(
    hub_server: Hub,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    info = PngInfo()
    info.add_text("pinxit", json.dumps({"prompt": "a dog", "steps": 1, "base": "owner/evil"}))
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png", pnginfo=info)
    about = Provenance("<mytoy>", "toy", "textual-inversion", "owner/evil", "", 1, {}, "")
    part = EmbeddingPart("<mytoy>", "toy", {"text": torch.ones(1, 32)})
    write_concept(Concept((part,), about), tmp_path / "c.safetensors")
    for typed in (
        ["generate", "--from-png", "a.png"],
        ["transfer", "a.png", "a cat", "--steps", "1"],
        ["generate", "a <mytoy>", "--concept", "c.safetensors"],
    ):
        assert main(typed) == 2
        assert "would be downloaded" in capsys.readouterr().err
        assert not hub_server.requests
    for consent in (["--base", "owner/evil"], ["--allow-download"]):
        assert main(["generate", "--from-png", "a.png", *consent]) == 2
        assert "there is no model `owner/evil`" in capsys.readouterr().err
        assert hub_server.requests
        hub_server.requests.clear()


def test_an_interrupted_download_continues(hub_server: Hub, model: Model) -> None:
    hub_server.interruptions = 1
    assert open_base("owner/nano").hash == model.hash


@pytest.mark.long
def test_a_download_that_keeps_failing(hub_server: Hub) -> None:
    hub_server.interruptions = 1000
    with pytest.raises(ModelError, match="the download of `owner/nano` failed") as caught:
        open_base("owner/nano")
    assert "continues where it stopped" in caught.value.hint


def test_one_file_of_a_model(hub_server: Hub, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "v1.safetensors").write_bytes(b"nothing")
    hub_server.models["owner/single"] = tmp_path / "model"
    with pytest.raises(ModelError, match="not a base model in diffusers' layout") as caught:
        open_base("owner/single")
    assert "give one of its files: owner/single/v1.safetensors" in caught.value.hint
    assert hub.fetch("owner/single/v1.safetensors").read_bytes() == b"nothing"


def test_a_hub_that_does_not_answer_costs_one_short_try(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_PATIENCE", 0.2)
    with socket.socket() as silent:  # accepts connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        set_endpoint(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        start = time.monotonic()
        for base in ("owner/one", "owner/two", "owner/three"):
            with pytest.raises(ModelError, match="the hub cannot be reached"):
                hub.fetch(base)
    assert time.monotonic() - start < 2
    monkeypatch.setattr(hub, "_ASK_AGAIN", 0.0)
    asked: list[str] = []
    monkeypatch.setattr(hub, "_ask", lambda endpoint, _: asked.append(endpoint))
    assert not hub.reachable()
    assert len(asked) == 1


@pytest.mark.long
def test_error_messages(hub_server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(base: str) -> tuple[str, str]:
        with pytest.raises(ModelError) as caught:
            open_base(base)
        return caught.value.message, caught.value.hint

    message, hint = error("runwayml/stable-diffusion-v1-5")
    assert "there is no model `runwayml/stable-diffusion-v1-5`" in message
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in hint
    hub_server.gated.add("owner/nano")
    message, hint = error("owner/nano")
    assert "requires that you accept its license" in message
    assert hint.startswith("create a token")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    message, hint = error("owner/nano")
    assert hint.startswith("accept it at https://huggingface.co/owner/nano")
    disconnect(hub_server, monkeypatch)
    message, hint = error("owner/other")
    assert "the hub cannot be reached" in message
    assert "connect to the network once" in hint


@pytest.mark.long
def test_command_line_shows_the_download_and_the_family(hub_server: Hub, tmp_path: Path) -> None:
    """In a subprocess with HF_ENDPOINT: the progress is pinxit's; the second run is offline."""
    variables = {"HF_ENDPOINT": hub_server.url, "HF_HUB_CACHE": str(tmp_path / "cache")}
    run = "import sys; from pinxit.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", run, "generate", "a dog", "--base", "owner/nano"]
    command += ["--steps", "1", "--count", "1", "--out", str(tmp_path / "out")]
    for offline in ("0", "1"):
        environment = {**os.environ, **variables, "HF_HUB_OFFLINE": offline}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert ("downloading owner/nano (MB): 1 of 1" in done.stderr) is (offline == "0")
        assert "owner/nano: stable-diffusion-1, 32 pixels, epsilon prediction" in done.stderr
        assert "huggingface" not in done.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
