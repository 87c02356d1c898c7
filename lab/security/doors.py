"""The doors through which files of other people come in: valid files, and what reads them."""

import base64
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save

from pinxit.cli.library import show
from pinxit.concepts.read import read_concept
from pinxit.evaluation.prompt_sets import prompt_set
from pinxit.files.open_any import PEFT_CONFIG
from pinxit.generation.request import GenerationRequest
from pinxit.images.captions import FolderCaptions
from pinxit.images.decode import decode
from pinxit.models.gguf_file import read_gguf
from pinxit.models.prediction import prediction_config
from pinxit.models.quantized import dequantized
from pinxit.models.source import FolderSource, read_weights
from pinxit.models.tokenizers import clip_tokenizer, encoded, read_tokenizer
from pinxit.runs.checkpoint import newest_checkpoint
from pinxit.runs.many import RunGroup, read_subjects
from pinxit.runs.reader import read_run
from pinxit.studio.unzip import unzip
from pinxit.training.recipe import Recipe

Read = Callable[[Path], object]
_RECIPE = """images = "{folder}"\nbase = "pocket"\ntoken = "<mytoy>"\nclass_noun = "toy"
steps = 3\nlearning_rate = 1e-3\npreview_prompts = ["a {{}}"]
[method]\nname = "lora"\nrank = 2\n"""
_PROMPT_SET = b'prompts = ["a {} on a beach", "{} in snow"]\n'
_GRAPH = {"3": {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 20, "model": ["4", 0]}}}
_HIDDEN = {
    "string_to_token": {"*": 265},
    "string_to_param": {"*": {"TORCHTENSOR": [[0.5, 1.0], [0.25, -1.0]]}},
    "name": "toy",
}
_PARAMETERS = (
    "a (toy:1.2)\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, "
    'Seed: 1234, Size: 512x512, Model: x, Lora hashes: "a: 1"'
)


@dataclass(frozen=True)
class Door:
    """The files of a folder, those of them to damage, and what reads the folder."""

    files: dict[str, bytes]
    damaged: tuple[str, ...]
    read: Read
    is_text: bool = False


def doors() -> dict[str, Door]:
    """All doors by name."""
    return {**_tensors(), **_tokenizers(), **_texts(), **_runs(), **_images()}


def _file(name: str, content: bytes, read: Read, *, is_text: bool = False) -> Door:
    return Door({name: content}, (name,), lambda folder: read(folder / name), is_text)


def _json(values: object) -> bytes:
    return json.dumps(values).encode()


def _lora() -> dict[str, torch.Tensor]:
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    return {
        f"{layer}.lora_down.weight": torch.ones(2, 8, dtype=torch.bfloat16),
        f"{layer}.lora_up.weight": torch.ones(8, 2).to(torch.float8_e4m3fn),
        f"{layer}.alpha": torch.tensor(2.0),
    }


def _tensors() -> dict[str, Door]:
    name = (
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_{}.weight"
    )
    peft = {name.format("A"): torch.ones(2, 8), name.format("B"): torch.ones(8, 2)}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"to_k": 2}}
    config |= {"use_rslora": True, "target_modules": ["to_k"], "alpha_pattern": {".*to_k": 3}}
    folder = {"adapter_model.safetensors": save(peft), PEFT_CONFIG: _json(config)}
    scaled = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4, 3, 3),
        "model.diffusion_model.scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn),
        "model.diffusion_model.out.2.weight": torch.ones(4, 4).to(torch.float8_e4m3fn),
        "model.diffusion_model.out.2.scale_weight": torch.tensor(0.5),
    }
    metadata = {"modelspec.prediction_type": "v", "modelspec.architecture": "stable-diffusion-v1"}
    stem = "diffusion_pytorch_model"
    shards = {n: f"{stem}-0000{n}-of-00002.safetensors" for n in "12"}
    parts = {f"unet/{name}": save({n: torch.ones(2)}) for n, name in shards.items()}
    parts[f"unet/{stem}.safetensors.index.json"] = _json({"weight_map": shards, "metadata": {}})
    embedding = {"emb_params": torch.randn(2, 8)}
    return {
        "LoRA": _file("a.safetensors", save(_lora(), {"ss_network_dim": "2"}), read_concept),
        "embedding": _file("a.safetensors", save(embedding), read_concept),
        "adapter of peft": Door(folder, tuple(folder), read_concept),
        "checkpoint": Door(
            {
                "a.safetensors": save(scaled, metadata),
                "a.yaml": b"params:\n  parameterization: v\n",
            },
            ("a.safetensors", "a.yaml"),
            lambda path: _read_checkpoint(path / "a.safetensors"),
        ),
        "index": Door(
            parts,
            tuple(parts),
            lambda path: FolderSource(path, "a").weights("unet"),
        ),
        "GGUF": _file("a.gguf", _gguf(), read_gguf),
    }


def _read_checkpoint(path: Path) -> object:
    tensors, metadata = read_weights(path)
    return prediction_config(path, dequantized(tensors, str(path)), metadata, None)


def _gguf() -> bytes:
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        writer = gguf.GGUFWriter(file.name, "flux")
        writer.add_tensor("plain", np.ones((2, 32), np.float32))
        blocks = np.zeros((2, 34), np.uint8)
        writer.add_tensor("blocks", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return Path(file.name).read_bytes()


def _tokenizers() -> dict[str, Door]:
    vocabulary = {"a": 0, "b": 1, "ab</w>": 2, "<|startoftext|>": 3, "<|endoftext|>": 4, "b</w>": 5}
    special = {"content": "<|endoftext|>", "special": True, "normalized": False}
    config = {"eos_token": special, "added_tokens_decoder": {"6": {**special, "content": "<x>"}}}
    files = {
        "tokenizer/vocab.json": _json(vocabulary),
        "tokenizer/merges.txt": b"#version: 0.2\na b</w>\n",
        "tokenizer/tokenizer_config.json": _json(config),
        "tokenizer/added_tokens.json": _json({"<y>": 7}),
    }
    rules: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": "<pad>", "special": True, "single_word": False}],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFKC"},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "_"},
            ],
        },
        "pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 1, "vocab": [["<pad>", 0.0], ["<unk>", 0.0]]},
    }
    for entry in rules["added_tokens"]:
        entry |= {"lstrip": False, "rstrip": False, "normalized": False}
    return {
        "tokenizer of CLIP": Door(files, tuple(files), _read_clip, is_text=True),
        "tokenizer.json": Door(
            {"tokenizer/tokenizer.json": _json(rules)},
            ("tokenizer/tokenizer.json",),
            lambda path: encoded(read_tokenizer(FolderSource(path, "a"), "tokenizer"), "a  b").ids,
            is_text=True,
        ),
    }


def _read_clip(folder: Path) -> object:
    return clip_tokenizer(FolderSource(folder, "a"), "tokenizer").encode("ab <x>")


def _texts() -> dict[str, Door]:
    row = {"file_name": "a.png", "text": "a toy, r\u00f6d"}
    captions = {
        "a.txt": "a toy, r\u00f6d".encode("utf-16"),
        "a.caption": "a toy, r\u00f6d".encode("cp1252"),
        "a.json": _json({"tags": ["a", "b"], "caption": "x"}),
        "metadata.jsonl": _json(row) + b"\n" + _json({"file_name": "b.png", "text": "b"}),
        "metadata.csv": b'\xef\xbb\xbffile_name;text\r\na.png;"a toy,\r\nred"\r\n',
    }
    table = b"images,token,class_noun,kind\r\n.,<a>,toy,object\r\n.,<b>,toy,style\r\n"
    many = b'[[subject]]\nimages = "."\ntoken = "<a>"\nclass_noun = "toy"\n'
    recipe = _RECIPE.format(folder=".").encode()
    subjects = b"max_concepts_per_batch = 2\n[subjects.a]\n" + recipe.replace(
        b"[method]", b"[subjects.a.method]"
    )
    read = {name: _file(name, text, _read_caption, is_text=True) for name, text in captions.items()}
    return {
        **read,
        "recipe": _file("recipe.toml", recipe, Recipe.from_toml, is_text=True),
        "recipe in JSON": _file("a.json", _json(_recipe_values()), _read_json_recipe, is_text=True),
        "table": _file("t.csv", table, read_subjects, is_text=True),
        "table in TOML": _file("t.toml", many, read_subjects, is_text=True),
        "prompts": _file("p.txt", b"a {} on a beach\nr\xc3\xb6d {}\n", _read_prompts, is_text=True),
        "prompt set": _file("p.toml", _PROMPT_SET, _read_prompts, is_text=True),
        "group": Door({"many.toml": subjects}, ("many.toml",), RunGroup.open, is_text=True),
    }


def _read_prompts(file: Path) -> object:
    return [prompt.with_token("<a>") for prompt in prompt_set(str(file), "toy")]


def _recipe_values() -> dict[str, Any]:
    return {
        "method": {"name": "lora", "rank": 2},
        "images": ".",
        "token": "<a>",
        "class_noun": "toy",
    }


def _read_json_recipe(path: Path) -> object:
    """As the studio reads a request, whose values come as JSON."""
    try:
        values = json.loads(path.read_text("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return Recipe.model_validate(values)


def _read_caption(path: Path) -> object:
    image = path.with_name("a.png")
    captions = FolderCaptions.of([path], [image])
    return captions.caption(image), captions.unread


def _runs() -> dict[str, Door]:
    losses = [{"type": "StepResult", "number": n, "loss": 0.5} for n in range(1, 4)]
    events = [{"type": "Started", "step": 0}, *losses, {"type": "Finished", "step": 3}]
    log = b"".join(_json(event) + b"\n" for event in events)
    metadata = {
        "pinxit": _json({"step": 3, "parts": [], "provenance": {"method": "lora"}}).decode()
    }
    run = {
        "recipe.toml": _RECIPE.format(folder=".").encode(),
        "journal.jsonl": log,
        "concept.safetensors": save({"0.text": torch.ones(1, 4)}, metadata),
        "best.safetensors": save({"0.text": torch.ones(1, 4)}, metadata),
    }
    manifest = {"manifest": _json({"step": 1, "base_hash": "x", "images": {}}).decode()}
    checkpoint = save({"0.text": torch.ones(1, 4)}, manifest)
    return {
        "run": Door(run, tuple(run), _read_run),
        "checkpoints": Door(
            {"0000001.safetensors": checkpoint, "0000002.safetensors": checkpoint},
            ("0000001.safetensors", "0000002.safetensors"),
            lambda folder: newest_checkpoint(folder) and None,
        ),
    }


def _read_run(folder: Path) -> object:
    state = read_run(folder)
    return repr(state), state.state, state.progress, state.notices, state.decisions, state.best


def _images() -> dict[str, Door]:
    image = Image.new("RGB", (24, 16), "teal")
    image.paste("red", (0, 0, 8, 8))
    info = PngInfo()
    info.add_text("pinxit", json.dumps({"prompt": "a", "seed": 3, "width": 64, "controls": []}))
    a1111, comfy = PngInfo(), PngInfo()
    a1111.add_text("parameters", _PARAMETERS)
    comfy.add_text("prompt", json.dumps(_GRAPH))
    comfy.add_itxt("workflow", json.dumps(_GRAPH), zip=True)
    hidden = PngInfo()
    hidden.add_text("sd-ti-embedding", base64.b64encode(_json(_HIDDEN)).decode())
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "a.png": _saved(image.convert("RGBA"), "PNG"),
        "a.jpg": _saved(image, "JPEG", exif=exif, progressive=True),
        "a.webp": _saved(image, "WEBP", exif=exif),
        "a.gif": _saved(image, "GIF"),
        "a.tif": _saved(image, "TIFF"),
        "a.bmp": _saved(image, "BMP"),
        "a.avif": _saved(image, "AVIF"),
        "a.jp2": _saved(image, "JPEG2000"),
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("set/a.png", kinds["a.png"])
        file.writestr("set/a.txt", "a toy")
    read: dict[str, Door] = {
        name: _file(name, content, lambda path: decode(path) and None)
        for name, content in kinds.items()
    }
    return {
        **read,
        "own PNG": _file("a.png", _saved(image, "PNG", pnginfo=info), _read_request),
        "PNG of A1111": _file("a.png", _saved(image, "PNG", pnginfo=a1111), _read_request),
        "PNG of ComfyUI": _file("a.png", _saved(image, "PNG", pnginfo=comfy), _read_request),
        "embedding in a PNG": _file("a.png", _saved(image, "PNG", pnginfo=hidden), read_concept),
        "zip": _file("a.zip", archive.getvalue(), _unzip),
    }


def _saved(image: Image.Image, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def _read_request(path: Path) -> object:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        show(path)
    return str(GenerationRequest.from_png(path))


def _unzip(path: Path) -> None:
    target = path.parent / "out"
    target.mkdir(exist_ok=True)
    unzip(path, target, "x")
