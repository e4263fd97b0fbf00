"""The reference values are all there, and each array is one that a test compares: which one, the table says.

A name may hold `*` for a case, a block or a size. What is listed must be there; what is there must be listed.
"""

from fnmatch import fnmatch
from pathlib import Path

import pytest
from recorded import arrays, read

TRAIN = ("loss", "grad_norm")
PRETRAIN = (*TRAIN, "lr", "wd", "lr_schedule", "wd_schedule")
FINETUNE = (*TRAIN, "lr", "min_lr", "final.*")
MASKS = (
    *("mean_mask", "count_hist", "component_count_hist", "component_size_hist", "largest_component_hist"),
    *("bbox_height_hist", "bbox_width_hist", "bbox_log_aspect_hist", "bbox_log_aspect_edges"),
    *("joint_probability", "pair_correlation", "first_masks"),
)
STATE: tuple[str, ...] = ("*",)  # under parameter names, each of which the test asks our network for

FILES: dict[str, tuple[str, ...]] = {
    "g01_beit_mim/*/params": STATE,
    "g01_beit_mim/*/params_after_5_steps": STATE,
    "g01_beit_mim/*/grads": STATE,
    "g01_beit_mim/*/inputs": ("images", "mask", "token_ids", "labels"),
    "g01_beit_mim/*/outputs": ("logits_masked", "logits_all", "loss", "mlm_acc"),
    "g01_beit_mim/*/outputs_float64": ("logits_masked", "loss"),
    "g01_beit_mim/*/train_inputs": ("images", "masks", "token_ids"),
    "g01_beit_mim/*/train_outputs": (*PRETRAIN, "mlm_acc"),
    "g01_beit_mim/*/train_outputs_float64": TRAIN,
    "g02_data2vec/*/student": STATE,
    "g02_data2vec/*/teacher": STATE,
    "g02_data2vec/*/student_after_5_steps": STATE,
    "g02_data2vec/*/teacher_after_5_steps": STATE,
    "g02_data2vec/*/grads": STATE,
    "g02_data2vec/*/inputs": ("images", "mask"),
    "g02_data2vec/*/outputs": ("teacher_layer_results", "targets", "predictions", "loss"),
    "g02_data2vec/*/outputs_float64": ("targets", "predictions", "loss"),
    "g02_data2vec/*/train_inputs": ("images", "masks"),
    "g02_data2vec/*/train_outputs": (*PRETRAIN, "ema_decay"),
    "g02_data2vec/*/train_outputs_float64": TRAIN,
    "g03_deit_distillation/loss_inputs": ("cls_logits", "dist_logits", "teacher_logits", "labels", "soft_targets"),
    "g03_deit_distillation/loss_outputs": ("*.loss", "*.grad_cls", "*.grad_dist"),
    "g03_deit_distillation/loss_outputs_float64": ("*.loss", "*.grad_cls", "*.grad_dist"),
    "g03_deit_distillation/model_inputs": ("images",),
    "g03_deit_distillation/model_params": STATE,
    "g03_deit_distillation/model_outputs": ("features_*", "logits_*", "eval_logits"),
    "g03_deit_distillation/model_outputs_float64": ("features_*", "logits_*", "eval_logits"),
    "g03_deit_distillation/vit_params": STATE,
    "g03_deit_distillation/vit_outputs": ("features", "logits"),
    "g03_deit_distillation/vit_outputs_float64": ("features", "logits"),
    "g05_schedules/schedules": STATE,  # by the names in schedules.json
    "g05_schedules/deit_lr_per_epoch": STATE,
    "g06_masking/*": MASKS,
    "g07_position_interpolation/inputs": ("*/pos_embed", "*relative_position_bias_table"),
    "g07_position_interpolation/outputs": ("*/pos_embed", "*/blocks.*.attn.relative_position_bias_table"),
    "g08_dvae/encoder_params": STATE,
    "g08_dvae/inputs": ("pixels_uint8_*", "unmap_in"),
    "g08_dvae/outputs": ("logits_*", "tokens_*", "token_margin_*", "mapped_pixels_first_row", "unmapped"),
    "g09_segmentation/iou_inputs": ("*.pred.*", "*.label.*"),
    "g09_segmentation/iou_outputs": ("*.area_*", "*.IoU", "*.Acc"),
    "g09_segmentation/slide_inputs": ("net.*", "*.image"),
    "g09_segmentation/slide_outputs": ("*.logits", "*.argmax"),
    "g09_segmentation/poly_schedule": ("lr",),
    "g10_sampling_and_mixing/repeated_augmentation": ("*_ws*_ep*", "*_ws*_unshuffled_rank*"),
    "g10_sampling_and_mixing/mixing_inputs": ("images", "labels"),
    "g10_sampling_and_mixing/mixing_outputs_timm_*": ("*.images", "*.targets"),
    "g11_finetune_and_segmentation/*/params": STATE,
    "g11_finetune_and_segmentation/*/inputs": (),  # by the kind of network, below
    "g11_finetune_and_segmentation/*/outputs": (),
    "g11_finetune_and_segmentation/*/outputs_float64": (),
    "g11_finetune_and_segmentation/*/train_inputs": ("images", "labels"),
    "g11_finetune_and_segmentation/*/train_outputs": FINETUNE,
    "g11_finetune_and_segmentation/*/train_outputs_float64": TRAIN,
}
CLASSIFIER = {
    "inputs": ("images", "labels"),
    "outputs": ("last_block_tokens", "pooled_features", "logits", "cross_entropy"),
    "outputs_float64": ("pooled_features", "logits", "cross_entropy"),
}
PYRAMID = {
    "inputs": ("images",),
    "outputs": ("feature_*", "train_mode_feature_0", "train_mode_*.running_mean", "train_mode_*.running_var"),
    "outputs_float64": ("feature_*",),
}
FACTS = (
    *("g01_beit_mim/*/config", "g02_data2vec/*/config", "g02_data2vec/integer_buffer_note"),
    *(
        "g03_deit_distillation/config",
        "g04_layer_decay/*",
        "g05_schedules/schedules",
        "g05_schedules/deit_lr_per_epoch",
    ),
    *(
        "g06_masking/*",
        "g07_position_interpolation/config",
        "g08_dvae/config",
        "g08_dvae/key_map_to_transformers_flava",
    ),
    *("g09_segmentation/iou", "g09_segmentation/slide", "g09_segmentation/poly_schedule"),
    *("g10_sampling_and_mixing/repeated_augmentation", "g10_sampling_and_mixing/mixing_timm_*"),
    *("g11_finetune_and_segmentation/*/config", "g11_finetune_and_segmentation/*/train", "g12_initialisation/*"),
)


def names(golden: Path, suffix: str) -> list[str]:
    """Files below the folder, without suffix."""
    return sorted(str(path.relative_to(golden).with_suffix("")) for path in golden.glob(f"*/**/*{suffix}"))


def fits(name: str, pattern: str) -> bool:
    """`*` stands for one name, not for a path."""
    return name.count("/") == pattern.count("/") and fnmatch(name, pattern)


def expected(golden: Path, name: str) -> tuple[str, ...]:
    """The arrays that a file has to hold."""
    wanted = next((wanted for pattern, wanted in FILES.items() if fits(name, pattern)), ())
    if wanted or not name.startswith("g11"):
        return wanted
    case, _, file = name.rpartition("/")
    is_classifier = "num_classes" in read(golden / case / "config.json")["model"]
    return (CLASSIFIER if is_classifier else PYRAMID).get(file, ())


def test_every_kind_of_file_is_there(golden):
    files = names(golden, ".safetensors")
    assert [pattern for pattern in FILES if not any(fits(name, pattern) for name in files)] == []
    files = names(golden, ".json")
    assert [pattern for pattern in FACTS if not any(fits(name, pattern) for name in files)] == []


def test_every_case_has_the_files_of_its_kind(golden):
    for group in ("g01_beit_mim", "g02_data2vec", "g11_finetune_and_segmentation"):
        wanted = {pattern.rpartition("/")[2] for pattern in FILES if fits(pattern, f"{group}/*/*")}
        for case in (path for path in (golden / group).iterdir() if path.is_dir()):
            files = {path.stem for path in case.glob("*.safetensors")} | {path.stem for path in case.glob("*.json")}
            steps = {name for name in wanted if name.startswith("train")}
            needed = wanted - (steps if group.startswith("g11") and not steps & files else set()) | {"config"}
            assert needed <= files, f"{case} lacks {sorted(needed - files)}"
            assert ("train" in files) == ("train_outputs" in files) or not group.startswith("g11"), case


def test_every_array_is_one_that_is_compared_and_none_is_missing_or_empty(golden):
    for name in names(golden, ".safetensors"):
        patterns, content = expected(golden, name), arrays(golden / f"{name}.safetensors")
        assert patterns, f"{name} is a file that nothing compares with"
        strange = [array for array in content if not any(fnmatch(array, pattern) for pattern in patterns)]
        assert not strange, f"{name}: nothing compares with {strange}"
        missing = [pattern for pattern in patterns if not any(fnmatch(array, pattern) for array in content)]
        assert not missing, f"{name} lacks {missing}"


def test_facts_are_not_empty(golden):
    for name in names(golden, ".json"):
        assert any(fits(name, pattern) for pattern in FACTS), f"{name} is a file that nothing reads"
        assert read(golden / f"{name}.json"), f"{name} holds nothing"


def test_what_the_notes_on_noise_name_is_there(golden):
    if not (golden / "noise.json").is_file():
        pytest.skip("this folder notes no noise; the limits are those of the tests alone")
    for name, noted in read(golden / "noise.json").items():
        content = arrays(golden / f"{name}.safetensors")
        for array in set(noted) - {"largest over all arrays"}:
            assert array in content, f"{name} lacks {array}"


def test_all_kinds_of_positions_pooling_and_decay_are_among_the_cases(golden):
    """The variants that the code distinguishes; their names are free."""
    beit = [read(path)["model"] for path in golden.glob("g01_beit_mim/*/config.json")]
    kinds = {(m["use_shared_rel_pos_bias"], m["use_rel_pos_bias"], m["use_abs_pos_emb"]) for m in beit}
    assert kinds >= {(True, False, False), (False, True, False), (False, False, True)}
    data2vec = [read(path)["objective"] for path in golden.glob("g02_data2vec/*/config.json")]
    assert {rule["ema_start_at"] > 0 for rule in data2vec} == {False, True}
    tuned = [read(path)["model"] for path in golden.glob("g11_finetune_and_segmentation/*/config.json")]
    assert {model.get("use_mean_pooling") for model in tuned} == {True, False, None}  # None: for segmentation
    stages = [read(path)["stage"] for path in golden.glob("g04_layer_decay/*.json")]
    assert {"pre-training", "fine-tuning", "segmentation fine-tuning"} <= set(stages)
