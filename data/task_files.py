"""The blind tasks in data/tasks: BIG-bench JSON with "target_scores"; adapters/task_files.py reads more."""

import json
from pathlib import Path


def load_task(path):
    """A task file -> {"name", "items"}; an item is (prompt, candidates, indices of the right ones)."""
    path, items = Path(path), []
    try:
        for example in json.loads(path.read_bytes())["examples"]:
            scores = example["target_scores"]
            right = {i for i, score in enumerate(scores.values()) if score == max(scores.values())}
            items.append((example["input"], list(scores), right))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: expected JSON with examples of input and target_scores") from None
    return {"name": path.stem, "items": items}
