"""State of the random number generators: saved before a step, and restored to repeat it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def take_state() -> State:
    """Return the state of all generators, as tensors and plain values."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(np.array(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def put_state(state: State) -> None:
    """Restore a state returned by `take_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def seeded(*parts: int) -> Iterator[None]:
    """Run a block with torch's CPU generator seeded by `parts`, then restore its state."""
    state = torch.get_rng_state()
    torch.manual_seed(mixed(*parts))
    try:
        yield
    finally:
        torch.set_rng_state(state)


def mixed(*parts: int) -> int:
    """Return a 63-bit seed that depends on every part and on their order (SplitMix64's finaliser)."""
    value = 0
    for part in parts:
        value = (value ^ (part & _WORD)) + 0x9E3779B97F4A7C15 & _WORD
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _WORD
        value = (value ^ value >> 27) * 0x94D049BB133111EB & _WORD
        value ^= value >> 31
    return value >> 1


_WORD = (1 << 64) - 1
