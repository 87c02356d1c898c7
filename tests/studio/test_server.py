"""The server: without torch, without model files, every event to every reader."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from lab.images import odd_images
from pinxit.cli.screen import stoppable
from pinxit.errors import RequestError, RunError
from pinxit.pocket import gallery
from pinxit.pocket.world import held_out_subjects
from pinxit.progress import Notice
from pinxit.runs.events import MemoryNotice, Preview, PreviewScores, to_line
from pinxit.runs.training_notices import step_notices
from pinxit.studio.server import serve
from pinxit.studio.streams import LogTail
from pinxit.studio.trash import Trash
from pinxit.studio.views import TrainingView, in_words
from pinxit.studio.workspace import Workspace
from pinxit.training.step_result import StepResult
from tests.pages import must_be_well_formed
from tests.studio.conftest import add_images, add_training, start_studio, wait_for

PAGES = ("library", "train", "generate", "transfer", "compare", "files", "queue")


_WITHOUT_TORCH = """
import sys
opened = []
sys.addaudithook(lambda event, details: event == "open" and opened.append(str(details[0])))
from pathlib import Path
from starlette.testclient import TestClient
from pinxit.studio.app import create_app
from pinxit.studio.server import serve
from pinxit.studio.trash import Trash
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


def test_the_first_page_does_not_load_slow_libraries(workspace: Workspace) -> None:
    command = [sys.executable, "-c", _WITHOUT_TORCH, str(workspace.folder)]
    subprocess.run([*command, "pydantic,psutil", "/train"], check=True)


def test_pages_are_small_and_well_formed(client: TestClient) -> None:
    shared = sum(len(client.get(f"/static/studio.{name}").content) for name in ("css", "js"))
    for page in PAGES:
        answer = client.get(f"/{page}")
        assert answer.status_code == 200
        assert len(answer.content) + shared < 100_000
        must_be_well_formed(answer.text.replace("<!doctype html>", ""))


def test_tail_gives_each_line_once_and_restarts_after_a_resume(tmp_path: Path) -> None:
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
        ("files", ("IMG_0042.HEIC", odd_images.phone(1), "image/heic")),
        ("files", ("IMG_0043.HEIC", odd_images.phone(1)[:900], "image/heic")),
    ]
    answer = client.post("/api/images", files=files)
    assert answer.status_code == 201
    content = answer.json()
    names = [image["name"] for image in content["images"]]
    assert names == ["IMG_0042.png", "a cat.png"]
    assert content["images"][1]["caption"] == "a grey cat"
    assert [name for name, _ in content["rejected"]] == ["b.png", "IMG_0043.heic"]
    images = workspace.images_of(content["id"])
    assert [path.name for path in images.files] == names
    assert b"secret" not in images.files[1].read_bytes()
    assert not (tmp_path / "a cat.png").exists()


def test_set_is_edited_without_losing_anything(client: TestClient, workspace: Workspace) -> None:
    images = add_images(workspace)
    form = {"use": "0.png", "caption:0.png": "red", "caption:1.png": "", "before": "a"}
    client.post(f"/images/{images.id}", data=form)
    assert [path.name for path in images.files] == ["0.png"]
    assert images.unused == ["1.png"]
    assert images.files[0].with_suffix(".txt").read_text() == "a red\n"
    client.post(f"/images/{images.id}", data={"use": "0.png", "back": "1.png"})
    assert [path.name for path in images.files] == ["0.png", "1.png"]


def test_wrong_answers_are_named_in_the_form(client: TestClient, workspace: Workspace) -> None:
    images = add_images(workspace)
    answer = client.post("/train", data={"images": images.id, "class_noun": "toy", "steps": "many"})
    assert answer.status_code == 400
    assert "steps must be a number, not &#39;many&#39;" in answer.text
    assert 'value="many"' in answer.text
    assert not workspace.queue.all()


def test_training_keeps_its_own_copy_of_the_images(
    client: TestClient, workspace: Workspace
) -> None:
    images = add_images(workspace)
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
    before = (job.folder / "job.json").read_bytes()
    client.post(f"/jobs/{job.id}/remove")
    assert workspace.queue.all() == []
    other = workspace.queue.add("generate", {"request": {"prompt": "a cat"}, "concepts": []})
    assert other.id != job.id
    client.post(f"/jobs/{job.id}/restore")
    assert (job.folder / "job.json").read_bytes() == before


def test_trash_has_all_that_a_job_made_and_is_emptied_for_good(
    client: TestClient, workspace: Workspace
) -> None:
    images = add_images(workspace)
    training = add_training(workspace, snapshot=images.id)
    training.finish()
    other = workspace.queue.add("inspect", {"file": workspace.new_folder("files").name})
    address, run = f"/jobs/{training.id}", workspace.folder / "runs" / training.id
    for _ in range(2):
        client.post(f"{address}/remove")
        assert not run.exists()
        assert not images.folder.exists()
        assert "Bring it back" in client.get("/files").text
        client.post(f"{address}/restore")
        assert (run / "concept.safetensors").is_file()
        assert images.folder.is_dir()
    client.post(f"{address}/remove")
    assert client.post("/trash", data={}).status_code == 400
    assert Trash(workspace).jobs()
    client.post("/trash", data={"sure": "on"})
    assert not Trash(workspace).jobs()
    client.post(f"{address}/restore")
    assert Workspace(workspace.folder).queue.all() == [other]
    assert workspace.queue.add("inspect", {}).id == "000003"
    assert workspace.new_folder("images").name == "000002"  # an address never means another one


def test_form_says_what_the_last_training_took(client: TestClient, workspace: Workspace) -> None:
    for device, text in (
        ("cpu", "expected: 9 steps"),
        ("cuda:0", "last time: 4 steps"),
        ("mps", ""),
    ):
        file = workspace.cost_file("pocket", "lora", device)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    page = client.get("/train").text
    assert "On pocket, last time: 4 steps" in page
    assert page.count("On pocket") == 1


def test_cost_of_a_training_has_its_time_and_memory(workspace: Workspace) -> None:
    training = add_training(workspace)
    steps = [StepResult(step, 4, (0.5,), (1.0,), 1e-3, 30.0) for step in (1, 2, 3)]
    notice = MemoryNotice(1, text="training in fp32; predicted peak: 1.5 GB of memory (1 GB, ...)")
    with (workspace.folder / "runs" / training.id / "journal.jsonl").open("a") as file:
        file.writelines(map(to_line, (notice, *steps)))
    view = TrainingView(training, workspace.run(training))
    assert view.cost == "4 steps in 2 min, 1.5 GB of memory"


def test_time_of_the_first_steps_is_no_finding(workspace: Workspace) -> None:
    training = add_training(workspace)
    step = StepResult(3, 100, (0.5,), (1.0,), 1e-3, 40.0)
    (time,) = step_notices(step, [40.0, 40.0], "fp32")
    with (workspace.folder / "runs" / training.id / "journal.jsonl").open("a") as file:
        file.writelines(map(to_line, (time, Notice("the images are small"))))
    assert TrainingView(training, workspace.run(training)).sentences == ["the images are small"]


def test_generated_image_is_removed_brought_back_and_transferred(
    client: TestClient, workspace: Workspace
) -> None:
    job = workspace.queue.add("generate", {"request": {"prompt": "a dog"}, "concepts": []})
    folder = workspace.folder / "generated" / job.id
    folder.mkdir()
    for place in range(3):
        Image.new("RGB", (64, 64), (place, 0, 0)).save(folder / f"{place:04}.png")
    address = f"/jobs/{job.id}/images/1"
    last = client.get(f"/jobs/{job.id}/images/2").content
    assert "stop it first" in client.post(f"{address}/remove").text
    job.finish()
    page = client.post(f"{address}/remove").text
    assert ("seed 0" in page, "seed 1" in page, "seed 2" in page) == (True, False, True)
    assert client.get(address).status_code == 400
    assert client.get(f"/jobs/{job.id}/images/2").content == last
    page = client.post(f"/jobs/{job.id}/restore-images").text
    assert ("seed 1" in page, "Bring back" in page) == (True, False)
    assert 'value="1"' in client.get(f"/generate?like={job.id}").text  # the seed after its image
    answer = client.post(f"{address}/transfer")
    assert answer.url.path == "/transfer"
    images = workspace.images_of(answer.url.params["image"])
    with Image.open(images.files[0]) as image:
        assert image.getpixel((0, 0)) == (1, 0, 0)


def test_visitor_without_images_tries_ours(client: TestClient, workspace: Workspace) -> None:
    for path in ("library", "train", "transfer"):
        assert "Use sample images" in client.get(f"/{path}").text
    answer = client.post("/samples", data={"page": "train"})
    assert answer.url.path == "/train"
    values = dict(answer.url.params)
    assert values["class_noun"] == held_out_subjects()[gallery.SUBJECT].class_noun
    images = workspace.images_of(values["images"])
    assert len(images.checks["images"]) == len(images.files) == len(gallery.subject_pictures())
    answer = client.post("/samples", data={"page": "transfer"})
    assert len(workspace.images_of(answer.url.params["image"]).files) == 1


def test_renamed_job_has_its_name_in_the_lists(client: TestClient, workspace: Workspace) -> None:
    job = add_training(workspace)
    client.post(f"/jobs/{job.id}/rename", data={"title": " my <b>dog "})
    for path in ("library", "generate", "queue", f"jobs/{job.id}"):
        assert "my &lt;b&gt;dog" in client.get(f"/{path}").text, path
    client.post(f"/jobs/{job.id}/rename", data={"title": ""})
    assert "my &lt;b&gt;dog" not in client.get("/library").text


def test_page_of_a_job_shows_where_it_belongs(client: TestClient, workspace: Workspace) -> None:
    images = add_images(workspace)
    training = add_training(workspace)
    file = workspace.queue.add("inspect", {"file": ""})
    request = {"prompt": "a", "image": images.id}
    transfer = workspace.queue.add("generate", {"request": request, "concepts": []})
    here = {f"jobs/{training.id}": "library", f"jobs/{file.id}": "files"}
    here[f"jobs/{transfer.id}"] = "transfer"
    here |= {f"images/{images.id}": "train", f"images/{images.id}/0/edit": "train"}
    for path, section in here.items():
        page = client.get(f"/{path}").text
        assert f'<a href="/{section}" aria-current="true">' in page, path
        assert page.count("aria-current") == 1
    assert '<a href="/files" aria-current="page">' in client.get("/files").text


def test_scores_without_a_likeness_are_shown(client: TestClient, workspace: Workspace) -> None:
    job = add_training(workspace)
    journal = workspace.folder / "runs" / job.id / "journal.jsonl"
    with journal.open("a") as file:
        problems = ("weak; try a higher --learning-rate",)
        file.write(to_line(PreviewScores(4, None, 1.02, None, is_best=True, problems=problems)))
    page = client.get(f"/jobs/{job.id}").text
    assert ">prompts met 100%<" in page
    assert "weak; try a higher learning rate" in page


def test_openapi_document_has_the_options_of_the_command_line(
    client: TestClient, workspace: Workspace
) -> None:
    document = client.get("/api/openapi.json").json()
    body = document["paths"]["/api/train"]["post"]["requestBody"]
    properties = body["content"]["application/json"]["schema"]["properties"]
    assert properties["steps"]["type"] == "integer"
    assert {"images", "class_noun", "rank", "learning_rate"} <= set(properties)
    job = document["paths"]["/api/jobs/{job}"]["get"]["responses"]["200"]
    shape = job["content"]["application/json"]["schema"]["properties"]
    number = workspace.queue.add("generate", {"request": {"prompt": "a"}, "concepts": []}).id
    assert set(shape) == set(client.get(f"/api/jobs/{number}").json())
    assert json.dumps(document).count("operationId") == 11


def test_wrong_answers_are_refused_before_they_are_queued(
    client: TestClient, workspace: Workspace
) -> None:
    images = add_images(workspace)
    wrong = {"images": images.id, "class_noun": "dog", "token": "my dog"}
    assert "is not one word" in client.post("/api/train", json=wrong).json()["message"]
    answer = client.post("/api/generate", json={"prompt": "a dog", "control": "img2img"})
    assert answer.json()["message"] == "the source image is missing"
    many = [f"{add_training(workspace).id}:nan"]
    answer = client.post("/api/generate", json={"prompt": "a dog", "concepts": many})
    assert answer.json()["message"] == "the strength must be a number, not 'nan'"
    Trash(workspace).add(workspace.queue.all()[0])
    file = workspace.new_folder("files")
    (file / "bad.pt").write_bytes(b"a pickle")
    job = workspace.queue.add("inspect", {"file": file.name})
    job.finish(RunError("it runs code", "use another file"))
    assert "Generate with it" not in client.get("/library").text
    answer = client.post("/api/generate", json={"prompt": "a dog", "concepts": [job.id]})
    assert answer.json()["message"] == f"job {job.id} has no concept"
    assert workspace.queue.all() == [job]


def test_program_is_told_of_unknown_values_and_of_the_end(
    client: TestClient, workspace: Workspace
) -> None:
    wrong = {"images": "000001", "class_noun": "dog", "leraning_rate": 1}
    answer = client.post("/api/train", json=wrong).json()
    assert answer["message"] == "unknown value 'leraning_rate'"
    assert "learning_rate" in answer["hint"]
    job = workspace.queue.add("generate", {"request": {"prompt": "a dog"}, "concepts": []})
    job.log.append(Notice("all is well"))
    job.finish()
    stream = client.get(f"/api/jobs/{job.id}/events").text  # it ends
    assert "all is well" in stream
    assert stream.endswith('event: end\ndata: {"state": "done"}\n\n')
    assert client.delete("/api/jobs").json()["message"] == "there is no DELETE /api/jobs"
    refused = client.get("/api/jobs", headers={"authorization": "Bearer wrong"})
    assert (refused.status_code, "--api-token" in refused.json()["hint"]) == (401, True)


def test_long_queue_shows_the_newest_and_all_that_wait(
    client: TestClient, workspace: Workspace
) -> None:
    for number in range(110):
        job = workspace.queue.add("generate", {"request": {"prompt": "a"}, "concepts": []})
        if number:
            job.finish()
    page = client.get("/queue").text
    assert "9 older jobs have ended" in page
    assert page.count('<th scope="row">') == 101
    assert "/jobs/000001" in page


def test_library_shows_the_newest_and_finds_by_words(
    client: TestClient, workspace: Workspace
) -> None:
    for number in range(50):
        recipe = {"token": f"<a{number}>", "class_noun": "toy", "kind": "object", "base": "pocket"}
        workspace.queue.add("train", {"recipe": {**recipe, "method": {"name": "lora"}}}).finish()
    workspace.job("000001").rename("Rex in the garden")
    page = client.get("/library").text
    assert page.count("<h2>") == 48
    assert "2 older ones are not shown" in page
    assert client.get("/library?all=1").text.count("<h2>") == 50
    found = client.get("/library?find=REX+lora").text
    assert (found.count("<h2>"), "&lt;a0&gt;" in found) == (1, True)
    assert "Nothing has all these words" in client.get("/library?find=cat").text


def test_long_training_shows_the_newest_steps_and_the_best(
    client: TestClient, workspace: Workspace
) -> None:
    job = add_training(workspace)
    run = workspace.folder / "runs" / job.id
    with (run / "journal.jsonl").open("a") as journal:
        journal.write(to_line(PreviewScores(2, 0.9, 1.0, 0.9, is_best=True)))
        for step in range(10, 20):
            sheet = run / "previews" / f"{step}.png"
            shutil.copyfile(run / "previews" / "0000002.png", sheet)
            journal.write(to_line(Preview(step, sheet, 0)))
    address = f"/jobs/{job.id}"
    page = client.get(address).text
    shown = [step for step in (2, 4, *range(10, 20)) if f"{address}/previews/{step}" in page]
    assert shown == [2, *range(12, 20)]
    assert "Show all 12 steps" in page
    assert f"{address}/previews/4" in client.get(f"{address}?all=1").text


def test_style_and_scripts_are_loaded_once(client: TestClient) -> None:
    page = client.get("/train").text
    address = page.partition('rel="stylesheet" href="')[2].partition('"')[0]
    assert "immutable" in client.get(address).headers["cache-control"]
    assert client.get("/train").headers["cache-control"] == "no-store"


def test_missing_folders_are_an_error_in_words(client: TestClient, workspace: Workspace) -> None:
    for name in ("workers", "generated", "votes"):
        (workspace.folder / name).rmdir()
    assert client.get("/queue").status_code == client.get("/compare").status_code == 200
    shutil.rmtree(workspace.folder)
    answer = client.get("/library")
    assert (answer.status_code, "moved or deleted" in answer.text) == (500, True)


@pytest.mark.long
def test_worker_survives_the_server_and_belongs_to_the_next_one(tmp_path: Path) -> None:
    first = start_studio(tmp_path / "studio")
    workspace = first.workspace
    wait_for(lambda: workspace.workers().get("cpu"))
    pid = (workspace.folder / "workers" / "cpu" / "pid").read_text()
    first.process.kill()
    first.process.wait()
    assert workspace.workers()["cpu"]
    second = start_studio(tmp_path / "studio")
    assert (workspace.folder / "workers" / "cpu" / "pid").read_text() == pid
    second.stop()
    assert not workspace.workers()["cpu"]


def test_a_signal_before_the_server_listens_is_not_lost(tmp_path: Path) -> None:
    def say(_: str) -> None:
        with suppress(KeyboardInterrupt):  # as in a callback, where Python drops exceptions
            signal.raise_signal(signal.SIGTERM)

    signal.alarm(120)  # otherwise it serves for ever
    with pytest.raises(KeyboardInterrupt), stoppable():
        serve(Workspace(tmp_path / "studio"), 0, "", say)
    signal.alarm(0)


def test_used_port_and_foreign_host_are_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RunError, match="cannot be used"):
            serve(Workspace(tmp_path / "a"), port, "", print)
    with pytest.raises(RequestError, match="does not listen on"):
        serve(Workspace(tmp_path / "b"), 0, "", print, host="0.0.0.0")


def test_advice_has_no_options_of_the_command_line() -> None:
    assert in_words("write it with --format peft, pinxit or xlabs") == (
        "write it with format peft, pinxit or xlabs"
    )
    command = "continue with: pinxit train --resume run"
    assert in_words(command) == command
