"""Sliding-window inference: label maps for images of any size from a network with a square input; scales and flips.

Letters: B images, C channels, K classes, h x w pixels of an image as the network sees it, H x W of its label map.
Source: mmsegmentation 0.11, EncoderDecoder.slide_inference and aug_test (golden g09).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Network = Callable[[Tensor], Tensor]  # (B, C, h, w) -> (B, K, h, w)
WindowLogits = tuple[Tensor, int]  # logits (..., K, h, w) of images at one scale, and their weight
AT_ONCE = 4  # windows of a large image that go through the network together
MAX_LOGITS = 2**24  # numbers in memory at once when logits are brought to the size of a label map: 64 MiB


@dataclass(frozen=True, slots=True)
class SlidingWindow:
    """Sliding-window inference. window: the side of the network's input; stride 0: two thirds of it."""

    window: int
    stride: int = 0
    flip: bool = False

    def __call__(self, network: Network, scales: Iterable[tuple[Tensor, int]]) -> list[WindowLogits]:
        """Logits of images (B, C, h, w) at one or more scales, with `flip` also of mirrored ones, and their weights."""
        window_logits = []
        for images, weight in scales:
            window_logits.append((self._logits(network, images), weight))
            if self.flip:
                window_logits.append((self._logits(network, images.flip(-1)).flip(-1), weight))
        return window_logits

    def _logits(self, network: Network, images: Tensor) -> Tensor:
        """Images smaller than the window are padded with zeros, the mean colour, on the right and below."""
        window, stride = self.window, self.stride or self.window * 2 // 3
        return slide(lambda part: _predict_padded(network, part, window), images, window=window, stride=stride)


def _predict_padded(network: Network, images: Tensor, side: int) -> Tensor:
    height, width = images.shape[-2:]
    if (height, width) == (side, side):
        return network(images)
    return network(F.pad(images, (0, side - width, 0, side - height)))[..., :height, :width]


def slide(predict: Network, images: Tensor, *, window: int, stride: int) -> Tensor:
    """Logits (B, K, H, W) of images (B, C, H, W): the mean, pixel by pixel, over all windows that cover it.

    predict: (B, C, h, w) -> (B, K, h, w). An image smaller than the window is one window of its own size.
    """
    height, width = images.shape[-2:]
    corners = [(top, left) for top in starts(height, window, stride) for left in starts(width, window, stride)]
    if len(corners) == 1:
        return predict(images).float()
    places = [(..., slice(top, top + window), slice(left, left + window)) for top, left in corners]
    covered = images.new_zeros(1, 1, height, width, dtype=torch.float32)
    logits = images.new_zeros(0)
    at_once = max(1, AT_ONCE // len(images))
    for first in range(0, len(places), at_once):
        group = places[first : first + at_once]
        # Summed in fp32, whatever autocast made of the logits.
        parts = predict(torch.cat([images[place] for place in group])).float().split(len(images))
        for place, part in zip(group, parts, strict=True):
            if not logits.numel():
                logits = part.new_zeros(len(images), part.shape[1], height, width)
            logits[place] += part
            covered[place] += 1
    return logits / covered


def starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side; the last is moved back so that it ends with the image."""
    count = max(side - window + stride - 1, 0) // stride + 1
    return [max(min(number * stride + window, side) - window, 0) for number in range(count)]


def decide(window_logits: Sequence[WindowLogits], size: tuple[int, int]) -> Tensor:
    """The predicted classes (H, W) of one image, at the size of its label map, from its logits (K, h, w).

    Logits are first interpolated bilinearly to that size; those of several scales and flips become
    probabilities there, which are averaged.
    """
    height, width = size
    # A strip of rows at a time, so that an image of any size takes 64 MiB.
    rows = max(1, MAX_LOGITS // (window_logits[0][0].shape[-3] * width))
    strips = [range(top, min(top + rows, height)) for top in range(0, height, rows)]
    return torch.cat([_score(window_logits, size, strip).argmax(0) for strip in strips])


def _score(window_logits: Sequence[WindowLogits], size: tuple[int, int], strip: range) -> Tensor:
    """Scores (K, rows, W) of a strip of rows; the highest class is predicted."""
    if len(window_logits) == 1:
        return interpolate_rows(window_logits[0][0], size, strip)
    total = interpolate_rows(window_logits[0][0], size, strip).softmax(0) * window_logits[0][1]
    for logits, weight in window_logits[1:]:
        total += weight * interpolate_rows(logits, size, strip).softmax(0)
    return total


def interpolate_rows(logits: Tensor, size: tuple[int, int], strip: range) -> Tensor:
    """Some rows (K, rows, W) of what F.interpolate makes of logits (K, h, w), bilinear without aligned corners."""
    (height, width), (before, across) = size, logits.shape[-2:]
    if before == height:
        rows = logits[:, strip.start : strip.stop].float()
    else:
        place = torch.arange(strip.start, strip.stop, dtype=torch.float64, device=logits.device)
        place = ((place + 0.5) * before / height - 0.5).clamp(min=0)
        above = place.long()
        below = (above + 1).clamp(max=before - 1)
        rows = torch.lerp(logits[:, above].float(), logits[:, below].float(), (place - above)[None, :, None].float())
    return rows if across == width else F.interpolate(rows, width, mode="linear", align_corners=False)
