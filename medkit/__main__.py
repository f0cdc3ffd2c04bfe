"""The command line: what `medkit --help` lists.

Exit codes: 0 complete; 2 refused before starting, with one line naming the thing and the fix; 1 failed
on the way, with the notebook and cell.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from medkit import MedkitError
from medkit.runs import machine, storage


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)

    def work():
        machine.working_folder()  # of every library here some look where they stand
        return options.command(options)

    return _finish(work)


def _finish(work) -> int:
    """Do it, and turn how it ended into an exit code and at most one line."""
    from medkit.pipeline.runner import RunFailed

    try:
        code = work()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except MedkitError as error:
        print(f"medkit: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"medkit: failed: {error}", file=sys.stderr)
    except BrokenPipeError:  # `medkit recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a folder or file of this machine; once notebooks run it is a RunFailed
        print(f"medkit: {error.filename or 'the machine'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("medkit: stopped", file=sys.stderr)
    return 1


def _run(options) -> None:
    from medkit.pipeline import runner

    only = tuple(filter(None, options.only.split(",")))
    place = runner.run(
        options.recipe,
        name=options.run,
        data_dir=options.data_dir,
        settings=options.set,
        only=only,
        resume=options.resume,
        fresh=options.fresh,
    )
    from medkit.report import tables

    print(tables.terminal(place))


def _check(options) -> int:
    from medkit import recipes
    from medkit.runs import inputs

    recipe = recipes.get(options.recipe, "\n".join(options.set))
    inputs.check_data_dir(options.data_dir)
    from medkit.preflight import checks, findings

    found = checks.check(recipe, options.data_dir)
    shown = {"recipe": recipe.name, **findings.as_dict(found)}
    print(json.dumps(shown, indent=1) if options.json else findings.text(found))
    return 2 if findings.failed(found) else 0


def _recipes(options) -> None:
    from medkit import recipes

    for name, recipe in recipes.PRESETS.items():
        print(f"{name}: {recipe.about}")
        for field, value in recipes.flat(recipe).items():
            if "." in field:
                shown = ",".join(value) if isinstance(value, (list, tuple)) else value
                print(f"  {field}={shown}")


def _audit(options) -> None:
    from medkit.report import published

    print(published.render_audit() if options.markdown else published.terminal_audit())


def _mcq(options) -> None:
    from medkit.pipeline import runner

    model = options.model
    name = "-".join(Path(part).name for part in (model, options.adapter) if part)
    place = runner.run(
        "recommended",
        name=options.run or storage.slug(f"mcq-{name}"),
        data_dir=options.data_dir,
        settings=[f"model.base={model}", *options.set],
        steps=[runner.model_alone(model, options.adapter)],
        resume=options.resume,
        fresh=options.fresh,
    )
    print((place / "mcq" / "summary.json").read_text(encoding="utf-8"))


def _sweep(options) -> int:
    from medkit.pipeline import sweep

    if options.dry_run:
        print(sweep.dry_run(options.file, options.data_dir))
        return 0
    return sweep.run(options.file, resume=options.resume, engine=options.engine, data_dir=options.data_dir)


def _compare(options) -> None:
    from medkit.report import compare

    comparison = compare.compare(compare.read(options.first), compare.read(options.second))
    place = compare.write(comparison)
    print(compare.terminal(comparison))
    print(f"\n{storage.relpath(place)}: compare.md, compare.html, compare.json")


def _card(options) -> None:
    from medkit.report import card

    hub = card.write(options.run)
    print(f"{storage.relpath(hub)}: README.md, .eval_results and the adapter, to be uploaded as they are")


def _export(options) -> int:
    from medkit.deliver import export

    try:
        folder = export.export(options.run, options.to, options.quantization, options.model, options.data_dir)
    except export.ExportFailed as error:
        print(f"medkit: failed: {error}", file=sys.stderr)
        return 1
    print((folder / "export.json").read_text(encoding="utf-8"))
    print(f"{storage.relpath(folder)}: the export answers as the adapter does")
    return 0


def _chat(options) -> None:
    from medkit.deliver import chat

    chat.talk(options.run, options.question)


class Parser(argparse.ArgumentParser):
    def error(self, message):
        """One line, as for every other refusal; argparse would print the usage before it."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _again(sub) -> None:
    group = sub.add_mutually_exclusive_group()
    group.add_argument("--resume", action="store_true", help="go on after the last finished notebook")
    group.add_argument("--fresh", action="store_true", help="replace the run of that name")


def _data_dir(sub) -> None:
    sub.add_argument(
        "--data-dir", default="", metavar="DIR", help="a folder per source; else the recipe's origin"
    )


def _data_and_settings(sub) -> None:
    _data_dir(sub)
    sub.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a recipe's field"
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
    sub.add_argument("--run", default="", metavar="NAME", help="its name; else the recipe's; cpu's is demo")
    _data_and_settings(sub)
    sub.add_argument("--only", default="", metavar="03,04", help="these notebooks only")
    _again(sub)

    sub = command("check", _check, "what can be checked before a GPU hour is spent")
    sub.add_argument("recipe")
    _data_and_settings(sub)
    sub.add_argument("--json", action="store_true")

    command("recipes", _recipes, "list the recipes with every field")
    sub = command("audit", _audit, "which published numbers can be true")
    sub.add_argument("--markdown", action="store_true", help="the whole table, with sources and intervals")

    sub = command("mcq", _mcq, "a model on the benchmarks, in 4 bit unless --set model.load_in_4bit=false")
    sub.add_argument("model", help="hub id, folder, or smollm2")
    sub.add_argument("--adapter", default="", metavar="DIR")
    sub.add_argument("--run", default="", metavar="NAME", help="the run's name; else mcq-MODEL[-ADAPTER]")
    _data_and_settings(sub)
    _again(sub)

    sub = command("sweep", _sweep, "run the trials of a file: arms, fields and seeds (docs/sweeps.md)")
    sub.add_argument("file", metavar="SWEEP.toml")
    sub.add_argument("--resume", action="store_true", help="do only the trials that are missing")
    sub.add_argument("--engine", choices=("local", "ray"), default="local", help="ray: several GPUs or nodes")
    sub.add_argument("--dry-run", action="store_true", help="list trials, hours and disk; run nothing")
    _data_dir(sub)

    sub = command("compare", _compare, "two runs, or lm-evaluation-harness samples, question by question")
    sub.add_argument("first", metavar="A", help="a run, or samples_*.jsonl (a file or a folder of them)")
    sub.add_argument("second", metavar="B", help="the same; differences are B minus A")

    sub = command("card", _card, "Med-Nirvana's adapter with a model card, as the hub has them, in RUN/hub")
    sub.add_argument("run", metavar="RUN")

    sub = command(
        "export", _export, "a run's model as 16-bit weights, GGUF or for Ollama, held to the adapter"
    )
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("--to", required=True, metavar="TARGET", help="merged, gguf or ollama")
    sub.add_argument("--quantization", default="q8_0", help="of a GGUF: q8_0, f16 or q4_k_m")
    sub.add_argument("--model", default="med-nirvana", help="which of the run's models")
    sub.add_argument("--data-dir", default="", metavar="DIR", help="the rows' folder, where the run read one")

    sub = command("chat", _chat, "ask a run's base, Med-Mix and Med-Nirvana side by side")
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("question", nargs="?", default="", help="else every line that is typed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
