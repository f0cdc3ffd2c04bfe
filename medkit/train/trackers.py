"""Experiment trackers in addition to loss.csv, by Transformers' integrations, in the run's folder."""

import functools
import os
import sys
from contextlib import contextmanager
from pathlib import Path

from medkit.runs import inputs

FOLDER = "tracker"  # in a stage's folder


@contextmanager
def local_tracker(tracker: str, stage_folder: Path):
    """Make the tracker write into `stage_folder`/tracker and contact no server, unless the user's environment
    says otherwise (WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID).

    Raises InputError if the tracker's package is not installed.
    """
    inputs.check_tracker(tracker)
    folder = str((stage_folder / FOLDER).resolve())
    variables = {
        "none": {},
        "tensorboard": {"TENSORBOARD_LOGGING_DIR": folder},
        "trackio": {"TRACKIO_DIR": folder},
        "wandb": {"WANDB_MODE": "offline", "WANDB_DIR": folder, "WANDB_SILENT": "true"},
        "mlflow": {"MLFLOW_TRACKING_URI": Path(folder).as_uri()},
    }[tracker]
    added = {name: value for name, value in variables.items() if name not in os.environ}
    if added:
        Path(folder).mkdir(parents=True, exist_ok=True)
    os.environ.update(added)
    if "TRACKIO_DIR" in added:
        _move_trackio(Path(folder))
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _move_trackio(folder: Path) -> None:
    """Change trackio's folder, which it read from TRACKIO_DIR when TRL imported it, and prevent it from
    starting a server in a notebook."""
    import trackio

    default = trackio.TRACKIO_DIR
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "trackio":
            for constant, value in list(vars(module).items()):
                if isinstance(value, Path) and value.is_relative_to(default):
                    setattr(module, constant, folder / value.relative_to(default))
    trackio.init = functools.partial(getattr(trackio.init, "func", trackio.init), embed=False)
