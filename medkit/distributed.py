"""One stage on several GPUs or nodes: the training of notebooks 01 and 02 as a script.

    torchrun --nproc-per-node 4 -m medkit.distributed big stage1 --recipe recommended
    torchrun --nproc-per-node 4 -m medkit.distributed big stage2 --recipe recommended

`accelerate launch` works, too. The processes share the recipe's batch, so that the updates are those of one
process; their number has to divide the stage's accumulation. Only the first process writes. Nodes share the
run's folder and the cache (MEDKIT_CACHE). The same command resumes from the newest whole checkpoint, and
`medkit run RECIPE --run NAME --only 03,04,05` evaluates.
"""

import sys
import tempfile

from medkit import MedkitError, recipes
from medkit.__main__ import Parser
from medkit.evaluate import cases
from medkit.pipeline import runner
from medkit.preflight import inputs
from medkit.runs import run_json, storage
from medkit.runs.inputs import check_data_dir, connect
from medkit.train import fitting, models, stages

STEPS = {  # the training ones, by arm
    place.removesuffix("/adapter"): step
    for step in runner.NOTEBOOKS
    for place in step.writes
    if place.endswith("/adapter")
}


def train(arm: str, run_dir: str, recipe: str, settings: str = "", data_dir: str = "") -> fitting.Fit:
    """Train one arm ("stage1", "stage2", "stage2_noreplay") together with the other processes started."""
    models.unsloth()
    from transformers import TrainingArguments

    stage, step = arm.partition("_")[0], STEPS[arm]
    resolved = recipes.get(recipe, settings)
    connect(resolved, data_dir)
    with tempfile.TemporaryDirectory() as scratch:
        processes = TrainingArguments(scratch, report_to="none")
    with processes.main_process_first(local=False):  # which prepares the rows, for the others to read
        if processes.process_index == 0:
            check_data_dir(data_dir)
            inputs.check(resolved, data_dir, step.reads)
            run = run_json.begin(run_dir, step.name, recipe, settings, data_dir)
        else:
            place = storage.folder(run_dir)
            run = run_json.ReadOnlyRun(place, run_json.read(place) or {}, resolved, data_dir)
        model, tokenizer = stages.load_for_stage(run, stage)
        records = stages.read_records(run, arm)
        queries = cases.draw_queries(run)[0] if arm == "stage2" and processes.process_index == 0 else []
        rows = stages.prepare(run, records, tokenizer, queries)
    done = stages.fit(run, stage, arm, model, tokenizer, *rows)
    stages.relearn(run, records, model, tokenizer)
    if processes.process_index == 0:
        stages.finish(run, arm, done)
    return done


def main() -> int:
    parser = Parser(prog="python -m medkit.distributed", description=__doc__.split("\n")[0])
    parser.add_argument("run", help="the run's name")  # no option: torchrun takes --run for one of its own
    parser.add_argument("arm", choices=STEPS)
    parser.add_argument("--recipe", default="recommended")
    parser.add_argument("--data-dir", default="", metavar="DIR")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    options = parser.parse_args()
    try:
        train(options.arm, options.run, options.recipe, "\n".join(options.set), options.data_dir)
    except MedkitError as error:
        print(f"medkit: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
