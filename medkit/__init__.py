"""medkit: two-stage QLoRA of a medical chat model, and how far to trust what comes out."""

import os

__version__ = "0.1.0"

# The one thing that happens at import: the libraries read these switches when they are imported themselves.
for _switch in ("UNSLOTH_DISABLE_STATISTICS", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.setdefault(_switch, "1")


class MedkitError(ValueError):
    """Bad input: one line that names the thing and the mend. The command line prints it and exits with 2."""
