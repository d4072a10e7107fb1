"""Where the images of a sheet lie: a block for each class, its distilled images in lines and real ones to the right of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import attrs
import numpy as np

PAPER = 255
LONGEST = 10  # images in a line of a class
SHAPE = 1.3  # width of a sheet over its height
NAME, HEADING, WORD = 0.17, 0.17, 0.1  # inches above a class, above all, and of a line of small words
MARGIN = 0.5  # inches to the left of all, where images are stacked, for what they are
Place = tuple[int, int]


@attrs.frozen
class Grid:
    """The layout, in pixels of the images.

    Attributes:
        classes: how many there are.
        height, width: of an image.
        columns, lines: of the distilled images of a class.
        beside: real images in each line.
        across: classes side by side.
        words: lines of small words below each class.
        cell: inches that an image is wide.
        stack: images one below the other in each place of a distilled image, which is one of them.
    """

    classes: int
    height: int
    width: int
    columns: int
    lines: int
    beside: int
    across: int
    words: int
    cell: float
    stack: int = 1

    @classmethod
    def of(cls, classes: int, depth: int, real: int, size: Sequence[int], words: int = 0, stack: int = 1) -> Grid:
        """The layout of so many images a class whose sheet is nearest to a page in shape.

        Args:
            classes: how many, each a block.
            depth: distilled images of a class.
            real: real images of a class.
            size: height and width of an image.
            words: lines of small words below each class.
            stack: images one below the other in each place of a distilled image.

        >>> grid = Grid.of(10, depth=1, real=3, size=(32, 32))
        >>> grid.across, grid.down, grid.columns, grid.lines
        (2, 5, 1, 1)
        """
        columns, classes = max(min(depth, LONGEST), 1), max(classes, 1)
        lines = max(math.ceil(depth / columns), math.ceil(real / LONGEST / stack), 1)
        beside = math.ceil(real / (lines * stack))
        height, width = size

        def made(across: int) -> Grid:
            images = across * (columns + beside)
            cell = min(0.75, max(0.3, 8 / images))
            return cls(classes, height, width, columns, lines, beside, across, words, cell, stack)

        def badness(grid: Grid) -> float:
            tall, wide = grid.size
            return abs(math.log(wide / tall / SHAPE)) + (grid.across * grid.down - classes) / classes

        return min(map(made, range(1, min(classes, 25) + 1)), key=badness)

    @property
    def per_inch(self) -> float:
        """Pixels to an inch."""
        return self.width / self.cell

    @property
    def down(self) -> int:
        """Classes one below the other."""
        return math.ceil(self.classes / self.across)

    @property
    def gap(self) -> int:
        """Between two images."""
        return max(1, round(0.06 * self.width))

    @property
    def block(self) -> tuple[int, int]:
        """Height and width of a class, with its name above, its words below and the paper around it."""
        high = self.lines * (self.stack * (self.height + self.gap) + self._apart) + round((NAME + WORD * self.words) * self.per_inch)
        return high, (self.columns + self.beside) * (self.width + self.gap) + (2 if self.beside else 1) * self._between

    @property
    def block_inches(self) -> float:
        """Inches that a class is wide."""
        return (self.block[1] - self._between) / self.per_inch

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of all."""
        high, wide = self.block
        return self.down * high + round(HEADING * self.per_inch), self.margin + self.across * wide - self._between

    @property
    def _between(self) -> int:
        """Between classes, and between the distilled images and the real ones."""
        return max(2, round(0.3 * self.width))

    @property
    def _apart(self) -> int:
        """Between two stacks."""
        return 2 * self.gap if self.stack > 1 else 0

    @property
    def margin(self) -> int:
        """To the left of all."""
        return round(MARGIN * self.per_inch) if self.stack > 1 else 0

    def places(self, number: int, layer: int = 0) -> list[Place]:
        """Top and left of each distilled image of a class; or of what is in another layer of the stacks, the topmost of which is 0."""
        return self._lines(number, self.columns, 0, range(layer, self.lines * self.stack, self.stack))

    def places_beside(self, number: int) -> list[Place]:
        """Top and left of each real image of a class."""
        return self._lines(number, self.beside, self.columns * (self.width + self.gap) + self._between, range(self.lines * self.stack))

    def _lines(self, number: int, count: int, shift: int, lines: Iterable[int]) -> list[Place]:
        high, wide = self.block
        top = number // self.across * high + round((HEADING + NAME) * self.per_inch)
        left = self.margin + number % self.across * wide + shift
        tops = [top + line * (self.height + self.gap) + line // self.stack * self._apart for line in lines]
        return [(y, left + i * (self.width + self.gap)) for y in tops for i in range(count)]

    def blank(self) -> np.ndarray:
        """Paper: uint8 (height, width, 3)."""
        return np.full((*self.size, 3), PAPER, np.uint8)

    def paint(self, canvas: np.ndarray, images: np.ndarray, places: Sequence[Place]) -> None:
        """Put images, uint8 (N, C, H, W), onto the paper: their first three channels, or the first one as grey; as many as have a place."""
        colour = images[:, :3] if images.shape[1] >= 3 else np.repeat(images[:, :1], 3, axis=1)
        for image, (top, left) in zip(colour, places, strict=False):
            canvas[top : top + self.height, left : left + self.width] = image.transpose(1, 2, 0)

    @property
    def inches(self) -> tuple[float, float]:
        """Width and height, with paper around."""
        high, wide = self.size
        return max(wide / self.per_inch + 0.2, 4.5), high / self.per_inch + 0.2

    @property
    def dots(self) -> int:
        """Dots an inch: one for each pixel of an image or more, as far as that goes."""
        return min(max(160, math.ceil(self.per_inch)), 300)
