"""`pinxit check`, and the warnings of `pinxit train` about images before training."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pinxit.cli import main
from pinxit.images import crop
from pinxit.images.crop import bucket_for, buckets, crop_box, crop_center
from pinxit.images.inspect import check_folder


def photo(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """A sharp image, different for each seed: soft spots with hard-edged squares on them."""
    generator = np.random.default_rng(seed)
    spots = Image.fromarray(generator.integers(0, 255, (4, 4, 3), dtype="u1"))
    image = spots.resize(size, Image.Resampling.BICUBIC)
    for _ in range(6):
        at = tuple(int(generator.integers(0, side - 8)) for side in size)
        image.paste(tuple(generator.integers(0, 255, 3).tolist()), (*at, at[0] + 8, at[1] + 8))
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "toy"
    path.mkdir()
    for number in range(4):
        photo(number).save(path / f"{number}.png")
    return path


def warnings(folder: Path, resolution: int = 64) -> dict[str, list[str]]:
    return check_folder(folder, resolution).warnings()


def test_good_images_cause_no_warning(folder: Path) -> None:
    assert warnings(folder) == {}


def test_duplicates_are_reported_however_they_were_made(folder: Path) -> None:
    first = photo(0)
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    first.save(folder / "saved-again.jpg", quality=40)
    first.resize((70, 70)).save(folder / "smaller.png")
    first.crop((1, 1, 95, 95)).save(folder / "trimmed.png")
    Image.eval(first, lambda level: level * 3 // 4).save(folder / "darker.png")
    texts = warnings(folder)
    assert texts["copy.png"] == ["the same as 0.png"]
    for name in ("saved-again.jpg", "smaller.png", "trimmed.png", "darker.png"):
        assert "nearly the same as 0.png" in texts[name]
    assert not texts.keys() & {"0.png", "1.png", "2.png", "3.png"}


def test_blurred_small_and_uniform_images_are_reported(folder: Path) -> None:
    photo(7, (256, 256)).filter(ImageFilter.GaussianBlur(9)).save(folder / "blurred.png")
    photo(8, (30, 40)).save(folder / "small.png")
    Image.new("RGB", (96, 96), "teal").save(folder / "teal.png")
    texts = warnings(folder)
    assert texts["blurred.png"] == ["blurred"]
    assert "small: enlarged 1.9 times to 56x72" in texts["small.png"]
    assert texts["teal.png"] == ["a single color"]
    assert set(texts) == {"blurred.png", "small.png", "teal.png"}


def test_warnings_about_the_folder(folder: Path) -> None:
    (folder / "0.txt").write_text("a toy")
    other = check_folder(folder, 64, caption_extension="Tags").warnings()[""]
    assert other == ["no image has a caption file .tags; there are .txt"]
    assert warnings(folder)[""] == ["no caption for 1.png, 2.png, 3.png, but for the other images"]
    for number in (1, 2, 3):
        (folder / f"{number}.txt").write_text("a toy")
    assert warnings(folder) == {}
    for number in (2, 3):
        (folder / f"{number}.png").unlink()
    assert "only 2: 3 to 12" in warnings(folder)[""][0]
    for number in range(50):
        photo(100 + number).save(folder / f"more{number}.png")
    assert any(text.startswith("52 images, 3 to 12 are usual") for text in warnings(folder)[""])


def test_images_that_all_look_alike_are_reported(tmp_path: Path) -> None:
    for number in range(4):
        image = photo(0)
        image.paste(photo(number + 1).crop((0, 0, 30, 30)), (60, 60))
        image.save(tmp_path / f"{number}.png")
    assert warnings(tmp_path)[""] == [
        "all images look alike: background and pose will be learned too"
    ]


def test_buckets_have_one_area_and_sides_of_whole_multiples() -> None:
    assert buckets(512, 8)[0] == (512, 512)
    for resolution, multiple in [(512, 8), (768, 8), (1024, 16), (64, 4), (32, 8), (16, 8)]:
        for width, height in buckets(resolution, multiple):
            assert width % multiple == height % multiple == 0
            assert 0.9 * resolution**2 <= width * height <= resolution**2
            assert max(width, height) <= 2.5 * min(width, height)
            assert (height, width) in buckets(resolution, multiple)


@pytest.mark.parametrize(
    ("size", "bucket", "cropped"),
    [
        ((300, 300), (512, 512), 0.0),
        ((301, 300), (512, 512), 0.01),
        ((4032, 3024), (576, 448), 0.04),  # phones
        ((3024, 4032), (448, 576), 0.04),
        ((6000, 4000), (640, 384), 0.10),  # cameras
        ((1920, 1080), (640, 384), 0.07),  # screens
        ((1080, 1920), (384, 640), 0.07),
        ((3000, 1000), (768, 320), 0.20),
    ],
)
def test_the_bucket_that_crops_least_is_chosen(
    size: tuple[int, int], bucket: tuple[int, int], cropped: float
) -> None:
    assert bucket_for(size, 512, 8) == bucket
    left, top, right, bottom = crop_box(size, bucket, (0.5, 0.5))
    lost = 1 - (right - left) * (bottom - top) / (size[0] * size[1])
    assert abs(lost - cropped) < 0.008
    assert lost <= 1 - min(size) / max(size) + 1e-9  # never more than a square would lose


@pytest.mark.parametrize("third", [0, 1, 2])
@pytest.mark.parametrize("tall", [False, True])
def test_the_crop_contains_the_subject(third: int, tall: bool) -> None:
    size = (100, 300) if tall else (300, 100)
    image = photo(3, size).filter(ImageFilter.GaussianBlur(12))
    position = (20, 110 * third) if tall else (110 * third, 20)
    image.paste(photo(5, (60, 60)), position)
    square = (64, 64)
    axis = 1 if tall else 0
    edges = crop_box(size, square, crop_center(image, square))
    first, last = edges[axis], edges[axis + 2]
    visible = min(last, position[axis] + 60) - max(first, position[axis])
    assert visible >= 40  # of 60; with a centered crop 0 if the subject is at an end


def test_a_mask_decides_the_crop() -> None:
    image = photo(3, (300, 100))
    mask = Image.new("L", (300, 100))
    mask.paste(255, (200, 40, 260, 60))
    left, _, right, _ = crop_box(image.size, (64, 64), crop_center(image, (64, 64), mask))
    assert left <= 200
    assert right >= 260


def test_the_crop_is_centered_if_moving_it_gains_nothing() -> None:
    assert crop_center(photo(0), (512, 512)) == (0.5, 0.5)
    assert crop_center(Image.new("RGB", (300, 100), "red"), (64, 64)) == (0.5, 0.5)
    assert crop.salience(Image.new("RGB", (64, 64), "red")).max() == 0


def test_check_prints_a_table_and_draws_a_contact_sheet(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(9, (200, 96)).save(folder / "wide.jpg")
    (folder / "film.mp4").write_bytes(b"film")
    (folder / "Thumbs.db").write_bytes(b"rubbish")
    assert main(["check", str(folder), "--size", "64"]) == 0
    output = capsys.readouterr()
    rows = [line.split("\t") for line in output.out.splitlines()]
    assert [row[0] for row in rows] == [*(f"{n}.png" for n in range(4)), "wide.jpg", "film.mp4"]
    assert rows[0][1:4] == ["used", "96x96", "64x64"]
    assert rows[4][1:4] == ["used", "200x96", "96x40, 13% cut off"]
    assert rows[5][1] == "left out"
    assert "5 images, 1 left out" in output.err
    with Image.open(tmp_path / "toy-check.png") as sheet:
        assert sheet.size == (3 * 268 + 4, 2 * 296 + 4)
        # The outline of the crop is drawn on the last one.
        green = (np.asarray(sheet.convert("RGB")) == (0, 128, 0)).all(axis=-1)
        assert green.sum() > 1000


def test_check_reports_errors_by_its_exit_status(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.png").write_bytes(b"rubbish")
    out = tmp_path / "sheet.png"
    assert main(["check", str(folder), "--size", "64", "--out", str(out)]) == 2
    output = capsys.readouterr()
    assert "bad.png\tREFUSED\t\t\tnot in a supported image format" in output.out
    assert "1 of 5 files" in output.err
    assert out.is_file()
    assert main(["check", str(folder), "--out", str(folder / "sheet.png")]) == 2
    assert "is in the folder of the training images" in capsys.readouterr().err
    assert main(["check", str(folder), "--out", str(tmp_path / "no" / "sheet.png")]) == 2
    assert "cannot write" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert main(["check", str(tmp_path / "none")]) == 2
    assert "there is no image in" in capsys.readouterr().err
    assert not (tmp_path / "none-check.png").exists()


def train(folder: Path, base: str, *more: str) -> int:
    words = ["--token", "<mytoy>", "--class-noun", "toy", "--base", base, "--steps", "1"]
    out = ["--out", str(folder.parent / "run"), "--preview-every", "0"]
    return main(["train", "textual-inversion", str(folder), *words, *out, *more])


def test_train_checks_images_before_it_starts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.png").write_bytes(b"rubbish")
    assert train(folder, "no-such-base") == 2
    messages = capsys.readouterr().err
    assert "bad.png (not in a supported image format" in messages  # and not: there is no such base
    assert "--skip-bad" in messages
    assert not (folder.parent / "run").exists()


def test_train_ignores_bad_files_with_skip_bad(
    folder: Path, nano: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.png").write_bytes(b"rubbish")
    (folder / "film.mp4").write_bytes(b"film")
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    assert train(folder, str(nano), "--skip-bad", "--size", "32") == 0
    messages = capsys.readouterr().err
    assert "5 images, 1 refused, 1 left out" in messages
    assert "left out: bad.png: not in a supported image format" in messages
    assert "left out: film.mp4" in messages
    assert "warning: copy.png: the same as 0.png" in messages


def test_the_commands_in_the_docs_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    folder.rename(folder.parent / "my-toy")
    page = Path(__file__).parents[2] / "docs" / "guides" / "training-images.md"
    commands = re.findall(r"^pinxit (check .+?)(?:  +#.*)?$", page.read_text(), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert main(shlex.split(command)) == 0
    assert Path("my-toy-check.png").is_file()
    assert Path("sheet.png").is_file()


def test_check_does_not_overwrite_other_files(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "toy-check.png"
    photo(7).save(mine)
    before = mine.read_bytes()
    for _ in range(2):
        assert main(["check", str(folder), "--size", "64"]) == 0
    assert mine.read_bytes() == before
    assert [path.name for path in sorted(tmp_path.glob("*.png"))] == [
        "toy-check-2.png",
        "toy-check.png",
    ]


@pytest.mark.parametrize(
    ("caption", "cut"),
    [
        ("dog " * 75, ""),
        ("dog, " * 38 + "cat", ", cat"),
        ("\u72ac" * 75, ""),
        ("\u72ac" * 76, "\u72ac"),
        ("x" * 24 * 75 + "yz", "yz"),
    ],
)
def test_a_caption_that_is_too_long_is_reported(tmp_path: Path, caption: str, cut: str) -> None:
    Image.effect_noise((64, 64), 90).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(caption)
    texts = check_folder(tmp_path, 64).warnings().get("a.png", [])
    assert [text for text in texts if "its caption is too long" in text] == [
        text for text in texts if cut and text.endswith(f"`{cut}`")
    ]
    assert any("too long" in text for text in texts) == bool(cut)


def test_a_mask_that_is_a_photograph_is_reported(folder: Path) -> None:
    photo(9).save(folder / "0.mask.png")
    soft = Image.new("L", (96, 96))
    soft.paste(255, (20, 20, 70, 70))
    soft.filter(ImageFilter.GaussianBlur(3)).save(folder / "1.mask.png")
    texts = warnings(folder)
    assert any("mostly grey" in text for text in texts["0.png"])
    assert "1.png" not in texts


def test_check_takes_the_options_of_train(
    folder: Path, nano: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "4.png").write_bytes(b"no image")
    out = str(folder.parent / "sheet.png")
    assert main(["check", str(folder), "--base", str(nano), "--out", out]) == 2
    assert "4.png" in capsys.readouterr().err
    assert main(["check", str(folder), "--base", str(nano), "--out", out, "--skip-bad"]) == 0
    assert "32x32" in capsys.readouterr().out
