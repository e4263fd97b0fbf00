"""Grids of images: masked patches, tokens and reconstructions, predictions, attention and label maps.

Letters: K images, g patches along a side, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.colors import hsv_to_rgb, to_rgb

from bench.errors import BenchError
from bench.reporting.analysis.comparisons import Comparison
from bench.reporting.analysis.outcomes import Outcomes, StageRun, label_of
from bench.reporting.figures import style
from bench.reporting.figures.stored_arrays import Arrays, read_arrays
from bench.reporting.figures.style import DrawnFigure
from bench.reporting.formatting import escaped, slug

MOST = 6  # images side by side
RIVALS = 3  # arms that the best one is shown against
EMPTY = np.full((1, 1, 3), 255, np.uint8)  # a cell without an image
LEVELS = 8  # grey levels merged into one: not visible, and the files are half as large
GAP, FRAME = 3, 2  # pixels between images, and of a coloured frame around one
RIGHT, WRONG = "#0072B2", "#D55E00"
GOLDEN = 0.61803398875  # hue step between neighbouring numbers, the golden ratio: similar hues are far apart
# The first classes after the background; safe for the colour-blind (Tol's bright and vibrant schemes).
CLASSES = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#EE7733", "#009988", "#BBBBBB", "#DDAAFF")
IGNORED = 255  # pixels of a label map that are not scored


class GridCell(NamedTuple):
    """One image of a grid: pixels uint8 (H,W,3), the title above it, the colour of its frame."""

    pixels: np.ndarray
    title: str = ""
    frame: str = "#FFFFFF"


class Row(NamedTuple):
    """Images side by side, and what they are."""

    title: str
    cells: list[GridCell]


def all_pictures(outcomes: Outcomes, comparisons: Sequence[Comparison]) -> list[DrawnFigure]:
    """Every grid of images of a report: pretraining stages in the order of the plan, then tasks."""
    stages = [run for run in outcomes.stages.values() if run.stage.kind in ("tokenizer", "pretrain")]
    stored = [(run, _stored(outcomes, run)) for run in _first_seeds(stages)]
    grids = [_pretraining(run, _select(arrays, np.arange(MOST))) for run, arrays in stored if "images" in arrays]
    for comparison in comparisons:
        grids += _of_task(outcomes, comparison)
    return grids


def _stored(outcomes: Outcomes, run: StageRun) -> Arrays:
    """The arrays that a stage stored; a damaged file is named in the report, which does without it."""
    try:
        return read_arrays(run)
    except BenchError as error:
        outcomes.problems.append(str(error))
        return {}


def _select(arrays: Arrays, indices: np.ndarray) -> Arrays:
    """The images with these indices; indices beyond the end are dropped."""
    return {name: array[indices[indices < len(array)]] for name, array in arrays.items() if array.ndim}


def _first_seeds(stages: Sequence[StageRun]) -> list[StageRun]:
    """One finished stage of every method, variant and kind: seeds look alike."""
    first: dict[tuple[str, str, str], StageRun] = {}
    for run in stages:
        if run.state == "done":
            first.setdefault((run.stage.method, run.stage.variant, run.stage.kind), run)
    return list(first.values())


def _pretraining(run: StageRun, arrays: Arrays) -> DrawnFigure:
    """Images of a pretraining or tokenizer stage with the masked patches, the tokens, and their reconstruction."""
    images = _upright(arrays["images"])
    rows = [Row("image", _cells(images))]
    if "hidden" in arrays:
        rows.append(Row("student sees", _cells(map(_covered, images, arrays["hidden"]))))
    if "words" in arrays:
        rows.append(Row("words", _cells(map(_tints, arrays["words"]))))
    if "reconstruction" in arrays:
        rows.append(Row("from the words", _cells(_upright(arrays["reconstruction"]))))
    stage = run.stage
    name = f"{stage.method}:{stage.variant}" if stage.variant else stage.method
    legend = " ".join(text for key, text in _LEGEND.items() if key in arrays)
    caption = f"{escaped(name)}, {stage.kind} (seed {stage.seed}). {legend}"
    return _grid(rows, f"{stage.kind}-{slug(name)}", caption)


_LEGEND = {
    "hidden": "Grey patches are hidden from the student.",
    "words": "A colour stands for a word of the codebook.",
    "reconstruction": "Last row: what the tokenizer's decoder makes of the words.",
}


def _upright(images: np.ndarray) -> np.ndarray:
    """Channels last: (K,3,H,W) -> (K,H,W,3)."""
    return images.transpose(0, 2, 3, 1)


def _cells(images: Iterable[np.ndarray]) -> list[GridCell]:
    return [GridCell(pixels) for pixels in images]


def _covered(pixels: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """An image (H,W,3) with its hidden patches (g,g) grey."""
    return np.where(_enlarged(hidden, pixels.shape[:2])[..., None], np.uint8(128), pixels)


def _enlarged(patches: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Values of patches (g,g,...) at every pixel (H,W,...)."""
    down, right = (np.arange(n) * g // n for n, g in zip(size, patches.shape[:2], strict=True))
    return patches[down[:, None], right]


def _tints(numbers: np.ndarray) -> np.ndarray:
    """A colour for every number (h,w) -> uint8 (h,w,3); 0, the background, is dark grey."""
    hue = (numbers * GOLDEN) % 1.0
    value = np.where(numbers % 2, 0.95, 0.75)
    tints = hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.65), value], -1))
    return (255 * np.where((numbers == 0)[..., None], 0.25, tints)).astype(np.uint8)


def _class_tints(classes: np.ndarray) -> np.ndarray:
    """A colour for every class (h,w) -> (h,w,3)."""
    palette = np.array([to_rgb(colour) for colour in CLASSES]) * 255
    in_palette = (classes >= 1) & (classes <= len(CLASSES))
    return np.where(in_palette[..., None], palette[np.where(in_palette, classes - 1, 0)], _tints(classes))


def _of_task(outcomes: Outcomes, comparison: Comparison) -> list[DrawnFigure]:
    """Predictions, attention and label maps of the first seed of every arm that stored some."""
    stored: list[tuple[str, Arrays]] = []
    task = comparison.task
    for arm in outcomes.of_task(task):
        if arm.seeds:
            run = outcomes.stages[arm.planned.stages[arm.seeds[0].seed]["evaluate"]]
            stored.append((label_of(arm.planned), _stored(outcomes, run)))
    indices = _choose_images(stored)
    selected = [(name, _select(arrays, indices)) for name, arrays in stored]
    ranking = [label_of(score.arm.planned) for score in comparison.ranked]
    grids = [figure for draw in (_predictions, _attention, _overlays) for figure in draw(task, selected)]
    return [*grids, *_flips(task, ranking, dict(stored))]


def _choose_images(arms: list[tuple[str, Arrays]]) -> np.ndarray:
    """Indices of the images to show: half are the first on which arms disagree, the rest the first where they agree."""
    right = [arrays["predictions"] == arrays["labels"] for _, arrays in _with_arrays(arms, "labels", "predictions")]
    if len({len(images) for images in right}) != 1:  # no arm, or not the same images
        return np.arange(MOST)
    share_right = np.mean(right, axis=0)
    disputed = (share_right > 0) & (share_right < 1)
    disagree, agree = np.flatnonzero(disputed), np.flatnonzero(~disputed)
    return np.sort(np.concatenate([disagree[: MOST // 2], agree, disagree[MOST // 2 :]])[:MOST])


def _with_arrays(arms: list[tuple[str, Arrays]], *names: str) -> list[tuple[str, Arrays]]:
    return [(name, arrays) for name, arrays in arms if {"images", *names} <= set(arrays)]


def _predictions(task: str, arms: list[tuple[str, Arrays]]) -> list[DrawnFigure]:
    rows = [Row(name, _predicted(arrays)) for name, arrays in _with_arrays(arms, "labels", "predictions")]
    caption = (
        f"{escaped(task)}: predictions of the first seed. Blue frame: right. Orange frame: wrong, with the label. "
        "About half of the images were chosen because the arms disagree on them; they are not a sample to count."
    )
    return [_grid(rows, f"predictions-{slug(task)}", caption)] if rows else []


def _flips(task: str, ranking: Sequence[str], arms: Mapping[str, Arrays]) -> list[DrawnFigure]:
    """Images that the best arm gets right and another one wrong, and vice versa. ranking: labels, best arm first."""
    stored = {name for name, arrays in arms.items() if {"images", "labels", "predictions"} <= set(arrays)}
    best, *others = dict.fromkeys(name for name in ranking if name in stored) or [""]
    rows = []
    for other in others[:RIVALS]:
        for right, wrong in ((best, other), (other, best)):
            if cells := _flipped(arms[right], arms[wrong]):
                rows.append(Row(f"{style.label(right, 16)} right,\n{style.label(wrong, 16)} wrong", cells))
    caption = (
        f"{escaped(task)}: images that one arm gets right and the other wrong, first seed; over each what the wrong "
        f"one says and what it is. From the images stored for pictures, at most {MOST} a row; not a sample to count."
    )
    return [_grid(rows, f"flips-{slug(task)}", caption)] if rows else []


def _flipped(right: Arrays, wrong: Arrays) -> list[GridCell]:
    """Images that the first arm classifies correctly and the second does not, with the answer of the second."""
    if len(right["labels"]) != len(wrong["labels"]):
        return []
    flipped = (right["predictions"] == right["labels"]) & (wrong["predictions"] != wrong["labels"])
    return [
        GridCell(_upright(wrong["images"])[n], f"{wrong['predictions'][n]}, is {wrong['labels'][n]}", WRONG)
        for n in np.flatnonzero(flipped)[:MOST]
    ]


def _predicted(arrays: Arrays) -> list[GridCell]:
    images = zip(_upright(arrays["images"]), arrays["labels"], arrays["predictions"], strict=True)
    return [
        GridCell(pixels, f"{answer}", RIGHT) if answer == label else GridCell(pixels, f"{answer}, is {label}", WRONG)
        for pixels, label, answer in images
    ]


def _attention(task: str, arms: list[tuple[str, Arrays]]) -> list[DrawnFigure]:
    rows = [
        Row(name, _cells(map(_attended, _upright(arrays["images"]), arrays["attention"])))
        for name, arrays in _with_arrays(arms, "attention")
    ]
    caption = f"{escaped(task)}: where the class token looks in the last block, mean over heads. Bright: much."
    return [_grid(rows, f"attention-{slug(task)}", caption)] if rows else []


def _attended(pixels: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """An image (H,W,3), brighter where the attention (g,g) is larger."""
    lowest, highest = float(attention.min()), float(attention.max())
    share = (attention - lowest) / (highest - lowest) if highest > lowest else np.zeros_like(attention)
    return (pixels * (0.2 + 0.8 * _enlarged(share, pixels.shape[:2])[..., None])).astype(np.uint8)


def _overlays(task: str, arms: list[tuple[str, Arrays]]) -> list[DrawnFigure]:
    segmented = _with_arrays(arms, "maps", "predicted_maps")
    if not segmented:
        return []
    first = segmented[0][1]
    images = _upright(first["images"])
    rows = [Row("image", _cells(images)), Row("label map", _cells(map(_overlaid, images, first["maps"])))]
    for name, arrays in segmented:
        rows.append(Row(name, _cells(map(_overlaid, _upright(arrays["images"]), arrays["predicted_maps"]))))
    caption = f"{escaped(task)}: label maps of the first seed over the images. A colour stands for a class."
    return [_grid(rows, f"segmentation-{slug(task)}", caption)]


def _overlaid(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A label map (h,w) over its image (H,W,3): classes in colour, background and ignored pixels darkened."""
    classes = _enlarged(labels, pixels.shape[:2])
    plain = ((classes == 0) | (classes == IGNORED))[..., None]
    return np.where(plain, 0.45 * pixels, 0.25 * pixels + 0.75 * _class_tints(classes)).astype(np.uint8)


def _grid(rows: Sequence[Row], name: str, caption: str) -> DrawnFigure:
    """The figure of a grid; all images take the size of the first one."""
    columns, size = max(len(row.cells) for row in rows), rows[0].cells[0].pixels.shape[:2]
    titled = any(cell.title for row in rows for cell in row.cells)
    figure = style.canvas(1.3 + columns, len(rows) * (1.18 if titled else 1.02), pictures=True)
    for axes, row in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        cells = [*row.cells, *[GridCell(EMPTY)] * (columns - len(row.cells))]
        strip = np.concatenate([_framed(cell, size) for cell in cells], axis=1)
        axes.imshow(strip // LEVELS * LEVELS + LEVELS - 1, interpolation="none")
        axes.grid(False)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        title = "\n".join(style.label(line, 24) for line in row.title.splitlines())
        axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        for place, cell in enumerate(row.cells):
            axes.text(
                (place + 0.5) * strip.shape[1] / columns - 0.5, 0, cell.title, ha="center", va="bottom", fontsize=8
            )
    return style.finish(figure, name, caption, pictures=True)


def _framed(cell: GridCell, size: tuple[int, ...]) -> np.ndarray:
    """An image at the grid's size in its frame, with a white margin."""
    frame = tuple(int(255 * part) for part in to_rgb(cell.frame))
    height, width = size[0] + 2 * (FRAME + GAP), size[1] + 2 * (FRAME + GAP)
    whole = np.full((height, width, 3), 255, np.uint8)
    whole[GAP:-GAP, GAP:-GAP] = frame
    whole[GAP + FRAME : -GAP - FRAME, GAP + FRAME : -GAP - FRAME] = _enlarged(cell.pixels, size)
    return whole
