"""Cache of visual tokens on disk: with fixed views, a tokenizer encodes each image once and not in every epoch.

The visual tokens are uint16 in one file under BENCH_CACHE, named by the tokenizer's weights, the data and the views,
and are shared by all processes and runs. Shapes: B images, N visual tokens per image.
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

UNKNOWN = np.iinfo(np.uint16).max  # marks what is not encoded yet; no visual token has this number


class TokenCache:
    """Visual tokens of a data set's images, filled in as they are first used. per_image: N."""

    def __init__(self, path: Path, images: int, per_image: int) -> None:
        self.path, self.shape = path, (images, per_image)
        self._table: np.memmap | None = None  # opened at the first use, so that the cache can be pickled

    def __call__(self, index: Tensor, encode: Callable[[], Tensor]) -> Tensor:
        """Visual tokens (B, N) int64 of images `index` (B,). Calls `encode`, for all B, if any are missing."""
        table = self._open()
        rows = index.numpy()
        tokens = np.asarray(table[rows])
        if (tokens == UNKNOWN).any():
            encoded = encode().cpu().numpy().astype(np.uint16)
            tokens = np.where(tokens == UNKNOWN, encoded, tokens)
            table[rows] = tokens
        return torch.from_numpy(tokens.astype(np.int64))

    def _open(self) -> np.memmap:
        if self._table is None:
            try:
                if not self.path.exists():
                    self._create()
                self._table = np.lib.format.open_memmap(self.path, mode="r+")
            except (OSError, ValueError) as error:
                raise BenchError(
                    f"cannot cache visual tokens in {self.path}: {error}; set BENCH_CACHE to another folder"
                ) from None
            if self._table.shape != self.shape:
                raise BenchError(f"{self.path} has shape {self._table.shape} instead of {self.shape}; delete it")
        return self._table

    def _create(self) -> None:
        """Create an empty table, whole or not at all; if two processes do, the later file replaces the earlier."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}")
        np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint16, shape=self.shape)[:] = UNKNOWN
        temporary.rename(self.path)


def build_token_cache(tokenizer: Tokenizer, data: Data, views: object, per_image: int) -> TokenCache:
    """The cache for this tokenizer and these data. views: all that decides the view of an image, as JSON values."""
    if tokenizer.vocab_size > UNKNOWN:
        raise BenchError(
            f"a codebook of {tokenizer.vocab_size} visual tokens; pretrain.options.views = 'fixed' takes {UNKNOWN}"
        )
    name = digest(["words", weights_digest(tokenizer), data.identity, views])
    return TokenCache(cache_folder() / "words" / f"{name}.npy", data.images, per_image)


def weights_digest(network: nn.Module) -> str:
    """Hash of all parameters and buffers, on any device."""
    hashed = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(network.state_dict().items()):
        hashed.update(name.encode())
        hashed.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
