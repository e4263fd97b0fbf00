"""What is counted in hidden patches: per choice, so that a mean over choices has a known error.

Letters: n choices of a grid of g x g patches, b bins of a histogram.
"""

import numpy as np
from scipy.ndimage import find_objects, label

ENOUGH = 50  # how often a bin is to be expected before it is compared; rarer ones are taken together


def counted(choices: np.ndarray, *, bins: dict[str, int], edges: np.ndarray, shifts: int) -> dict[str, np.ndarray]:
    """Histograms and shares, one row per choice (n, ...), under the recorded names. bins: how many each has."""
    found = {name: np.zeros((len(choices), size)) for name, size in bins.items()}
    for row, hidden in enumerate(choices):
        parts, count = label(hidden)  # 4-connected
        sizes = np.bincount(parts.ravel())[1:]
        boxes = [(down.stop - down.start, across.stop - across.start) for down, across in find_objects(parts)]
        heights, widths = np.array(boxes).reshape(-1, 2).T
        inside = np.clip(np.log(heights / widths), edges[0], edges[-1])
        found["count_hist"][row, int(hidden.sum())] = 1
        found["component_count_hist"][row, min(count, bins["component_count_hist"] - 1)] = 1
        found["largest_component_hist"][row, sizes.max(initial=0)] = 1
        found["component_size_hist"][row] = np.bincount(sizes, minlength=bins["component_size_hist"])
        found["bbox_height_hist"][row] = np.bincount(heights, minlength=bins["bbox_height_hist"])
        found["bbox_width_hist"][row] = np.bincount(widths, minlength=bins["bbox_width_hist"])
        found["bbox_log_aspect_hist"][row] = np.histogram(inside, edges)[0]
    shares = {"mean_mask": choices.astype(float), "joint_probability": joint(choices, shifts)}
    return found | shares


def joint(choices: np.ndarray, shifts: int) -> np.ndarray:
    """Share of pairs of patches, one (dy, dx) from the other, that are both hidden: (n, shifts, shifts)."""
    both = np.empty((len(choices), shifts, shifts))
    for dy, dx in np.ndindex(shifts, shifts):
        here, there = shifted(choices, dy, dx)
        both[:, dy, dx] = (here & there).mean(axis=(1, 2))
    return both


def correlation(mean: np.ndarray, both: np.ndarray) -> np.ndarray:
    """Correlation of two patches (dy, dx) apart: covariance over product of deviations, each a mean over places.

    mean: how often each patch is hidden (g, g); both: mean of `joint` (shifts, shifts).
    """
    found = np.empty_like(both)
    for dy, dx in np.ndindex(both.shape):
        here, there = (part[0] for part in shifted(mean[None], dy, dx))
        spread = np.sqrt(here * (1 - here) * there * (1 - there)).mean()
        found[dy, dx] = (both[dy, dx] - (here * there).mean()) / spread
    return found


def shifted(choices: np.ndarray, dy: int, dx: int) -> tuple[np.ndarray, np.ndarray]:
    grid = choices.shape[-1]
    return choices[:, : grid - dy, : grid - dx], choices[:, dy:, dx:]


def errors_of_mean(rows: np.ndarray, recorded: np.ndarray, samples: int) -> np.ndarray:
    """How many standard errors the mean of rows (n, ...) lies from a recorded mean of `samples` choices."""
    spread = rows.std(axis=0) * np.sqrt(1 / len(rows) + 1 / samples)
    return (rows.mean(axis=0) - recorded) / np.maximum(spread, 1e-12)


def errors_of_histogram(rows: np.ndarray, recorded: np.ndarray, samples: int) -> np.ndarray:
    """The same for each bin of a histogram (n, b) that is often enough filled, and for the others together."""
    often = recorded * len(rows) / samples >= ENOUGH
    rows = np.concatenate([rows[:, often], rows[:, ~often].sum(axis=1, keepdims=True)], axis=1)
    recorded = np.append(recorded[often], recorded[~often].sum()) / samples
    few = max(
        recorded[-1] * (1 / len(rows) + 1 / samples), 1 / len(rows) ** 2
    )  # a Poisson count's, should we have none
    spread = rows.std(axis=0) * np.sqrt(1 / len(rows) + 1 / samples)
    spread[-1] = max(spread[-1], np.sqrt(few))
    return (rows.mean(axis=0) - recorded) / np.maximum(spread, 1e-12)


def errors_of_correlation(
    hidden: np.ndarray, both: np.ndarray, recorded: np.ndarray, samples: int, groups: int = 20
) -> np.ndarray:
    """The same for the correlation, whose standard error is the jackknife's over groups of choices."""
    means = [np.stack([part.mean(axis=0) for part in np.array_split(rows, groups)]) for rows in (hidden, both)]
    without = np.stack(
        [correlation(*((rows.sum(0) - rows[i]) / (groups - 1) for rows in means)) for i in range(groups)]
    )
    spread = np.sqrt((groups - 1) * without.var(axis=0) * (1 + len(hidden) / samples))
    own = correlation(hidden.mean(axis=0), both.mean(axis=0))
    spread[0, 0] = 1.0  # a patch with itself: no error to measure by
    return (own - recorded) / np.maximum(spread, 1e-12)
