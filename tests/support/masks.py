"""Statistics of masks, one row per mask, so that a mean over masks has a known standard error.

Letters: n masks of g x g patches (True: hidden), b bins of a histogram.
"""

import numpy as np
from scipy.ndimage import find_objects, label

ENOUGH = 50  # expected count from which a bin is compared by itself; rarer bins are added up


def mask_statistics(
    masks: np.ndarray, *, bins: dict[str, int], edges: np.ndarray, shifts: int
) -> dict[str, np.ndarray]:
    """Histograms and shares, one row per mask (n, ...), under the recorded names. bins: number of bins by name."""
    counts = {name: np.zeros((len(masks), size)) for name, size in bins.items()}
    for row, hidden in enumerate(masks):
        parts, count = label(hidden)  # 4-connected
        sizes = np.bincount(parts.ravel())[1:]
        boxes = [(down.stop - down.start, across.stop - across.start) for down, across in find_objects(parts)]
        heights, widths = np.array(boxes).reshape(-1, 2).T
        inside = np.clip(np.log(heights / widths), edges[0], edges[-1])
        counts["count_hist"][row, int(hidden.sum())] = 1
        counts["component_count_hist"][row, min(count, bins["component_count_hist"] - 1)] = 1
        counts["largest_component_hist"][row, sizes.max(initial=0)] = 1
        counts["component_size_hist"][row] = np.bincount(sizes, minlength=bins["component_size_hist"])
        counts["bbox_height_hist"][row] = np.bincount(heights, minlength=bins["bbox_height_hist"])
        counts["bbox_width_hist"][row] = np.bincount(widths, minlength=bins["bbox_width_hist"])
        counts["bbox_log_aspect_hist"][row] = np.histogram(inside, edges)[0]
    shares = {"mean_mask": masks.astype(float), "joint_probability": joint(masks, shifts)}
    return counts | shares


def joint(masks: np.ndarray, shifts: int) -> np.ndarray:
    """Share of pairs of patches, one (dy, dx) from the other, that are both hidden: (n, shifts, shifts)."""
    both = np.empty((len(masks), shifts, shifts))
    for dy, dx in np.ndindex(shifts, shifts):
        here, there = shifted(masks, dy, dx)
        both[:, dy, dx] = (here & there).mean(axis=(1, 2))
    return both


def correlation(mean: np.ndarray, both: np.ndarray) -> np.ndarray:
    """Correlation of two patches (dy, dx) apart: covariance over product of deviations, each a mean over places.

    mean: how often each patch is hidden (g, g); both: mean of `joint` (shifts, shifts).
    """
    correlations = np.empty_like(both)
    for dy, dx in np.ndindex(both.shape):
        here, there = (part[0] for part in shifted(mean[None], dy, dx))
        spread = np.sqrt(here * (1 - here) * there * (1 - there)).mean()
        correlations[dy, dx] = (both[dy, dx] - (here * there).mean()) / spread
    return correlations


def shifted(masks: np.ndarray, dy: int, dx: int) -> tuple[np.ndarray, np.ndarray]:
    """The patches that have another (dy, dx) from them, and those others."""
    grid = masks.shape[-1]
    return masks[:, : grid - dy, : grid - dx], masks[:, dy:, dx:]


def errors_of_mean(rows: np.ndarray, recorded: np.ndarray, samples: int) -> np.ndarray:
    """Distance of the mean of rows (n, ...) from a recorded mean of `samples` masks, in standard errors."""
    spread = rows.std(axis=0) * np.sqrt(1 / len(rows) + 1 / samples)
    return (rows.mean(axis=0) - recorded) / np.maximum(spread, 1e-12)


def errors_of_histogram(rows: np.ndarray, recorded: np.ndarray, samples: int) -> np.ndarray:
    """The same for each bin of a histogram (n, b) with an expected count of ENOUGH, and for the others together."""
    often = recorded * len(rows) / samples >= ENOUGH
    rows = np.concatenate([rows[:, often], rows[:, ~often].sum(axis=1, keepdims=True)], axis=1)
    recorded = np.append(recorded[often], recorded[~often].sum()) / samples
    spread = rows.std(axis=0) * np.sqrt(1 / len(rows) + 1 / samples)
    # The rare bins may be empty here: at least the variance of a Poisson count.
    variance = max(recorded[-1] * (1 / len(rows) + 1 / samples), 1 / len(rows) ** 2)
    spread[-1] = max(spread[-1], np.sqrt(variance))
    return (rows.mean(axis=0) - recorded) / np.maximum(spread, 1e-12)


def errors_of_correlation(
    hidden: np.ndarray, both: np.ndarray, recorded: np.ndarray, samples: int, groups: int = 20
) -> np.ndarray:
    """The same for the correlation, whose standard error is the jackknife's over groups of masks."""
    means = [np.stack([part.mean(axis=0) for part in np.array_split(rows, groups)]) for rows in (hidden, both)]
    without = np.stack(
        [correlation(*((rows.sum(0) - rows[i]) / (groups - 1) for rows in means)) for i in range(groups)]
    )
    spread = np.sqrt((groups - 1) * without.var(axis=0) * (1 + len(hidden) / samples))
    own = correlation(hidden.mean(axis=0), both.mean(axis=0))
    spread[0, 0] = 1.0  # a patch with itself: no error to measure by
    return (own - recorded) / np.maximum(spread, 1e-12)
