"""Locate pretrained weights and compute their digest: a file, a folder, a run, the hub, timm's registry.

Only weights, `config.json` and `preprocessor_config.json` are ever downloaded, and nothing is executed or unpickled
here. Downloads go to huggingface_hub's cache, and its variables apply: HF_HOME, HF_HUB_OFFLINE, HF_TOKEN.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.config.stage import digest
from bench.errors import BenchError, nearest
from bench.files import cache_folder, read_json, write_json
from bench.launch.settings import read_settings
from bench.runs.run import Run
from bench.runs.store import all_runs, find_run

log = logging.getLogger(__name__)

TIMM = "timm:"
OURS = "final/model.safetensors"  # in a run folder, and in what `bench import --to` writes
IMPORTED = "imported.json"  # beside it, in the latter
SINGLE = ("model.safetensors", "pytorch_model.bin")  # of a Hugging Face folder, in order of preference
INDEX = "model.safetensors.index.json"
CONFIGS = ("config.json", "preprocessor_config.json")
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
FORMS = "a file, a folder, a run, a hub id like facebook/data2vec-vision-base, or timm:NAME"


@dataclass(frozen=True, slots=True)
class LocatedWeights:
    """Weight files and their digest, which does not depend on where they are."""

    id: str  # as typed
    path: Path  # a file or a folder
    weights: tuple[Path, ...]
    configs: tuple[Path, ...]
    digest: str  # sha256, 64 hexadecimal digits
    revision: str = ""  # of a hub snapshot

    @property
    def files(self) -> tuple[Path, ...]:
        """The weights, then the JSON files beside them."""
        return (*self.weights, *self.configs)

    @property
    def is_run(self) -> bool:
        """Whether this is a run of ours."""
        return (self.path / "stage.json").is_file()


def locate(source: str, output: Path = Path("results")) -> LocatedWeights:
    """Find weights by path, run name, hub id or timm:NAME; those on the hub are downloaded unless cached.

    output: where runs are looked for by the beginning of their name.
    BenchError says what there is instead, or what to download and where to put it when there is no network.
    """
    if not source.strip():
        raise BenchError(f"the name of the weights is empty; write {FORMS}")
    if source.startswith(TIMM):
        return _locate_on_hub(source, _timm_hub_id(source.removeprefix(TIMM)))
    path = Path(source).expanduser()
    if path.exists():
        return _locate_on_disk(source, path)
    if run := _run_folder(source, output):
        return _locate_on_disk(source, run)
    # folder/model.pth would be a hub id by its form, but means a file, which is not there.
    if HUB_ID.fullmatch(source) and path.suffix.lower() not in SUFFIXES:
        return _locate_on_hub(source, source)
    names = [run.root.name for run in all_runs(output)]
    raise BenchError(
        f"no weights {source!r} here or among the runs in {output}; write {FORMS}.{nearest(source, names)}"
    )


def trained_run(run: Run) -> Run:
    """`run`, or, of an evaluation, the run that it scored. BenchError when that one is not finished."""
    stage = run.stage()
    if stage.kind == "evaluate" and stage.start is not None:
        raise BenchError(f"{run.root} scored {stage.start.name}, which no run trained; name those weights themselves")
    if stage.kind == "evaluate":
        folders, key = read_settings(run).parents, stage.parents.get("model", "")
        if key not in folders:
            raise BenchError(f"{run.root}: launch.json does not say where the scored model is")
        run = Run(Path(folders[key]))
    if not run.is_done():
        raise BenchError(f"{run.root} is not finished: it is {run.status().state}; `bench run` resumes it")
    return run


def find(name: str, output: Path) -> Run:
    """A run by its folder, the beginning of its name or key, or its whole key."""
    return find_run(output, _short_key(name))


def _short_key(name: str) -> str:
    """The part of a whole key that names of run folders have; other names as they are."""
    return name[:12] if re.fullmatch(r"[0-9a-f]{24}", name) else name


def _run_folder(source: str, output: Path) -> Path | None:
    """The folder of the run whose name or key begins with `source`, or None; BenchError when several do."""
    short = _short_key(source)
    names = [run.root.name for run in all_runs(output)]
    if any(part.startswith(short) for name in names for part in (name, name.partition("-")[2])):
        return find_run(output, short).root
    return None


def _locate_on_disk(source: str, path: Path) -> LocatedWeights:
    if (path / "stage.json").is_file():
        path = trained_run(Run(path)).root
    weights = (path,) if path.is_file() else _weights_in(path)
    configs = tuple(path / name for name in CONFIGS if (path / name).is_file())
    return LocatedWeights(source, path, weights, configs, _digest_in(path, weights))


def _weights_in(folder: Path) -> tuple[Path, ...]:
    """The weight files of a folder: of a run, of a Hugging Face model in one file or several, or the only one."""
    for name in (OURS, *SINGLE[:1]):
        if (folder / name).is_file():
            return (folder / name,)
    if (folder / INDEX).is_file():
        return _check_shards(folder, [folder / name for name in _shard_names(folder / INDEX)])
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    single = [path for path in paths if path.name in SINGLE]
    if len(single or paths) == 1:
        return tuple(single or paths)
    if not paths:
        raise BenchError(f"{folder} holds no weights: none of {', '.join((OURS, *SINGLE))}, nor a single .pth file")
    raise BenchError(
        f"{folder} holds several weights ({', '.join(path.name for path in paths)}); name one of the files"
    )


def _shard_names(index: Path) -> list[str]:
    """Names of the files that an index distributes a model over."""
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    if not names or any(Path(name).name != name for name in names):
        raise BenchError(f"{index} is damaged: it does not say which files beside it hold the weights")
    return names


def _check_shards(folder: Path, paths: Sequence[Path]) -> tuple[Path, ...]:
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise BenchError(f"{folder} lacks {', '.join(missing)}, which its {INDEX} names")
    return tuple(paths)


def _digest_in(path: Path, weights: Sequence[Path]) -> str:
    """sha256 of the weights; for an imported folder that of the original, if the folder has not been changed since."""
    own = digest_of(weights)
    if not (path / IMPORTED).is_file():
        return own
    facts = read_json(path / IMPORTED)
    if facts.get("sha256") != own:
        raise BenchError(f"{path / OURS} is not what `bench import` wrote there; import it again")
    return str(facts["digest"])


def digest_of(weights: Sequence[Path]) -> str:
    """sha256 of a file, or of the sha256 of several in order: 64 hexadecimal digits."""
    digests = [_sha256(path.resolve()) for path in weights]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _sha256(path: Path) -> str:
    """sha256 of a file's content, cached under BENCH_CACHE until the file's size or modification time changes."""
    status = path.stat()
    facts = {"path": str(path), "size": status.st_size, "changed": status.st_mtime_ns}
    cache = cache_folder() / "digests" / f"{digest(str(path))}.json"
    cached = _read_cache(cache)
    if {key: cached.get(key) for key in facts} == facts and "sha256" in cached:
        return str(cached["sha256"])
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        write_json(cache, {**facts, "sha256": sha256}, durable=False)
    except BenchError as error:
        log.warning("the digest of %s cannot be cached and will be computed again: %s", path, error)
    return sha256


def _read_cache(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path)) if path.is_file() else {}
    except (BenchError, ValueError):
        return {}  # truncated: it is written again


@cache
def _timm_hub_id(name: str) -> str:
    """The hub id that timm's registry has for a model's published weights."""
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise BenchError(f"timm has no model {name!r}.{nearest(name.partition('.')[0], timm.list_models())}")
    names = timm.list_pretrained(f"{name.partition('.')[0]}.*")
    if "." in name and name not in names:
        raise BenchError(f"timm has no weights {name!r}; it has {', '.join(names) or 'none'}.{nearest(name, names)}")
    settings = timm.get_pretrained_cfg(name)
    if settings is None or not settings.hf_hub_id:
        where = f"; download {settings.url} and name the file" if settings is not None and settings.url else ""
        raise BenchError(f"timm names no weights on the hub for {name!r}{where}")
    return str(settings.hf_hub_id)


def _locate_on_hub(source: str, hub_id: str) -> LocatedWeights:
    """A model of the Hugging Face hub: the snapshot in the cache, else downloaded."""
    repository, _, revision = hub_id.partition("@")
    weights = _snapshot(repository, revision or None, offline=True)
    if not weights:
        log.warning("asking the Hugging Face hub for %s", repository)
        weights = _snapshot(repository, revision or None)
    if not weights:
        raise BenchError(f"{repository} on the hub has no {SINGLE[0]}, {INDEX} or {SINGLE[1]}")
    folder = weights[0].parent
    configs = tuple(folder / name for name in CONFIGS if (folder / name).is_file())
    return LocatedWeights(source, folder, weights, configs, digest_of(weights), folder.name)


def _snapshot(repository: str, revision: str | None, *, offline: bool = False) -> tuple[Path, ...]:
    """Paths of the weights of a hub model, downloaded with its JSON files; () when it has none."""
    fetch = _Fetch(repository, revision, offline)
    with _quiet_hub():
        for name in CONFIGS:
            fetch(name)
        if weights := fetch(SINGLE[0]):
            return (weights,)
        if index := fetch(INDEX):
            paths = [fetch(name) for name in _shard_names(index)]
            return tuple(path for path in paths if path) if all(paths) else ()
        weights = fetch(SINGLE[1])
    return (weights,) if weights else ()


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Stop huggingface_hub from logging every attempt: one error at the end says what is wrong."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True, slots=True)
class _Fetch:
    """Downloads files of one hub model; offline: looks into the cache only."""

    repository: str
    revision: str | None
    offline: bool

    def __call__(self, name: str) -> Path | None:
        """Path of a file in the cache; None when the model, or offline the cache, does not have it."""
        import huggingface_hub
        from huggingface_hub import errors

        try:
            return Path(
                huggingface_hub.hf_hub_download(
                    self.repository, name, revision=self.revision, local_files_only=self.offline
                )
            )
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
            raise self._no_such_model(error) from None
        except errors.LocalEntryNotFoundError:
            if self.offline:
                return None
            raise self._unreachable() from None
        except errors.EntryNotFoundError:
            return None
        except OSError as error:  # no network, a proxy's refusal, a full disk
            raise self._unreachable(str(error)) from None

    def _no_such_model(self, error: Exception) -> BenchError:
        gated = "Gated" in type(error).__name__
        why = "asks for permission (HF_TOKEN)" if gated else "has no such model, or not for this user (HF_TOKEN)"
        version = f" at {self.revision!r}" if self.revision else ""
        return BenchError(f"{self.repository}{version}: the hub {why}; write {FORMS}")

    def _unreachable(self, why: str = "") -> BenchError:
        files = f"config.json, preprocessor_config.json and {SINGLE[0]} (or {SINGLE[1]})"
        first = why.strip().splitlines()[0] if why.strip() else "no network, or HF_HUB_OFFLINE is set"
        return BenchError(
            f"{self.repository} is not in the hub's cache and cannot be downloaded ({first}). On a machine with a "
            f"network, run `hf download {self.repository}` and copy the cache (HF_HOME), or download {files} of "
            f"https://huggingface.co/{self.repository} into a folder and name that folder instead of the id"
        )
