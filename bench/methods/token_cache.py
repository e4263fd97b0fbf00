"""Words of images that are always seen alike, kept in a file: a tokenizer then looks at each image once.

An image that is seen alike in every epoch has the same words in every epoch. They lie as uint16 in one file under
BENCH_CACHE, named by the tokenizer's weights, the data and the views, and are shared by all processes and runs.
Shapes: B images, N words of an image.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.config.stage import Data, digest
from bench.errors import BenchError
from bench.files import cache_folder
from bench.models.dvae import Tokenizer

UNKNOWN = np.iinfo(np.uint16).max  # no word has this number


class KeptWords:
    """The words of `images` images, as far as anybody has asked for them."""

    def __init__(self, path: Path, images: int, words: int) -> None:
        self.path, self.shape = path, (images, words)
        self._words: np.memmap | None = None  # opened by the process that asks, not by the one that pickles

    def __call__(self, index: Tensor, encode: Callable[[], Tensor]) -> Tensor:
        """Words (B, N) int64 of the images numbered `index` (B,); `encode` finds those of all B if one is missing."""
        known = self._open()
        rows = index.numpy()
        found = np.asarray(known[rows])
        if (found == UNKNOWN).any():
            fresh = encode().cpu().numpy().astype(np.uint16)
            found = np.where(found == UNKNOWN, fresh, found)
            known[rows] = found
        return torch.from_numpy(found.astype(np.int64))

    def _open(self) -> np.memmap:
        if self._words is None:
            try:
                if not self.path.exists():
                    self._begin()
                self._words = np.lib.format.open_memmap(self.path, mode="r+")
            except (OSError, ValueError) as error:
                raise BenchError(f"cannot keep words in {self.path}: {error}; set BENCH_CACHE elsewhere") from None
            if self._words.shape != self.shape:
                raise BenchError(f"{self.path} holds {self._words.shape} words, not {self.shape}; delete it")
        return self._words

    def _begin(self) -> None:
        """A file without words, whole or absent; of two processes that begin it, the later one's stays."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}")
        np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint16, shape=self.shape)[:] = UNKNOWN
        temporary.rename(self.path)


def kept_words(tokenizer: Tokenizer, data: Data, seen: object, words: int) -> KeptWords:
    """The words that this tokenizer finds in these data; seen: all that decides how an image is seen, as JSON."""
    if tokenizer.words > UNKNOWN:
        raise BenchError(
            f"a codebook of {tokenizer.words} words: pretrain.options.views = 'fixed' keeps {UNKNOWN} at most"
        )
    name = digest(["words", weights_digest(tokenizer), data.identity, seen])
    return KeptWords(cache_folder() / "words" / f"{name}.npy", data.images, words)


def weights_digest(network: nn.Module) -> str:
    """Hash of all parameters and buffers, wherever they lie."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
