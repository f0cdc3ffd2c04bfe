"""A sweep's outcomes made up, with known effects, as `medkit sweep` leaves them."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from medkit import recipes
from medkit.runs import storage

# arm -> (settings, how many of the questions that Med-Mix has right it keeps, gain in F1)
ARMS = {
    "k0": ({"dmt.replay_share": "0"}, 0.2, 0.10),
    "k5": ({"dmt.replay_share": "1/19"}, 0.2, 0.10),
    "k25": ({"dmt.replay_share": "1/3"}, 0.8, 0.10),
    "k50": ({"dmt.replay_share": "1"}, 0.9, 0.10),
    "lr1e-4-k0": ({"dmt.replay_share": "0", "stage2.learning_rate": "1e-4"}, 0.5, 0.05),
    "lr1e-4-k25": ({"dmt.replay_share": "1/3", "stage2.learning_rate": "1e-4"}, 0.95, 0.05),
    "k25-pad": ({"dmt.replay_share": "1/3", "dmt.fill": "dialogues"}, 0.25, 0.12),
    "joint": ({"dmt.replay_share": "1", "dmt.handover": "joint"}, 0.98, 0.06),
}


@dataclass
class Sweep:
    """Writes results/NAME/outcomes. Med-Mix has every question right, so that retention is what is kept."""

    root: Path
    arms: dict = field(default_factory=lambda: dict(ARMS))
    seeds: tuple = (0, 1, 2, 3, 4)
    questions: int = 60
    cases: int = 12
    name: str = "replay-cpu"
    left_out: tuple = ()  # trials planned and not there
    spread: float = 0.03  # of what is kept, between seeds

    @property
    def outcomes(self) -> Path:
        return self.root / self.name / "outcomes"

    def write(self) -> Path:
        plan = []
        for seed in self.seeds:
            self._trial(plan, f"stage1-s{seed}", "", seed, {}, True)
            for arm, (settings, kept, gain) in self.arms.items():
                self._trial(plan, f"{arm}-s{seed}", arm, seed, settings, False, kept, gain)
        storage.write_json(self.outcomes / "sweep.json", {"name": self.name, "trials": plan})
        return self.root / self.name

    def again(self, arm: str, name: str, seed: int = 0, stage2_seed: int = 0) -> None:
        """A repeat of an arm, written after `write`: the same answers but for three questions."""
        path = self.outcomes / "sweep.json"
        plan = storage.load(path.parent, path.name, ["trials"], "sweep")["trials"]
        settings, kept, gain = self.arms[arm]
        settings = settings | {"stage2.seed": str(stage2_seed)}
        self._trial(plan, f"{name}-s{seed}", name, seed, settings, False, kept, gain, like=arm, flipped=3)
        storage.write_json(path, {"name": self.name, "trials": plan})

    def _trial(
        self, plan, name, arm, seed, settings, is_stage1, kept=1.0, gain=0.0, like="", flipped=0
    ) -> None:
        plan.append({"name": name, "arm": arm, "seed": seed, "is_stage1": is_stage1})
        if name in self.left_out:
            return
        rng = np.random.default_rng([seed, *(like or arm).encode()])
        given = {"stage1.seed": str(seed), "stage2.seed": str(seed)} | settings
        recipe = recipes.get("cpu", given)
        place = self.outcomes / name
        added = round(96 * recipe.dmt.replay_share)
        replayed, further = (0, added) if recipe.dmt.fill == "dialogues" else (added, 0)
        share = replayed / (96 + added)
        replay = {"share_of_rows": share, "share_of_tokens": share * 0.8}
        replay |= {"share_of_supervised_tokens": share / 20, "train": replayed}
        manifest = (
            {} if is_stage1 else {"stage2": {"replay": replay, "notechat": {"train": 96, "further": further}}}
        )
        storage.write_json(place / "data" / "manifest.json", manifest)
        info = {
            "schema": 1,
            "status": "complete",
            "recipe": storage.plain(recipe),
            "seeds": {"stage1": recipe.stage1.seed, "stage2": recipe.stage2.seed},
            "data": {"origin": "builtin"},
            "started": "2026-01-01T00:00:00+00:00",
            "trial": {"name": name, "arm": arm, "seed": seed, "axes": {}, "is_stage1": is_stage1},
        } | {part: {} for part in ("notebooks", "versions", "git", "hardware")}
        storage.write_json(place / "run.json", info)
        n, level = self.questions, kept + self.spread * rng.standard_normal() * (not is_stage1)
        right = np.arange(n) < round(np.clip(level, 0, 1) * n)
        right[:flipped] = ~right[:flipped]
        models = {"base": np.zeros(n, bool), "med-mix": right} if is_stage1 else {"med-nirvana": right}
        storage.write_csv(place / "mcq" / "items.csv", pd.concat([_items(*one) for one in models.items()]))
        general = [_general(m, 0.5, 2.0 + 0.1 * (m == "med-nirvana"), rng) for m in models]
        storage.write_csv(place / "mcq" / "general.csv", pd.concat(general))
        asked = "base" if is_stage1 else "med-nirvana"
        f1 = 0.4 + 0.01 * np.arange(self.cases) + gain + 0.01 * rng.standard_normal(self.cases)
        answers = {"model": asked, "case": [f"c{i}" for i in range(self.cases)], "source": "icliniq"}
        answers = pd.DataFrame(answers | {"sample": 0, "words": 40 if is_stage1 else 60, "f1": f1})
        storage.write_csv(place / "consumer" / "scores.csv", answers)


def _items(model: str, right: np.ndarray) -> pd.DataFrame:
    n = len(right)
    rows = {"model": model, "dataset": "pubmedqa", "item_id": [f"{i:05d}" for i in range(n)], "gold": "A"}
    rows |= {"predicted": np.where(right, "A", "B"), "correct": right, "group": ""}
    # the chosen letter has 80%, the other of A and B 10%
    sure, unsure = np.log(0.8), np.log(0.1)
    rows |= {"logprob_A": np.where(right, sure, unsure), "logprob_B": np.where(right, unsure, sure)}
    return pd.DataFrame(rows | {"logprob_C": unsure, "logprob_D": np.nan})


def _general(model: str, level: float, loss: float, rng) -> pd.DataFrame:
    right = np.arange(20) < round(20 * level)
    questions = _items(model, right).assign(dataset="science")
    texts = pd.DataFrame({"item_id": [f"text-{i:03d}" for i in range(8)], "tokens": 50})
    texts = texts.assign(model=model, dataset="text", nll=50 * (loss + 0.01 * rng.standard_normal(8)))
    return pd.concat([questions, texts], ignore_index=True)
