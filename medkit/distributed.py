"""Train one arm on several GPUs or nodes: the training of notebooks 01 and 02 as a script.

    torchrun --nproc-per-node 4 -m medkit.distributed big stage1 --recipe recommended
    torchrun --nproc-per-node 4 -m medkit.distributed big stage2 --recipe recommended

`accelerate launch` works too. The processes share the recipe's batch, so the updates are the same as with one
process; their number must divide the stage's accumulation. Only rank 0 writes. All nodes need access to the
run's folder and to the cache (MEDKIT_CACHE). Running the same command again resumes from the newest complete
checkpoint. `medkit run RECIPE --run NAME --only 03,04,05` evaluates.
"""

import sys
import tempfile

from medkit import MedkitError, chat_template, recipes
from medkit.__main__ import Parser
from medkit.evaluate import cases
from medkit.pipeline import runner
from medkit.preflight import inputs
from medkit.runs import run_json, storage
from medkit.runs.inputs import check_data_dir, connect
from medkit.train import fitting, models, stages

STEPS = {  # arm -> the runner's step that trains it
    path.removesuffix("/adapter"): step
    for step in runner.NOTEBOOKS
    for path in step.writes
    if path.endswith("/adapter")
}


def train(arm: str, run_dir: str, recipe: str, settings: str = "", data_dir: str = "") -> fitting.Fit:
    """Train one arm ("stage1", "stage2", "stage2_noreplay"), as one of several processes."""
    models.unsloth()
    from transformers import TrainingArguments

    stage, step = arm.partition("_")[0], STEPS[arm]
    resolved = recipes.get(recipe, settings)
    connect(resolved, data_dir)
    with tempfile.TemporaryDirectory() as scratch:
        processes = TrainingArguments(scratch, report_to="none")
    first = processes.process_index == 0
    with processes.main_process_first(local=False):  # it prepares the rows that the others read
        if first:
            check_data_dir(data_dir)
            inputs.check(resolved, data_dir, step.reads)
            run = run_json.begin(run_dir, step.name, recipe, settings, data_dir)
        else:
            folder = storage.folder(run_dir)
            run = run_json.ReadOnlyRun(folder, run_json.read(folder) or {}, resolved, data_dir)
            chat_template.use_date(run.info["date"])
        model, tokenizer = stages.load_for_stage(run, stage)
        records = stages.read_records(run, arm)
        queries = cases.draw_queries(run)[0] if arm == "stage2" and first else []
        train_rows, validation_rows = stages.prepare(run, records, tokenizer, queries)
    result = stages.fit(run, stage, arm, model, tokenizer, train_rows, validation_rows)
    stages.relearn(run, records, model, tokenizer)
    if first:
        stages.finish(run, arm, result)
    return result


def main() -> int:
    parser = Parser(prog="python -m medkit.distributed", description=__doc__.split("\n")[0])
    parser.add_argument("run", help="the run's name")  # not --run, which torchrun would parse itself
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
