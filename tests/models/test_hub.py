"""Hub ids against a stand-in of the hub: downloads, the cache, and everything that can go wrong."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pinxit.errors import ModelError
from pinxit.models import hub
from pinxit.models.model import Model, open_base

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves folders as models; counts what is asked for, and may cut what it sends."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.models: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.asked: list[str] = []
        self.cuts = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        self.server.asked.append(path)
        words = path.removeprefix("api/models/").split("/")
        folder = self.server.models.get("/".join(words[:2]))
        if folder is None:
            return self._refuse(401, "RepoNotFound")
        if path.startswith("api/"):
            files = [file for file in folder.rglob("*") if file.is_file()]
            tree = [_entry(file, folder) for file in files]
            about = {"id": "/".join(words[:2]), "sha": COMMIT, "siblings": []}
            return self._send(json.dumps(tree if "tree" in words else about).encode(), body)
        if "/".join(words[:2]) in self.server.gated:
            return self._refuse(403, "GatedRepo")
        return self._send((folder / "/".join(words[4:])).read_bytes(), body)

    def _send(self, content: bytes, body: bool) -> None:
        start = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hash(content):x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body and len(content) > 50_000 and self.server.cuts:
            self.server.cuts -= 1
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
def here(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the nano base as owner/nano, and an empty cache."""
    from huggingface_hub import constants

    with Hub() as server:
        server.models["owner/nano"] = nano
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        point_to(server.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        yield server
        server.shutdown()


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does when the library is imported."""
    from huggingface_hub import constants

    pattern = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", pattern)


def unreachable(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.shutdown()
    point_to("http://127.0.0.1:9", monkeypatch)


@pytest.mark.long
def test_downloaded_once_then_from_the_cache(
    here: Hub, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    with hub.telling(lambda *args: told.append(args)):
        found = open_base("owner/nano")
    assert found.name == "owner/nano"
    assert found.hash == model.hash
    assert told[-1] == ("downloading owner/nano (MB)", told[-1][2], told[-1][2])
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    got = {path.split("/resolve/")[1].partition("/")[2] for path in here.asked if "resolve" in path}
    assert "unet/diffusion_pytorch_model.safetensors" in got
    here.asked.clear()
    with hub.telling(lambda *args: pytest.fail(f"downloads again: {args}")):
        open_base("owner/nano")
    assert not [path for path in here.asked if "resolve" in path]
    unreachable(here, monkeypatch)
    assert open_base("owner/nano").hash == model.hash


def test_only_what_is_needed() -> None:
    names = ["model_index.json", "unet/config.json", "unet/model.py", "safety_checker/model.bin"]
    stem = "unet/diffusion_pytorch_model"
    names += [f"{stem}.bin", f"{stem}.safetensors", f"{stem}.fp16.safetensors", "v1-5.ckpt"]
    names += ["tokenizer/merges.txt", "tokenizer/README.txt", "readme.md", "unet/x.msgpack"]
    wanted = {"model_index.json", "unet/config.json", f"{stem}.safetensors", "tokenizer/merges.txt"}
    assert set(hub._wanted(names)) == wanted
    assert hub._wanted(["config.json", "model.safetensors"]) == ["config.json", "model.safetensors"]
    assert hub._wanted(["v1-5.ckpt", "README.md", "model.safetensors"]) == []


def test_a_cut_connection_is_taken_up_again(here: Hub, model: Model) -> None:
    here.cuts = 1
    assert open_base("owner/nano").hash == model.hash


@pytest.mark.long
def test_a_connection_that_stays_cut(here: Hub) -> None:
    here.cuts = 1000
    with pytest.raises(ModelError, match="the download of `owner/nano` broke off") as caught:
        open_base("owner/nano")
    assert "goes on where it stopped" in caught.value.hint


def test_one_file_of_a_model(here: Hub, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "v1.safetensors").write_bytes(b"nothing")
    here.models["owner/single"] = tmp_path / "model"
    with pytest.raises(ModelError, match="no base in diffusers' layout") as caught:
        open_base("owner/single")
    assert "give one of its files: owner/single/v1.safetensors" in caught.value.hint
    assert hub.fetch("owner/single/v1.safetensors").read_bytes() == b"nothing"


@pytest.mark.long
def test_what_can_be_wrong(here: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(base: str) -> tuple[str, str]:
        with pytest.raises(ModelError) as caught:
            open_base(base)
        return caught.value.message, caught.value.hint

    message, hint = told("runwayml/stable-diffusion-v1-5")
    assert "there is no base `runwayml/stable-diffusion-v1-5`" in message
    assert "did you mean stable-diffusion-v1-5/stable-diffusion-v1-5?" in hint
    here.gated.add("owner/nano")
    message, hint = told("owner/nano")
    assert "only for those who accepted its licence" in message
    assert hint.startswith("make a token")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    message, hint = told("owner/nano")
    assert hint.startswith("accept it at https://huggingface.co/owner/nano")
    unreachable(here, monkeypatch)
    message, hint = told("owner/other")
    assert "the hub cannot be reached" in message
    assert "connect to the network once" in hint


@pytest.mark.long
def test_a_person_sees_the_download_and_the_family(here: Hub, tmp_path: Path) -> None:
    """As typed: the hub's address is HF_ENDPOINT's, the bars are ours, a second time is offline."""
    seen = {"HF_ENDPOINT": here.url, "HF_HUB_CACHE": str(tmp_path / "cache")}
    run = "import sys; from pinxit.cli import main; sys.exit(main())"
    typed = [sys.executable, "-c", run, "generate", "a dog", "--base", "owner/nano"]
    typed += ["--steps", "1", "--count", "1", "--out", str(tmp_path / "out")]
    for offline in ("0", "1"):
        environment = {**os.environ, **seen, "HF_HUB_OFFLINE": offline}
        done = subprocess.run(typed, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert ("downloading owner/nano (MB): 1 of 1" in done.stderr) is (offline == "0")
        assert "owner/nano: stable-diffusion-1, 32 pixels, predicts epsilon" in done.stderr
        assert "huggingface" not in done.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
