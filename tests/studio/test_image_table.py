"""The image table and the editor: captions, crops, masks and zip files, and nothing is lost."""

import io
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from pinxit.studio.image_set import FULL, MASK, REPLACED, ImageSet
from pinxit.studio.intake import take_in
from pinxit.studio.unzip import unzip
from pinxit.studio.workspace import Workspace
from tests.studio.conftest import add_images


@pytest.fixture
def images(workspace: Workspace) -> ImageSet:
    return add_images(workspace)


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def half_mask(size: tuple[int, int] = (40, 50)) -> bytes:
    """A mask whose left half is white."""
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return png(mask)


def captions(images: ImageSet) -> list[str]:
    return [path.with_suffix(".txt").read_text().strip() for path in images.files]


def test_captions_are_changed_together_and_undone(client: TestClient, images: ImageSet) -> None:
    page, keep = f"/images/{images.id}", {"use": ["0.png", "1.png"]}
    form = {
        "search": "square",
        "replace": "tile",
        "before": "photo of",
        "caption:0.png": "a red square",
    }
    assert client.post(page, data=form | keep).status_code == 200
    assert captions(images) == ["photo of a red tile", "photo of a teal tile"]
    client.post(f"{page}/undo")
    assert captions(images) == ["a crimson square", "a teal square"]
    client.post(f"{page}/undo")  # the undo can be undone
    assert captions(images) == ["photo of a red tile", "photo of a teal tile"]


def test_mask_is_drawn_cropped_and_removed_but_never_lost(
    client: TestClient, images: ImageSet
) -> None:
    crop = {"crop": "on", "left": "10", "top": "0", "right": "40", "bottom": "50"}
    address = f"/images/{images.id}/0/edit"
    # Half the size, as the canvas of a large image is.
    answer = client.post(address, data=crop, files={"mask": ("m.png", half_mask((20, 25)))})
    assert answer.status_code == 200
    image = images.files[0]
    mask = images.folder / f"0{MASK}"
    with Image.open(image) as cropped, Image.open(mask) as cropped_mask:
        assert cropped.size == cropped_mask.size == (30, 50)
        assert [cropped_mask.getpixel((x, 5)) for x in (0, 25)] == [255, 0]
    with Image.open(images.folder / FULL / f"0{MASK}") as whole:
        assert whole.size == (40, 50)
    assert images.checks["images"][0]["mask_share"] == pytest.approx(1 / 3, abs=0.05)
    assert client.get(f"/images/{images.id}/0/mask").status_code == 200
    client.post(address, data={})  # without a crop
    with Image.open(image) as whole, Image.open(mask) as whole_mask:
        assert whole.size == whole_mask.size == (40, 50)
    client.post(address, data={"mask": "none"})
    assert images.checks["images"][0]["mask_share"] is None
    assert client.get(f"/images/{images.id}/0/mask").status_code == 400
    replaced = list((images.folder / REPLACED).iterdir())
    assert {Image.open(file).size for file in replaced} == {(40, 50)}


def test_image_that_is_not_used_takes_its_mask_along(client: TestClient, images: ImageSet) -> None:
    client.post(f"/images/{images.id}/0/edit", files={"mask": ("m.png", half_mask())})
    client.post(f"/images/{images.id}", data={"use": "1.png", "caption:0.png": ""})
    assert images.unused == ["0.png"]
    assert images.checks["rejected"] == []
    client.post(f"/images/{images.id}", data={"use": "1.png", "back": "0.png"})
    assert images.checks["images"][0]["mask_share"] == pytest.approx(0.5)


def test_an_invalid_crop_is_an_error_message(client: TestClient, images: ImageSet) -> None:
    answer = client.post(f"/images/{images.id}/0/edit", data={"crop": "on", "left": "many"})
    assert answer.status_code == 400
    assert "a crop is four numbers, not &#39;many" in answer.text


def test_images_are_taken_from_a_zip_file(client: TestClient, workspace: Workspace) -> None:
    photo = png(Image.new("RGB", (70, 70), "teal"))
    content = zipped(
        {
            "toys/a cat.png": photo,
            "toys/a cat.txt": b"a cat",
            "toys/.hidden.png": photo,
            "__MACOSX/x.png": photo,
            "../../evil.png": photo,
            "/root/notes.md": b"x",
        }
    )
    answer = client.post("/images", files={"files": ("toys.zip", content)})
    assert answer.status_code == 200
    (images,) = (workspace.folder / "images").iterdir()
    checks = ImageSet(images).checks
    assert [(row["name"], row["caption"]) for row in checks["images"]] == [
        ("a cat.png", "a cat"),
        ("evil.png", ""),
    ]
    assert {path.parent for path in workspace.folder.parent.rglob("evil.png")} == {
        images,
        images / ".thumbnails",
    }


def test_a_file_without_a_name_in_a_zip_file_is_left_out(tmp_path: Path) -> None:
    content = zipped({"a.png": b"x", "b.png": b"y"}).replace(b"a.png", b"\0.png")
    (tmp_path / "x.zip").write_bytes(content)
    (tmp_path / "out").mkdir()
    unzip(tmp_path / "x.zip", tmp_path / "out", "0-")
    assert [file.read_bytes() for file in (tmp_path / "out").iterdir()] == [b"y"]


def bomb() -> bytes:
    """A file of 40 MiB in a zip file of a few kilobytes."""
    return zipped({"a.png": bytes(40 * 2**20)}, zipfile.ZIP_DEFLATED)


def lying() -> bytes:
    """The bomb, whose header says that the file has 5 bytes."""
    content, size = bytearray(bomb()), (40 * 2**20).to_bytes(4, "little")
    while (place := content.find(size)) >= 0:
        content[place : place + 4] = (5).to_bytes(4, "little")
    return bytes(content)


def link() -> bytes:
    """A link to a file of this machine."""
    info = zipfile.ZipInfo("a.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return content.getvalue()


def damaged() -> bytes:
    """Compressed data that is none: the first byte names a kind of block that does not exist."""
    content = bytearray(zipped({"a.png": bytes(999)}, zipfile.ZIP_DEFLATED))
    content[30 + len("a.png")] = 0xFF
    return bytes(content)


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


HOSTILE: dict[str, tuple[Any, str]] = {
    "bomb": (bomb, "too large"),
    "damaged": (damaged, "cannot be read"),
    "lying": (lying, "."),
    "nested": (lambda: zipped({"b.zip": zipped({"a.png": b""})}), "is a zip file"),
    "many": (lambda: zipped({f"{n}.png": b"" for n in range(501)}), "501 files"),
    "link": (link, "is a link"),
    "name": (lambda: zipped({"é.png": b""}).replace("é".encode(), b"\xa2\xa2"), "cannot be read"),
    "no zip": (lambda: b"PK\x03\x04 nothing", "cannot be read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_zip_file_is_refused_with_a_reason(name: str, workspace: Workspace) -> None:
    make, reason = HOSTILE[name]
    images = ImageSet(workspace.new_folder("images"))
    incoming = images.folder / ".incoming"
    incoming.mkdir()
    (incoming / "0000-photos.zip").write_bytes(make())
    take_in(images.folder, 64)
    assert reason in dict(images.checks["rejected"])["photos.zip"]
    assert images.files == []
    assert list(incoming.iterdir()) == []
