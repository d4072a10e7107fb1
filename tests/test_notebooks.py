"""The notebooks run from above to below, say nothing on stderr, and are kept without what they print."""

from pathlib import Path

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NAMES = ("first_set", "open_results")  # the second opens what the first has made
# Two outer steps and two networks in place of a minute.
CHANGES = ["outer.steps=2", "evaluation.every=1", "evaluation.seeds=2", "evaluation.steps=[5]"]
SHORTER = ('spec.load("digits")', f'spec.load("digits", {CHANGES})')


def test_these_are_all_and_they_hold_no_outputs():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)
    for name in NAMES:
        book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        nbformat.validate(book)
        assert not any(cell.outputs or cell.execution_count for cell in book.cells if cell.cell_type == "code")


@pytest.mark.slow
def test_they_run(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    for name in NAMES:
        book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        for cell in book.cells:
            cell.source = cell.source.replace(*SHORTER)
        nbclient.NotebookClient(book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
        outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
        assert not [output.text for output in outputs if output.get("name") == "stderr"]
        assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert (tmp_path / "runs" / "first" / "history.csv").read_text().startswith("outer_step,outer_loss")
