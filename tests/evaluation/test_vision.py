"""Vision encoders load, preprocess and encode as in transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pinxit.errors import ModelError, RequestError
from pinxit.evaluation.judge import MetricSet
from pinxit.evaluation.networks import fetch_networks, network_folder
from pinxit.evaluation.vision import VisionEncoder, vision_encoder
from pinxit.models.model import Model
from tests.seeing import MERGES, save_seeing

SIZES = ((64, 64), (300, 200), (123, 457), (224, 224))


def noise(size: tuple[int, int]) -> Image.Image:
    levels = np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(levels)


def folders(tmp_path: Path, kind: str) -> Path:
    folder = tmp_path / kind
    folder.mkdir()
    return save_seeing(kind, folder)


def widened(folder: Path, side: int) -> Path:
    """The same network for another image size."""
    config = json.loads((folder / "config.json").read_text())
    seen = config.get("vision_config", config)
    seen["image_size"] = side
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if "position_embedding" in name and "text" not in name:
            count = (side // seen["patch_size"]) ** 2 + 1
            shape = (count, tensor.shape[-1])
            torch.manual_seed(1)
            weights[name] = torch.randn(shape if tensor.ndim == 2 else (1, *shape))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["clip", "dino"])
def test_preprocessing_equals_transformers(
    kind: str, size: tuple[int, int], tmp_path: Path
) -> None:
    ours = VisionEncoder(str(widened(folders(tmp_path, kind), 224))).preprocess([noise(size)])
    if kind == "clip":
        oracle: Any = CLIPImageProcessorPil()
    else:
        colours = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
        oracle = BitImageProcessorPil(size={"shortest_edge": 256}, **colours)
    theirs = oracle(noise(size), return_tensors="pt")["pixel_values"]
    assert ours.shape == theirs.shape == (1, 3, 224, 224)
    assert torch.allclose(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["clip", "dino", "dinov2"])
def test_image_vectors_equal_transformers(kind: str, tmp_path: Path) -> None:
    folder = folders(tmp_path, kind)
    ours = vision_encoder(str(folder))
    pixels = ours.preprocess([noise((40, 60)), noise((32, 32))])
    theirs: Any = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        if kind == "clip":
            seen = theirs.get_image_features(pixel_values=pixels).pooler_output
        else:
            seen = theirs(pixel_values=pixels).last_hidden_state[:, 0]
    seen = torch.nn.functional.normalize(seen, dim=1)
    assert torch.allclose(ours.encode_images([noise((40, 60)), noise((32, 32))]), seen, atol=1e-5)


def test_text_vectors_equal_those_of_transformers(tmp_path: Path) -> None:
    folder = folders(tmp_path, "clip")
    ours = VisionEncoder(str(folder))
    theirs: Any = transformers.AutoModel.from_pretrained(folder).eval()
    words = json.loads((MERGES.parent / "vocab.json").read_text())
    ids = [words[word] for word in ("<|startoftext|>", "a</w>", "dog</w>", "<|endoftext|>")]
    with torch.no_grad():
        expected = theirs.get_text_features(input_ids=torch.tensor([ids])).pooler_output
    expected = torch.nn.functional.normalize(expected, dim=1)
    long = "a dog " + "on the beach " * 40
    assert torch.allclose(ours.encode_texts(["a dog", long])[:1], expected, atol=1e-5)


def test_old_weight_names_are_supported(tmp_path: Path) -> None:
    folder = folders(tmp_path, "dino")
    before = VisionEncoder(str(folder)).encode_images([noise((32, 32))])
    weights = load_file(folder / "model.safetensors")
    assert any(name.startswith("encoder.layer.0.attention.attention.query") for name in weights)
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(VisionEncoder(str(folder)).encode_images([noise((32, 32))]), before)


def test_networks_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders(tmp_path, "dino")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(RequestError, match="of the type bert"):
        VisionEncoder(str(folder))
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 48}))
    with pytest.raises(RequestError, match="cannot be loaded"):
        VisionEncoder(str(folder))

    def unreachable(name: str) -> Path:
        raise ModelError(f"`{name}` is not on this machine as a whole", "connect once")

    monkeypatch.setattr("pinxit.models.hub.fetch", unreachable)
    with pytest.raises(RequestError, match="nobody/nothing cannot be downloaded"):
        fetch_networks(["nobody/nothing"])


def test_networks_are_downloaded_with_consent_only(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("pinxit.models.hub.fetch", lambda name: pytest.fail(f"downloads {name}"))
    monkeypatch.setattr("pinxit.models.hub.reachable", lambda: pytest.fail("asks the hub"))
    with pytest.raises(RequestError) as caught:
        MetricSet.for_base(model, "object")
    assert "facebook/dino-vits16 (87 MB), openai/clip-vit-base-patch32 (605 MB)" in str(
        caught.value
    )
    assert "--download" in caught.value.hint


def test_networks_in_the_cache_are_used_without_asking_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("pinxit.models.hub.reachable", lambda: pytest.fail("asks the hub"))
    repo = tmp_path / "hub" / "models--owner--dino"
    snapshot = repo / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123")
    folders(tmp_path, "dino").rename(snapshot)
    assert network_folder("owner/dino") == snapshot
    fetch_networks(["owner/dino"])
    assert VisionEncoder("owner/dino").folder == snapshot
    (snapshot / "model.safetensors").unlink()
    assert network_folder("owner/dino") is None
