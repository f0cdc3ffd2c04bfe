"""The result of a preflight check, and how to display a list of results."""

import dataclasses
from collections.abc import Sequence

from medkit import MedkitError


@dataclasses.dataclass(frozen=True)
class Check:
    name: str
    status: str  # "pass", "warn" or "fail"
    message: str
    fix: str = ""


def failed(checks: Sequence[Check]) -> list[Check]:
    return [check for check in checks if check.status == "fail"]


def as_dict(checks: Sequence[Check]) -> dict:
    return {"failed": bool(failed(checks)), "checks": [dataclasses.asdict(check) for check in checks]}


def text(checks: Sequence[Check]) -> str:
    """One line per check: status, name, message and fix."""
    width = max((len(check.name) for check in checks), default=0)
    return "\n".join(
        f"{c.status:4}  {c.name:{width}}  {c.message}{f'; {c.fix}' if c.fix else ''}" for c in checks
    )


def show(checks: Sequence[Check]) -> None:
    """Display the checks as a table in a notebook. Raises a one-line MedkitError if any failed."""
    import pandas as pd
    from IPython.display import display

    with pd.option_context("display.max_colwidth", None):
        display(pd.DataFrame([dataclasses.asdict(check) for check in checks]).set_index("name"))
    if failures := failed(checks):
        raise MedkitError("; ".join(f"{c.name}: {c.message}; {c.fix}" for c in failures))
