"""Stage 1's rows at the paper's sizes, from records to token ids in Arrow: seconds, memory, and against TRL.

    python benchmarks/prepare.py [--rows 404269] [--compare 4000]

Rows are words drawn from the real Llama 3 vocabulary (from PyPI's llama-models), as many tokens a row as
real rows have (token_lengths.json), in files as the hub serves them. All rows go through
medkit.data.sources.load,
which checks and converts them, and medkit.train.tokenization.prepare, which renders and tokenizes them; both
twice,
and the second time prepare finds the first one's result. Then `--compare` of them go, three times in
alternation, through prepare and through SFTTrainer's own preparation as prompt and completion, and must come
out as the same tokens. Prints one JSON line last.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

ROWS = {"medqa": 10_178, "medmcqa": 182_822, "pubmedqa": 211_269}  # the paper's Table 1
SETTINGS = {"target": "letter", "loss_on": "answer", "max_length": 2048, "progress": False}
WORDS = 3_000_000  # of running text, from which every row is a few random stretches
ROUNDS = 3


class Text:
    """Running text of known token length, to cut stretches from."""

    def __init__(self, tokenizer, rng):
        decode = tokenizer.backend_tokenizer.decode
        single = [decode([i]) for i in range(256, 60_000)]
        single = [word for word in single if word[:1] == " " and word[1:].isalpha() and word.isascii()]
        # Long words of two or three pieces stand for terms; the vocabulary's order is nearly that of use.
        terms = [single[i] + single[i + 2000][1:] + single[i + 7000] for i in range(2000, 5000)]
        words = [
            *single[:200],
            *(w for i in range(3000) for w in (single[200 + i], terms[i])),
            *single[3200:],
        ]
        sizes = np.array(
            [len(e) for e in tokenizer.backend_tokenizer.encode_batch(words, add_special_tokens=False)]
        )
        odds = 1 / (np.arange(len(words)) + 30.0)
        drawn = rng.choice(len(words), WORDS, p=odds / odds.sum())
        spelled = np.array(words, dtype=object)[drawn]
        self.text, self.rng = "".join(spelled), rng
        self.chars = np.concatenate([[0], np.cumsum([len(word) for word in spelled])])
        self.tokens = np.concatenate([[0], np.cumsum(sizes[drawn])])

    def stretch(self, tokens: int) -> str:
        start = int(self.rng.integers(WORDS - 4000))
        end = max(start + 1, int(np.searchsorted(self.tokens, self.tokens[start] + max(tokens, 1))))
        return self.text[self.chars[start] : self.chars[end]].strip()


def make_records(tokenizer, rows: int) -> list:
    """`rows` records, source after source in the paper's proportions, as long as real rows."""
    from medkit import prompts, pubmedqa
    from medkit.records import MCQItem

    rng = np.random.default_rng(0)
    text = Text(tokenizer, rng)
    lengths = json.loads((HERE / "token_lengths.json").read_text())["own"]["letter"]
    chat = prompts.ChatFormat.from_tokenizer(tokenizer)

    def record(source, number, tokens):
        if source == "pubmedqa":
            question, context = text.stretch(20), text.stretch(tokens - 20)
            return MCQItem(str(number), source, question, pubmedqa.OPTIONS, "A", context)
        options = tuple(text.stretch(rng.integers(1, 9)) for _ in range(4))
        return MCQItem(str(number), source, text.stretch(tokens - 18), options, "ABCD"[number % 4])

    records = []
    for source, full in ROWS.items():
        probe = prompts.training_ids(tokenizer, chat, [prompts.messages(record(source, 0, 100))])[0][0]
        drawn = rng.integers(len(lengths[source]), size=round(full * rows / sum(ROWS.values())))
        records += [
            record(source, i, lengths[source][k][0] - (len(probe) - 100)) for i, k in enumerate(drawn)
        ]
    return records


def write_raw(records, folder: Path) -> None:
    """The records as files of the hub's columns, a folder per source."""
    for source in ROWS:
        (folder / source).mkdir(parents=True)
        with (folder / source / "train.jsonl").open("w", encoding="utf-8") as file:
            for one in (record for record in records if record.source == source):
                row = {"question": one.question}
                if source == "pubmedqa":
                    row |= {"pubid": int(one.id), "context": {"contexts": [one.context]}}
                    row |= {"final_decision": one.options["ABC".index(one.answer)]}
                elif source == "medmcqa":
                    row |= dict(zip(("opa", "opb", "opc", "opd"), one.options, strict=True))
                    row |= {"id": one.id, "cop": "ABCD".index(one.answer)}
                else:
                    row |= {"options": dict(zip("ABCD", one.options, strict=True)), "answer_idx": one.answer}
                file.write(json.dumps(row) + "\n")


def convert(folder: Path) -> list:
    """All rows of the files as checked records."""
    from medkit.data import sources

    return [
        record for source in ROWS for record in sources.load(source, "train", folder, progress=False).records
    ]


def compare(records, tokenizer, folder: Path) -> dict:
    """Seconds of prepare and of SFTTrainer's preparation for the same rows, which must come out equal."""
    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from medkit import prompts
    from medkit.train import tokenization

    datasets.disable_caching()
    datasets.disable_progress_bars()
    chats = [prompts.messages(record) for record in records]
    rows = datasets.Dataset.from_list([{"prompt": c[:-1], "completion": c[-1:]} for c in chats])
    processes = {"trl": None, "trl_2_processes": 2}  # None is TRL's default: one
    # A trainer needs some model; it takes no part in the preparation.
    tiny = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    trainers = {
        name: SFTTrainer(
            LlamaForCausalLM(tiny),
            args=SFTConfig(
                output_dir=str(folder),
                max_length=SETTINGS["max_length"],
                dataset_num_proc=count,
                use_cpu=True,
                bf16=False,
                report_to="none",
            ),
            train_dataset=rows.select(range(8)),
            processing_class=tokenizer,
        )
        for name, count in processes.items()
    }
    seconds = {name: [] for name in ("medkit", *trainers)}
    for turn in range(ROUNDS):
        began = time.perf_counter()
        ours = tokenization.prepare(records, tokenizer, cache=folder / f"compare{turn}", **SETTINGS)
        seconds["medkit"].append(time.perf_counter() - began)
        for name, trainer in trainers.items():
            began = time.perf_counter()
            theirs = trainer._prepare_dataset(rows, tokenizer, trainer.args, False, None, "train")
            seconds[name].append(time.perf_counter() - began)
    assert ours["input_ids"][:] == theirs["input_ids"][:], "the two preparations differ"
    assert ours["labels"][:] == theirs["labels"][:], "the two preparations supervise differently"
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "ratio_vs_trl": middle["trl"] / middle["medkit"],
        "ratio_vs_trl_2_processes": middle["trl_2_processes"] / middle["medkit"],
        "compared_rows": len(records),
        "compared_seconds": {name: [round(s, 2) for s in times] for name, times in seconds.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=sum(ROWS.values()))
    parser.add_argument("--compare", type=int, default=4000)
    args = parser.parse_args()

    from llama3 import llama3_tokenizer

    from medkit.runs import machine
    from medkit.train import tokenization

    tokenizer = llama3_tokenizer()
    if tokenizer is None:
        sys.exit("the Llama 3 tokenizer is not installed: pip install --no-deps llama-models")
    with tempfile.TemporaryDirectory() as scratch:
        write_raw(make_records(tokenizer, args.rows), Path(scratch) / "raw")
        times, converting, cpu = [], [], time.process_time()
        for _ in range(2):
            began = time.perf_counter()
            records = convert(Path(scratch) / "raw")
            converting.append(time.perf_counter() - began)
            began = time.perf_counter()
            prepared = tokenization.prepare(records, tokenizer, cache=Path(scratch), **SETTINGS)
            times.append(time.perf_counter() - began)
        cpu = time.process_time() - cpu  # beside the wall clock: tells a busy machine from a slow program
        told = f"converted in {converting[0]:.1f} s, prepared in {times[0]:.1f} s"
        print(f"{told}, found again in {times[1]:.1f} s", file=sys.stderr)
        tokens = sum(prepared["length"])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        step = max(1, len(records) // args.compare)
        against = compare(records[::step][: args.compare], tokenizer, Path(scratch))
    line = {
        "rows": len(records),
        "seconds": converting[0] + times[0],
        "converting_seconds": converting[0],
        "preparing_seconds": times[0],
        "second_run_seconds": times[1],
        "second_run_converting_seconds": converting[1],
        "cpu_seconds_both": cpu,
        "peak_memory_gb": peak,
        "mean_tokens": tokens / len(records),
        "tokens_per_s": tokens / times[0],
        **against,
        "load_average": os.getloadavg()[0],
        "hardware": machine.hardware(),
        "versions": {
            name: machine.versions()[name] for name in ("tokenizers", "transformers", "trl", "datasets")
        },
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
