"""Source: the contract of a data set. Images by index, each with a name, a label and the file that holds it."""

from __future__ import annotations

from typing import Any, Protocol

Sample = dict[str, Any]  # "image": RGB, by Pillow; "label": int, -1 for none; "map": (H, W) uint8, if there is one


class Source(Protocol):
    """One split of a data set.

    A source may also have
    `root`         the folder it was found in;
    `labels()`     the classes of all its images, without decoding any;
    `files()`      list[bench.data.manifest.Piece]: the bytes it is read from, all of them. A file of one image (or its
                   label map) is a piece with that image's number; a member of a tar shard is a range of the shard;
                   a file of many images (parquet, CIFAR's batches) and a table of labels are pieces of image -1.
                   A generated split has no files. `size` and `changed` are those of the listing, so that
                   1.28 million files are looked at once;
    `lacks`        what a list that came with the data names and is not there, a sentence each;
    `among`        the classes that may be predicted, where a protocol restricts them (ImageNet-A, R);
    `label_sets()` (images, L): all labels of an image, padded with -1, where a protocol needs them (ReaL);
    `unreadable`   dict: name -> reason of the images that were left out, because max_unreadable allowed it.
    """

    dataset: str
    split: str
    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def name(self, index: int) -> str:
        """Identifier of an image, unique in its split and the same on every machine."""
        ...

    def identity(self) -> str:
        """Hash of what the split holds, and not of where it is."""
        ...
