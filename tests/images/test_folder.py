"""Odd pictures come in right, and whatever cannot be read is named all at once."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pinxit.errors import PictureError
from pinxit.images.folder import read_pictures

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "toy"
    path.mkdir()
    return path


def corner_marked() -> Image.Image:
    """Wider than high, white, its top left quarter red."""
    image = Image.new("RGB", (24, 16), WHITE)
    image.paste(RED, (0, 0, 12, 8))
    return image


def near(pixel: object, colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(np.subtract(pixel, colour)).max() <= 12)


def only(folder: Path) -> Image.Image:
    (picture,) = read_pictures(folder)
    return picture.open()


# What was done to the upright picture by a camera held that way, by EXIF's number.
TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TURNS)
def test_every_orientation_comes_in_upright(folder: Path, orientation: int) -> None:
    turn = TURNS[orientation]
    stored = corner_marked() if turn is None else corner_marked().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(folder / "photo.jpg", exif=exif, quality=100, subsampling=0)
    image = only(folder)
    assert image.size == (24, 16)
    assert near(image.getpixel((4, 3)), RED)
    assert near(image.getpixel((20, 12)), WHITE)


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
    *cut_out, clear = [picture.open() for picture in read_pictures(folder)]
    for image in cut_out:
        assert image.getpixel((1, 1)) == RED
        assert image.getpixel((6, 6)) == WHITE
    assert clear.getpixel((0, 0)) == WHITE


def test_half_transparent_is_mixed_with_white(folder: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(folder / "a.png")
    assert near(only(folder).getpixel((0, 0)), (127, 127, 127))


@pytest.mark.parametrize("bits", ["1", "L", "16", "float", "CMYK", "YCbCr"])
def test_every_depth_and_colour_space_becomes_8_bit_rgb(folder: Path, bits: str) -> None:
    ramp = np.linspace(0, 1, 64).reshape(8, 8)
    if bits == "16":
        Image.fromarray((ramp * 65535).astype(np.uint16)).save(folder / "a.png")
    elif bits == "float":
        Image.fromarray(ramp.astype(np.float32)).save(folder / "a.tiff")
    else:
        grey = Image.fromarray((ramp * 255).astype(np.uint8))
        lossless = folder / ("a.png" if bits in "1L" else "a.tiff")
        grey.convert("RGB").convert(bits, dither=Image.Dither.NONE).save(lossless)
    image = only(folder)
    assert (image.mode, image.size) == ("RGB", (8, 8))
    expected = (ramp > 0.5) * 255 if bits == "1" else ramp * 255
    assert np.abs(np.asarray(image)[..., 0] - expected).max() <= 3


def test_moving_pictures_give_their_first_frame(folder: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    for name in ("a.gif", "b.png", "c.webp"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], lossless=True)
    assert all(near(p.open().getpixel((4, 4)), RED) for p in read_pictures(folder))


def test_the_suffix_does_not_matter_the_bytes_do(folder: Path) -> None:
    corner_marked().save(folder / "really-a-jpeg.png", format="JPEG")
    assert only(folder).size == (24, 16)


def test_what_cannot_be_read_is_named_all_at_once(folder: Path) -> None:
    corner_marked().save(folder / "good.png")
    whole = folder / "whole.jpg"
    Image.effect_noise((200, 200), 50).save(whole)
    (folder / "cut.jpg").write_bytes(whole.read_bytes()[:4000])
    (folder / "empty.png").touch()
    (folder / "film.mov").write_bytes(b"not a picture at all")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    corner_marked().save(folder / "latin.png")
    (folder / "latin.txt").write_bytes("a caf\xe9".encode("latin-1"))
    with pytest.raises(PictureError) as caught:
        read_pictures(folder)
    message = caught.value.message
    assert f"5 of 7 files in {folder}" in message
    for name in ("cut.jpg", "empty.png", "dangling.png", "pipe.png", "latin.png"):
        assert name in message
    assert "good.png" not in message
    assert "film.mov" not in message  # nobody takes it for a picture
    left = read_pictures(folder, skip_bad=True)
    assert [picture.path.name for picture in left] == ["good.png", "whole.jpg"]
    assert caught.value.hint


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("form", ["png", "jpeg", "gif", "webp", "tiff", "bmp"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_a_named_file_and_never_a_crash(
    form: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / f"a.{form}"
    corner_marked().save(path)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(1, len(whole)))])
    try:
        read_pictures(folder)
    except PictureError as error:
        assert path.name in error.message


def test_hidden_files_folders_and_notes_are_left_alone(folder: Path) -> None:
    for name in ("b.png", "a.png"):
        corner_marked().save(folder / name)
    (folder / ".DS_Store").write_bytes(b"rubbish")
    (folder / "Thumbs.db").write_bytes(b"rubbish")
    (folder / "notes.md").write_text("my toy")
    (folder / "more").mkdir()
    assert [picture.path.name for picture in read_pictures(folder)] == ["a.png", "b.png"]


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
    corner_marked().save(folder / f"{name}.png")
    (picture,) = read_pictures(folder)
    assert picture.caption == caption


def test_a_caption_has_a_limit(folder: Path) -> None:
    corner_marked().save(folder / "b.png")
    (folder / "b.txt").write_text("red " * 20_000)
    with pytest.raises(PictureError, match=r"b\.png \(its caption b\.txt is over 65536 bytes\)"):
        read_pictures(folder)


def test_a_text_beside_the_picture_is_its_caption(folder: Path) -> None:
    corner_marked().save(folder / "00003-0-a woman.png")
    (folder / "00003-0-a woman.txt").write_text("\ufeffa toy\n on a  table\n", encoding="utf-8")
    corner_marked().save(folder / "b.png")
    (folder / "b.txt").write_text(" \n")
    captions = [picture.caption for picture in read_pictures(folder)]
    assert captions == ["a toy on a table", None]


def test_the_hash_is_of_the_bytes(folder: Path) -> None:
    corner_marked().save(folder / "a.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())
    corner_marked().rotate(180).save(folder / "c.png")
    one, same, other = (picture.sha256 for picture in read_pictures(folder))
    assert one == same != other
    assert len(one) == 64


def test_folders_that_are_none_or_hold_nothing(tmp_path: Path) -> None:
    for path, words in [
        (tmp_path / "nowhere", "no folder"),
        (tmp_path, "no picture in"),
    ]:
        with pytest.raises(PictureError, match=words) as caught:
            read_pictures(path)
        assert str(path) in caught.value.message
    (tmp_path / "inside").mkdir()
    with pytest.raises(PictureError) as caught:
        read_pictures(tmp_path)
    assert "inside" in caught.value.hint
    file = tmp_path / "a.png"
    corner_marked().save(file)
    with pytest.raises(PictureError, match=r"a\.png is no folder"):
        read_pictures(file)


def test_a_picture_that_went_away_says_so(folder: Path) -> None:
    corner_marked().save(folder / "a.png")
    (picture,) = read_pictures(folder)
    picture.path.unlink()
    with pytest.raises(PictureError, match=r"a\.png cannot be read any more"):
        picture.open()
