"""Full disks, killed processes, two pages at once, foreign files: nothing is lost or stuck."""

import asyncio
import errno
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.testclient import TestClient

from pinxit.errors import DiskError, RequestError
from pinxit.studio import intake, uploads
from pinxit.studio.image_set import DISK_ERROR, INCOMING, ImageSet
from pinxit.studio.jobs import JobQueue, new_numbered_folder
from pinxit.studio.trash import Trash
from pinxit.studio.worker import Worker
from pinxit.studio.workspace import Workspace
from tests.studio.conftest import add_images, add_training
from tests.studio.test_jobs import train_recipe

PAGES = ("library", "train", "generate", "transfer", "compare", "files", "queue")


def store(file: UploadFile, path: Path, max_bytes: int) -> None:
    """Store an upload, in a thread: the browser of other tests has an event loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, uploads.store(file, path, max_bytes)).result()


def png(color: str = "teal") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(content, "PNG")
    return content.getvalue()


def send(client: TestClient, files: dict[str, bytes], **data: str) -> Any:
    sent = [("files", (name, content, "image/png")) for name, content in files.items()]
    return client.post("/images", files=sent, data=data)


def names(images: ImageSet) -> list[str]:
    return [path.name for path in images.files]


def test_uploads_of_the_same_names_at_once_are_all_kept(
    client: TestClient, workspace: Workspace
) -> None:
    images = add_images(workspace)
    files = {"a.png": png(), "b.png": png("crimson")}
    with ThreadPoolExecutor(3) as threads:
        answers = threads.map(lambda _: send(client, files, images=images.id), range(3))
        assert [answer.status_code for answer in answers] == [200] * 3
    expected = {"0.png", "1.png", "a.png", "a 2.png", "a 3.png", "b.png", "b 2.png", "b 3.png"}
    assert set(names(images)) == expected
    assert not images.incoming


def test_a_disk_that_is_full_leaves_no_part_of_an_upload(tmp_path: Path) -> None:
    class Full(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().read(size)

    file = UploadFile(Full(b"x" * 2**21))
    with pytest.raises(OSError, match="No space"):
        store(file, tmp_path / "a.png", 2**30)
    assert not list(tmp_path.iterdir())


def test_a_zip_file_stays_if_the_disk_is_full_while_it_is_unpacked(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ImageSet(workspace.new_folder("images"))
    archive = images.folder / INCOMING / "0000-a.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("a.png", png())

    def full(*_: object) -> None:
        raise DiskError("No space left on device", "free some space on that disk")

    monkeypatch.setattr(intake, "_limit_process", lambda: None)
    monkeypatch.setattr(intake.sys, "argv", ["intake", str(images.folder), "64"])
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as status:
        patch.setattr(intake, "unzip", full)
        intake.main()
    assert status.value.code == DISK_ERROR
    assert "No space" in capsys.readouterr().err
    assert images.incoming == [archive]
    intake.main()
    assert names(images) == ["a.png"]
    assert not images.rejected


def test_a_file_that_ends_the_process_is_refused_and_the_others_are_taken(
    client: TestClient, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = asyncio.create_subprocess_exec
    codes = [-9]

    async def dies_once(*command: str, **options: Any) -> Any:
        if not codes:
            return await start(*command, **options)

        async def communicate() -> tuple[bytes, bytes]:
            return b"", b"Killed"

        return SimpleNamespace(returncode=codes.pop(), communicate=communicate)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", dies_once)
    send(client, {"a.png": png(), "b.png": png("crimson")})
    images = workspace.images_of("000001")
    assert names(images) == ["b.png"]
    assert images.checks["rejected"] == [["a.png", "it cannot be decoded: Killed"]]
    codes.append(DISK_ERROR)
    answer = send(client, {"c.png": png()}, images=images.id)
    assert "the images could not be stored: Killed" in answer.text
    assert len(images.incoming) == 1
    send(client, {"d.png": png()}, images=images.id)
    assert names(images) == ["b.png", "c.png", "d.png"]


def test_a_file_that_is_too_large_is_refused_and_the_others_are_taken(
    client: TestClient, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_FILE_BYTES", 2**20)
    send(client, {"big.png": b"x" * 2**21, "b.png": png()})
    images = workspace.images_of("000001")
    assert names(images) == ["b.png"]
    assert images.checks["rejected"] == [["big.png", "it has more than 1 MiB"]]


def test_too_many_files_are_an_error_with_the_limit(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_FILES", 2)
    answer = send(client, {f"{number}.png": png() for number in range(3)})
    assert answer.status_code == 400
    assert "Maximum number of files is 2" in answer.text
    assert "send fewer files at once, or a zip file" in answer.text


def test_a_mask_is_uploaded_next_to_its_image(client: TestClient, workspace: Workspace) -> None:
    send(client, {"a cat.v1.png": png(), "a cat.v1.mask.png": png("white")})
    (row,) = workspace.images_of("000001").checks["images"]
    assert (row["name"], row["mask_share"]) == ("a cat v1.png", 1)


def test_long_names_in_a_zip_file_are_cut(client: TestClient, workspace: Workspace) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(f"{chr(0x20000) * 90}.png", png())
        archive.writestr("b.png", png())
    send(client, {"a.zip": content.getvalue()})
    images = workspace.images_of("000001")
    assert len(images.files) == 2
    assert not images.rejected


def test_a_page_that_is_old_changes_only_what_was_edited_in_it(
    client: TestClient, workspace: Workspace
) -> None:
    images = add_images(workspace)
    old = {"use": ["0.png", "1.png"]}
    for number, text in enumerate(("a crimson square", "a teal square")):
        old |= {f"caption:{number}.png": text, f"shown:{number}.png": text}
    assert client.get(f"/images/{images.id}").text.count('name="shown:') == 2
    send(client, {"2.png": png()}, images=images.id)  # in another page
    client.post(f"/images/{images.id}", data={**old, "caption:0.png": "red"})
    client.post(f"/images/{images.id}", data={**old, "caption:1.png": "green"})
    assert names(images) == ["0.png", "1.png", "2.png"]
    captions = [row["caption"] for row in images.checks["images"]]
    assert captions == ["red", "green", ""]


@pytest.mark.parametrize("address", ["/train", "/texts", "/images"])
def test_a_form_without_images_leaves_no_image_set(
    client: TestClient, workspace: Workspace, address: str
) -> None:
    answer = client.post(address, data={"class_noun": "toy"})
    assert "no image was chosen" in answer.text
    assert not list((workspace.folder / "images").iterdir())


def test_image_sets_are_found_again(client: TestClient, workspace: Workspace) -> None:
    images = add_images(workspace)
    values = {"images": images.id, "class_noun": "toy"}
    assert client.post("/train", data=values).status_code == 200  # it makes a copy of the set
    page = client.get("/train").text
    assert page.count("/train?images=") == 1
    assert f"/train?images={images.id}" in page
    assert "/train?images=" not in client.get(f"/train?images={images.id}").text


def test_foreign_files_do_not_disturb(client: TestClient, workspace: Workspace) -> None:
    for kind in ("queue", "images", "files", "votes", "keys", "runs", "trash/queue"):
        folder = workspace.folder / kind
        (folder / "999999").mkdir(parents=True)
        (folder / "000044").write_text("")
        (folder / "notes.txt").write_bytes(b"\xff")
    for name in ("workers/gpu/device", "bases/x/name", "bases/x/costs/lora/cpu"):
        file = workspace.folder / name
        file.parent.mkdir(parents=True)
        file.write_bytes(b"\xff")
    client.post("/generate", data={"prompt": "a dog"})
    assert [job.id for job in workspace.queue.all()] == ["000001"]
    assert {client.get(f"/{page}").status_code for page in PAGES} == {200}
    client.post("/trash", data={"sure": "on"})
    assert (workspace.folder / "trash/queue/000044").is_file()


def test_numbers_continue_after_the_last_one(tmp_path: Path) -> None:
    (tmp_path / "here/999999").mkdir(parents=True)
    (tmp_path / "here/000001").mkdir()
    (tmp_path / "trash/000002").mkdir(parents=True)
    folder = new_numbered_folder(tmp_path / "here", tmp_path / "trash")
    assert folder.name == "000003"
    assert [path.name for path in (tmp_path / "here").iterdir() if path == folder]


def test_emptying_the_trash_ends_a_removal_that_was_interrupted(workspace: Workspace) -> None:
    job = add_training(workspace)
    trash, run = Trash(workspace), workspace.run_folder(job)
    (trash.folder / "queue").mkdir()
    job.folder.rename(trash.folder / "queue" / job.id)  # and then the process was killed
    trash.empty()
    assert not trash.jobs()
    assert not run.exists()


@pytest.mark.long
@pytest.mark.parametrize("is_started", [False, True])
def test_a_studio_is_moved_while_a_training_waits_or_is_stopped(
    is_started: bool, workspace: Workspace, nano: Path, tmp_path: Path
) -> None:
    images = add_images(workspace)
    options = train_recipe(nano, images.folder, checkpoint_every=4)
    job = workspace.queue.add("train", {**options, "snapshot": images.id})
    other = workspace.queue.add("texts", {**options, "images": images.id})
    if is_started:
        with pytest.MonkeyPatch.context() as patch:
            steps = iter([False, False, False, False, True])
            patch.setattr(Worker, "_must_pause", lambda *_: next(steps, True))
            worker = Worker(workspace, "cpu", print)
            with workspace.queue.claim() as claimed:
                assert claimed == other  # the short one
            assert not worker._finished(job)
        assert workspace.run(job)
    workspace.folder.rename(tmp_path / "moved")
    # What is at the old place now is another studio's.
    (images.folder / "bad.png").parent.mkdir(parents=True)
    (images.folder / "bad.png").write_text("no image")
    moved = Workspace(tmp_path / "moved", workspace.bases)
    moved.create()
    (moved.folder / "runs" / other.id).mkdir()  # has the name of the images' folder
    Worker(moved, "cpu", print).run(until_empty=True)
    states = {job.id: (job.state, job.result) for job in JobQueue(moved.folder / "queue").all()}
    assert {state for state, _ in states.values()} == {"done"}, states
    report = json.loads((moved.folder / "queue" / other.id / "report.json").read_text())
    assert set(report["images"]) == {"0.png", "1.png"}


def test_a_refused_file_has_its_hint(tmp_path: Path) -> None:
    file = UploadFile(io.BytesIO(b"xx"))
    with pytest.raises(RequestError, match="more than 0 MiB"):
        store(file, tmp_path / "a.png", 1)
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_disk_is_a_page_with_a_hint(
    client: TestClient, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pinxit.studio.submit.snapshot", full)
    images = add_images(workspace)
    values = {"images": images.id, "class_noun": "toy"}
    answer = client.post("/train", data=values)
    assert (answer.status_code, "<nav" in answer.text) == (500, True)
    assert "No space left on device" in answer.text
    answer = client.post("/api/train", json=values)
    assert answer.status_code == 500
    assert "disk is full" in answer.json()["hint"]
