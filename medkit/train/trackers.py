"""Experiment trackers beside loss.csv, by Transformers' own integrations; all stays in the run's folder."""

import functools
import os
import sys
from contextlib import contextmanager
from pathlib import Path

from medkit.runs import inputs

FOLDER = "tracker"  # in a stage's folder


@contextmanager
def local_tracker(tracker: str, stage: Path):
    """Within the block the tracker writes into `stage`/tracker and contacts no server, unless the user's
    environment sends it elsewhere (WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID).

    Raises InputError where its package is missing.
    """
    inputs.check_tracker(tracker)
    folder = str((stage / FOLDER).resolve())
    switches = {
        "none": {},
        "tensorboard": {"TENSORBOARD_LOGGING_DIR": folder},
        "trackio": {"TRACKIO_DIR": folder},
        "wandb": {"WANDB_MODE": "offline", "WANDB_DIR": folder, "WANDB_SILENT": "true"},
        "mlflow": {"MLFLOW_TRACKING_URI": Path(folder).as_uri()},
    }[tracker]
    added = {name: value for name, value in switches.items() if name not in os.environ}
    if added:
        Path(folder).mkdir(parents=True, exist_ok=True)
    os.environ.update(added)
    if "TRACKIO_DIR" in added:
        _trackio_in(Path(folder))
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _trackio_in(folder: Path) -> None:
    """Trackio reads its variable at import, which TRL does long before; and in a notebook it would start a
    server for its page."""
    import trackio

    before = trackio.TRACKIO_DIR
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "trackio":
            for constant, value in list(vars(module).items()):
                if isinstance(value, Path) and value.is_relative_to(before):
                    setattr(module, constant, folder / value.relative_to(before))
    trackio.init = functools.partial(getattr(trackio.init, "func", trackio.init), embed=False)
