"""The format "hugging-face": a folder that can be pushed to the Hub as it stands.

    README.md                the dataset card; its YAML tells the Hub and `datasets` where the images are
    train/000000.png ...     what a person sees, with train/metadata.csv (file_name, label, block): the "imagefolder" convention
    distilkit.safetensors    the set itself, bit for bit: this is what is read back, and what one trains on

A set that PNG cannot hold (feature vectors, or neither 1 nor 3 channels) is written without `train`.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from distilkit.data.distilled import DistilledSet
from distilkit.errors import DistilkitError
from distilkit.storage.formats import lossless
from distilkit.storage.formats.pictures import can_be_drawn, write_png
from distilkit.storage.formats.raw import BESIDE, Options, write_folder

CARD = "README.md"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
TEXT = """\
# {title}

{count} distilled samples of {classes} classes, of shape {shape}, made by dataset distillation: a network that is trained from scratch
on them does well on real images. Written by [distilkit](https://pypi.org/project/distilkit/).

{look}To train, take the tensors, which are exact:

```python
from safetensors.torch import load_file

tensors = load_file("distilkit.safetensors")
images, labels = tensors["images"], tensors["labels"]
```

- The images are in a preprocessed space, **{kind}**, and the network must be tested on real images that went through the same:
  the arrays `preprocessing_...` in the file. `distilkit.storage.formats.read(folder).preprocessing` does it both ways.
- The labels are **{space}**, one row of {classes} numbers for each sample.{rate}
- The license is that of the images it was distilled from, which distilkit does not know: fill it in above.
"""


def matches(path: Path) -> bool:
    """Whether the path looks like this format."""
    return (path / CARD).is_file() and (path / BESIDE).is_file()


def read(path: Path, options: Options) -> DistilledSet:
    """Read the exact set of the folder."""
    found = lossless.beside(path / BESIDE)
    if found is None:
        raise DistilkitError(f"{path} has no {BESIDE}; without it only pictures are there, which are no distilled set.")
    return found


def write(distilled: DistilledSet, path: Path, plain: bool) -> None:
    """Write the folder."""
    drawn = can_be_drawn(distilled)

    def fill(folder: Path) -> None:
        (folder / BESIDE).write_bytes(lossless.dumps(distilled))
        (folder / CARD).write_text(card(distilled), encoding="utf-8", errors="replace")
        if drawn:
            (folder / "train").mkdir()
            names = write_png(distilled, folder / "train")
            with (folder / "train" / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
                table = csv.writer(file)
                table.writerow(["file_name", "label", "block"])
                table.writerows(zip(names, distilled.classes.tolist(), distilled.block.tolist(), strict=True))

    write_folder(path, fill)


def card(distilled: DistilledSet) -> str:
    """The dataset card: YAML front matter and text.

    >>> import torch
    >>> made = DistilledSet(torch.zeros(2, 4), torch.eye(2), torch.arange(2), ("cat", "dog"))
    >>> card(made).splitlines()[:2]
    ['---', 'pretty_name: "Distilled set of 2 classes"']
    """
    names, drawn = distilled.class_names, can_be_drawn(distilled)
    title = f"Distilled set of {len(names)} classes"
    size = next((word for most, word in SIZES if len(distilled) < most), "n>1M")
    # Text in JSON quotes is text in YAML, whatever is in it.
    lines = [f"pretty_name: {json.dumps(title)}", "license: unknown", f"size_categories: [{json.dumps(size)}]"]
    lines += [f"task_categories: [{'image-classification' if drawn else 'tabular-classification'}]", "tags: [dataset-distillation]"]
    if drawn:
        lines += ["configs:", "- config_name: default", "  data_files:", "  - split: train", "    path: train/*"]
    if drawn and len(set(names)) == len(names):  # `datasets` takes class names only where no two are the same
        lines += ["  features:", "  - name: image", "    dtype: image", "  - name: label", "    dtype:"]
        lines += ["      class_label:", "        names:", *(f"          '{i}': {json.dumps(name)}" for i, name in enumerate(names))]
        lines += ["  - name: block", "    dtype: int64"]
    text = TEXT.format(
        title=title,
        count=len(distilled),
        classes=len(names),
        shape=tuple(distilled.image_shape),
        look='To look at them: `datasets.load_dataset("PATH")`. These are pictures for people, with the preprocessing undone.\n\n'
        if drawn
        else "",
        kind=distilled.preprocessing.to_arrays()[0]["kind"],
        space=distilled.label_space,
        rate="" if distilled.inner_lr is None else f"\n- They were distilled together with a learning rate of {_rate(distilled.inner_lr)}.",
    )
    return "\n".join(["---", *lines, "---", "", text])


def _rate(rate: float | tuple[float, ...]) -> str:
    if isinstance(rate, tuple):
        return f"its own for each of {len(rate)} steps, the first {rate[0]:g} and the last {rate[-1]:g}"
    return f"{rate:g}"
