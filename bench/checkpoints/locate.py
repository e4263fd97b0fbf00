"""Where weights from outside lie, and what they are by content: a file, a folder, a run, the hub, timm's registry.

Only weights, `config.json` and `preprocessor_config.json` are ever fetched, and nothing is executed or unpickled here.
What is fetched lies in huggingface_hub's cache, whose variables (HF_HOME, HF_HUB_OFFLINE, HF_TOKEN) hold.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

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
SINGLE = ("model.safetensors", "pytorch_model.bin")  # of a Hugging Face folder, the one wanted first
INDEX = "model.safetensors.index.json"
CONFIGS = ("config.json", "preprocessor_config.json")
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
FORMS = "a file, a folder, a run, a hub id like facebook/data2vec-vision-base, or timm:NAME"


class LocatedWeights(NamedTuple):
    """Weights, where they lie and what they hold. `digest` is the same wherever the same weights lie."""

    id: str  # as typed
    path: Path  # a file or a folder
    weights: tuple[Path, ...]
    configs: tuple[Path, ...]
    digest: str  # sha256, 64 hexadecimal digits
    revision: str = ""  # of a hub snapshot

    @property
    def files(self) -> tuple[Path, ...]:
        """The weights, then what describes them."""
        return (*self.weights, *self.configs)

    @property
    def is_run(self) -> bool:
        """Whether this is a run of ours."""
        return (self.path / "stage.json").is_file()


def locate(source: str, output: Path = Path("results")) -> LocatedWeights:
    """Find weights by what a person typed; those on the hub are fetched unless they are in its cache already.

    output: where runs are looked for by the beginning of their name.
    BenchError says what there is instead, or what to download and where to put it when there is no network.
    """
    if not source.strip():
        raise BenchError(f"no weights are named; write {FORMS}")
    if source.startswith(TIMM):
        return _on_hub(source, _timm_hub_id(source.removeprefix(TIMM)))
    path = Path(source).expanduser()
    if path.exists():
        return _local(source, path)
    if run := _run(source, output):
        return _local(source, run)
    if HUB_ID.fullmatch(source) and path.suffix.lower() not in SUFFIXES:
        return _on_hub(source, source)
    names = [run.root.name for run in all_runs(output)]
    raise BenchError(
        f"no weights {source!r} here or among the runs in {output}; write {FORMS}.{nearest(source, names)}"
    )


def trained(run: Run) -> Run:
    """The run whose weights are meant: `run`, or the one it scored. BenchError when that one is not finished."""
    stage = run.stage()
    if stage.kind == "evaluate" and stage.start is not None:
        raise BenchError(f"{run.root} scored {stage.start.name}, which no run trained; take the weights themselves")
    if stage.kind == "evaluate":
        folders, key = read_settings(run).parents, stage.parents.get("model", "")
        if key not in folders:
            raise BenchError(f"{run.root}: launch.json does not say where the model lies that was scored")
        run = Run(Path(folders[key]))
    if not run.is_done():
        raise BenchError(f"{run.root} is not finished: it is {run.status().state}; `bench run` goes on with it")
    return run


def find(name: str, output: Path) -> Run:
    """A run by its folder, the beginning of its name or key, or its whole key."""
    return find_run(output, _short(name))


def _short(name: str) -> str:
    """What a folder's name holds of a key."""
    return name[:12] if re.fullmatch(r"[0-9a-f]{24}", name) else name


def _run(source: str, output: Path) -> Path | None:
    """The folder of the run whose name or key begins with `source`, or None; BenchError when several do."""
    short = _short(source)
    names = [run.root.name for run in all_runs(output)]
    if any(part.startswith(short) for name in names for part in (name, name.partition("-")[2])):
        return find_run(output, short).root
    return None


def _local(source: str, path: Path) -> LocatedWeights:
    """Weights on this disk."""
    if (path / "stage.json").is_file():
        path = trained(Run(path)).root
    weights = (path,) if path.is_file() else _weights_in(path)
    configs = tuple(path / name for name in CONFIGS if (path / name).is_file())
    return LocatedWeights(source, path, weights, configs, _digest_in(path, weights))


def _weights_in(folder: Path) -> tuple[Path, ...]:
    """The weights of a folder: a run's, a Hugging Face model's, in one file or several, or the only file there is."""
    for name in (OURS, *SINGLE[:1]):
        if (folder / name).is_file():
            return (folder / name,)
    if (folder / INDEX).is_file():
        return _shards(folder, [folder / name for name in _shard_names(folder / INDEX)])
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    named = [path for path in found if path.name in SINGLE]
    if len(named or found) == 1:
        return tuple(named or found)
    if not found:
        raise BenchError(f"{folder} holds no weights: none of {', '.join((OURS, *SINGLE))}, nor a single .pth file")
    raise BenchError(
        f"{folder} holds several weights ({', '.join(path.name for path in found)}); name one of the files"
    )


def _shard_names(index: Path) -> list[str]:
    """The files that an index spreads a model over."""
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    if not names or any(Path(name).name != name for name in names):
        raise BenchError(f"{index} is damaged: it does not say which files beside it hold the weights")
    return names


def _shards(folder: Path, paths: Sequence[Path]) -> tuple[Path, ...]:
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise BenchError(f"{folder} lacks {', '.join(missing)}, which its {INDEX} names")
    return tuple(paths)


def _digest_in(path: Path, weights: Sequence[Path]) -> str:
    """sha256 of the weights; for an imported folder that of the file it was made from, if nobody changed it since."""
    own = digest_of(weights)
    if not (path / IMPORTED).is_file():
        return own
    facts = read_json(path / IMPORTED)
    if facts.get("sha256") != own:
        raise BenchError(f"{path / OURS} is not what `bench import` wrote there; import it again")
    return str(facts["digest"])


def digest_of(weights: Sequence[Path]) -> str:
    """sha256 of a file, or of the sha256 of several in order: 64 hexadecimal digits."""
    each = [_sha256(path.resolve()) for path in weights]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def _sha256(path: Path) -> str:
    """sha256 of a file's content; kept under the user's cache as long as the file keeps its size and time."""
    status = path.stat()
    facts = {"path": str(path), "size": status.st_size, "changed": status.st_mtime_ns}
    kept = cache_folder() / "digests" / f"{digest(str(path))}.json"
    known = _known(kept)
    if {key: known.get(key) for key in facts} == facts and "sha256" in known:
        return str(known["sha256"])
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        write_json(kept, {**facts, "sha256": found}, durable=False)
    except BenchError as error:
        log.warning("the digest of %s is not kept and will be computed again: %s", path, error)
    return found


def _known(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path)) if path.is_file() else {}
    except (BenchError, ValueError):
        return {}  # cut short: it is made again


@cache
def _timm_hub_id(name: str) -> str:
    """The hub id that timm's registry has for a model's published weights."""
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise BenchError(f"timm has no model {name!r}.{nearest(name.partition('.')[0], timm.list_models())}")
    known = timm.list_pretrained(f"{name.partition('.')[0]}.*")
    if "." in name and name not in known:
        raise BenchError(f"timm has no weights {name!r}; it has {', '.join(known) or 'none'}.{nearest(name, known)}")
    settings = timm.get_pretrained_cfg(name)
    if settings is None or not settings.hf_hub_id:
        where = f"; download {settings.url} and give its path" if settings is not None and settings.url else ""
        raise BenchError(f"timm names no weights on the hub for {name!r}{where}")
    return str(settings.hf_hub_id)


def _on_hub(source: str, hub_id: str) -> LocatedWeights:
    """A model of the Hugging Face hub: the snapshot in the cache, else a new one."""
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
    """Paths of the weights of a hub model, fetched with what describes them; none where it has none."""
    fetch = _Fetch(repository, revision, offline)
    with _without_chatter():
        for name in CONFIGS:
            fetch(name)
        if found := fetch(SINGLE[0]):
            return (found,)
        if index := fetch(INDEX):
            paths = [fetch(name) for name in _shard_names(index)]
            return tuple(path for path in paths if path) if all(paths) else ()
        found = fetch(SINGLE[1])
    return (found,) if found else ()


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Inside, huggingface_hub does not log every attempt: one error at the end says what is the matter."""
    talker = logging.getLogger("huggingface_hub")
    before = talker.level
    talker.setLevel(logging.ERROR)
    try:
        yield
    finally:
        talker.setLevel(before)


class _Fetch(NamedTuple):
    """Fetches files of one hub model; offline: looks into the cache alone."""

    repository: str
    revision: str | None
    offline: bool

    def __call__(self, name: str) -> Path | None:
        """Path of a file in the cache; None where the model, or offline the cache, does not have it."""
        import huggingface_hub
        from huggingface_hub import errors

        try:
            return Path(
                huggingface_hub.hf_hub_download(
                    self.repository, name, revision=self.revision, local_files_only=self.offline
                )
            )
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
            raise self._refused(error) from None
        except errors.LocalEntryNotFoundError:
            if self.offline:
                return None
            raise self._unreachable() from None
        except errors.EntryNotFoundError:
            return None
        except OSError as error:  # no network, a proxy's refusal, a full disk
            raise self._unreachable(str(error)) from None

    def _refused(self, error: Exception) -> BenchError:
        gated = "Gated" in type(error).__name__
        why = "asks for permission (HF_TOKEN)" if gated else "has no such model, or not for this user (HF_TOKEN)"
        version = f" at {self.revision!r}" if self.revision else ""
        return BenchError(f"{self.repository}{version}: the hub {why}; write {FORMS}")

    def _unreachable(self, why: str = "") -> BenchError:
        files = f"config.json, preprocessor_config.json and {SINGLE[0]} (or {SINGLE[1]})"
        first = why.strip().splitlines()[0] if why.strip() else "no network, or HF_HUB_OFFLINE is set"
        return BenchError(
            f"{self.repository} is not in the hub's cache and cannot be fetched ({first}). Where there is a network, "
            f"run `hf download {self.repository}` and copy the cache (HF_HOME), or download {files} of "
            f"https://huggingface.co/{self.repository} into a folder and give that folder instead of the id"
        )
