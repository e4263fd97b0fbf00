# %% [markdown]
# # bench from Python
#
# Two ways of training one network, compared in about a minute: a toy study on embedded images, so nothing here is a
# result. Run it as a script (`python examples/quickstart.py [OUTPUT]`), or cell by cell in an editor that knows `# %%`.

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import bench
from bench.data.splits import SplitRequest, open_source

output = Path(sys.argv[1]) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else Path("results")

# %% [markdown]
# ## Plan
# Every stage of every arm is resolved before anything runs: `plan.stages` holds each value, with where it comes from.

# %%
plan = bench.plan(
    methods=["vit", "beit"],
    tasks=["demo"],
    size="nano",
    scale="toy",
    seeds=[0],
    overrides={f"{kind}.epochs": 10 for kind in ("supervised", "tokenizer", "pretrain", "finetune")},
    output=output,
)
for stage in plan.stages.values():
    lr = f"lr {stage.recipe.lr:g}, from {stage.origins['recipe.lr']}" if stage.recipe else ""
    print(f"{stage.kind:10} {stage.method:5} {lr}")

# %% [markdown]
# ## Run
# Each stage runs in a process of its own through `accelerate launch`. Calling this again resumes, or does nothing.

# %%
result = bench.run(plan, output=output)
print({plan.stages[key].folder: state for key, state in result.results.items()})
assert result.exit_code == 0, result.reasons

# %% [markdown]
# ## Compare
# The report lies in `report.folder`; its tables are DataFrames.

# %%
report = bench.compare(plan, output=output)
print(report.scores[["label", "score", "images_own", "images_all"]])
print(report.folder / "report.html")

# %% [markdown]
# ## Records and curves

# %%
losses = bench.records(plan, output=output, metric="loss", split="train")
figure, axes = plt.subplots()
for (arm, stage), curve in losses.groupby(["arm", "stage"]):
    axes.plot(curve["images"], curve["value"], marker="o", label=f"{arm}, {stage}")
axes.set(xlabel="images", ylabel="training loss")
axes.legend()
figure.savefig(output / "quickstart.png")

# %% [markdown]
# ## Load the model and classify an image
# `load_model` takes a run, a checkpoint or a hub id; `load_transform` is its evaluation preprocessing.

# %%
trained = next(stage for stage in plan.stages.values() if stage.kind == "finetune")
model = bench.load_model(trained.folder, output=output)
transform = bench.load_transform(trained.folder, output=output)

images = open_source(SplitRequest(dataset="demo", split="val", limit=4))
sample = images[0]
with torch.no_grad():
    logits = model.predict({"image": transform(sample["image"])[None]})["logits"]
print(f"image {images.name(0)}: class {logits.argmax().item()}, labelled {sample['label']}")
