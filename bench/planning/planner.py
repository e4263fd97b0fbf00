"""Planner: a study becomes a plan, every stage fully resolved, each value with its origin, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bench import methods
from bench.config import fidelity
from bench.config.overrides import SIZE_INDEPENDENT, Assignment, merge_layers, parse_address
from bench.config.precedence import (
    ArmConfig,
    budget_of,
    check_options_exist,
    override_layers,
    published_layers,
    stages_of,
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

LABELLED: tuple[StageKind, ...] = ("teacher", "supervised", "finetune", "probe")  # trained on labels
TRAINED_WHEN: dict[StageKind, tuple[StageKind, str, str]] = {  # stage -> the stage that uses it, with this option
    "tokenizer": ("pretrain", "tokenizer", "trained"),
    "teacher": ("supervised", "teacher", "stage"),
}


class PlanWithHistory(NamedTuple):
    """A plan with the history of its values."""

    plan: Plan
    assignments: dict[str, dict[str, list[Assignment]]]  # stage key -> inner address -> weakest first


class StageLink(NamedTuple):
    """One stage in the chain of an arm, with the task whose data it uses."""

    kind: StageKind
    task: Task
    role: str = ""  # in the arm, when it is not the kind: finetune-imagenet1k


def make_plan(request: Request) -> Plan:
    """Resolve every stage of a study. BenchError for what is unknown, contradictory or does not fit the data."""
    return plan_with_history(request).plan


def plan_with_history(request: Request, probe: DataProbe = DataProbe()) -> PlanWithHistory:  # noqa: B008 - immutable
    """As `make_plan`, with the history of every value. probe: how to look at data and weights."""
    planner = _Planner(request, probe)
    arms = [planner.plan_arm(arm, task) for arm in request.study.arms for task in _tasks(request.study, arm)]
    planner.check_all_overrides_used()
    plan = Plan(study=request.study, arms=tuple(_with_unique_ids(arms)), stages=planner.stages)
    return PlanWithHistory(plan, planner.assignments)


def plan_without_data(study: Study, places: Places) -> Plan:
    """The plan of a study as far as it can be known without data and weights."""
    return plan_with_history(Request(study=study, places=places), WITHOUT_DATA).plan


def explain(planned: PlanWithHistory, key: str) -> list[tuple[str, str, list[Assignment]]]:
    """For each stage that has the value at `key`: (kind, method, its assignments, weakest first)."""
    address = parse_address(key, methods=methods.names())
    histories: dict[tuple[str, str], tuple[str, str, list[Assignment]]] = {}
    for stage in planned.plan.stages.values():
        name = f"{stage.method}:{stage.variant}" if stage.variant else stage.method
        matches = address.method in ("", stage.method, name) and address.stage in ("model", stage.kind)
        if matches and (part := getattr(stage, address.part)) is not None:
            value = part.get(address.name) if isinstance(part, dict) else getattr(part, address.name)
            history = planned.assignments[stage.key].get(f"{address.part}.{address.name}", [])
            if address.part != "options" or address.name in part:
                history = history or [Assignment(value, "default", True)]
                histories.setdefault((stage.kind, name), (stage.kind, name, history))
    if not histories:
        raise BenchError(f"no stage of this plan has {key!r}; it has {_kinds(planned.plan.stages)}")
    return list(histories.values())


def _kinds(stages: Mapping[str, Stage]) -> str:
    return ", ".join(sorted({f"{stage.method}.{stage.kind}" for stage in stages.values()}))


def _tasks(study: Study, arm: Arm) -> tuple[str, ...]:
    tasks = (arm.task,) if arm.task else study.tasks
    if not tasks:
        raise BenchError(f"study {study.name}: arm {arm.method} has no task; write tasks = [...] or give --task")
    return tasks


class _Planner:
    """The stages planned so far, and the splits described so far."""

    def __init__(self, request: Request, probe: DataProbe) -> None:
        self.request = request
        self.stages: dict[str, Stage] = {}
        self.assignments: dict[str, dict[str, list[Assignment]]] = {}
        self.used_overrides: set[str] = set()  # addresses that reached a stage
        self.probe = probe
        self._splits: dict[tuple[str, Role], Data] = {}
        self._tasks: dict[str, Task] = {}
        self._classes: dict[str, int] = {}

    def plan_arm(self, arm: Arm, task_name: str) -> PlannedArm:
        """Plan an arm for all its seeds."""
        study = self.request.study
        name, _, variant = arm.method.partition(":")
        method = methods.read(name)
        config = ArmConfig(arm, method, variant, arm.size or study.size)
        task = self.task(task_name)
        chain = self.without_replaced(config, self.stage_chain(config, task))
        stages = {seed: self.plan_seed(config, chain, seed) for seed in arm.seeds or study.seeds}
        own = [self.stages[key] for roles in stages.values() for key in roles.values()]
        budget = budget_of(arm, study, self.task(task.evaluates) if task.evaluates else task)
        return PlannedArm(
            id="/".join(part for part in (config.name, config.size, task.name, budget) if part),
            label=_with_start(arm.label or _label(config, study), own),
            method=method.name,
            variant=variant,
            size=config.size,
            task=task.name,
            budget=budget,
            metric=task.metric,
            fidelity=fidelity.level(config, own),
            departures=fidelity.departures(config, own),
            published=arm.published if isinstance(arm.published, str) else arm.published.get(task.name, ""),
            stages=stages,
        )

    def stage_chain(self, config: ArmConfig, task: Task) -> list[StageLink]:
        """The stages of an arm, each with its task; pretraining may use another task's data."""
        if task.evaluates:
            trained = self.stage_chain(config, self.task(task.evaluates))
            return [*(link for link in trained if link.kind != "evaluate"), StageLink("evaluate", task)]
        own = self.required_stages(config, task)
        first = self.task(task.supervised_task) if task.supervised_task else task
        last: StageKind = own[-1] if own[-1] in ("finetune", "probe") else "finetune"
        between = self.intermediate_links(config, task, has_labels=own[-1] == "supervised")
        if first is not task or between:
            before = [StageLink(kind, first) for kind in own if kind != last]
            return [*before, *between, StageLink(last, task), StageLink("evaluate", task)]
        if task.kind == "segmentation" and own[-1] != "finetune":
            raise BenchError(
                f"task {task.name} names no supervised_task, and {config.name} is trained on image labels first"
            )
        return [*(StageLink(kind, task) for kind in own), StageLink("evaluate", task)]

    def without_replaced(self, config: ArmConfig, chain: list[StageLink]) -> list[StageLink]:
        """The chain without the stages that pretrained weights replace."""
        trained = [link for link in chain if link.kind != "evaluate"]
        pretrained = [bool(self.resolve(config, link).recipe().start_from) for link in trained]
        needed = start_from.needed_stages([link.kind for link in trained], pretrained)
        needed += [True] * (len(chain) - len(trained))
        return [link for link, keep in zip(chain, needed, strict=True) if keep]

    def intermediate_links(self, config: ArmConfig, task: Task, *, has_labels: bool) -> list[StageLink]:
        """Intermediate fine-tuning. has_labels: the method was already trained on the labels of its first task."""
        names = task.intermediate if config.arm.intermediate is None else config.arm.intermediate
        done = (task.supervised_task or task.name) if has_labels else ""
        return [StageLink("finetune", self.task(name), f"finetune-{name}") for name in names if name != done]

    def required_stages(self, config: ArmConfig, task: Task) -> tuple[StageKind, ...]:
        """The training stages of an arm, without a tokenizer or teacher that its options do not train."""
        first = self.task(task.supervised_task) if task.supervised_task else task
        kinds = []
        for kind in stages_of(config):
            user, option, value = TRAINED_WHEN.get(kind, (kind, "", ""))
            options = self.resolve(config, StageLink(user, first)).options() if option else {}
            if options.get(option, value) == value:
                kinds.append(kind)
        return tuple(kinds)

    def plan_seed(self, config: ArmConfig, chain: list[StageLink], seed: int) -> dict[str, str]:
        """Plan the chain for one seed: role -> stage key."""
        keys: dict[str, str] = {}
        for link in chain:
            stage, history = self.plan_stage(config, link, 0 if link.kind in SIZE_INDEPENDENT else seed, keys)
            self.stages.setdefault(stage.key, stage)
            self.assignments.setdefault(stage.key, history)
            keys[link.role or link.kind] = stage.key
        return keys

    def plan_stage(
        self, config: ArmConfig, link: StageLink, seed: int, before: dict[str, str]
    ) -> tuple[Stage, dict[str, list[Assignment]]]:
        """Plan one stage: it, and the history of its values. before: role -> key of the arm's earlier stages."""
        parents = _parents(link.kind, before)
        if link.kind == "evaluate":
            return self._evaluation(self.stages[parents["model"]], link.task, parents), {}
        resolved = self.resolve(config, link)
        departures = resolved.departures() if link.kind in config.method.recipe else {}
        recipe, start = self.recipe_and_start(resolved, before)
        data = self.data(link)
        self._note_used_overrides(config, link.kind)
        is_segmentation = link.task.kind == "segmentation" and link.kind == "finetune"
        model = resolved.model(
            classes=self.classes(link.task) if link.kind in LABELLED else 0,
            decoder=(resolved.values("model").get("decoder") or link.task.decoder) if is_segmentation else "",
        )
        stage = Stage(
            kind=link.kind,
            method=config.method.name,
            variant=config.variant,
            version=config.method.version,
            task=link.task.name,
            seed=seed,
            model=model,
            recipe=with_epochs(recipe, data["train"].images),
            options=resolved.options(),
            protocol=with_normalisation(link.task.protocol, recipe),
            data=data,
            parents=parents,
            start=start,
            origins={place: assignments[-1].origin for place, assignments in resolved.assignments.items()},
            departures=start_from.departures(departures, start),
        )
        check(stage, resolved.where, link.task, [self.stages[key] for key in parents.values()])
        return stage, resolved.assignments

    def recipe_and_start(self, resolved: ResolvedConfig, before: Mapping[str, str]) -> tuple[Recipe, Start | None]:
        """The recipe of a stage, and the pretrained weights that it starts from."""
        recipe = resolved.recipe()
        if start_from.starts_here(recipe.start_from, before):
            return recipe, self.probe.start(recipe.start_from, self.request.output)
        return recipe.model_copy(update={"start_from": "", "start_partial": False}), None

    def resolve(self, config: ArmConfig, link: StageLink) -> ResolvedConfig:
        """Merge all layers for a stage."""
        budget = budget_of(config.arm, self.request.study, link.task)
        published = published_layers(config, link.task)
        over = override_layers(config, self.request.study, link.task, budget, self.request.overrides)
        check_options_exist(over, config.method)
        history = merge_layers(link.kind, [*published, *over], published=len(published))
        return ResolvedConfig(f"{config.name}, {link.kind}", link.kind, history)

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

    def _note_used_overrides(self, config: ArmConfig, kind: StageKind) -> None:
        """Remember which overrides reach this stage."""
        overrides = self.request.overrides
        for text in (*overrides.environment, *overrides.options, *overrides.sets):
            address = parse_address(text, methods=methods.names())
            fits = address.part != "options" or address.name in config.method.options.get(address.stage, {})
            if address.method in ("", config.method.name, config.name) and address.stage in ("model", kind) and fits:
                self.used_overrides.add(text)

    def check_all_overrides_used(self) -> None:
        """Raise BenchError for a --set or BENCH_ value that reached no stage."""
        overrides = self.request.overrides
        for text in (*overrides.sets, *overrides.environment):
            if text not in self.used_overrides:
                raise BenchError(f"{text!r} was set, but no stage has this value; the stages are {_kinds(self.stages)}")

    def task(self, name: str) -> Task:
        """A task by name, read once."""
        if name not in self._tasks:
            self._tasks[name] = read_task(name, self.request.places)
        return self._tasks[name]

    def classes(self, task: Task) -> int:
        """The number of classes of a task: as it says, or counted in its training split."""
        if not task.classes and task.name not in self._classes:
            self._classes[task.name] = self.probe.classes(self.split_request(task, "train"))
        return task.classes or self._classes[task.name]

    def root(self, task: Task) -> str | None:
        """The folder of a task's data, as given for it or for a task on the same published data; None: not given."""
        roots = self.request.roots
        return roots.get(task.name) or roots.get("") or roots.get(task.evaluates) or self._shared_root(task)

    def _shared_root(self, task: Task) -> str | None:
        """The folder of another task on the same dataset with the same published splits."""
        others = [(self.task(name), root) for name, root in self.request.roots.items() if name and task.expects]
        roots = (root for other, root in others if (other.dataset, other.expects) == (task.dataset, task.expects))
        return next(roots, None)

    def data(self, link: StageLink) -> dict[str, Data]:
        """The splits that a stage uses, by role."""
        if link.kind not in LABELLED:
            return {"train": self.probe_split(link.task, "pretrain")}
        roles: list[Role] = [role for role in ("train", "val", "minival") if role in link.task.splits]
        return {role: self.probe_split(link.task, role) for role in roles}

    def probe_split(self, task: Task, role: Role) -> Data:
        """What a split of a task holds, described once."""
        if (task.name, role) not in self._splits:
            self._splits[task.name, role] = self.probe.describe(self.split_request(task, role))
        return self._splits[task.name, role]

    def split_request(self, task: Task, role: Role) -> SplitRequest:
        """The split that plays a role in a task. `labels` restricts train only: pretraining uses all images."""
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
        """The options of the dataset: the task's, and those of --unlabelled and --max-unreadable."""
        options = dict(task.options)
        if role == "pretrain" and self.request.unlabelled:
            if "path" not in datasets.known_options(task.dataset):
                raise BenchError(f"--unlabelled is for tasks on folders; {task.name} is on {task.dataset}")
            options["path"] = self.request.unlabelled
        if self.request.max_unreadable:
            options["max_unreadable"] = self.request.max_unreadable
        return options


def _parents(kind: StageKind, before: dict[str, str]) -> dict[str, str]:
    """The keys of the earlier stages that a stage needs, by role."""
    if kind == "evaluate":
        return {"model": list(before.values())[-1]}
    roles = {"pretrain": ("tokenizer",), "supervised": ("teacher",)}
    if kind in roles:
        return {role: before[role] for role in roles[kind] if role in before}
    starts = [key for role, key in before.items() if role not in SIZE_INDEPENDENT]
    return {"start": starts[-1]} if starts else {}


def _with_start(label: str, stages: list[Stage]) -> str:
    """A label that names the pretrained weights that an arm starts from."""
    start = next((stage.start.id for stage in stages if stage.start is not None), "")
    return label if start in label else f"{label} from {start}"


def _label(config: ArmConfig, study: Study) -> str:
    """The name of an arm in tables: method and variant, and the size where sizes differ."""
    sizes = {arm.size or study.size for arm in study.arms}
    words = [config.method.title, config.variant.replace("-", " "), config.size if len(sizes) > 1 else ""]
    return " ".join(word for word in words if word)


def _with_unique_ids(arms: list[PlannedArm]) -> list[PlannedArm]:
    """Number the arms that differ only in their own values. BenchError for two arms with the same stages."""
    by_id: dict[str, PlannedArm] = {}
    for arm in arms:
        same = [other for other in by_id.values() if other.id.partition("#")[0] == arm.id]
        if any(other.stages == arm.stages for other in same):
            raise BenchError(f"two arms are the same: {arm.id}; give one of them another variant, size or values")
        unique = f"{arm.id}#{len(same) + 1}" if same else arm.id
        by_id[unique] = arm.model_copy(update={"id": unique})
    return list(by_id.values())
