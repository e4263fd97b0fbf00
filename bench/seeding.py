"""Seeds: every random draw of a run comes from a number derived from (the stage's seed, what it is for).

Nothing keeps the state of a generator between steps, so a run that is resumed at a step draws what an
uninterrupted one would have drawn there, and the number of workers or processes changes nothing.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def derive(seed: int, *purpose: str | int) -> int:
    """A seed of 63 bits for one purpose, such as derive(0, "view", epoch, image).

    Different purposes give unrelated seeds. The same arguments give the same number on every machine.
    """
    parts = [f"{type(part).__name__[0]}{part}" for part in (seed, *purpose)]  # so that 1 and "1" differ
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # torch takes signed 64-bit seeds


def seed_cpu(seed: int) -> None:
    """Seed the CPU generators of Python, NumPy and torch, which random views draw from. Costs about 10 us."""
    import torch  # here and below: who only derives seeds should not wait for it

    random.seed(seed)
    np.random.seed(seed % 2**32)  # NumPy takes 32 bits
    torch.default_generator.manual_seed(seed)


def seed_all(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch, on every device."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def forked(seed: int) -> Iterator[None]:
    """Seed the CPU generators of Python, NumPy and torch inside the with block, and restore them after it."""
    import torch

    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        seed_cpu(seed)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])
