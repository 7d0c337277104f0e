"""One seed for everything, and independent streams drawn from it."""

from __future__ import annotations

import random
import zlib

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python's random, numpy's global state and torch (CPU and every GPU)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def spawn_seeds(seed: int, purpose: str, n: int) -> list[int]:
    """`n` different seeds in [0, 2**31) for one purpose, each the start of an independent stream.

    Another purpose ("train_env", "test_env", "sampling", "behaviour", ..) gives unrelated seeds;
    a larger `n` begins with the same ones. 31 bits, because some simulators read an int32.
    """
    source = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())])
    generator = np.random.Generator(np.random.PCG64(source))
    seeds: dict[int, None] = {}  # ordered, without duplicates
    while len(seeds) < n:
        seeds[int(generator.integers(2**31))] = None
    return list(seeds)


def draw_seed() -> int:
    """A seed from the operating system, for `seed: null`."""
    return random.SystemRandom().randrange(2**31)
