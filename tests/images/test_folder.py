"""Unusual images are decoded correctly, and one error names all files that cannot be read."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pinxit.errors import ImageError
from pinxit.images.folder import check_images, read_images
from pinxit.training.recipe import Recipe

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def image_with_corner() -> Image.Image:
    """A white image, wider than high, with a red quarter at the top left."""
    image = Image.new("RGB", (24, 16), WHITE)
    image.paste(RED, (0, 0, 12, 8))
    return image


def is_close(pixel: object, color: tuple[int, int, int]) -> bool:
    return bool(np.abs(np.subtract(pixel, color)).max() <= 12)


def read_single(folder: Path) -> Image.Image:
    (image,) = read_images(folder)
    return image.open()


# How an upright image is stored for each EXIF orientation.
TRANSPOSITIONS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TRANSPOSITIONS)
def test_every_orientation_is_made_upright(folder: Path, orientation: int) -> None:
    transposition = TRANSPOSITIONS[orientation]
    stored = (
        image_with_corner()
        if transposition is None
        else image_with_corner().transpose(transposition)
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(folder / "photo.jpg", exif=exif, quality=100, subsampling=0)
    image = read_single(folder)
    assert image.size == (24, 16)
    assert is_close(image.getpixel((4, 3)), RED)
    assert is_close(image.getpixel((20, 12)), WHITE)


def test_transparent_parts_become_white(folder: Path) -> None:
    layer = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    layer.paste((255, 0, 0, 255), (0, 0, 4, 8))
    layer.save(folder / "a.png")
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.paste(1, (0, 0, 4, 8))
    palette.save(folder / "b.png", transparency=0)
    palette.save(folder / "c.gif", transparency=0)
    Image.new("LA", (8, 8), (0, 0)).save(folder / "d.png")
    *partly_transparent, transparent = [image.open() for image in read_images(folder)]
    for image in partly_transparent:
        assert image.getpixel((1, 1)) == RED
        assert image.getpixel((6, 6)) == WHITE
    assert transparent.getpixel((0, 0)) == WHITE


def test_half_transparent_pixels_are_blended_with_white(folder: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(folder / "a.png")
    assert is_close(read_single(folder).getpixel((0, 0)), (127, 127, 127))


@pytest.mark.parametrize("bits", ["1", "L", "16", "float", "CMYK", "YCbCr"])
def test_every_depth_and_color_space_becomes_8_bit_rgb(folder: Path, bits: str) -> None:
    ramp = np.linspace(0, 1, 64).reshape(8, 8)
    if bits == "16":
        Image.fromarray((ramp * 65535).astype(np.uint16)).save(folder / "a.png")
    elif bits == "float":
        Image.fromarray(ramp.astype(np.float32)).save(folder / "a.tiff")
    else:
        gray = Image.fromarray((ramp * 255).astype(np.uint8))
        lossless = folder / ("a.png" if bits in "1L" else "a.tiff")
        gray.convert("RGB").convert(bits, dither=Image.Dither.NONE).save(lossless)
    image = read_single(folder)
    assert (image.mode, image.size) == ("RGB", (8, 8))
    expected = (ramp > 0.5) * 255 if bits == "1" else ramp * 255
    assert np.abs(np.asarray(image)[..., 0] - expected).max() <= 3


def test_the_first_frame_of_an_animation_is_used(folder: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, GREEN)]
    for name in ("a.gif", "b.png", "c.webp"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], lossless=True)
    assert all(is_close(p.open().getpixel((4, 4)), RED) for p in read_images(folder))


def test_the_format_is_recognized_by_content(folder: Path) -> None:
    image_with_corner().save(folder / "really-a-jpeg.png", format="JPEG")
    assert read_single(folder).size == (24, 16)


def test_one_error_names_all_files_that_cannot_be_read(folder: Path) -> None:
    image_with_corner().save(folder / "good.png")
    whole = folder / "whole.jpg"
    Image.effect_noise((200, 200), 50).save(whole)
    (folder / "cut.jpg").write_bytes(whole.read_bytes()[:4000])
    (folder / "empty.png").touch()
    (folder / "film.mov").write_bytes(b"not an image")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    image_with_corner().save(folder / "latin.png")
    (folder / "latin.txt").write_bytes(b"a \0 caf\xe9")
    with pytest.raises(ImageError) as caught:
        read_images(folder)
    message = caught.value.message
    assert f"5 of 7 files in {folder}" in message
    for name in ("cut.jpg", "empty.png", "dangling.png", "pipe.png", "latin.png"):
        assert name in message
    assert "good.png" not in message
    assert "film.mov" not in message  # neither its content nor its name is that of an image
    images = read_images(folder, skip_bad=True)
    assert [image.path.name for image in images] == ["good.png", "whole.jpg"]
    assert caught.value.hint


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("format_name", ["png", "jpeg", "gif", "webp", "tiff", "bmp"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_named_and_never_crashes(
    format_name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / f"a.{format_name}"
    image_with_corner().save(path)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(1, len(whole)))])
    try:
        read_images(folder)
    except ImageError as error:
        assert path.name in error.message


def test_hidden_files_folders_and_notes_are_ignored(folder: Path) -> None:
    for name in ("b.png", "a.png"):
        image_with_corner().save(folder / name)
    (folder / ".DS_Store").write_bytes(b"rubbish")
    (folder / "Thumbs.db").write_bytes(b"rubbish")
    (folder / "notes.md").write_text("my toy")
    (folder / "more").mkdir()
    assert [image.path.name for image in read_images(folder)] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("00003-0-a woman in a red cloak", "a woman in a red cloak"),
        ("00003-0-cat", "cat"),
        ("00003-0", None),
        ("00003-0-", None),
        ("a  white pegasus is flying, majestic", "a white pegasus is flying, majestic"),
        ("red cloak", None),
        ("IMG_2034", None),
        ("Photo on 12-3-20 at 5.30 PM", None),
        ("mein Spielzeug im größten Garten", "mein Spielzeug im größten Garten"),
    ],
)
def test_captions_in_file_names(folder: Path, name: str, caption: str | None) -> None:
    image_with_corner().save(folder / f"{name}.png")
    (image,) = read_images(folder)
    assert image.caption == caption


def test_a_caption_has_a_maximum_length(folder: Path) -> None:
    image_with_corner().save(folder / "b.png")
    (folder / "b.txt").write_text("red " * 20_000)
    with pytest.raises(ImageError, match=r"b\.png \(its caption b\.txt has over 65536 bytes\)"):
        read_images(folder)


def test_the_text_file_of_an_image_is_its_caption(folder: Path) -> None:
    image_with_corner().save(folder / "00003-0-a woman.png")
    (folder / "00003-0-a woman.txt").write_text("\ufeffa toy\n on a  table\n", encoding="utf-8")
    image_with_corner().save(folder / "b.png")
    (folder / "b.txt").write_text(" \n")
    captions = [image.caption for image in read_images(folder)]
    assert captions == ["a toy on a table", None]


def test_the_hash_is_that_of_the_file(folder: Path) -> None:
    image_with_corner().save(folder / "a.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())
    image_with_corner().rotate(180).save(folder / "c.png")
    one, same, other = (image.sha256 for image in read_images(folder))
    assert one == same != other
    assert len(one) == 64


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    for path, text in [
        (tmp_path / "nowhere", "no folder"),
        (tmp_path, "no image in"),
    ]:
        with pytest.raises(ImageError, match=text) as caught:
            read_images(path)
        assert str(path) in caught.value.message
    (tmp_path / "inside").mkdir()
    with pytest.raises(ImageError) as caught:
        read_images(tmp_path)
    assert "inside" in caught.value.hint
    file = tmp_path / "a.png"
    image_with_corner().save(file)
    with pytest.raises(ImageError, match=r"a\.png is not a folder"):
        read_images(file)


def test_an_image_deleted_after_reading_is_reported(folder: Path) -> None:
    image_with_corner().save(folder / "a.png")
    (image,) = read_images(folder)
    image.path.unlink()
    assert image.open().size == (24, 16)  # its pixels are still in memory
    assert image.cache
    image.cache.clear()
    with pytest.raises(ImageError, match=r"a\.png can no longer be read"):
        image.open()


TEXTS = {
    "utf-8": "a r\u00f3bot, tag one".encode(),
    "utf-8 with a mark": "\ufeffa r\u00f3bot, tag one".encode(),
    "utf-16": "a r\u00f3bot,\r\ntag one".encode("utf-16"),
    "utf-16 big-endian": "\ufeffa r\u00f3bot, tag one\r\n".encode("utf-16-be"),
    "windows": "a r\u00f3bot, tag one".encode("cp1252"),
}


@pytest.mark.parametrize("encoding", TEXTS)
@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "A.Caption", "a.png.txt", "a.PNG.caption"])
def test_caption_files_under_all_usual_names_and_encodings(
    folder: Path, name: str, encoding: str
) -> None:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / name).write_bytes(TEXTS[encoding])
    (entry,) = check_images(folder)
    assert entry.image is not None
    assert entry.image.caption == "a r\u00f3bot, tag one"
    assert any("cp1252" in note for note in entry.notes) == (encoding == "windows")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (
            "\u0441\u043e\u0431\u0430\u043a\u0430 \u043d\u0430 \u043f\u043b\u044f\u0436\u0435",
            "cp1251",
        ),
        ("\u6d77\u8fb9\u7684\u72d7", "gb18030"),
        ("\u72ac\u3001\u6d77", "shift_jis"),
        ("\ubc14\ub2e4\uc758 \uac1c", "euc_kr"),
    ],
)
def test_a_caption_in_another_script_must_be_utf_8(folder: Path, text: str, encoding: str) -> None:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "a.txt").write_bytes(text.encode(encoding))
    with pytest.raises(ImageError, match=r"a\.txt is not UTF-8 text"):
        read_images(folder)
    (folder / "a.txt").write_bytes(text.encode())
    assert read_images(folder)[0].caption == text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '{"caption": "a toy, red"}'),
        ("a.png.json", '{"tags": ["a toy", "red"]}'),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "a toy, red"}\r\n\r\n'),
        ("metadata.csv", 'file_name,text\r\na.png,"a toy, red"\r\n'),
        ("metadata.csv", "\ufefffile_name;caption\na.png;a toy, red\n"),
        ("Metadata.CSV", "file_name\tprompt\na.png\ta toy, red\n"),
    ],
)
def test_captions_in_json_and_tables(folder: Path, name: str, content: str) -> None:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / name).write_text(content, newline="")
    (entry,) = check_images(folder)
    assert entry.image is not None
    assert entry.image.caption == "a toy, red"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("b.txt", "a toy", "no image's caption"),
        *(
            (name, "a toy", "no image's caption")
            for name in ("a.tags", "a.tag", "a.cap", "a.captions", "a.yaml", "A.YML")
        ),
        *(
            (name, "file_name\ttext\na.png\ta toy", "no image's caption")
            for name in ("metadata.tsv", "metadata.parquet", "captions.csv", "b.jsonl")
        ),
        ("metadata.jsonl", "{", "not JSON"),
        ("metadata.jsonl", '{"file_name": "a.png"}', "not read"),
        ("metadata.csv", "file_name,text\na.png,a,b", "more cells"),
    ],
)
def test_text_that_is_not_read_is_named(folder: Path, name: str, content: str, reason: str) -> None:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / name).write_text(content)
    entries = list(check_images(folder))
    assert [entry.path.name for entry in entries] == ["a.png", name]
    assert reason in entries[1].notes[0]


@pytest.mark.parametrize(
    "make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path.parent / "nowhere")]
)
def test_a_caption_that_is_no_file_is_named(folder: Path, make: Callable[[Path], None]) -> None:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    make(folder / "a.txt")
    image, caption = check_images(folder)
    assert image.image is not None
    assert image.image.caption is None
    assert (caption.path.name, caption.notes) == ("a.txt", ("not read: it is not a regular file",))


def test_a_second_caption_file_is_named(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "a.txt").write_text("a toy")
    (folder / "a.caption").write_text("a cat")
    entries = list(check_images(folder))
    assert entries[0].image is not None
    assert entries[0].image.caption == "a toy"
    assert entries[0].notes == ("a.caption is not read: a.txt is",)


def test_a_line_of_a_table_that_is_not_json_is_named(folder: Path) -> None:
    image_with_corner().save(folder / "a.png")
    table = folder / "metadata.jsonl"
    table.write_text('{"file_name": "a.png", "tags": ["red", null, 3]}\n')
    assert read_images(folder)[0].caption == "red, 3"
    with table.open("a") as file:
        file.write("no JSON\n")
    notes = [entry.notes for entry in check_images(folder) if entry.path == table]
    assert [note[0].partition(" is not JSON")[0] for note in notes] == ["line 2 of metadata.jsonl"]


def test_a_caption_extension_excludes_all_other_captions(folder: Path) -> None:
    for name in ("a.png", "b.png"):
        image_with_corner().save(folder / name)
    (folder / "a.txt").write_text("a long story")
    (folder / "a.tags").write_text("toy, red")
    (folder / "b.png.TAGS").write_text("blue")
    (folder / "metadata.csv").write_text("file_name,text\na.png,other")
    for extension in (".tags", "tags", "TAGS"):
        images = read_images(folder, "files", extension)
        assert [image.caption for image in images] == ["toy, red", "blue"]
    assert read_images(folder)[0].caption == "a long story"
    method = {"name": "textual-inversion"}
    options = {"images": folder, "token": "<x>", "class_noun": "toy", "method": method}
    recipe = Recipe.model_validate({**options, "caption_extension": "TAGS"})
    assert [image.caption for image in recipe.read_images()] == ["toy, red", "blue"]
