"""Comparability of arms: the evaluation protocol of every arm, conflicts between two, reasons not to report one.

Scores are subtracted only when the arms share their protocol. Values that a study varies on purpose, through an arm's
own `set`, are no conflict; others that a reader permits are named by --allow and stand in a footnote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from bench.config.schema import Arm as StudyArm
from bench.config.stage import PlannedArm, Stage, digest
from bench.errors import unknown
from bench.reporting.analysis.outcomes import Outcomes, ScoredArm, StageRun, label_of

Fingerprint = dict[str, str]  # protocol key -> value as text
NOTHING = "none"
SAME_MEANING = {  # protocol key: names under which an arm's `set` may vary it
    "resolution": ("resolution", "image_size"),
    "training resolution": ("image_size",),
    "decoder": ("decoder",),
    "selection": ("select",),
    "pretraining data": ("start_from", "start", "intermediate"),
    "labels": ("labels", "start_from"),
}
# the protocol's decoder reads image files; as a key, "decoder" is the segmentation head
NAMES = {"crop_ratio": "crop", "mean": "normalisation mean", "std": "normalisation deviation", "decoder": "reader"}
DATASET_NAMES = {"imagenet": "IN-1k", "imagenet1k": "IN-1k", "imagenet22k": "IN-22k", "ade20k": "ADE20K"}
PRETRAINED_ON = (  # data of published weights, by a pattern of their id; the first that fits. Source: their cards
    (r"22k", "IN-22k"),
    (r"in21k|21k", "IN-21k"),
    (r"^(microsoft/beit|addf400)", "IN-22k"),
    (r"^google/vit-.*(224|384)$", "IN-21k"),
    (r"^facebook/(data2vec-vision|deit|vit-mae|dino|vit-msn)|in1k", "IN-1k"),
)
DECODERS = {"": NOTHING, "upernet": "UperNet", "setr-pup": "SETR-PUP", "linear": "linear"}
REPORTABLE = "reportable"


def fingerprint(outcomes: Outcomes, arm: PlannedArm) -> Fingerprint:
    """The protocol of an arm: how it was scored, on what, and which data its network was trained on before."""
    seed = min(arm.stages)
    scoring, last = outcomes.stages[arm.stages[seed]["evaluate"]].stage, outcomes.last_stage(arm, seed)
    chain = [*outcomes.upstream(arm, seed), last]
    protocol = scoring.protocol.model_dump(mode="json")
    keys = {NAMES.get(name, name).replace("_", " "): _text(value) for name, value in protocol.items()}
    keys |= {
        "training resolution": str(last.stage.model.image_size),
        "decoder": DECODERS.get(last.stage.model.decoder, last.stage.model.decoder),
        "selection": last.stage.recipe.select if last.stage.recipe else NOTHING,
        "pretraining data": _training_data(chain),
        "labels": _labels(last.stage),
        "scored images": _split(scoring, "val"),
    }
    return keys


def _training_data(chain: Sequence[StageRun]) -> str:
    """Names of the data sets that the backbone and its helpers were trained on, pretrained weights included."""
    names = [DATASET_NAMES.get(data.dataset, data.dataset) for run in chain for role, data in run.stage.data.items()
             if role == "train"]  # fmt: skip
    names += [name for run in chain for name in _data_of_weights(run.stage)]
    return " + ".join(sorted(set(names))) or NOTHING


def _data_of_weights(stage: Stage) -> list[str]:
    """What the pretrained weights of a stage were trained on, as far as their name says it."""
    if stage.start is None:
        return []
    names = [data for pattern, data in PRETRAINED_ON if re.search(pattern, stage.start.id.lower())]
    return [names[0] if names else f"unknown (weights {stage.start.id})"]


def _labels(last: Stage) -> str:
    data = last.data.get("train")
    return NOTHING if data is None else f"{data.images} images [{digest(data.identity, 4)}]"


def _split(scoring: Stage, role: str) -> str:
    data = scoring.data.get(role)
    return NOTHING if data is None else f"{data.dataset}/{data.split}, {data.images} [{digest(data.identity, 4)}]"


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


class Guard:
    """Decides for every two arms of a study whether their scores may be subtracted."""

    def __init__(self, outcomes: Outcomes, allow: Iterable[str] = ()) -> None:
        self.outcomes = outcomes
        self.fingerprints = {arm.id: fingerprint(outcomes, arm) for arm in outcomes.plan.arms}
        self.reasons = {arm.id: reasons(outcomes, arm) for arm in outcomes.plan.arms}
        keys = sorted({key for own in self.fingerprints.values() for key in own} | {REPORTABLE})
        self.allow = frozenset(_protocol_key(name, keys) for name in allow)
        self._varied = {key for key in keys if _is_varied(key, outcomes.plan.study.arms)}

    def conflicts(self, first: str, second: str) -> dict[str, str]:
        """What two arms do not share: key -> 'resolution 224 vs 384'; {} when they may be subtracted."""
        a, b = self.fingerprints[first], self.fingerprints[second]
        texts = {key: f"{key} {a[key]} vs {b.get(key, NOTHING)}" for key in a
                 if key not in self._varied and a[key] != b.get(key, NOTHING)}  # fmt: skip
        if bool(self.reasons[first]) != bool(self.reasons[second]):
            texts[REPORTABLE] = f"not reportable: {'; '.join(self.reasons[first] or self.reasons[second])}"
        return texts

    def split_conflicts(self, first: str, second: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The conflicts in two parts: those that forbid a difference, and those that --allow permits."""
        texts = self.conflicts(first, second)
        return (
            tuple(text for key, text in texts.items() if key not in self.allow),
            tuple(text for key, text in texts.items() if key in self.allow),
        )

    def not_ranked_because(self, arm: ScoredArm, others: Sequence[ScoredArm]) -> tuple[str, ...]:
        """Why an arm is not ranked with the others of its task: () when it is, or when none of them is reportable."""
        if REPORTABLE in self.allow or not any(not self.reasons[other.planned.id] for other in others):
            return ()
        return self.reasons[arm.planned.id]

    def frame(self) -> pd.DataFrame:
        """One row per arm: task, arm, label, fingerprint, and every key of the protocol."""
        rows = []
        for arm in self.outcomes.plan.arms:
            own = self.fingerprints[arm.id]
            names = {"task": arm.task, "arm": arm.id, "label": label_of(arm), "fingerprint": digest(own, 8)}
            rows.append({**names, **own})
        return pd.DataFrame(rows)


def reasons(outcomes: Outcomes, arm: PlannedArm) -> tuple[str, ...]:
    """Why an arm is not reportable: data left out or incomplete, toy scale, placeholder parts, best on test."""
    keys = dict.fromkeys(key for roles in arm.stages.values() for key in roles.values())
    runs = [outcomes.stages[key] for key in keys]
    runs += [run for seed in arm.stages for run in outcomes.upstream(arm, seed)]
    texts = ["placeholder parts"] if arm.fidelity == "placeholder" else []
    for run in runs:
        splits = [data for data in run.stage.data.values() if data.shortfall]
        texts += [f"{data.dataset}/{data.split}: {data.shortfall}" for data in splits]
        texts += _stated_reasons(run.results)
    if any(_best_on_test(outcomes, arm, seed) for seed in arm.stages):
        texts.append("best on test: selected by the split that is reported")
    return tuple(dict.fromkeys(texts))


def _stated_reasons(results: Mapping[str, Any]) -> list[str]:
    """Why a run says of itself that it is not reportable."""
    why = results.get("not_reportable_because") or results.get("reasons") or []
    why = [why] if isinstance(why, str) else [str(reason) for reason in why]
    return why if results.get("reportable") is False else []


def _best_on_test(outcomes: Outcomes, arm: PlannedArm, seed: int) -> bool:
    """Whether the best checkpoint was selected on the images that the evaluation scores."""
    last, scoring = outcomes.last_stage(arm, seed).stage, outcomes.stages[arm.stages[seed]["evaluate"]].stage
    if last.recipe is None or last.recipe.select != "best" or "minival" not in last.data:
        return False
    return last.data["minival"].identity == scoring.data["val"].identity


def _is_varied(key: str, arms: Sequence[StudyArm]) -> bool:
    """Whether the study's arms set this key themselves, not all to the same value."""
    names = SAME_MEANING.get(key, (key.replace(" ", "_"),))
    return len({_own_values(arm, names) for arm in arms}) > 1


def _own_values(arm: StudyArm, names: Sequence[str]) -> str:
    """What an arm of a study itself sets these values to."""
    assigned = [(address, value) for address, value in arm.set.items() if address.split(".")[-1] in names]
    return str([*sorted(assigned), *(getattr(arm, name) for name in names if hasattr(arm, name))])


def _protocol_key(name: str, keys: Sequence[str]) -> str:
    """The protocol key that a person means; BenchError offers the nearest."""
    dashed = {key.replace(" ", "-"): key for key in keys}
    own = name.strip().lower().replace(" ", "-").replace("_", "-")
    if own not in dashed:
        raise unknown("protocol key", name, dashed)
    return dashed[own]
