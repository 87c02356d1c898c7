"""Every kind of file that pinxit writes goes through a reader of every program.

The table `programs.toml`, from which `convert` speaks and the docs are made, must say for each
program exactly what its reader does: the change itself to the last bits, a close one, or neither.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pinxit import registry
from pinxit.adapters.adapter import applied
from pinxit.adapters.kinds.lora import LoraAdapter
from pinxit.adapters.lora_part import LoraConfig
from pinxit.adapters.parts import AliasPart, EmbeddingPart, FullWeightsPart, Part
from pinxit.adapters.peft_layers import module_paths
from pinxit.cli import main
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import Target
from pinxit.concepts.metadata import Provenance
from pinxit.concepts.programs import content_kind, outcomes, programs_table, usage
from pinxit.concepts.read import read_concept, write_concept
from pinxit.models.model import Model
from pinxit.models.open_base import find_base
from tests.interop import adapter_readers, embedding_readers

DRAW = torch.Generator().manual_seed(9)
FAMILIES = {"sd1": ("stable-diffusion-1", "sd_v1"), "xl": ("stable-diffusion-xl", "sdxl_base_v1-0")}
# fp32 rounding of two orders of the same operations, and what counts as close.
EXACT, CLOSE = 2e-6, 0.15
VARIANTS = ("lora", "dora", "loha", "lokr", "oft")


def weights_of(model: Model) -> dict[str, Tensor]:
    """The weights of a model's matrices and kernels by network and layer."""
    weights: dict[str, Tensor] = {}
    for network in model.networks:
        modules = model.networks[network]
        for layer, path in module_paths(modules).items():
            module = modules.get_submodule(path)
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and network != "vae":
                weights[f"{network}:{layer}"] = module.weight.detach().float().clone()
    return weights


def adapter(variant: str, model: Model, network: str) -> Part:
    """A trained adapter of all layers of a network."""
    config = LoraConfig(variant, 2, 1.0, "all" if network == "denoiser" else "transformer")
    trained = LoraAdapter.of(model, network, config, 0)
    with torch.no_grad():
        for name, weight in trained.weights().items():
            noise = torch.randn(weight.shape, generator=DRAW)
            size = {"dora": 0.05}.get(variant, 0.3)
            weight.add_(noise * (0.02 if "magnitude" in name else size))
    return trained.part()


def adapter_concept(variant: str, model: Model, family: str, *, token: str = "") -> Concept:
    networks = [name for name in model.networks if name != "vae"]
    parts = [adapter(variant, model, name) for name in networks]
    if token:
        parts.insert(0, EmbeddingPart(token, "a", tables(two=family == "xl", model=model)))
    version = {"ss_base_model_version": FAMILIES[family][1]}
    return Concept(tuple(parts), Provenance.from_metadata(token or "toy", version))


def tables(*, two: bool, model: Model | None = None) -> dict[str, Tensor]:
    widths = {"text": 768, "text_2": 1280} if two else {"text": 768}
    if model:
        widths = {name: encoder.width for name, encoder in model.text_encoders.items()}
    return {name: torch.randn(3, width, generator=DRAW) for name, width in widths.items()}


def verdict(actual: dict[str, Tensor], expected: dict[str, Tensor], base: dict[str, Tensor]) -> str:
    """ "exact", "close" or "wrong": the largest relative difference of a layer's weight."""
    changed = {name for name, weight in expected.items() if not torch.equal(weight, base[name])}
    if changed - actual.keys():
        return "wrong"
    differences = [
        float((actual[n] - expected[n]).norm() / (expected[n] - base[n]).norm()) for n in changed
    ]
    if max(differences) < EXACT * 10:
        return "exact"
    of_weight = max(float((actual[n] - expected[n]).norm() / expected[n].norm()) for n in changed)
    return "close" if of_weight < CLOSE else "wrong"


def changed_weights(model: Model, concept: Concept) -> dict[str, Tensor]:
    parts = tuple(part for part in concept.parts if not isinstance(part, EmbeddingPart))
    with applied(model, Concept(parts, concept.provenance).adapters(model)):
        return weights_of(model)


def first_word(result: str | None) -> str:
    """The first word of an entry of the table; programs that are left out do not read the file."""
    word = (result or "refuses").partition(" ")[0].strip(":,")
    return "refuses" if word in ("skips", "reads") else word


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["kohya", "full-difference"])
def test_adapters(
    name: str,
    variant: str,
    family: str,
    opened: Callable[[str], Model],
    bases: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    model = opened(FAMILIES[family][0])
    concept = adapter_concept(variant, model, family)
    writer = registry.load("formats", name)()
    if not writer.stores(concept):
        assert (name, variant) == ("kohya", "oft")
        return
    base = str(bases(FAMILIES[family][0])) if name == "full-difference" else None
    writer.write(concept, Target(out := tmp_path / "toy.safetensors", base=base))
    weights, expected = weights_of(model), changed_weights(model, concept)
    table = outcomes(name, ".safetensors", concept)
    for program, reader in adapter_readers.READERS.items():
        try:
            result = verdict(reader.new_weights(load_file(out), weights, family), expected, weights)
        except adapter_readers.RefusedError:
            result = "refuses"
        assert first_word(table.get(program)) == result, program
    # Read again by pinxit, the change is the same.
    again = changed_weights(model, read_concept(out))
    assert verdict(again, expected, weights) == "exact"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_with_a_token(family: str, opened: Callable[[str], Model], tmp_path: Path) -> None:
    model = opened(FAMILIES[family][0])
    concept = adapter_concept("lora", model, family, token="<toy>")
    weights, expected = weights_of(model), changed_weights(model, concept)
    write_concept(concept, source := tmp_path / "source.safetensors")
    for separate in (False, True):
        out = tmp_path / f"lora-{separate}.safetensors"
        arguments = ["convert", str(source), str(out), "--format", "kohya"]
        assert main([*arguments, *["--separate-embeddings"][: int(separate)]]) == 0
        table = outcomes("kohya", ".safetensors", concept, bundled=not separate)
        for program, reader in adapter_readers.READERS.items():
            try:
                result = reader.new_weights(load_file(out), weights, family)
                assert verdict(result, expected, weights) == first_word(table[program]) == "exact"
            except adapter_readers.RefusedError:
                assert first_word(table[program]) == "refuses"
                assert (program, separate) == ("InvokeAI", False)
    embedding = read_concept(tmp_path / "toy.safetensors")
    assert embedding.token == "<toy>"
    for name, table in embedding.parts[0].tensors.items():
        assert torch.equal(table, concept.parts[0].tensors[name])


def embedding_files() -> Iterator[Any]:
    for name in registry.names("formats"):
        layout = registry.load("formats", name)
        if "embeddings" in layout.contents and name != "pinxit":
            for suffix in filter(None, layout.suffixes):
                for two in (False, True):
                    if (name, two) != ("compvis", True):
                        yield pytest.param(name, suffix, two, id=f"{name}{suffix}-{1 + two}")


@pytest.mark.parametrize(("name", "suffix", "two"), embedding_files())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_embeddings(name: str, suffix: str, two: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    vectors = {encoder: table.to(dtype) for encoder, table in tables(two=two).items()}
    part = EmbeddingPart("<toy>", "a", vectors)
    concept = Concept((part,), Provenance.from_metadata("<toy>", {"step": "7"}))
    writer = registry.load("formats", name)()
    writer.write(concept, Target(out := tmp_path / f"toy{suffix}"))
    table = outcomes(name, suffix, concept)
    for program, reader in embedding_readers.READERS.items():
        try:
            result = reader(out, two=two)
        except (adapter_readers.RefusedError, KeyError, ValueError, AttributeError, TypeError):
            result = (None, None)
        expected = (vectors["text"], vectors.get("text_2"))
        same = all(
            (one is None and other is None)
            or (one is not None and other is not None and torch.equal(one, other))
            for one, other in zip(result, expected, strict=True)
        )
        assert first_word(table.get(program)) == ("exact" if same else "refuses"), program


def test_every_file_in_the_table_is_tried() -> None:
    tried = {("kohya", "lora with embedding"), ("full-difference", "difference")}
    tried |= {("kohya", variant) for variant in VARIANTS} | {("kohya", "difference")}
    for parameters in embedding_files():
        name, suffix, two = parameters.values
        key = {("a1111", ".pt"): "a1111 .pt", ("a1111", ".safetensors"): "emb-params"}
        kind = "embedding for two text encoders" if two else "embedding"
        tried.add((key.get((name, suffix), name), kind))
    # By diffusers itself in tests/oracle, whole models by their names there as well.
    oracle = {"diffusers-lora", "single-file", "diffusers"}
    transformers = "lora of a transformer"  # in tests/oracle/test_transformer_loras.py
    for name, kinds in programs_table().items():
        if name not in ("versions", "usage", *oracle):
            assert {(name, kind) for kind in kinds if kind != transformers} <= tried
        if name not in ("versions", "usage"):
            for results in kinds.values():
                assert results.keys() <= programs_table()["versions"].keys()


def test_convert_says_what_each_program_does(
    opened: Callable[[str], Model], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    concept = adapter_concept("dora", opened("stable-diffusion-1"), "sd1")
    assert content_kind(concept) == "dora"
    write_concept(concept, source := tmp_path / "source.safetensors")
    assert (
        main(
            ["convert", str(source), str(out := tmp_path / "toy.safetensors"), "--format", "kohya"]
        )
        == 0
    )
    text = capsys.readouterr().err
    for program, result in outcomes("kohya", ".safetensors", concept).items():
        assert f"  {program}: {result}" in text
    assert "AUTOMATIC1111: wrong" in text
    assert "--format full-difference" in text
    assert f"in LyCORIS: {usage('LyCORIS', concept, out)}" in text
    assert "in AUTOMATIC1111:" not in text  # it cannot use the file
    assert main(["inspect", str(out)]) == 0
    programs = capsys.readouterr().out.partition("opens in")[2].partition("suspicious")[0]
    assert "ComfyUI" in programs
    assert "AUTOMATIC1111" not in programs


@pytest.mark.parametrize("widths", [(768, 4096), (4096,)], ids=["flux-1", "chroma"])
def test_nothing_is_said_of_embeddings_that_were_tried_in_no_program(
    widths: Sequence[int],
) -> None:
    names = ("text", "text_2")
    vectors = {name: torch.ones(1, width) for name, width in zip(names, widths, strict=False)}
    part = EmbeddingPart("<toy>", "a", vectors)
    concept = Concept((part,), Provenance.from_metadata("<toy>", {}, ""))
    for name in ("emb-params", "diffusers", "onetrainer"):
        assert outcomes(name, ".safetensors", concept) == {}


def test_usage_has_the_path_for_diffusers_and_everything_to_type() -> None:
    parts = (AliasPart("<toy>", "qvj toy"), EmbeddingPart("<new>", "a", tables(two=False)))
    concept = Concept(parts, Provenance.from_metadata("<toy>", {}, ""))
    how = usage("diffusers", concept, Path("learned/toy"))
    assert how.startswith('pipe.load_textual_inversion("learned/toy", ')
    assert how.endswith("write qvj toy, <new> in the prompt")
    assert usage("ComfyUI", concept, Path("learned/toy")) == ""


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("family", ["stable-diffusion-2", "stable-diffusion-xl"])
def test_checkpoints_say_what_they_predict(
    family: str,
    prediction: str,
    rescaled: bool,
    bases: Callable[[str], Path],
    opened: Callable[[str], Model],
    tmp_path: Path,
) -> None:
    import json
    import shutil

    base = tmp_path / "base"
    shutil.copytree(bases(family), base)
    config_file = base / "scheduler" / "scheduler_config.json"
    config = json.loads(config_file.read_text())
    config |= {"prediction_type": prediction, "rescale_betas_zero_snr": rescaled}
    config_file.write_text(json.dumps(config))
    network = opened(family).networks["denoiser"]
    weights = {name: weight.detach() for name, weight in network.named_parameters()}
    part = FullWeightsPart("denoiser", weights)
    concept = Concept((part,), Provenance.from_metadata("toy", {}))
    out = tmp_path / "toy.safetensors"
    registry.load("formats", "single-file")().write(concept, Target(out, base=str(base)))
    # ComfyUI and Forge look for empty tensors of these names.
    markers = {"v_pred", "ztsnr"} & load_file(out).keys()
    velocity = prediction == "v_prediction"
    assert markers == (
        {"v_pred", "ztsnr"} if velocity and rescaled else {"v_pred"} if velocity else set()
    )
    scheduler = find_base(str(out)).config("scheduler")
    assert scheduler.get("prediction_type", "epsilon") == prediction
    assert bool(scheduler.get("rescale_betas_zero_snr")) == (velocity and rescaled)


@pytest.mark.parametrize("family", ["stable-diffusion-3", "flux-1", "chroma", "z-image"])
def test_a_transformer_is_no_checkpoint_file(
    family: str,
    bases: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["convert", str(bases(family)), str(tmp_path / "x.safetensors")]) == 2
    assert "has a `transformer`, which single files (SD 1, 2 and XL)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"prediction_type": "sample"},
        {"beta_end": 0.02},
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"num_train_timesteps": 500},
        {"trained_betas": [0.01] * 1000},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["stable-diffusion-1", "stable-diffusion-xl"])
def test_checkpoints_do_not_lose_a_noise_schedule(
    family: str,
    changes: dict[str, object],
    bases: Callable[[str], Path],
    copied: Callable[[Path], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = copied(bases(family))
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    assert main(["convert", str(folder), str(tmp_path / "x.safetensors")]) == 2
    assert f"a scheduler with {next(iter(changes))} " in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("family", ["stable-diffusion-1", "stable-diffusion-2"])
def test_checkpoints_keep_the_spacing_of_timesteps(
    family: str,
    spacing: str,
    bases: Callable[[str], Path],
    copied: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    folder, out = copied(bases(family)), tmp_path / "x.safetensors"
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"timestep_spacing": spacing}))
    assert main(["convert", str(folder), str(out)]) == 0
    assert find_base(str(out)).config("scheduler")["timestep_spacing"] == spacing


@pytest.mark.parametrize("family", ["stable-diffusion-1", "stable-diffusion-2"])
def test_a_yaml_file_tells_a1111_that_a_model_predicts_v(
    family: str,
    bases: Callable[[str], Path],
    opened: Callable[[str], Model],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import json
    import shutil

    import yaml
    from safetensors.torch import save_file

    base = tmp_path / "base"
    shutil.copytree(bases(family), base)
    config_file = base / "scheduler" / "scheduler_config.json"
    schedule = json.loads(config_file.read_text()) | {"prediction_type": "v_prediction"}
    config_file.write_text(json.dumps(schedule))
    network = opened(family).networks["denoiser"]
    weights = {name: weight.detach() for name, weight in network.named_parameters()}
    concept = Concept((FullWeightsPart("denoiser", weights),), Provenance.from_metadata("toy", {}))
    write_concept(concept, source := tmp_path / "source.safetensors")
    out, config_file = tmp_path / "toy.safetensors", tmp_path / "toy.yaml"
    command = ["convert", str(source), str(out), "--format", "single-file", "--base", str(base)]
    config_file.write_text("mine")
    assert main(command) == 2
    assert "toy.yaml exists already" in capsys.readouterr().err
    assert config_file.read_text() == "mine"
    assert not out.exists()
    config_file.unlink()
    assert main(command) == 0
    assert f"{config_file} tells AUTOMATIC1111" in capsys.readouterr().err
    params = yaml.safe_load(config_file.read_text())["model"]["params"]
    assert params["parameterization"] == "v"
    unet, tensors = params["unet_config"]["params"], load_file(out)
    start = "model.diffusion_model."
    assert len(tensors[f"{start}input_blocks.0.0.weight"]) == unet["model_channels"]
    last = unet["model_channels"] * unet["channel_mult"][-1]
    assert len(tensors[f"{start}middle_block.0.out_layers.3.weight"]) == last
    keys = tensors[f"{start}middle_block.1.transformer_blocks.0.attn2.to_k.weight"]
    assert keys.shape[1] == unet["context_dim"]
    is_linear = tensors[f"{start}middle_block.1.proj_in.weight"].ndim == 2
    assert unet["use_linear_in_transformer"] == is_linear
    is_open_clip = any(name.startswith("cond_stage_model.model.") for name in tensors)
    assert ("OpenCLIP" in params["cond_stage_config"]["target"]) == is_open_clip
    # Read without the marks in the checkpoint itself.
    save_file({name: t for name, t in tensors.items() if name != "v_pred"}, out)
    assert find_base(str(out)).config("scheduler")["prediction_type"] == "v_prediction"
    config_file.unlink()
    assert find_base(str(out)).config("scheduler").get("prediction_type") != "v_prediction"
