"""Randomness as a function: every draw follows from what it is for, and from nothing before it."""

import hashlib

import torch


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A generator for one purpose, such as (concept, step, slot), of a run with this seed.

    It lives on the CPU, so that the same draws are made whatever device computes.
    """
    text = "\x1f".join(map(str, (seed, *purpose)))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
