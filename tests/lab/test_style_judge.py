"""The judge of styles: new scenes, soft images, and no style where there is none."""

from pathlib import Path

import pytest
from PIL import ImageFilter

from lab.quality.style_judge import StyleJudge, renderings
from pinxit.models.open_base import open_base

STYLES = ("photo", "sepia", "blueprint", "drawn 0", "elsine")


@pytest.mark.long
def test_styles_of_new_scenes_are_recognized_also_in_soft_images(tmp_path: Path) -> None:
    judge = StyleJudge.fitted(open_base("pocket"), tmp_path, STYLES)
    assert (tmp_path / f"style-judge{len(STYLES)}.npz").is_file()
    for style in STYLES:
        images = renderings(style, seed=5)[:16]
        soft = [image.filter(ImageFilter.GaussianBlur(0.5)) for image in images]
        assert judge.recognized(images, style) >= 0.9
        assert judge.recognized(soft, style) >= 0.8
        assert style == "photo" or abs(judge.position(images, style) - 1) < 0.1
    assert abs(judge.position(renderings("photo", seed=6), "sepia")) < 0.1
    assert judge.recognized(renderings("photo", seed=6), "sepia") <= 0.1
    assert judge.recognized(renderings("photo", seed=6), "sepia", among=len(STYLES)) == 1
