"""ComfyUI nodes that train a concept and generate with it, through the HTTP API of pinxit studio.

Copy this folder into ComfyUI's `custom_nodes`. Start the studio with `pinxit studio`, and set the
environment variable PINXIT_TOKEN to what `pinxit studio --api-token` prints.
"""

import io
import json
import os
import time
import urllib.error
import urllib.request
import uuid
from typing import Any

ADDRESS = os.environ.get("PINXIT_ADDRESS", "http://127.0.0.1:7865")
_ACTIVE = ("waiting", "running", "stopping")


def call(path: str, data: bytes | None = None, kind: str = "application/json") -> bytes:
    """The body of an answer of the studio; a POST if there are data."""
    headers = {"Authorization": f"Bearer {os.environ.get('PINXIT_TOKEN', '')}"}
    request = urllib.request.Request(ADDRESS + path, data, {**headers, "Content-Type": kind})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        raise RuntimeError(error.read().decode(errors="replace")) from None


def finished(job: dict[str, Any], progress: Any = None) -> dict[str, Any]:
    """Wait until a job has ended; RuntimeError if it was not done."""
    while job["state"] in _ACTIVE:
        time.sleep(0.5)
        job = json.loads(call(f"/api/jobs/{job['id']}"))
        if progress and job["total"]:
            progress.update_absolute(job["step"], job["total"])
    if job["state"] != "done":
        raise RuntimeError(f"{job['state']}: {job['message']} {job['hint']}")
    return job


def upload(files: list[tuple[str, bytes]]) -> str:
    """Upload PNG files as a set of images; returns its number."""
    boundary = uuid.uuid4().hex
    body = io.BytesIO()
    for name, data in files:
        head = f'Content-Disposition: form-data; name="files"; filename="{name}"'
        body.write(f"--{boundary}\r\n{head}\r\nContent-Type: image/png\r\n\r\n".encode())
        body.write(data + b"\r\n")
    body.write(f"--{boundary}--\r\n".encode())
    kind = f"multipart/form-data; boundary={boundary}"
    return json.loads(call("/api/images", body.getvalue(), kind))["id"]


def train(
    images: list[tuple[str, bytes]], progress: Any = None, **options: object
) -> dict[str, Any]:
    """Train a concept on PNG files; `options` are those of `pinxit train`."""
    body = json.dumps({"images": upload(images), **options}).encode()
    return finished(json.loads(call("/api/train", body)), progress)


def generate(prompt: str, concepts: list[str], **options: object) -> list[bytes]:
    """The PNG files of images that were generated with trained concepts."""
    body = json.dumps({"prompt": prompt, "concepts": concepts, **options}).encode()
    job = finished(json.loads(call("/api/generate", body)))
    return [call(f"/api/jobs/{job['id']}/images/{place}") for place in range(job["images"])]


class PinxitTrain:
    """Train a concept on a batch of images."""

    CATEGORY = "pinxit"
    FUNCTION = "run"
    RETURN_TYPES = ("PINXIT_CONCEPT", "STRING")
    RETURN_NAMES = ("concept", "token")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        """The inputs as ComfyUI describes them."""
        return {
            "required": {
                "images": ("IMAGE",),
                "class_noun": ("STRING", {"default": "dog"}),
                "steps": ("INT", {"default": 0, "min": 0, "tooltip": "0: chosen by the method"}),
            }
        }

    def run(self, images: Any, class_noun: str, steps: int) -> tuple[str, str]:
        """Train, with ComfyUI's progress bar; returns the job's number and the token."""
        from comfy.utils import ProgressBar
        from PIL import Image

        files: list[tuple[str, bytes]] = []
        for number, image in enumerate(images):
            png = io.BytesIO()
            Image.fromarray((image.cpu().numpy() * 255).round().astype("uint8")).save(png, "PNG")
            files.append((f"{number}.png", png.getvalue()))
        chosen = {"steps": steps} if steps else {}
        job = train(files, ProgressBar(100), class_noun=class_noun, **chosen)
        return job["id"], job["token"]


class PinxitGenerate:
    """Generate images with a concept: its token is written in the prompt."""

    CATEGORY = "pinxit"
    FUNCTION = "run"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        """The inputs as ComfyUI describes them."""
        return {
            "required": {
                "concept": ("PINXIT_CONCEPT",),
                "prompt": ("STRING", {"default": "a photo of <mydog>", "multiline": True}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**31}),
                "num_images": ("INT", {"default": 1, "min": 1, "max": 16}),
            }
        }

    def run(self, concept: str, prompt: str, seed: int, num_images: int) -> tuple[Any]:
        """The images as one tensor (N, H, W, 3) in 0..1."""
        import numpy as np
        import torch
        from PIL import Image

        files = generate(prompt, [concept], seed=seed, num_images=num_images)
        images = [np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in files]
        return (torch.from_numpy(np.stack(images).astype(np.float32) / 255),)


NODE_CLASS_MAPPINGS = {"PinxitTrain": PinxitTrain, "PinxitGenerate": PinxitGenerate}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PinxitTrain": "Train a concept (pinxit)",
    "PinxitGenerate": "Generate with a concept (pinxit)",
}
