"""Predictions for pictures larger than the network's input, from overlapping windows.

Source: mmsegmentation 0.11, EncoderDecoder.slide_inference (golden g09).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def slide(predict: Callable[[Tensor], Tensor], images: Tensor, *, window: int, stride: int) -> Tensor:
    """Logits (B, K, H, W) of images (B, C, H, W): the mean, pixel by pixel, over all windows that cover it.

    predict: (B, C, h, w) -> (B, K, h, w). A picture smaller than the window is one window of its own size.
    """
    height, width = images.shape[-2:]
    covered = images.new_zeros(1, 1, height, width)
    logits: Tensor | None = None
    for top in starts(height, window, stride):
        for left in starts(width, window, stride):
            place = (..., slice(top, top + window), slice(left, left + window))
            found = predict(images[place]).float()
            if logits is None:
                logits = found.new_zeros(len(images), found.shape[1], height, width)
            logits[place] += found
            covered[place] += 1
    assert logits is not None, "a picture has at least one window"
    return logits / covered


def starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side; the last is moved back so that it ends with the picture."""
    count = max(side - window + stride - 1, 0) // stride + 1
    return [max(min(number * stride + window, side) - window, 0) for number in range(count)]
