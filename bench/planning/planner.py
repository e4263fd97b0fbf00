"""Study -> Plan: every stage fully decided, each value with its origin, before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

from bench import methods
from bench.config import fidelity
from bench.config.overrides import SIZE_INDEPENDENT, Assignment, address, merge_layers
from bench.config.precedence import (
    ArmConfig,
    budget_of,
    from_files,
    override_layers,
    published_layers,
    stages_of_variant,
)
from bench.config.registry import Places, read_task
from bench.config.resolve import ResolvedConfig, check, check_scored, with_epochs, with_normalisation
from bench.config.schema import Arm, Recipe, Scalar, StageKind, Study, Task
from bench.config.stage import Data, Plan, PlannedArm, Stage, Start
from bench.data import datasets
from bench.data.splits import SplitRequest
from bench.errors import BenchError
from bench.planning import start_from
from bench.planning.request import WITHOUT_DATA, DataProbe, Request, Role

LABELLED: tuple[StageKind, ...] = ("teacher", "supervised", "finetune", "probe")


class PlanWithHistory(NamedTuple):
    """A plan, and for each of its stages all that was written, by inner address."""

    plan: Plan
    assignments: dict[str, dict[str, list[Assignment]]]


class StageLink(NamedTuple):
    """One stage in the chain of an arm, on the task whose data it sees."""

    kind: StageKind
    task: Task
    role: str = ""  # in the arm, when it is not the kind: finetune-imagenet1k


def make_plan(request: Request) -> Plan:
    """Decide every stage of a study. BenchError names what is unknown, contradictory or does not fit."""
    return plan_with_history(request).plan


def plan_with_history(request: Request, probe: DataProbe = DataProbe()) -> PlanWithHistory:  # noqa: B008 - immutable
    """As `make_plan`, keeping who wrote what. A check that needs no data brings its own `sight`."""
    planner = _Planner(request, probe)
    arms = [planner.arm(arm, task) for arm in request.study.arms for task in _tasks(request.study, arm)]
    planner.check_all_overrides_used()
    planned = _distinct(arms)
    return PlanWithHistory(Plan(study=request.study, arms=tuple(planned), stages=planner.stages), planner.assignments)


def plan_without_data(study: Study, places: Places) -> Plan:
    """The plan of a study as far as it can be known without looking at the data."""
    return plan_with_history(Request(study=study, places=places), WITHOUT_DATA).plan


def explain(planned: PlanWithHistory, key: str) -> list[tuple[str, str, list[Assignment]]]:
    """For each stage that has the value at `key`: (kind, method, what was written there, the last one holding)."""
    place = address(key, methods=methods.names())
    found: dict[tuple[str, str], tuple[str, str, list[Assignment]]] = {}
    for stage in planned.plan.stages.values():
        named = f"{stage.method}:{stage.variant}" if stage.variant else stage.method
        wanted = place.method in ("", stage.method, named) and place.stage in ("model", stage.kind)
        if wanted and (part := getattr(stage, place.part)) is not None:
            value = part.get(place.name) if isinstance(part, dict) else getattr(part, place.name)
            history = planned.assignments[stage.key].get(f"{place.part}.{place.name}", [])
            if place.part != "options" or place.name in part:
                found.setdefault(
                    (stage.kind, named), (stage.kind, named, history or [Assignment(value, "default", True)])
                )
    if not found:
        raise BenchError(f"no stage of this plan has {key!r}; it has {_kinds(planned.plan.stages)}")
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

    def __init__(self, request: Request, probe: DataProbe) -> None:
        self.request = request
        self.stages: dict[str, Stage] = {}
        self.assignments: dict[str, dict[str, list[Assignment]]] = {}
        self.used_overrides: set[str] = set()  # those that reached a stage
        self.probe = probe
        self._seen: dict[tuple[str, Role], Data] = {}
        self._tasks: dict[str, Task] = {}
        self._classes: dict[str, int] = {}

    def arm(self, arm: Arm, task_name: str) -> PlannedArm:
        """All stages of an arm for all its seeds."""
        study = self.request.study
        name, _, variant = arm.method.partition(":")
        method = methods.read(name)
        arm_config = ArmConfig(arm, method, variant, arm.size or study.size)
        task = self.task(task_name)
        chain = self.without_replaced(arm_config, self.stage_chain(arm_config, task))
        stages = {seed: self.stages_of(arm_config, chain, seed) for seed in arm.seeds or study.seeds}
        used = [self.stages[key] for roles in stages.values() for key in roles.values()]
        budget = budget_of(arm, study, self.task(task.evaluates) if task.evaluates else task)
        return PlannedArm(
            id="/".join(part for part in (arm_config.name, arm_config.size, task.name, budget) if part),
            label=_from(self.start_of(stages), arm.label or _label(arm_config, study)),
            method=method.name,
            variant=variant,
            size=arm_config.size,
            task=task.name,
            budget=budget,
            metric=task.metric,
            fidelity=fidelity.level(arm_config, used),
            departures=fidelity.departures(arm_config, used),
            published=arm.published if isinstance(arm.published, str) else arm.published.get(task.name, ""),
            stages=stages,
        )

    def stage_chain(self, arm_config: ArmConfig, task: Task) -> list[StageLink]:
        """The stages an arm goes through, each with its task; learning may begin on another task's data."""
        if task.evaluates:
            trained = self.stage_chain(arm_config, self.task(task.evaluates))
            return [*(link for link in trained if link.kind != "evaluate"), StageLink("evaluate", task)]
        own = self.required_stages(arm_config, task)
        home = self.task(task.supervised_task) if task.supervised_task else task
        last: StageKind = own[-1] if own[-1] in ("finetune", "probe") else "finetune"
        between = self.between(arm_config, task, labels_at_home=own[-1] == "supervised")
        if home is not task or between:
            before = [StageLink(kind, home) for kind in own if kind != last]
            return [*before, *between, StageLink(last, task), StageLink("evaluate", task)]
        if task.kind == "segmentation" and own[-1] != "finetune":
            raise BenchError(
                f"task {task.name} names no supervised_task, and {arm_config.name} learns from labels first"
            )
        return [*(StageLink(kind, task) for kind in own), StageLink("evaluate", task)]

    def without_replaced(self, arm_config: ArmConfig, chain: list[StageLink]) -> list[StageLink]:
        """The chain without the stages that weights from outside replace."""
        learn = [link for link in chain if link.kind != "evaluate"]
        named = [bool(self.resolved_config(arm_config, link).recipe().start_from) for link in learn]
        keep_flags = [*start_from.kept([link.kind for link in learn], named), *[True] * (len(chain) - len(learn))]
        return [link for link, keep in zip(chain, keep_flags, strict=True) if keep]

    def start_of(self, stages: Mapping[int, Mapping[str, str]]) -> str:
        """What an arm starts from, '' for nothing from outside."""
        found = [self.stages[key].start for roles in stages.values() for key in roles.values()]
        return next((start.id for start in found if start is not None), "")

    def between(self, arm_config: ArmConfig, task: Task, *, labels_at_home: bool) -> list[StageLink]:
        """Fine-tuning on other labels first. A method that learns the labels of its first task has done that one."""
        names = task.intermediate if arm_config.arm.intermediate is None else arm_config.arm.intermediate
        done = (task.supervised_task or task.name) if labels_at_home else ""
        return [StageLink("finetune", self.task(name), f"finetune-{name}") for name in names if name != done]

    def required_stages(self, arm_config: ArmConfig, task: Task) -> tuple[StageKind, ...]:
        """The stages that an arm goes through, without a tokenizer or teacher that its own numbers do not ask for."""
        home = self.task(task.supervised_task) if task.supervised_task else task
        asked = {"tokenizer": ("pretrain", "tokenizer", "trained"), "teacher": ("supervised", "teacher", "stage")}
        kept = []
        for kind in stages_of_variant(arm_config):
            by, option, value = asked.get(kind, ("", "", ""))
            options = self.resolved_config(arm_config, StageLink(cast(StageKind, by), home)).options() if by else {}
            if options.get(option, value) == value:
                kept.append(kind)
        return tuple(kept)

    def stages_of(self, arm_config: ArmConfig, chain: list[StageLink], seed: int) -> dict[str, str]:
        """Plan the chain for one seed: role -> stage key."""
        keys: dict[str, str] = {}
        for link in chain:
            stage, history = self.stage(arm_config, link, 0 if link.kind in SIZE_INDEPENDENT else seed, keys)
            self.stages.setdefault(stage.key, stage)
            self.assignments.setdefault(stage.key, history)
            keys[link.role or link.kind] = stage.key
        return keys

    def stage(
        self, arm_config: ArmConfig, link: StageLink, seed: int, before: dict[str, str]
    ) -> tuple[Stage, dict[str, list[Assignment]]]:
        """One stage, and all that was written for it."""
        parents = _parents(link.kind, before)
        if link.kind == "evaluate":
            return self._evaluation(self.stages[parents["model"]], link.task, parents), {}
        config = self.resolved_config(arm_config, link)
        departures = config.departures() if link.kind in arm_config.method.recipe else {}
        recipe, start = self.begins(config, before)
        data = self.data(link)
        self._note_used_overrides(arm_config, link.kind)
        is_segmentation = link.task.kind == "segmentation" and link.kind == "finetune"
        model = config.model(
            classes=self.classes(link.task) if link.kind in LABELLED else 0,
            decoder=(config.values("model").get("decoder") or link.task.decoder) if is_segmentation else "",
        )
        stage = Stage(
            kind=link.kind,
            method=arm_config.method.name,
            variant=arm_config.variant,
            version=arm_config.method.version,
            task=link.task.name,
            seed=seed,
            model=model,
            recipe=with_epochs(recipe, data["train"].images),
            options=config.options(),
            protocol=with_normalisation(link.task.protocol, recipe),
            data=data,
            parents=parents,
            start=start,
            origins={place: assignments[-1].origin for place, assignments in config.assignments.items()},
            departures=start_from.departures(departures, start),
        )
        check(stage, config.where, link.task, [self.stages[key] for key in parents.values()])
        return stage, config.assignments

    def begins(self, config: ResolvedConfig, before: Mapping[str, str]) -> tuple[Recipe, Start | None]:
        """The recipe of a stage, and the weights from outside that it starts from."""
        recipe = config.recipe()
        if start_from.starts_here(recipe.start_from, before):
            return recipe, self.probe.start(recipe.start_from, self.request.output)
        return recipe.model_copy(update={"start_from": "", "start_partial": False}), None

    def resolved_config(self, arm_config: ArmConfig, link: StageLink) -> ResolvedConfig:
        """All that was written for a stage, and who wrote it."""
        budget = budget_of(arm_config.arm, self.request.study, link.task)
        published = published_layers(arm_config, link.task)
        over = override_layers(arm_config, self.request.study, link.task, budget, self.request.overrides)
        from_files(over, arm_config.method)
        history = merge_layers(link.kind, [*published, *over], published=len(published))
        return ResolvedConfig(f"{arm_config.name}, {link.kind}", link.kind, history)

    def _evaluation(self, trained: Stage, task: Task, parents: dict[str, str]) -> Stage:
        check_scored(trained, task)
        changes = {
            "kind": "evaluate",
            "recipe": None,
            "options": {},
            "parents": parents,
            "data": {"val": self.probe_split(task, "val")},
            "protocol": with_normalisation(task.protocol, trained.recipe),
            "task": task.name,
            "origins": {},
            "departures": {},
            "start": None,
        }
        return trained.model_copy(update=changes)

    def _note_used_overrides(self, arm_config: ArmConfig, kind: StageKind) -> None:
        """Remember which overrides reach this stage."""
        overrides = self.request.overrides
        for text in (*overrides.environment, *overrides.options, *overrides.sets):
            place = address(text, methods=methods.names())
            fits = place.part != "options" or place.name in arm_config.method.options.get(place.stage, {})
            if (
                place.method in ("", arm_config.method.name, arm_config.name)
                and place.stage in ("model", kind)
                and fits
            ):
                self.used_overrides.add(text)

    def check_all_overrides_used(self) -> None:
        """BenchError for a --set or BENCH_ value that reached no stage."""
        overrides = self.request.overrides
        for text in (*overrides.sets, *overrides.environment):
            if text not in self.used_overrides:
                raise BenchError(f"{text!r} was set, but no stage has it; the stages are {_kinds(self.stages)}")

    def task(self, name: str) -> Task:
        """A task by name, read once."""
        if name not in self._tasks:
            self._tasks[name] = read_task(name, self.request.places)
        return self._tasks[name]

    def classes(self, task: Task) -> int:
        """How many classes a task has: as it says, or counted in its training split."""
        if not task.classes and task.name not in self._classes:
            self._classes[task.name] = self.probe.classes(self.split_request(task, "train"))
        return task.classes or self._classes[task.name]

    def root(self, task: Task) -> str | None:
        """The folder given for a task's data, or for a task on the same published data, or None."""
        roots = self.request.roots
        return roots.get(task.name) or roots.get("") or roots.get(task.evaluates) or self._shared(task)

    def _shared(self, task: Task) -> str | None:
        """The folder given for another task whose splits are published as this one's."""
        others = [(self.task(name), place) for name, place in self.request.roots.items() if name and task.expects]
        known = (place for other, place in others if (other.dataset, other.expects) == (task.dataset, task.expects))
        return next(known, None)

    def data(self, link: StageLink) -> dict[str, Data]:
        """The splits a stage sees, by role; a part of the labels is left out only where labels are learnt from."""
        if link.kind not in LABELLED:
            return {"train": self.probe_split(link.task, "pretrain")}
        roles: list[Role] = [role for role in ("train", "val", "minival") if role in link.task.splits]
        return {role: self.probe_split(link.task, role) for role in roles}

    def probe_split(self, task: Task, role: Role) -> Data:
        """A split of a task as it is on disk, looked at once."""
        if (task.name, role) not in self._seen:
            self._seen[task.name, role] = self.probe.describe(self.split_request(task, role))
        return self._seen[task.name, role]

    def split_request(self, task: Task, role: Role) -> SplitRequest:
        """The split that plays a role in a task."""
        split = task.splits.get(role) or task.splits["train"]
        return SplitRequest(
            task.dataset,
            split,
            self.root(task),
            self.options(task, role),
            self.request.limit,
            labels=(self.request.labels or task.labels) if role == "train" else "",
            expected=task.expects.get(split),
            allow_incomplete=self.request.allow_incomplete,
        )

    def options(self, task: Task, role: Role) -> dict[str, Scalar]:
        """What the data set is told: the task's options, and the flags that speak of files."""
        options = dict(task.options)
        if role == "pretrain" and self.request.unlabelled:
            if "path" not in datasets.known_options(task.dataset):
                raise BenchError(f"--unlabelled is for tasks on folders; {task.name} is on {task.dataset}")
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
    starts = [key for role, key in before.items() if role not in SIZE_INDEPENDENT]
    return {"start": starts[-1]} if starts else {}


def _from(start: str, label: str) -> str:
    """A label that says which weights from outside an arm starts from."""
    return label if not start or start in label else f"{label} from {start}"


def _label(arm_config: ArmConfig, study: Study) -> str:
    """How an arm is called in tables: its method and variant, its size where sizes differ."""
    sizes = {arm.size or study.size for arm in study.arms}
    words = [arm_config.method.title, arm_config.variant.replace("-", " "), arm_config.size if len(sizes) > 1 else ""]
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
