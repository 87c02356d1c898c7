"""Small base models with random weights, saved once for all tests."""

import inspect
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from hypothesis import settings
from PIL import Image

from lab.speed.bases import language_tokenizer
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.training.memory import MemoryPlan
from pinxit.training.memory_trial import Trial

torch.set_num_threads(1)  # the nano base model is too small for several threads

# Property tests are the same in every run; PINXIT_EXAMPLES=2000 searches for new failures.
_EXAMPLES = os.environ.get("PINXIT_EXAMPLES")
settings.register_profile(
    "pinxit", deadline=None, derandomize=not _EXAMPLES, max_examples=int(_EXAMPLES or 20)
)
settings.register_profile("quick", settings.get_profile("pinxit"), max_examples=5)  # `make check`
settings.load_profile("pinxit")

# The words of the nano tokenizer; it splits all other text into letters.
_GRAMMAR = ("a", "the", "of", "in", "on", "my", "one", "photo", "picture", "painting", "style")
_NOUNS_AND_ADJECTIVES = (
    "dog",
    "cat",
    "toy",
    "beach",
    "grass",
    "red",
    "blue",
    "green",
    "cool",
    "clean",
    "small",
)
_RARE = ("sks", "zwx", "qvj")
WORDS = _GRAMMAR + _NOUNS_AND_ADJECTIVES + _RARE


# What Windows does not have, or an ordinary user may not do there.
_POSIX = re.compile(r"\bos\.(fork|mkfifo|killpg)|SIGKILL|SIGHUP|AF_UNIX|symlink_to|chmod")


# Instances of a parametrized test in `make check`; the others are long.
_QUICK_INSTANCES = 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark most instances of parametrized tests as long; on Windows, skip what needs POSIX."""
    surplus = surplus_instances([item.nodeid for item in items])
    for item in items:
        if item.nodeid in surplus:
            item.add_marker(pytest.mark.long)
        if os.name == "nt" and _POSIX.search(_source(item)):
            item.add_marker(pytest.mark.skip(reason="needs POSIX"))


def _source(item: pytest.Item) -> str:
    return inspect.getsource(item.function) if isinstance(item, pytest.Function) else ""


def surplus_instances(names: Sequence[str], limit: int = _QUICK_INSTANCES) -> set[str]:
    """The instances of each test beyond `limit`.

    The order is that of a checksum of the names: the same in every run, and over all tests each
    family and method has its share.
    """
    instances: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: zlib.crc32(name.encode())):
        instances.setdefault(name.partition("[")[0], []).append(name)
    return {name for group in instances.values() for name in group[limit:]}


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete base model that opens quickly."""
    return save_nano(tmp_path_factory.mktemp("bases") / "nano")


@pytest.fixture(scope="session")
def bases(nano: Path) -> Callable[[str], Path]:
    """The folder of a small base model of a family, created on first use."""

    @cache
    def base_folder(family: str) -> Path:
        return nano if family == "nano" else save_family(family, nano.parent / family)

    return base_folder


@pytest.fixture(scope="session")
def opened(bases: Callable[[str], Path]) -> Callable[[str], Model]:
    """A function that opens the small base model of a family, or "nano", on first use."""
    return cache(lambda family: open_base(bases(family)))


@pytest.fixture(autouse=True, scope="session")
def isolated_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests use their own cache of class images."""
    os.environ["PINXIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["PINXIT_CACHE"]


@pytest.fixture(autouse=True, scope="session")
def without_accelerator() -> Iterator[None]:
    """Tests compute on the CPU, also where there is a GPU; tests/accelerator has its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def one_trial_of_each_kind() -> Iterator[None]:
    """A first step that was tried once is not tried again; `every_trial` undoes that.

    A trial computes more than the few steps of most tests.
    """
    plans: dict[tuple[object, ...], MemoryPlan] = {}
    plan = Trial.plan

    @wraps(plan)
    def plan_once(self: Trial) -> MemoryPlan:
        model, adapters = self._model, [one.adapters for one in self._trainers]
        if model.device.type != "cpu":
            return plan(self)
        key = (
            *(type(model), model.num_parameters, model.placement, self._buffer),
            *(name for name, one in model.all_networks.items() if is_offloaded(one)),
            *(type(adapter) for group in adapters for adapter in group),
            *(weight.shape for weight in self._trained),
            *(batch.latents.shape for batch in self._batches),
        )
        if key not in plans:
            plans[key] = plan(self)
        return plans[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trial, "plan", plan_once)
        yield


@pytest.fixture
def every_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each first step is tried: for tests of the trial, and those that count what is computed."""
    plan_once: Any = Trial.plan
    monkeypatch.setattr(Trial, "plan", plan_once.__wrapped__)


def is_offloaded(network: torch.nn.Module) -> bool:
    return not next(network.parameters()).numel()


@pytest.fixture(scope="session")
def model(opened: Callable[[str], Model]) -> Model:
    """The open nano base model, shared by all tests; a test that changes it must undo this."""
    return opened("nano")


@pytest.fixture
def separating(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks with random weights count as able to tell real images from others."""
    monkeypatch.setattr("pinxit.evaluation.metric._apart", lambda *_: True)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three small images."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, colour in enumerate(("crimson", "orange", "purple")):
        Image.new("RGB", (40 + number, 48), colour).save(folder / f"{number}.png")
    return folder


def save_nano(folder: Path, seed: int = 0, width: int = 32, image_size: int = 32) -> Path:
    """A base model like pocket, but smaller: 16 latent channels, short prompts, pooled text."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer(32)
    pooled = {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}
    parts = {
        "text_encoder": _clip(tokenizer, width),
        "tokenizer": tokenizer,
        "vae": _vae(16, image_size, scaling_factor=0.7),
        "unet": _unet(16, image_size, width, (True, True), **pooled),
        "scheduler": diffusers.DDIMScheduler(**_NOISE, clip_sample=False, set_alpha_to_one=False),
    }
    return _saved(diffusers.StableDiffusionPipeline, parts, folder)


def save_family(family: str, folder: Path) -> Path:
    """A base model of a family: the real architecture, as small as possible, random weights."""
    torch.manual_seed(7)
    tokenizer = _tokenizer(77)
    parts = {
        "text_encoder": _clip(tokenizer, 16),
        "tokenizer": tokenizer,
        "vae": _vae(4, 32, scaling_factor=0.2),
    }
    return {
        "stable-diffusion-1": _save_1,
        "stable-diffusion-2": _save_2,
        "stable-diffusion-xl": _save_xl,
        "stable-diffusion-3": _save_3,
        "flux-1": _save_flux_1,
        "chroma": _save_chroma,
        "z-image": _save_z_image,
    }[family](folder, parts)


def _save_1(folder: Path, parts: dict[str, Any]) -> Path:
    noise = diffusers.PNDMScheduler(**_NOISE, skip_prk_steps=True, set_alpha_to_one=False)
    parts |= {"unet": _unet(4, 32, 16), "scheduler": noise}
    return _saved(diffusers.StableDiffusionPipeline, parts, folder)


def _save_2(folder: Path, parts: dict[str, Any]) -> Path:
    """Like 2.1 for 768 pixels: v-prediction, OpenCLIP's text encoder without its last layer."""
    noise = diffusers.DDIMScheduler(**_NOISE, prediction_type="v_prediction", clip_sample=False)
    parts |= {
        "text_encoder": _clip(parts["tokenizer"], 16, hidden_act="gelu"),
        "unet": _unet(4, 32, 16, use_linear_projection=True),
        "scheduler": noise,
    }
    return _saved(diffusers.StableDiffusionPipeline, parts, folder)


def _save_xl(folder: Path, parts: dict[str, Any]) -> Path:
    second = _tokenizer(77, pad_token="!")
    config = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 12 + 6 * 4,
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
    }
    parts |= {
        "text_encoder_2": _clip(second, 24, 12, hidden_act="gelu"),
        "tokenizer_2": second,
        "unet": _unet(4, 32, 16 + 24, (False, True), **config),
        "scheduler": diffusers.EulerDiscreteScheduler(**_NOISE, timestep_spacing="leading"),
    }
    return _saved(diffusers.StableDiffusionXLPipeline, parts, folder)


def _save_3(folder: Path, parts: dict[str, Any]) -> Path:
    """Like 3.5 medium with T5: normalized queries and keys, a second attention in one block."""
    second = _tokenizer(77, pad_token="!")
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=16,
        pooled_projection_dim=10 + 12,
        out_channels=16,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    parts |= {
        "text_encoder": _clip(parts["tokenizer"], 16, 10),
        "text_encoder_2": _clip(second, 24, 12, hidden_act="gelu"),
        "tokenizer_2": second,
        "text_encoder_3": _t5(),
        "tokenizer_3": _t5_tokenizer(),
        "vae": _flow_vae(),
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    return _saved(diffusers.StableDiffusion3Pipeline, parts, folder)


# Of the transformers of FLUX.1 and Chroma.
_FLUX_SIZES: dict[str, Any] = {
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "axes_dims_rope": (4, 2, 2),
}


def _save_flux_1(folder: Path, parts: dict[str, Any]) -> Path:
    """Like dev: guidance is an input, and the shift depends on the number of tokens."""
    transformer = diffusers.FluxTransformer2DModel(
        **_FLUX_SIZES, pooled_projection_dim=16, guidance_embeds=True
    )
    parts |= {
        "text_encoder_2": _t5(),
        "tokenizer_2": _t5_tokenizer(),
        "vae": _flow_vae(),
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True
        ),
    }
    return _saved(diffusers.FluxPipeline, parts, folder)


def _save_chroma(folder: Path, parts: dict[str, Any]) -> Path:
    """FLUX.1's transformer without CLIP and guidance, with modulations from an approximator."""
    transformer = diffusers.ChromaTransformer2DModel(
        **_FLUX_SIZES,
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=2,
    )
    parts |= {
        "text_encoder": _t5(),
        "tokenizer": _t5_tokenizer(),
        "vae": _flow_vae(),
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_beta_sigmas=True),
    }
    return _saved(diffusers.ChromaPipeline, parts, folder)


def _save_z_image(folder: Path, parts: dict[str, Any]) -> Path:
    """Like the base model: a language model with a chat template, and no pooled text."""
    transformer = diffusers.ZImageTransformer2DModel(
        dim=16,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=24,
        axes_dims=[4, 2, 2],
        axes_lens=[1024, 64, 64],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    tokenizer = language_tokenizer()
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"},
    )
    parts |= {
        "text_encoder": transformers.Qwen3Model(config),
        "tokenizer": tokenizer,
        "vae": _flow_vae(),
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
    }
    return _saved(diffusers.ZImagePipeline, parts, folder)


_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def _saved(pipeline: Any, parts: Mapping[str, Any], folder: Path) -> Path:
    options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if pipeline is not diffusers.StableDiffusionPipeline:
        options = {}
    pipeline(**parts, **options).save_pretrained(folder)
    return folder


def _clip(tokenizer: Any, width: int, projected: int = 0, hidden_act: str = "quick_gelu") -> Any:
    """A text encoder; with a pooled projection if `projected`, its width, is not 0."""
    settings = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2 if not projected else 3,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act=hidden_act,
        projection_dim=projected or width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if projected:
        return transformers.CLIPTextModelWithProjection(settings)
    return transformers.CLIPTextModel(settings)


def _vae(latents: int, image_size: int, **changes: Any) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=latents,
        norm_num_groups=4,
        sample_size=image_size,
        **changes,
    )


def _flow_vae() -> Any:
    return _vae(16, 32, scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False)


def _t5() -> Any:
    return transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=64, d_model=48, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    )


def _unet(
    latents: int,
    image_size: int,
    width: int,
    attends: Sequence[bool] = (True, False),
    **changes: Any,
) -> Any:
    """A U-Net with two blocks; `attends` says which of them have cross-attention."""
    prefixes = ["CrossAttn" if attention else "" for attention in attends]
    return diffusers.UNet2DConditionModel(
        sample_size=image_size // 8,
        in_channels=latents,
        out_channels=latents,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=[f"{prefix}DownBlock2D" for prefix in prefixes],
        up_block_types=[f"{prefix}UpBlock2D" for prefix in reversed(prefixes)],
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=4,
        **changes,
    )


def _tokenizer(length: int, **changes: Any) -> Any:
    return transformers.CLIPTokenizer(**_vocabulary(), model_max_length=length, **changes)


def _t5_tokenizer() -> Any:
    """A T5 tokenizer whose vocabulary has WORDS and all letters."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    words = [(f"▁{word}", -2.0) for word in WORDS]
    letters = [(chr(code), -4.0) for code in range(ord("a"), ord("z") + 1)]
    return transformers.T5Tokenizer(vocab=special + words + letters, extra_ids=0)


def _vocabulary() -> dict[str, object]:
    """A byte-pair vocabulary that has WORDS; all other text is split into letters."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = letters + [f"{letter}</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            pair = (pieces[-2], pieces[-1])
            pieces[-2:] = ["".join(pair)]
            if pieces[-1] not in tokens:
                tokens.append(pieces[-1])
                merges.append(pair)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {"vocab": {token: number for number, token in enumerate(tokens)}, "merges": merges}


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a base model, so that a test may change the copy."""
    return lambda base: Path(shutil.copytree(base, tmp_path / "copy"))
