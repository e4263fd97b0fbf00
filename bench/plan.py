"""Study -> Plan: every stage fully decided, each value with its origin, before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from bench import datasets, methods
from bench.layers import (
    Chosen,
    Wishes,
    budget_of,
    chosen_layers,
    from_files,
    published_layers,
    stages_of_variant,
    variant_of,
)
from bench.settled import History, Settled, check
from bench.spec import (
    Arm,
    BenchError,
    Data,
    Plan,
    PlannedArm,
    Scalar,
    Stage,
    StageKind,
    Study,
    Task,
)
from bench.tasks import Places, read_task
from bench.values import APART, Written, address, settle

Role = Literal["pretrain", "train", "val", "minival"]
LABELLED: tuple[StageKind, ...] = ("teacher", "supervised", "finetune", "probe")


class Request(NamedTuple):
    """What is to be planned, and where its data lie. `roots`: task -> folder, '' for every task."""

    study: Study
    places: Places
    wishes: Wishes = Wishes()
    roots: Mapping[str, str] = {}
    unlabelled: str = ""
    max_unreadable: int = 0
    limit: float | None = None


class Drawn(NamedTuple):
    """A plan, and for each of its stages all that was written, by inner address."""

    plan: Plan
    histories: dict[str, History]


class Link(NamedTuple):
    """One stage in the chain of an arm, on the task whose data it sees."""

    kind: StageKind
    task: Task


def _count_classes(dataset: str, split: str, root: str | None, options: Mapping[str, Scalar]) -> int:
    return len(datasets.open_source(dataset, split, root=root, options=options).classes)


class Sight(NamedTuple):
    """How data are looked at: what a split holds, and how many classes it has."""

    describe: Callable[..., Data] = datasets.describe
    classes: Callable[..., int] = _count_classes


def make_plan(request: Request) -> Plan:
    """Decide every stage of a study. BenchError names what is unknown, contradictory or does not fit."""
    return draw_up(request).plan


def draw_up(request: Request, sight: Sight = Sight()) -> Drawn:  # noqa: B008 - immutable
    """As `make_plan`, keeping who wrote what. A check that needs no data brings its own `sight`."""
    planner = _Planner(request, sight)
    arms = [planner.arm(arm, task) for arm in request.study.arms for task in _tasks(request.study, arm)]
    planner.refuse_unheard()
    planned = _distinct(arms)
    return Drawn(Plan(study=request.study, arms=tuple(planned), stages=planner.stages), planner.histories)


def explain(drawn: Drawn, key: str) -> list[tuple[str, str, list[Written]]]:
    """For each stage that has the value at `key`: (kind, method, what was written there, the last one holding)."""
    place = address(key, methods=methods.names())
    found: dict[tuple[str, str], tuple[str, str, list[Written]]] = {}
    for stage in drawn.plan.stages.values():
        named = f"{stage.method}:{stage.variant}" if stage.variant else stage.method
        wanted = place.method in ("", stage.method, named) and place.stage in ("model", stage.kind)
        if wanted and (part := getattr(stage, place.part)) is not None:
            value = part.get(place.name) if isinstance(part, dict) else getattr(part, place.name)
            history = drawn.histories[stage.key].get(f"{place.part}.{place.name}", [])
            if place.part != "options" or place.name in part:
                found.setdefault((stage.kind, named), (stage.kind, named, history or [Written(value, "default", True)]))
    if not found:
        raise BenchError(f"no stage of this plan has {key!r}; it has {_kinds(drawn.plan.stages)}")
    return list(found.values())


def _kinds(stages: Mapping[str, Stage]) -> str:
    return ", ".join(sorted({f"{stage.method}.{stage.kind}" for stage in stages.values()}))


def _tasks(study: Study, arm: Arm) -> tuple[str, ...]:
    tasks = (arm.task,) if arm.task else study.tasks
    if not tasks:
        raise BenchError(f"study {study.name}: arm {arm.method} has no task; write tasks = [...] or give --task")
    return tasks


class _Planner:
    """The stages planned so far, and the data looked at so far."""

    def __init__(self, request: Request, sight: Sight) -> None:
        self.request = request
        self.stages: dict[str, Stage] = {}
        self.histories: dict[str, History] = {}
        self.heard: set[str] = set()  # the wishes that reached a stage
        self.sight = sight
        self._seen: dict[tuple[str, Role], Data] = {}
        self._tasks: dict[str, Task] = {}
        self._classes: dict[str, int] = {}

    def arm(self, arm: Arm, task_name: str) -> PlannedArm:
        """All stages of an arm for all its seeds."""
        study = self.request.study
        name, _, variant = arm.method.partition(":")
        method = methods.read(name)
        chosen = Chosen(arm, method, variant, arm.size or study.size)
        task = self.task(task_name)
        chain = self.chain(chosen, task)
        stages = {seed: self.stages_of(chosen, chain, seed) for seed in arm.seeds or study.seeds}
        return PlannedArm(
            id="/".join(part for part in (chosen.name, chosen.size, task.name, budget_of(arm, study, task)) if part),
            label=arm.label or _label(chosen, study),
            method=method.name,
            variant=variant,
            size=chosen.size,
            task=task.name,
            budget=budget_of(arm, study, task),
            metric=task.metric,
            fidelity=variant_of(method, variant).fidelity,
            departures=method.departures,
            stages=stages,
        )

    def chain(self, chosen: Chosen, task: Task) -> list[Link]:
        """The stages an arm goes through, each with its task; learning may begin on another task's data."""
        own = stages_of_variant(chosen)
        home = self.task(task.supervised_task) if task.supervised_task else task
        last: StageKind = own[-1] if own[-1] in ("finetune", "probe") else "finetune"
        if home is not task:
            return [*(Link(kind, home) for kind in own if kind != last), Link(last, task), Link("evaluate", task)]
        if task.kind == "segmentation" and own[-1] != "finetune":
            raise BenchError(f"task {task.name} names no supervised_task, and {chosen.name} learns from labels first")
        return [*(Link(kind, task) for kind in own), Link("evaluate", task)]

    def stages_of(self, chosen: Chosen, chain: list[Link], seed: int) -> dict[str, str]:
        """Plan the chain for one seed: role -> stage key."""
        keys: dict[str, str] = {}
        for link in chain:
            stage, history = self.stage(chosen, link, 0 if link.kind in APART else seed, keys)
            self.stages.setdefault(stage.key, stage)
            self.histories.setdefault(stage.key, history)
            keys[link.kind] = stage.key
        return keys

    def stage(self, chosen: Chosen, link: Link, seed: int, before: dict[str, str]) -> tuple[Stage, History]:
        """One stage, and all that was written for it."""
        parents = _parents(link.kind, before)
        if link.kind == "evaluate":
            start = self.stages[parents["model"]]
            return self._evaluation(start, link.task, parents), {}
        budget = budget_of(chosen.arm, self.request.study, link.task)
        published = published_layers(chosen)
        over = chosen_layers(chosen, self.request.study, link.task, budget, self.request.wishes)
        from_files(over, chosen.method)
        self._listen(chosen, link.kind)
        history = settle(link.kind, [*published, *over], published=len(published))
        settled = Settled(f"{chosen.name}, {link.kind}", link.kind, history)
        is_segmentation = link.task.kind == "segmentation" and link.kind == "finetune"
        model = settled.model(
            classes=self.classes(link.task) if link.kind in LABELLED else 0,
            decoder=link.task.decoder if is_segmentation else "",
        )
        stage = Stage(
            kind=link.kind,
            method=chosen.method.name,
            variant=chosen.variant,
            version=chosen.method.version,
            task=link.task.name,
            seed=seed,
            model=model,
            recipe=settled.recipe(),
            options=settled.options(),
            protocol=link.task.protocol,
            data=self.data(link),
            parents=parents,
            origins={place: written[-1].origin for place, written in history.items()},
            departures=settled.departures() if link.kind in chosen.method.recipe else {},
        )
        check(stage, settled.where, link.task)
        return stage, history

    def _evaluation(self, trained: Stage, task: Task, parents: dict[str, str]) -> Stage:
        changes = {
            "kind": "evaluate",
            "recipe": None,
            "options": {},
            "parents": parents,
            "data": {"val": self.look(task, "val")},
            "protocol": task.protocol,
            "task": task.name,
            "origins": {},
            "departures": {},
        }
        return trained.model_copy(update=changes)

    def _listen(self, chosen: Chosen, kind: StageKind) -> None:
        """Remember which wishes reach this stage."""
        wishes = self.request.wishes
        for text in (*wishes.environment, *wishes.options, *wishes.sets):
            place = address(text, methods=methods.names())
            fits = place.part != "options" or place.name in chosen.method.options.get(place.stage, {})
            if place.method in ("", chosen.method.name, chosen.name) and place.stage in ("model", kind) and fits:
                self.heard.add(text)

    def refuse_unheard(self) -> None:
        """BenchError for a --set or BENCH_ value that reached no stage."""
        wishes = self.request.wishes
        for text in (*wishes.sets, *wishes.environment):
            if text not in self.heard:
                raise BenchError(f"{text!r} was set, but no stage has it; the stages are {_kinds(self.stages)}")

    def task(self, name: str) -> Task:
        """A task by name, read once."""
        if name not in self._tasks:
            self._tasks[name] = read_task(name, self.request.places)
        return self._tasks[name]

    def classes(self, task: Task) -> int:
        """How many classes a task has: as it says, or counted in its training split."""
        if not task.classes and task.name not in self._classes:
            split, options = task.splits["train"], self.options(task, "train")
            self._classes[task.name] = self.sight.classes(task.dataset, split, self.root(task), options)
        return task.classes or self._classes[task.name]

    def root(self, task: Task) -> str | None:
        """The folder given for a task's data, or None."""
        return self.request.roots.get(task.name) or self.request.roots.get("") or None

    def data(self, link: Link) -> dict[str, Data]:
        """The splits a stage sees, by role."""
        if link.kind not in LABELLED:
            return {"train": self.look(link.task, "pretrain")}
        roles: list[Role] = [role for role in ("train", "val", "minival") if role in link.task.splits]
        return {role: self.look(link.task, role) for role in roles}

    def look(self, task: Task, role: Role) -> Data:
        """A split of a task as it is on disk, looked at once."""
        if (task.name, role) not in self._seen:
            split = task.splits.get(role) or task.splits["train"]
            options = self.options(task, role)
            found = self.sight.describe(task.dataset, split, self.root(task), options, self.request.limit)
            self._seen[task.name, role] = found
        return self._seen[task.name, role]

    def options(self, task: Task, role: Role) -> dict[str, Scalar]:
        """What the data set is told: the task's options, and the flags that speak of files."""
        options = dict(task.options)
        if role == "pretrain" and self.request.unlabelled:
            options["path"] = self.request.unlabelled
        if self.request.max_unreadable:
            options["max_unreadable"] = self.request.max_unreadable
        return options


def _parents(kind: StageKind, before: dict[str, str]) -> dict[str, str]:
    """The keys of the earlier stages that a stage starts from, by role."""
    if kind == "evaluate":
        return {"model": list(before.values())[-1]}
    roles = {"pretrain": ("tokenizer",), "supervised": ("teacher",)}
    if kind in roles:
        return {role: before[role] for role in roles[kind] if role in before}
    starts = [key for role, key in before.items() if role not in APART]
    return {"start": starts[-1]} if starts else {}


def _label(chosen: Chosen, study: Study) -> str:
    """How an arm is called in tables: its method and variant, its size where sizes differ."""
    sizes = {arm.size or study.size for arm in study.arms}
    words = [chosen.method.title, chosen.variant.replace("-", " "), chosen.size if len(sizes) > 1 else ""]
    return " ".join(word for word in words if word)


def _distinct(arms: list[PlannedArm]) -> list[PlannedArm]:
    """Arms that differ only in their own values are told apart by their label, or a number."""
    found: dict[str, PlannedArm] = {}
    for arm in arms:
        same = [other for other in found.values() if other.id.partition("#")[0] == arm.id]
        if any(other.stages == arm.stages for other in same):
            raise BenchError(f"two arms are the same: {arm.id}; give one of them another variant, size or values")
        unique = f"{arm.id}#{len(same) + 1}" if same else arm.id
        found[unique] = arm.model_copy(update={"id": unique})
    return list(found.values())
