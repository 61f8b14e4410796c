"""The notebook of the course: its form, and its code cells as a program in a folder of its own."""
import json
import os
import re
import subprocess
import sys

from course.assignments import REPOSITORY

BOOK = json.loads((REPOSITORY / "course" / "tour.ipynb").read_text(encoding="utf-8"))
CELLS = {"markdown": [], "code": []}
for cell in BOOK["cells"]:
    CELLS[cell["cell_type"]].append(cell)


def test_the_notebook_has_the_form_of_nbformat_and_outputs_without_an_error():
    assert (BOOK["nbformat"], BOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in BOOK["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in ids)
    for cell in BOOK["cells"]:
        assert {"cell_type", "id", "metadata", "source"} <= set(cell) and isinstance(cell["source"], list)
    assert [cell["execution_count"] for cell in CELLS["code"]] == list(range(1, len(CELLS["code"]) + 1))
    assert all(set(cell) == {"cell_type", "id", "metadata", "source"} for cell in CELLS["markdown"])
    outputs = [output for cell in CELLS["code"] for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)      # no warning either
    told = "".join(text for output in outputs for text in output.get("text", []))
    assert "learnt: the loss fell" in told and "200 steps" in told and "Traceback" not in told
    assert len(json.dumps(BOOK)) < 60_000


def test_the_code_cells_run_as_a_program_and_the_loss_falls(tmp_path):
    source = "\n\n".join("".join(cell["source"]) for cell in CELLS["code"])
    assert max(map(len, source.splitlines())) <= 120
    (tmp_path / "tour.py").write_text(source, encoding="utf-8")
    env = {**os.environ, "STEPS": "8", "MPLBACKEND": "Agg", "PYTHONPATH": str(REPOSITORY),
           "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "tour.py"], cwd=tmp_path, env=env, capture_output=True,
                          encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    told = re.search(r"the loss fell from ([\d.]+) to ([\d.]+) nats", done.stdout)
    before, after = map(float, told.groups())
    assert after < before - 0.5 and "8 steps" in done.stdout and "entity_f1" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["tour.py"]                # nothing was downloaded
