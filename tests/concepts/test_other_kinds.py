"""Files that are no concepts and no base models are named for what they are."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from pinxit.cli import main
from pinxit.concepts.read import read_concept
from pinxit.errors import ConceptError

LORA = save({"lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(1.0)})


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("lora.safetensors", LORA)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("lora.safetensors")
        member.size = len(LORA)
        archive.addfile(member, io.BytesIO(LORA))
    return file.getvalue()


KINDS = {
    "a zip archive": zipped(),
    "a tar archive": tarred(),
    "a gzip archive": gzip.compress(tarred()),
    "a bzip2 archive": bz2.compress(LORA),
    "an xz archive": lzma.compress(LORA),
    "a 7z archive": b"7z\xbc\xaf\x27\x1c" + bytes(200),
    "a RAR archive": b"Rar!\x1a\x07\x01" + bytes(200),
    "a web page": b"\n <!DOCTYPE html><html><title>Log in</title>",
    "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
    "JSON text": b'{"error": "Access to this model is restricted"}',
    "an empty file": b"",
    "a file of zeros": bytes(4096),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("kind", KINDS)
def test_downloads_of_another_kind(
    kind: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"x{suffix}"
    file.write_bytes(KINDS[kind])
    with pytest.raises(ConceptError, match=kind):
        read_concept(file)
    assert main(["inspect", str(file)]) == 2
    assert kind in capsys.readouterr().err
    assert main(["generate", "a toy", "--base", str(file), "--out", str(tmp_path / "o")]) == 2
    assert kind in capsys.readouterr().err


@pytest.mark.parametrize("scale", ["alpha", "dora_scale", "scalar"])
def test_an_adapter_of_scales_alone_is_an_error(scale: str, tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_proj_in"
    save_file({f"{name}.{scale}": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ConceptError, match=r"changes no layer|magnitudes"):
        read_concept(tmp_path / "x.safetensors")


@pytest.mark.parametrize("key", ["320.0.linear.0.weight", "text_projection.bias", "a.weight"])
def test_a_weight_of_a_network_is_no_embedding(key: str, tmp_path: Path) -> None:
    save_file({key: torch.ones(4, 4)}, tmp_path / "x.safetensors")
    with pytest.raises(ConceptError, match="unknown format"):
        read_concept(tmp_path / "x.safetensors")


@pytest.mark.parametrize("key", ["", "   ", "\t\n", "\0", "\u200b", "\x1b\x07"])
def test_a_token_that_cannot_be_typed_is_the_name_of_the_file(key: str, tmp_path: Path) -> None:
    torch.save({key: torch.ones(1, 16)}, tmp_path / "toy.pt")
    assert read_concept(tmp_path / "toy.pt").token == "toy"


NETWORKS = {
    "a ControlNet": [
        "control_model.input_hint_block.0.weight",
        "controlnet_cond_embedding.conv_in.weight",
        "controlnet_x_embedder.weight",
        "control_all_x_embedder.2-1.weight",
    ],
    "an IP-Adapter": ["ip_adapter.1.to_k_ip.weight", "image_proj"],
    "an upscaler": [
        "model.1.sub.0.RDB1.conv1.0.weight",
        "conv_first.weight",
        "params_ema",
    ],
    "a VAE": ["first_stage_model.decoder.conv_in.weight", "decoder.conv_in.weight"],
    "a text encoder": [
        "text_model.embeddings.token_embedding.weight",
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "model.embed_tokens.weight",
    ],
    "an image encoder": ["vision_model.embeddings.patch_embedding.weight"],
    "a motion module": ["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"],
}


@pytest.mark.parametrize(
    ("kind", "key"), [(k, key) for k, keys in NETWORKS.items() for key in keys]
)
def test_networks_of_another_kind_are_named(kind: str, key: str, tmp_path: Path) -> None:
    """By the names of tensors in the files of their programs."""
    if "." in key:
        path = tmp_path / "x.safetensors"
        save_file({key: torch.ones(4, 4), "other.bias": torch.ones(4)}, path)
    else:
        path = tmp_path / "x.pt"
        torch.save({key: {"1.to_k.weight": torch.ones(4, 4)}, "other": {}}, path)
    with pytest.raises(ConceptError, match=f"{kind}, not a concept") as error:
        read_concept(path)
    assert error.value.hint
