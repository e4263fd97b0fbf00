"""`bench export`: export a run: weights, the preprocessing of its evaluation protocol, a model card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from bench.checkpoints import conversion, locate
from bench.checkpoints.formats import purpose_of
from bench.checkpoints.model_card import CardFacts, ScoredRun, short_side, write_card
from bench.checkpoints.weights import load_weights
from bench.config.schema import Protocol
from bench.config.stage import Stage
from bench.data.splits import SplitRequest, open_source
from bench.errors import BenchError, unknown
from bench.files import read_json, unwritable, write_atomic, write_json
from bench.launch.settings import read_settings
from bench.runs.run import Run
from bench.runs.store import all_runs
from bench.version import __version__

MARK = "export.json"  # in a folder that export wrote, and may overwrite
RESAMPLE = {"lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers, which transformers stores


class Export(NamedTuple):
    """What was written where; `url`: of the repository it was pushed to, or ''."""

    folder: Path
    files: tuple[str, ...]
    run: str
    url: str = ""


def export(run: Run, to: str, folder: Path, *, output: Path, push: str = "") -> Export:
    """Export a run's network for transformers (hf), timm or the authors' code; push: to a repository of the hub.

    Of an evaluation the model that it scored is exported. BenchError before anything is written for a run that is not
    finished, a folder with other files in it, a network that the target does not have, or a missing token.
    """
    if to not in conversion.TARGETS:
        raise unknown("target", to, conversion.TARGETS)
    trained = locate.trained_run(run)
    token = _token(push) if push else ""
    earlier = _earlier_export(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        files = _write(trained, to, temporary, name=push or folder.resolve().name, output=output)
        _replace(folder, earlier, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    url = _push(push, folder, files, token) if push else ""
    return Export(folder, files, trained.root.name, url)


def _write(run: Run, to: str, folder: Path, *, name: str, output: Path) -> tuple[str, ...]:
    """Write all files into a new folder; returns their names, without export.json."""
    stage = run.stage()
    pool = stage.recipe.pool if stage.recipe else "token"
    state = load_weights(run.path("final", "model.safetensors"))
    written = conversion.write(
        state,
        stage.model,
        pool,
        cast(conversion.Target, to),
        folder,
        labels=_labels(stage, run, output),
        preprocessing=preprocessing(stage.protocol),
        method=stage.method,
    )
    purpose = purpose_of(state)
    if to == "hf":
        config = processor_config(stage.protocol, segmentation=purpose == "segment")
        write_json(folder / "preprocessor_config.json", config)
        written.append(folder / "preprocessor_config.json")
    write_atomic(folder / "README.md", write_card(_card_facts(run, to, purpose, name, output)))
    files = tuple(path.name for path in (*written, folder / "README.md"))
    facts = {"bench": __version__, "run": stage.key, "folder": run.root.name, "to": to, "files": [*files, MARK]}
    write_json(folder / MARK, facts)
    return files


def preprocessing(protocol: Protocol) -> dict[str, Any]:
    """The preprocessing of an evaluation protocol, under the names that ConvertedCheckpoint.preprocessing has."""
    names = ("resolution", "crop_ratio", "interpolation", "mean", "std", "whole")
    return {name: getattr(protocol, name) for name in names}


def processor_config(protocol: Protocol, *, segmentation: bool = False) -> dict[str, Any]:
    """preprocessor_config.json: short side, centre crop (none for segmentation), normalisation."""
    side = protocol.resolution if segmentation else short_side(protocol)
    return {
        # transformers' processors for BEiT, DeiT and ViT squash an image to a square; CLIP's keeps its aspect ratio.
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side} if protocol.whole else {"shortest_edge": side},
        "resample": RESAMPLE[protocol.interpolation],
        "do_center_crop": not segmentation,
        "crop_size": {"height": protocol.resolution, "width": protocol.resolution},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(protocol.mean),
        "image_std": list(protocol.std),
    }


def _earlier_export(folder: Path) -> list[Path]:
    """The files of an earlier export. BenchError for a file, or a folder that holds anything else."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise BenchError(f"{folder} is a file; name a folder")
    names = {path.name for path in folder.iterdir()}
    exported = set(read_json(folder / MARK).get("files", ())) if MARK in names else set()
    if others := sorted(names - exported):
        raise BenchError(f"{folder} holds {', '.join(others[:3])}, which no export wrote; name a new or empty folder")
    return [folder / name for name in names]


def _replace(folder: Path, files: Sequence[Path], new: Path) -> None:
    """Replace an earlier export by a new one."""
    try:
        for path in files:
            path.unlink()
        if folder.exists():
            folder.rmdir()
        new.replace(folder)
    except OSError as error:
        raise unwritable(folder, error) from None


def _labels(stage: Stage, run: Run, output: Path) -> tuple[str, ...]:
    """The names of the classes: from the data, else from a score per class, else ()."""
    data = stage.data.get("train")
    if data is None or not stage.model.classes:
        return ()
    names: Sequence[str] = ()
    try:
        settings = read_settings(run)
        root = data.root or settings.roots.get(data.dataset)
        names = open_source(SplitRequest(data.dataset, data.split, root, data.options)).classes
    except (BenchError, OSError):  # the data are on another machine, or deleted
        names = next((tuple(scored.results.get("per_class", {})) for scored in _scored_runs(run, output)), ())
    return tuple(names) if len(names) == stage.model.classes else ()


def _scored_runs(run: Run, output: Path) -> list[ScoredRun]:
    """The finished evaluations of a run's network, beside it or in the output folder."""
    key = run.stage().key
    scored: dict[str, ScoredRun] = {}  # by key, since an evaluation may be in both
    for other in (*all_runs(run.output), *all_runs(output)):
        try:
            stage = other.stage()
            if stage.kind == "evaluate" and stage.parents.get("model") == key and other.is_done():
                scored[stage.key] = ScoredRun(stage, other.results())
        except BenchError:
            continue  # a run of another version, which this one cannot read
    return list(scored.values())


def chain(run: Run) -> list[Run]:
    """The runs that a run builds on, itself last, as far as they can still be read."""
    stage, earlier = run.stage(), []
    folders = read_settings(run).parents if stage.parents else {}
    for key in stage.parents.values():
        parent = Run(Path(folders.get(key, "")))
        if key in folders and parent.path("stage.json").is_file():
            earlier += chain(parent)
    return [*earlier, run]


def _card_facts(run: Run, to: str, purpose: str, name: str, output: Path) -> CardFacts:
    runs = chain(run)
    environment = run.path("environment.json")
    return CardFacts(
        name=name,
        to=to,
        purpose=purpose,
        chain=[each.stage() for each in runs],
        folders=[each.root.name for each in runs],
        trained=run.results(),
        environment=read_json(environment) if environment.is_file() else {},
        scored=_scored_runs(run, output),
        classes=run.stage().model.classes,
    )


def _token(repository: str) -> str:
    """The user's token for the hub. BenchError when there is none, or HF_HUB_OFFLINE is set."""
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if not locate.HUB_ID.fullmatch(repository) or "@" in repository:
        raise BenchError(f"--push {repository}: write USER/NAME")
    if HF_HUB_OFFLINE:
        raise BenchError(f"--push {repository}: HF_HUB_OFFLINE is set; unset it, or export without --push")
    token = huggingface_hub.get_token()
    if not token:
        raise BenchError(
            f"--push {repository}: no token for the Hugging Face hub; run `hf auth login`, or set HF_TOKEN to a token "
            "with write permission"
        )
    return token


def _push(repository: str, folder: Path, files: Sequence[str], token: str) -> str:
    """Upload the exported files; a repository that does not exist yet is created, private. Returns its address."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    api = huggingface_hub.HfApi(token=token)
    try:
        address = api.create_repo(repository, private=True, exist_ok=True)
        message = f"Written by bench {__version__}"
        api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=list(files), commit_message=message)
    except (HfHubHTTPError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BenchError(f"--push {repository}: the hub refused ({first}); the export itself is in {folder}") from None
    return str(address)
