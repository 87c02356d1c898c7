"""The server: without torch, without model files, every event to every reader."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from pinxit.errors import RequestError, RunError
from pinxit.studio.app import create_app
from pinxit.studio.server import serve
from pinxit.studio.streams import LogTail
from pinxit.studio.workspace import ImageSet, Workspace
from tests.pages import must_be_well_formed
from tests.studio.conftest import start_studio, wait_for

PAGES = ("library", "train", "generate", "transfer", "compare", "files", "queue")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "studio")
    workspace.create()
    return workspace


@pytest.fixture
def client(workspace: Workspace) -> TestClient:
    headers = {"authorization": f"Bearer {workspace.token_for('api')}"}
    return TestClient(create_app(workspace, 1), "http://127.0.0.1:1", headers=headers)


_WITHOUT_TORCH = """
import sys
opened = []
sys.addaudithook(lambda event, details: event == "open" and opened.append(str(details[0])))
from pathlib import Path
from starlette.testclient import TestClient
from pinxit.studio.app import create_app
from pinxit.studio.server import serve
from pinxit.studio.workspace import Workspace

workspace = Workspace(Path(sys.argv[1]))
headers = {"authorization": "Bearer " + workspace.token_for("api")}
client = TestClient(create_app(workspace, 1), "http://127.0.0.1:1", headers=headers)
for path in sys.argv[3:]:
    assert client.get(path).status_code == 200, path
models = [path for path in opened if path.endswith((".safetensors", ".pt", ".bin", ".ckpt"))]
heavy = {"torch", "diffusers", "transformers", "PIL", *sys.argv[2].split(",")} & set(sys.modules)
assert not models and not heavy, (models, heavy)
"""


def test_pages_need_no_torch_and_open_no_model_file(workspace: Workspace) -> None:
    recipe = {"token": "<a>", "class_noun": "b", "kind": "object", "base": "pocket"}
    job = workspace.queue.add("train", {"recipe": {**recipe, "method": {"name": "lora"}}})
    run = workspace.folder / "runs" / job.id
    run.mkdir()
    (run / "recipe.toml").write_text("steps = 4\n")
    (run / "concept.safetensors").write_bytes(b"\xff" * 99)
    paths = [f"/{page}" for page in PAGES] + [f"/jobs/{job.id}", "/api/openapi.json"]
    command = [sys.executable, "-c", _WITHOUT_TORCH, str(workspace.folder), "", *paths]
    subprocess.run(command, check=True)


def test_first_page_does_not_wait_for_libraries_that_it_does_not_need(workspace: Workspace) -> None:
    command = [sys.executable, "-c", _WITHOUT_TORCH, str(workspace.folder)]
    subprocess.run([*command, "pydantic,psutil", "/train"], check=True)


def test_pages_are_small_and_well_formed(client: TestClient) -> None:
    shared = sum(len(client.get(f"/static/studio.{name}").content) for name in ("css", "js"))
    for page in PAGES:
        answer = client.get(f"/{page}")
        assert answer.status_code == 200
        assert len(answer.content) + shared < 100_000
        must_be_well_formed(answer.text.replace("<!doctype html>", ""))


def test_tail_gives_each_line_once_and_starts_over_after_a_resume(tmp_path: Path) -> None:
    log = tmp_path / "journal.jsonl"
    log.write_text('{"a": 1}\n{"b"')
    tail = LogTail(log)
    first = list(tail.lines())
    assert [line for _, line in first] == ['{"a": 1}']
    with log.open("a") as file:
        file.write(': 2}\n{"c": 3}\n')
    assert [line for _, line in tail.lines()] == ['{"b": 2}', '{"c": 3}']
    reconnected = LogTail(log, first[0][0])
    assert [line for _, line in reconnected.lines()] == ['{"b": 2}', '{"c": 3}']
    (tmp_path / "new").write_text('{"a": 1}\n')
    (tmp_path / "new").replace(log)
    assert [line for _, line in tail.lines()] == ["", '{"a": 1}']


def test_upload_is_decoded_elsewhere_and_stored_again(
    client: TestClient, workspace: Workspace, tmp_path: Path
) -> None:
    Image.new("RGB", (70, 60), "teal").save(tmp_path / "a.jpg", comment=b"secret <script>")
    files = [
        ("files", ("../../a cat.jpg", (tmp_path / "a.jpg").read_bytes(), "image/jpeg")),
        ("files", ("..\\..\\b.png", b"MZ not an image", "image/png")),
        ("files", ("a cat.txt", b"a grey cat", "text/plain")),
    ]
    answer = client.post("/api/images", files=files)
    assert answer.status_code == 201
    content = answer.json()
    assert [image["name"] for image in content["images"]] == ["a cat.png"]
    assert content["images"][0]["caption"] == "a grey cat"
    assert [name for name, _ in content["rejected"]] == ["b.png"]
    images = workspace.images_of(content["id"])
    assert [path.name for path in images.files] == ["a cat.png"]
    assert b"secret" not in images.files[0].read_bytes()
    assert not (tmp_path / "a cat.png").exists()


def test_set_is_edited_without_losing_anything(client: TestClient, workspace: Workspace) -> None:
    images = _set_of_two(workspace)
    client.headers["origin"] = "http://127.0.0.1:1"
    form = {"use": "0.png", "caption:0.png": "red", "before": "a"}
    client.post(f"/images/{images.id}", data=form)
    assert [path.name for path in images.files] == ["0.png"]
    assert images.unused == ["1.png"]
    assert images.files[0].with_suffix(".txt").read_text() == "a red\n"
    client.post(f"/images/{images.id}", data={"use": "0.png", "back": "1.png"})
    assert [path.name for path in images.files] == ["0.png", "1.png"]


def test_wrong_answers_are_named_in_the_form(client: TestClient, workspace: Workspace) -> None:
    images = _set_of_two(workspace)
    client.headers["origin"] = "http://127.0.0.1:1"
    answer = client.post("/train", data={"images": images.id, "class_noun": "toy", "steps": "many"})
    assert answer.status_code == 400
    assert "steps must be a number, not &#39;many&#39;" in answer.text
    assert 'value="many"' in answer.text
    assert not workspace.queue.all()


def test_training_keeps_its_own_copy_of_the_images(
    client: TestClient, workspace: Workspace
) -> None:
    images = _set_of_two(workspace)
    values = {"images": images.id, "class_noun": "big toy", "method": "lora"}
    job = client.post("/api/train", json={**values, "steps": 7, "rank": 2}).json()
    recipe = workspace.queue.get(job["id"]).options["recipe"]
    assert (recipe["token"], recipe["steps"]) == ("<mytoy>", 7)
    assert recipe["method"] == {"name": "lora", "rank": 2}
    images.files[0].unlink()
    assert len(list(Path(recipe["images"]).glob("*.png"))) == 2


def test_removed_job_comes_back_from_the_trash(client: TestClient, workspace: Workspace) -> None:
    job = workspace.queue.add("generate", {"request": {"prompt": "a dog"}, "concepts": []})
    job.request_stop()
    client.headers["origin"] = "http://127.0.0.1:1"
    before = (job.folder / "job.json").read_bytes()
    client.post(f"/jobs/{job.id}/remove")
    assert workspace.queue.all() == []
    other = workspace.queue.add("generate", {"request": {"prompt": "a cat"}, "concepts": []})
    assert other.id != job.id
    client.post(f"/jobs/{job.id}/restore")
    assert (job.folder / "job.json").read_bytes() == before


def test_openapi_document_has_the_options_of_the_command_line(client: TestClient) -> None:
    document = client.get("/api/openapi.json").json()
    body = document["paths"]["/api/train"]["post"]["requestBody"]
    properties = body["content"]["application/json"]["schema"]["properties"]
    assert properties["steps"]["type"] == "integer"
    assert {"images", "class_noun", "rank", "learning_rate"} <= set(properties)
    assert json.dumps(document).count("operationId") == 11


def _set_of_two(workspace: Workspace) -> ImageSet:
    images = ImageSet(workspace.new_folder("images"))
    for number, color in enumerate(("crimson", "teal")):
        Image.new("RGB", (40, 50), color).save(images.folder / f"{number}.png")
    (images.folder / ".thumbnails").mkdir()
    return images


@pytest.mark.long
def test_worker_survives_the_server_and_belongs_to_the_next_one(tmp_path: Path) -> None:
    first = start_studio(tmp_path / "studio")
    workspace = first.workspace
    wait_for(lambda: workspace.workers().get("cpu"), 120)
    pid = (workspace.folder / "workers" / "cpu" / "pid").read_text()
    first.process.kill()
    first.process.wait()
    assert workspace.workers()["cpu"]
    second = start_studio(tmp_path / "studio")
    assert (workspace.folder / "workers" / "cpu" / "pid").read_text() == pid
    second.process.terminate()
    second.process.wait(120)
    assert not workspace.workers()["cpu"]


def test_used_port_and_foreign_host_are_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RunError, match="cannot be used"):
            serve(Workspace(tmp_path / "a"), port, "", print)
    with pytest.raises(RequestError, match="does not listen on"):
        serve(Workspace(tmp_path / "b"), 0, "", print, host="0.0.0.0")
