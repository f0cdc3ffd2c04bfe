"""The command line (see `medkit --help`).

Exit codes: 0 complete; 2 refused before starting, with the problem and the fix in one line; 1 failed while
running, with the notebook and cell.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from medkit import MedkitError
from medkit.runs import machine, storage


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)

    def command():
        machine.working_folder()  # some libraries read the working directory on import
        return options.command(options)

    return _finish(command)


def _finish(command: Callable) -> int:
    """Run `command` and return the exit code: the one it returns, if any. Errors are printed as one line."""
    from medkit.pipeline.runner import RunFailed

    try:
        code = command()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except MedkitError as error:
        print(f"medkit: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"medkit: failed: {error}", file=sys.stderr)
    except BrokenPipeError:  # `medkit recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # errors while a notebook runs are RunFailed
        print(f"medkit: {error.filename or 'the machine'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("medkit: stopped", file=sys.stderr)
    return 1


def _run(options) -> None:
    from medkit.pipeline import runner

    folder = runner.run(
        options.recipe,
        name=options.run,
        data_dir=options.data_dir,
        settings=options.set,
        only=tuple(filter(None, options.only.split(","))),
        resume=options.resume,
        fresh=options.fresh,
    )
    from medkit.report import tables

    print(tables.terminal(folder))


def _check(options) -> int:
    from medkit import recipes
    from medkit.runs import inputs

    recipe = recipes.get(options.recipe, "\n".join(options.set))
    inputs.check_data_dir(options.data_dir)
    from medkit.preflight import checks, findings

    results = checks.check(recipe, options.data_dir)
    if options.json:
        print(json.dumps({"recipe": recipe.name, **findings.as_dict(results)}, indent=1))
    else:
        print(findings.text(results))
    return 2 if findings.failed(results) else 0


def _recipes(options) -> None:
    from medkit import recipes

    for name, recipe in recipes.PRESETS.items():
        print(f"{name}: {recipe.about}")
        for field, value in recipes.flat(recipe).items():
            if "." in field:
                print(f"  {field}={','.join(value) if isinstance(value, (list, tuple)) else value}")


def _audit(options) -> None:
    from medkit.report import published

    print(published.render_audit() if options.markdown else published.terminal_audit())


def _mcq(options) -> None:
    from medkit import recipes
    from medkit.pipeline import runner
    from medkit.runs import run_json

    name = "-".join(Path(path).name for path in (options.model, options.adapter) if path)
    settings = {"model.base": options.model, **run_json.settings_of_adapter(options.adapter)}
    settings |= recipes.parse_settings("\n".join(options.set))
    folder = runner.run(
        "recommended",
        name=options.run or storage.slug(f"mcq-{name}"),
        data_dir=options.data_dir,
        settings=[f"{name}={value}" for name, value in settings.items()],
        steps=[runner.model_alone(options.model, options.adapter)],
        resume=options.resume,
        fresh=options.fresh,
    )
    from medkit.report import tables

    print(tables.terminal(folder))
    print(f"All measures: {storage.relpath(folder)}/mcq/summary.json")


def _sweep(options) -> int:
    from medkit.pipeline import sweep

    if options.dry_run:
        print(sweep.dry_run(options.file, options.data_dir))
        return 0
    return sweep.run(options.file, resume=options.resume, engine=options.engine, data_dir=options.data_dir)


def _compare(options) -> None:
    from medkit.report import compare

    comparison = compare.compare(compare.read(options.first), compare.read(options.second))
    folder = compare.write(comparison)
    print(compare.terminal(comparison))
    print(f"\n{storage.relpath(folder)}: compare.md, compare.html, compare.json")


def _card(options) -> None:
    from medkit.report import card

    folder = card.write(options.run)
    print(f"{storage.relpath(folder)}: README.md, .eval_results and the adapter, ready to upload")


def _export(options) -> int:
    from medkit.deliver import export

    try:
        folder = export.export(options.run, options.to, options.quantization, options.model, options.data_dir)
    except export.ExportFailed as error:
        print(f"medkit: failed: {error}", file=sys.stderr)
        return 1
    print((folder / "export.json").read_text(encoding="utf-8"))
    print(f"{storage.relpath(folder)}: the export gives the same answers as the adapter")
    return 0


def _chat(options) -> None:
    from medkit.deliver import chat

    chat.talk(options.run, options.question)


class Parser(argparse.ArgumentParser):
    def error(self, message):
        """Print one line, as for all other errors, without argparse's usage text."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _resume_or_fresh(sub) -> None:
    group = sub.add_mutually_exclusive_group()
    group.add_argument("--resume", action="store_true", help="continue after the last finished notebook")
    group.add_argument("--fresh", action="store_true", help="replace an existing run of this name")


def _data_dir(sub) -> None:
    about = "folder with one subfolder per source; default: the hub, for cpu the built-in corpus"
    sub.add_argument("--data-dir", default="", metavar="DIR", help=about)


def _data_and_settings(sub) -> None:
    _data_dir(sub)
    sub.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a recipe field"
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="medkit", description="Two-stage QLoRA of a medical chat model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name, function, about):
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(command=function)
        return sub

    sub = command("run", _run, "run the notebooks into results/NAME")
    sub.add_argument("recipe", help="cpu, paper, as_released or recommended")
    sub.add_argument("--run", default="", metavar="NAME", help="default: the recipe's name; demo for cpu")
    _data_and_settings(sub)
    sub.add_argument("--only", default="", metavar="03,04", help="run only these notebooks")
    _resume_or_fresh(sub)

    sub = command("check", _check, "check the recipe, data and machine before training")
    sub.add_argument("recipe", help="cpu, paper, as_released or recommended")
    _data_and_settings(sub)
    sub.add_argument("--json", action="store_true", help="print the findings as JSON")

    command("recipes", _recipes, "list the recipes with every field")
    sub = command("audit", _audit, "which published accuracies are possible")
    sub.add_argument("--markdown", action="store_true", help="the full table, with sources and intervals")

    about = "run the benchmarks on a model with recipe recommended, in 4 bit unless model.load_in_4bit=false"
    sub = command("mcq", _mcq, about)
    sub.add_argument("model", help="hub id, folder, or smollm2")
    sub.add_argument("--adapter", default="", metavar="DIR", help="folder of a LoRA adapter of that model")
    sub.add_argument("--run", default="", metavar="NAME", help="default: mcq-MODEL[-ADAPTER]")
    _data_and_settings(sub)
    _resume_or_fresh(sub)

    sub = command("sweep", _sweep, "run the trials of a file: arms, fields and seeds (docs/sweeps.md)")
    sub.add_argument("file", metavar="SWEEP.toml")
    sub.add_argument("--resume", action="store_true", help="run only the missing trials")
    sub.add_argument("--engine", choices=("local", "ray"), default="local", help="ray: several GPUs or nodes")
    sub.add_argument("--dry-run", action="store_true", help="list trials, hours and disk; run nothing")
    _data_dir(sub)

    sub = command("compare", _compare, "compare two runs, or samples of lm-evaluation-harness, by question")
    sub.add_argument("first", metavar="A", help="a run, or samples_*.jsonl (a file or a folder of them)")
    sub.add_argument("second", metavar="B", help="like A; differences are B minus A")

    sub = command("card", _card, "write Med-Nirvana's adapter and a model card for the hub into RUN/hub")
    sub.add_argument("run", metavar="RUN")

    sub = command("export", _export, "export and verify a run's model: 16-bit weights, GGUF or Ollama")
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("--to", required=True, metavar="TARGET", help="merged, gguf or ollama")
    sub.add_argument("--quantization", default="q8_0", help="for GGUF: q8_0, f16 or q4_k_m")
    sub.add_argument("--model", default="med-nirvana", help="one of the run's models")
    sub.add_argument("--data-dir", default="", metavar="DIR", help="the data folder, if the run used one")

    sub = command("chat", _chat, "ask a run's base, Med-Mix and Med-Nirvana side by side")
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("question", nargs="?", default="", help="default: read questions line by line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
