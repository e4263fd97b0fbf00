"""Which rows may be subtracted: the protocol of every row, what two rows do not share, what keeps a row out.

A difference is one of arms only when nothing else differs. Values that a study varies on purpose, through an arm's own
`set`, are no obstacle; others that a reader wants to let pass are named by --allow and stand in a footnote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from bench.config.schema import Arm as StudyArm
from bench.config.stage import PlannedArm, Stage, digest
from bench.errors import unknown
from bench.reporting.analysis.outcomes import Held, Outcomes, ScoredArm, label_of

Fingerprint = dict[str, str]  # protocol key -> value, as people write it
NOTHING = "none"
SAME_MEANING = {  # protocol key: names under which an arm's `set` may vary it
    "resolution": ("resolution", "image_size"),
    "training resolution": ("image_size",),
    "decoder": ("decoder",),
    "selection": ("select",),
    "pretraining data": ("start_from", "start", "intermediate"),
    "labels": ("labels", "start_from"),
}
NAMES = {"crop_ratio": "crop", "mean": "normalisation mean", "std": "normalisation deviation", "decoder": "reader"}
KNOWN = {"imagenet": "IN-1k", "imagenet1k": "IN-1k", "imagenet22k": "IN-22k", "ade20k": "ADE20K"}
WEIGHTS = (  # what published weights were trained on, by their name; the first that fits. Source: their cards
    (r"22k", "IN-22k"),
    (r"in21k|21k", "IN-21k"),
    (r"^(microsoft/beit|addf400)", "IN-22k"),
    (r"^google/vit-.*(224|384)$", "IN-21k"),
    (r"^facebook/(data2vec-vision|deit|vit-mae|dino|vit-msn)|in1k", "IN-1k"),
)
DECODERS = {"": NOTHING, "upernet": "UperNet", "setr-pup": "SETR-PUP", "linear": "linear"}
REPORTABLE = "reportable"


def fingerprint(outcomes: Outcomes, arm: PlannedArm) -> Fingerprint:
    """The protocol of a row: how it was scored, on what, and which data its network has seen before."""
    seed = min(arm.stages)
    scoring, own = outcomes.stages[arm.stages[seed]["evaluate"]].stage, outcomes.own(arm, seed)
    chain = [*outcomes.upstream(arm, seed), own]
    protocol = scoring.protocol.model_dump(mode="json")
    keys = {NAMES.get(name, name).replace("_", " "): _shown(value) for name, value in protocol.items()}
    keys |= {
        "training resolution": str(own.stage.model.image_size),
        "decoder": DECODERS.get(own.stage.model.decoder, own.stage.model.decoder),
        "selection": own.stage.recipe.select if own.stage.recipe else NOTHING,
        "pretraining data": _seen(chain),
        "labels": _labels(own.stage),
        "scored images": _split(scoring, "val"),
    }
    return keys


def _seen(chain: Sequence[Held]) -> str:
    """Names of the data sets that the backbone and its helpers learned from, other people's training included."""
    names = [KNOWN.get(data.dataset, data.dataset) for held in chain for role, data in held.stage.data.items()
             if role == "train"]  # fmt: skip
    names += [KNOWN.get(name, name) for held in chain for name in _elsewhere(held.stage)]
    return " + ".join(sorted(set(names))) or NOTHING


def _elsewhere(stage: Stage) -> list[str]:
    """What weights from outside were trained on, as far as their name says it."""
    if stage.start is None:
        return []
    known = [data for pattern, data in WEIGHTS if re.search(pattern, stage.start.id.lower())]
    return [known[0] if known else f"unknown (weights {stage.start.id})"]


def _labels(own: Stage) -> str:
    data = own.data.get("train")
    return NOTHING if data is None else f"{data.images} images [{digest(data.identity, 4)}]"


def _split(scoring: Stage, role: str) -> str:
    data = scoring.data.get(role)
    return NOTHING if data is None else f"{data.dataset}/{data.split}, {data.images} [{digest(data.identity, 4)}]"


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_shown(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


class Guard:
    """Knows for every two rows of a study whether they may be subtracted."""

    def __init__(self, outcomes: Outcomes, allow: Iterable[str] = ()) -> None:
        self.outcomes = outcomes
        self.prints = {arm.id: fingerprint(outcomes, arm) for arm in outcomes.plan.arms}
        self.reasons = {arm.id: reasons(outcomes, arm) for arm in outcomes.plan.arms}
        known = sorted({key for found in self.prints.values() for key in found} | {REPORTABLE})
        self.allow = frozenset(_key(name, known) for name in allow)
        self._varied = {key for key in known if _is_varied(key, outcomes.plan.arms, outcomes)}

    def between(self, first: str, second: str) -> dict[str, str]:
        """What stands between two rows: key -> 'resolution 224 vs 384'; {} when they may be subtracted."""
        one, other = self.prints[first], self.prints[second]
        found = {key: f"{key} {one[key]} vs {other.get(key, NOTHING)}" for key in one
                 if key not in self._varied and one[key] != other.get(key, NOTHING)}  # fmt: skip
        if bool(self.reasons[first]) != bool(self.reasons[second]):
            found[REPORTABLE] = f"not reportable: {'; '.join(self.reasons[first] or self.reasons[second])}"
        return found

    def split(self, first: str, second: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The same in two parts: what forbids a difference, and what --allow lets pass."""
        found = self.between(first, second)
        return (
            tuple(text for key, text in found.items() if key not in self.allow),
            tuple(text for key, text in found.items() if key in self.allow),
        )

    def not_ranked_because(self, arm: ScoredArm, others: Sequence[ScoredArm]) -> tuple[str, ...]:
        """Why a row is not ranked with the others of its task: () when it is, or when none of them is reportable."""
        if REPORTABLE in self.allow or not any(not self.reasons[other.planned.id] for other in others):
            return ()
        return self.reasons[arm.planned.id]

    def frame(self) -> pd.DataFrame:
        """One row per arm: task, arm, label, fingerprint, and every key of the protocol."""
        arms = self.outcomes.plan.arms
        return pd.DataFrame(
            [
                {"task": arm.task, "arm": arm.id, "label": label_of(arm), "fingerprint": digest(self.prints[arm.id], 8),
                 **self.prints[arm.id]}
                for arm in arms
            ]
        )  # fmt: skip


def reasons(outcomes: Outcomes, arm: PlannedArm) -> tuple[str, ...]:
    """Why a row is not reportable: data left out or incomplete, toy scale, placeholder parts, best on test."""
    held = [outcomes.stages[key] for key in dict.fromkeys(k for roles in arm.stages.values() for k in roles.values())]
    held += [up for seed in arm.stages for up in outcomes.upstream(arm, seed)]
    found = ["placeholder parts"] if arm.fidelity == "placeholder" else []
    for one in held:
        splits = [data for data in one.stage.data.values() if data.shortfall]
        found += [f"{data.dataset}/{data.split}: {data.shortfall}" for data in splits]
        found += _told(one.results)
    if any(_best_on_test(outcomes, arm, seed) for seed in arm.stages):
        found.append("best on test: selected by the split that is reported")
    return tuple(dict.fromkeys(found))


def _told(results: Mapping[str, Any]) -> list[str]:
    """What a run says of itself."""
    why = results.get("not_reportable_because") or results.get("reasons") or []
    why = [why] if isinstance(why, str) else [str(reason) for reason in why]
    return why if results.get("reportable") is False else []


def _best_on_test(outcomes: Outcomes, arm: PlannedArm, seed: int) -> bool:
    own, scoring = outcomes.own(arm, seed).stage, outcomes.stages[arm.stages[seed]["evaluate"]].stage
    if own.recipe is None or own.recipe.select != "best" or "minival" not in own.data:
        return False
    return own.data["minival"].identity == scoring.data["val"].identity


def _is_varied(key: str, arms: Sequence[PlannedArm], outcomes: Outcomes) -> bool:
    """Whether the study's arms set this key themselves, not all to the same value."""
    names = SAME_MEANING.get(key, (key.replace(" ", "_"),))
    return len({_set(arm, names) for arm in outcomes.plan.study.arms}) > 1


def _set(arm: StudyArm, names: Sequence[str]) -> str:
    """What an arm of a study says of these values itself."""
    own = [(address, value) for address, value in arm.set.items() if address.split(".")[-1] in names]
    return str([*sorted(own), *(getattr(arm, name) for name in names if hasattr(arm, name))])


def _key(name: str, known: Sequence[str]) -> str:
    """The protocol key that a person means; BenchError offers the nearest."""
    plain = {key.replace(" ", "-"): key for key in known}
    asked = name.strip().lower().replace(" ", "-").replace("_", "-")
    if asked not in plain:
        raise unknown("protocol key", name, plain)
    return plain[asked]
