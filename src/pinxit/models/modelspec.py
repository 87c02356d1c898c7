"""modelspec 1.0.1 metadata of model files."""

from pinxit.models.family import FamilyFacts


def modelspec_metadata(
    family: FamilyFacts | None,
    title: str,
    trigger: str,
    addition: str = "",
    *,
    velocity: bool = False,
) -> dict[str, str]:
    """The modelspec metadata of a file.

    `addition` is the kind of addition to a base model, such as "/lora", and "" for a base model.
    `velocity` adds the fields of a base model with v-prediction, one of which ComfyUI reads.
    """
    architecture, size = (family.architecture, family.native_size) if family else ("other", 0)
    if velocity and family and family.velocity_architecture:
        architecture, size = family.velocity_architecture
    fields = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture + addition,
        "implementation": "diffusers" if addition else "sgm",
        "title": title,
        "trigger_phrase": trigger,
        "resolution": f"{size}x{size}" if size else "",
        "prediction_type": "v" if velocity else "",
        "predict_key": "v" if velocity else "",
    }
    return {f"modelspec.{name}": value for name, value in fields.items() if value}
