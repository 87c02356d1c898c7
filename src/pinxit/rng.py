"""Random generators that depend on a seed and a purpose only, not on earlier draws."""

import hashlib

import torch


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A random generator for one purpose, such as (concept, step, slot), with this seed.

    It is on the CPU, so that the numbers are the same on every device.
    """
    text = "\x1f".join(map(str, (seed, *purpose)))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
