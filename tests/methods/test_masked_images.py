"""What methods of masked image modelling share is enough to write another one: a small SimMIM."""

from dataclasses import dataclass

import pytest
import torch

from bench.config.schema import Model
from bench.methods.masked_images import HidingView, Recover, masking, patchify
from bench.methods.objective import count
from bench.models.backbone import build

SMALL = Model(trunk="vit", width=24, depth=2, heads=3, image_size=16, patch_size=4)
OPTIONS = {"masking": "random", "hidden_fraction": 0.5, "block_min_fraction": 0.1, "block_max_fraction": 1.0}


class SimMIM(Recover):
    """L1 between predicted and true pixels of hidden patches (arXiv 2111.09886)."""

    def __init__(self, model):
        super().__init__(build(model, mask_token=True, norm=False), 3 * model.patch_size**2)
        self.patch_size = model.patch_size

    def forward(self, batch):
        pixels = patchify(batch["image"], self.patch_size)[self.target_patches(batch)]
        return {"loss": (self.predictions(batch) - pixels).abs().mean(dim=-1).sum(), "count": count(pixels)}


@dataclass(frozen=True)
class Plain:
    def __call__(self, sample):
        return {"image": sample["image"]}


@pytest.fixture
def simmim():
    torch.manual_seed(0)
    return SimMIM(SMALL)


@pytest.fixture
def batch():
    """Random images of one colour each, so that the patches that are seen tell what the hidden ones are."""
    torch.manual_seed(1)
    view = HidingView(Plain(), masking(SMALL, OPTIONS))
    samples = [view({"image": torch.randn(3, 1, 1).expand(3, 16, 16)}) for _ in range(8)]
    stacked = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    return stacked | {"index": torch.arange(8), "position": torch.arange(8)}


def test_a_simmim_written_on_the_shared_parts_learns(simmim, batch):
    optimizer = torch.optim.AdamW(simmim.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        outputs = simmim(simmim.prepare(batch, seed=0, step=step, batch_size=8))
        (outputs["loss"] / outputs["count"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(outputs["loss"].detach() / outputs["count"]))
    assert losses[-1] < 0.5 * losses[0]


def test_every_parameter_of_it_gets_a_gradient(simmim, batch):
    simmim(batch)["loss"].backward()
    assert [name for name, parameter in simmim.named_parameters() if parameter.grad is None] == []


def test_half_of_the_patches_are_hidden_and_counted(simmim, batch):
    assert batch["hidden"].sum(dim=1).tolist() == [8] * 8
    assert simmim(batch)["count"] == 64


def test_pixels_of_hidden_patches_do_not_reach_the_predictions(simmim, batch):
    hidden = batch["hidden"].view(8, 1, 4, 4).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    other = batch | {"image": batch["image"] + 5.0 * hidden}
    assert torch.equal(simmim.predictions(batch), simmim.predictions(other))


def test_patches_are_cut_row_by_row():
    images = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4)
    patches = patchify(images, 2)
    assert patches.shape == (2, 4, 12)
    for row in range(2):
        for column in range(2):
            expected = images[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten().float()
            assert torch.equal(patches[1, 2 * row + column], expected)
