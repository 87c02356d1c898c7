import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pinxit.pocket import autoencoder, card, data, measure
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.prompt_attributes import prompt_attributes
from pinxit.pocket.state import Trainer, halves
from pinxit.pocket.truths import answers_of
from pinxit.pocket.world import (
    HELD_OUT_STYLES,
    POSES,
    RELATIONS,
    STYLES,
    WORN,
    Scene,
    distractors,
    draw_scene,
    held_out,
    held_out_pose,
    held_out_subjects,
    named_subjects,
    render,
    render_styles,
)
from pinxit.pocket.world.render import placed_by_relation

WEIGHTS = measure.folder()
MEGABYTE = 1_000_000


def test_a_scene_always_gives_the_same_pixels() -> None:
    scene = draw_scene(np.random.default_rng(3))
    assert (render(scene).image == render(scene).image).all()
    assert render(scene, 128).image.shape == (128, 128, 3)


def test_styles_change_the_image_and_not_its_structure() -> None:
    scene = draw_scene(np.random.default_rng(4))
    looks = render_styles(scene, (*STYLES, *HELD_OUT_STYLES))
    for a, b in itertools.pairwise(looks):
        assert (a.mask == b.mask).all() and (a.keypoints == b.keypoints).all()
        assert np.abs(a.image.astype(int) - b.image).mean() > 5


def test_nothing_held_out_is_drawn_for_training() -> None:
    scenes = [scene for index in range(400) for scene in data.scenes_at(index)]
    excluded = {*held_out_subjects(), *distractors()}
    for scene in scenes:
        who = scene.subject
        assert scene.style in STYLES and who not in excluded
        assert not held_out(who.class_noun, scene.colour, scene.background, scene.style)
        assert not held_out_pose(who.class_noun, scene.pose)
    assert {scene.subject for scene in scenes if scene.name} <= set(named_subjects())


def test_the_keypoints_lie_on_or_near_the_subject() -> None:
    for index in range(24):
        rendered = render(data.scenes_at(index)[0])
        rows, columns = np.nonzero(rendered.mask > 127)
        low = np.array([columns.min(), rows.min()]) / 64 - 0.12
        high = np.array([columns.max(), rows.max()]) / 64 + 0.12
        inside = np.clip(rendered.keypoints, 0, 1)
        assert (inside >= low).all() and (inside <= high).all()


def test_the_training_shows_all_there_is() -> None:
    scenes = [scene for index in range(600) for scene in data.scenes_at(index)]
    assert {scene.pose for scene in scenes} == set(POSES)
    assert {scene.worn[0] for scene in scenes if scene.worn} == set(WORN)
    assert {scene.other.relation for scene in scenes if scene.other} == {*RELATIONS}
    assert any(scene.rug for scene in scenes)


@pytest.mark.parametrize("relation", RELATIONS)
def test_two_things_are_where_the_prompt_says(relation: str) -> None:
    for scene in measure.richer(relation, 6):
        placed = placed_by_relation(scene, np.random.default_rng(2))
        alone = replace(placed, other=None)
        both = render(placed).image.astype(int) - render(alone).image
        there = np.abs(both).sum(2) > 60
        x, y = np.nonzero(there)[1].mean(), np.nonzero(there)[0].mean()
        rows, columns = np.nonzero(render(placed).mask > 127)
        if relation in ("left", "right"):
            assert (columns.mean() < x) == (relation == "left")
        if relation == "on":
            assert rows.mean() < y
        assert (render(placed).mask == render(alone).mask).all()


def test_the_prompt_of_a_fuller_scene_has_what_it_shows() -> None:
    for kind, questions in measure.RICHER.items():
        for scene in measure.richer(kind, 30):
            answers, attributes = answers_of(scene), prompt_attributes(measure.prompt_of(scene))
            assert all(attributes[question] == answers[question] for question in questions)
            assert all(answers[question] == answer for question, answer in attributes.items())


@pytest.mark.parametrize("orthogonal", [False, True])
def test_stopped_training_resumes_exactly(tmp_path: Path, orthogonal: bool) -> None:
    def trained(path: Path, *parts: int) -> dict[str, torch.Tensor]:
        for part in parts:
            torch.manual_seed(0)
            run = Trainer(path, nn.Linear(6, 4), 1e-2, 12, 2, orthogonal=orthogonal)
            for step in run.chunk(60, part):
                x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
                run.learn(run.network(x).square().mean())
        return dict(run.network.named_parameters()) | run.average

    whole, stopped = trained(tmp_path / "a", 9), trained(tmp_path / "b", 4, 7, 9)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_half_precision_products_only_with_units_for_them() -> None:
    with halves(torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    units = torch.cpu.get_capabilities()
    has_units = any(units.get(name) is True for name in ("amx_bf16", "avx512_bf16"))
    assert product.dtype == (torch.bfloat16 if has_units else torch.float32)


def test_sharpness_asks_for_high_frequencies_wherever_they_are() -> None:
    line = torch.arange(64.0)
    waves = [
        torch.cos(2 * torch.pi * (periods * line + start) / 64).expand(1, 3, 64, 64)
        for periods, start in ((24, 0), (24, 16), (6, 0))
    ]
    fine, moved, coarse = (autoencoder.amplitudes(wave) for wave in waves)
    assert torch.allclose(fine, moved, atol=1e-4) and fine.max() > 10
    assert coarse.max() < 1e-4


def test_the_weights_are_small_enough_to_ship() -> None:
    sizes = {path: path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")}
    assert sum(sizes.values()) <= 32 * MEGABYTE
    assert max(sizes.values()) <= 15 * MEGABYTE
    names = {path.name for path in (WEIGHTS / "tokenizer").iterdir()}
    assert {"vocab.json", "merges.txt"} <= names


@pytest.mark.long
def test_training_needs_few_libraries() -> None:
    code = "import sys, pinxit.pocket.__main__; print(*{m.split('.')[0] for m in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pydantic", "cyclopts", "rich"} & set(run.stdout.split())


@pytest.mark.long
@pytest.mark.parametrize(("of", "least"), [(card.first_world, 0.95), (None, 0.9)])
def test_the_eyes_see_through_the_autoencoder(
    of: Callable[[Scene], bool] | None, least: float
) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(WEIGHTS / "vae").requires_grad_(False)
    rendered, scenes = card.unseen(300, of)
    assert measure.eyes_accuracy(Eyes.load(), vae, rendered, scenes)["joint"] >= least
    x = autoencoder.pixels(np.stack([one.image for one in rendered]))
    assert autoencoder.psnr(vae, x) >= 27


@pytest.mark.slow
def test_pocket_generates_what_the_prompt_names() -> None:
    results = list(measure.painting(Eyes.load(), 64, 5.0))
    assert results[-1]["seen"]["joint"] >= 0.8
    assert results[-1]["held out"]["joint"] >= 0.8
