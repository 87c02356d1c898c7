"""The marks by which a checkpoint says what it predicts, in the spellings of several programs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pinxit.errors import ModelError, RequestError
from pinxit.generation.schedulers import SCHEDULERS, Sampler
from pinxit.models.config_limits import check_diffusion_config
from pinxit.models.noise_schedule import Diffusion
from pinxit.models.prediction import prediction_config

_SGM = "sgm.modules.diffusionmodules.denoiser_scaling"
KEYS = ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type")
KEYS += ("ss_prediction_type", "model_prediction_type", "parameterization", "modelspec.prediction")
SPELLINGS = {
    "v_prediction": (
        *("v", "V", "v_prediction", "v-prediction", "vpred", "velocity"),
        *("v_pred", "velocity_prediction", "v_parameterization", "V Prediction"),
    ),
    "epsilon": ("epsilon", "eps", "EPS", "eps_pred", "epsilon_prediction", "noise", "noise-pred"),
    "sample": ("sample", "x0", "x_start", "x0_prediction", "sample_prediction", "x_0"),
}
ALPHAS_CUMPROD = torch.linspace(0.99, 0.01, 100)


def scheduler_config(path: Path, names: tuple[str, ...] = (), **metadata: str) -> dict[str, object]:
    tensors = {name: torch.zeros(1) for name in names}
    named = {key.replace("__", "."): value for key, value in metadata.items()}
    return prediction_config(path, tensors, named, None).get("scheduler", {})


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("prediction", "spelling"),
    [(kind, spelling) for kind, spellings in SPELLINGS.items() for spelling in spellings],
)
def test_metadata(key: str, prediction: str, spelling: str, tmp_path: Path) -> None:
    config = prediction_config(tmp_path / "a.safetensors", {}, {key: spelling}, None)
    assert config["scheduler"]["prediction_type"] == prediction


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ('parameterization: "v"', {"prediction_type": "v_prediction"}),
        ("parameterization: v", {"prediction_type": "v_prediction"}),
        ("parameterization: 'x0'", {"prediction_type": "sample"}),
        ("parameterization: eps", {"prediction_type": "epsilon"}),
        ("linear_start: 0.1", {"prediction_type": "epsilon"}),
        ("# parameterization: v\n    linear_start: 0.1", {"prediction_type": "epsilon"}),
        ("parameterization : v  # velocity", {"prediction_type": "v_prediction"}),
        ('"parameterization": "v"', {"prediction_type": "v_prediction"}),
        ("x: {linear_start: 0.1, parameterization: v}", {"prediction_type": "v_prediction"}),
        ("name: a model", {}),
        *(
            (
                f"scaling_config:\n      target: {_SGM}.{name}Scaling",
                {"prediction_type": prediction},
            )
            for name, prediction in (("V", "v_prediction"), ("Eps", "epsilon"))
        ),
    ],
)
@pytest.mark.parametrize(
    "zero_snr",
    [
        *("", "zero_terminal_snr: true", "rescale_betas_zero_snr: True", "ztsnr: yes"),
        *('"zsnr": on', "use_zero_terminal_snr: 1"),
    ],
)
def test_a_yaml_file(yaml: str, expected: dict[str, object], zero_snr: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"model:\n  params:\n    {yaml}\n    {zero_snr}\n")
    config = scheduler_config(tmp_path / "a.safetensors")
    rescaled = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert config == expected | (rescaled if zero_snr else {})


@pytest.mark.parametrize(
    "marks",
    [
        {"names": ("v_pred", "ztsnr")},
        {"names": ("ztsnr",), "modelspec__prediction_type": "v"},
        {"modelspec__prediction_type": "v", "ss_zero_terminal_snr": "True"},
        {"ss_v_parameterization": "True", "rescale_betas_zero_snr": "yes"},
        {"v_pred": "1", "modelspec__ztsnr": "on"},
        {"names": ("v_prediction", "zsnr")},
    ],
)
def test_zero_terminal_snr(marks: dict[str, str], tmp_path: Path) -> None:
    config = scheduler_config(tmp_path / "a.safetensors", **marks)  # type: ignore[arg-type]
    assert config["prediction_type"] == "v_prediction"
    assert config["rescale_betas_zero_snr"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_yaml_file_in_other_encodings(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("parameterization: v\r\n".encode(encoding))
    config = scheduler_config(tmp_path / "a.safetensors")
    assert config == {"prediction_type": "v_prediction"}


@pytest.mark.parametrize(
    "yaml", ["name: a model\ntags: [a, b]\n", "", "model:\n  params:\n    linear_start: 0.1\n"]
)
def test_a_yaml_file_without_a_mark_does_not_hide_others(yaml: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml)
    for marks in ({"names": ("v_pred",)}, {"modelspec__prediction_type": "v"}):
        config = scheduler_config(tmp_path / "a.safetensors", **marks)  # type: ignore[arg-type]
        assert config == {"prediction_type": "v_prediction"}


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("spelling", [str, str.upper, str.title])
def test_spacing(spacing: str, spelling: Callable[[str], str], tmp_path: Path) -> None:
    value = spelling(spacing)
    config = scheduler_config(tmp_path / "a.safetensors", timestep_spacing=value)
    assert config == {"timestep_spacing": spacing}
    (tmp_path / "a.yaml").write_text(f"timestep_spacing: {value}\nztsnr: true")
    assert scheduler_config(tmp_path / "a.safetensors")["timestep_spacing"] == spacing


def test_what_is_not_supported_in_configs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="spacing `karras`"):
        scheduler_config(tmp_path / "a.safetensors", timestep_spacing="karras")
    (tmp_path / "a.yaml").write_text(f"scaling_config:\n  target: {_SGM}.EDMScaling")
    with pytest.raises(ModelError, match="predicts `EDM`"):
        scheduler_config(tmp_path / "a.safetensors")


@pytest.mark.parametrize("value", ["flow", "rectified_flow", "?"])
def test_an_unknown_prediction_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="which is not supported"):
        scheduler_config(tmp_path / "a.safetensors", modelspec__prediction_type=value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rescale_betas_zero_snr": True}, "ends in pure noise"),
        ({"rescale_betas_zero_snr": True, "prediction_type": "epsilon"}, "ends in pure noise"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "is a rectified flow"),
        ({"use_flow_sigmas": True}, "is a rectified flow"),
        ({"prediction_type": "flow_prediction"}, "prediction_type cannot be"),
    ],
)
def test_schedules_that_cannot_be_trained(config: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_diffusion_config(config, "it")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_target_leads_back_to_latents_and_noise(prediction: str) -> None:
    schedule = Diffusion(ALPHAS_CUMPROD, prediction)  # type: ignore[arg-type]
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([3, 50, 99])
    target = schedule.target(latents, noise, timesteps)
    noisy = schedule.add_noise(latents, noise, timesteps)
    clean, same_noise = schedule.predict_clean_and_noise(noisy, target, timesteps)
    torch.testing.assert_close(clean, latents, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(same_noise, noise, rtol=1e-3, atol=1e-4)


def test_min_snr_follows_the_prediction() -> None:
    """min(SNR, gamma) weights the error of the clean latents, whatever is predicted."""
    timesteps = torch.arange(100)
    snr = ALPHAS_CUMPROD / (1 - ALPHAS_CUMPROD)
    for prediction, divisor in (("sample", 1), ("epsilon", snr), ("v_prediction", snr + 1)):
        schedule = Diffusion(ALPHAS_CUMPROD, prediction)  # type: ignore[arg-type]
        torch.testing.assert_close(schedule.loss_weight(timesteps, 5.0), snr.clamp(max=5) / divisor)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(
    ("prediction", "zero_snr"),
    [("epsilon", False), ("v_prediction", False), ("sample", False), ("v_prediction", True)],
)
def test_every_scheduler_uses_it_or_is_refused(name: str, prediction: str, zero_snr: bool) -> None:
    """With a denoiser that knows the answer, every scheduler ends at the clean latents."""
    config: dict[str, object] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction,
        "clip_sample": False,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": zero_snr,
    }
    schedule = Diffusion(_alphas(config), prediction)  # type: ignore[arg-type]
    try:
        sampler = Sampler(schedule, name, config, 30, (4, 8, 8))
    except RequestError as error:
        assert "does not work with a base model" in error.message
        assert (zero_snr and name in ("heun", "pndm")) or name in ("euler-a", "pndm")
        return
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    x = sampler.scale_initial_noise(noise)
    for timestep in sampler.timesteps:
        scaled = sampler.scale_model_input(x, timestep)
        step = timestep.reshape(1)
        signal = schedule.alphas_cumprod[step.long()].view(-1, 1, 1, 1).sqrt()
        own_noise = (scaled - signal * latents) / (1 - signal**2).sqrt()
        answer = schedule.target(latents, own_noise, step)
        x = sampler.step(answer, timestep, x, [torch.Generator().manual_seed(1)])
    assert (x - latents).norm() / latents.norm() < 0.2


def _alphas(config: dict[str, object]) -> torch.Tensor:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler.from_config(config).alphas_cumprod
