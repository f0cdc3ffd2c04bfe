"""Prepares stage 1's rows at the paper's sizes, from files to token ids: seconds, memory, ratio to TRL.

    python benchmarks/prepare.py [--rows 404269] [--compare 4000]

Rows are words drawn from the Llama 3 vocabulary (from PyPI's llama-models), as long as real rows
(token_lengths.json), in files like those on the hub. medkit.data.sources.load reads, checks and converts
all rows, and medkit.train.tokenization.prepare renders and tokenizes them. Both run twice; the second time,
prepare finds its result in the cache. Then `--compare` of the rows are prepared three times alternately by
medkit and by SFTTrainer as prompt and completion; the tokens must be the same. The last line printed is a
JSON object.
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
WORDS = 3_000_000  # of the text from which rows are cut
ROUNDS = 3


class Text:
    """Random text from which passages of a given number of tokens can be cut."""

    def __init__(self, tokenizer, rng):
        decode = tokenizer.backend_tokenizer.decode
        single = [decode([i]) for i in range(256, 60_000)]
        single = [word for word in single if word[:1] == " " and word[1:].isalpha() and word.isascii()]
        # Long words of several tokens imitate medical terms. The vocabulary is roughly ordered by frequency.
        terms = [single[i] + single[i + 2000][1:] + single[i + 7000] for i in range(2000, 5000)]
        words = [
            *single[:200],
            *(w for i in range(3000) for w in (single[200 + i], terms[i])),
            *single[3200:],
        ]
        sizes = np.array(
            [len(e) for e in tokenizer.backend_tokenizer.encode_batch(words, add_special_tokens=False)]
        )
        weights = 1 / (np.arange(len(words)) + 30.0)
        word_ids = rng.choice(len(words), WORDS, p=weights / weights.sum())
        text_words = np.array(words, dtype=object)[word_ids]
        self.text, self.rng = "".join(text_words), rng
        self.chars = np.concatenate([[0], np.cumsum([len(word) for word in text_words])])
        self.tokens = np.concatenate([[0], np.cumsum(sizes[word_ids])])

    def passage(self, tokens: int) -> str:
        start = int(self.rng.integers(WORDS - 4000))
        end = max(start + 1, int(np.searchsorted(self.tokens, self.tokens[start] + max(tokens, 1))))
        return self.text[self.chars[start] : self.chars[end]].strip()


def make_records(tokenizer, rows: int) -> list:
    """Records as long as real rows, one source after another, in the paper's proportions."""
    from medkit import prompts, pubmedqa
    from medkit.records import MCQItem

    rng = np.random.default_rng(0)
    text = Text(tokenizer, rng)
    lengths = json.loads((HERE / "token_lengths.json").read_text())["own"]["letter"]
    chat = prompts.ChatFormat.from_tokenizer(tokenizer)

    def record(source, number, tokens):
        if source == "pubmedqa":
            question, context = text.passage(20), text.passage(tokens - 20)
            return MCQItem(str(number), source, question, pubmedqa.OPTIONS, "A", context)
        options = tuple(text.passage(rng.integers(1, 9)) for _ in range(4))
        return MCQItem(str(number), source, text.passage(tokens - 18), options, "ABCD"[number % 4])

    records = []
    for source, paper_rows in ROWS.items():
        probe = prompts.training_ids(tokenizer, chat, [prompts.messages(record(source, 0, 100))])[0][0]
        template_tokens = len(probe) - 100
        sampled = rng.integers(len(lengths[source]), size=round(paper_rows * rows / sum(ROWS.values())))
        records += [record(source, i, lengths[source][k][0] - template_tokens) for i, k in enumerate(sampled)]
    return records


def write_raw(records, folder: Path) -> None:
    """Write the records as files with the hub's columns, one folder per source."""
    for source in ROWS:
        (folder / source).mkdir(parents=True)
        with (folder / source / "train.jsonl").open("w", encoding="utf-8") as file:
            for record in (record for record in records if record.source == source):
                row, answer = {"question": record.question}, "ABCD".index(record.answer)
                if source == "pubmedqa":
                    row |= {"pubid": int(record.id), "context": {"contexts": [record.context]}}
                    row |= {"final_decision": record.options[answer]}
                elif source == "medmcqa":
                    row |= dict(zip(("opa", "opb", "opc", "opd"), record.options, strict=True))
                    row |= {"id": record.id, "cop": answer}
                else:
                    row |= {"options": dict(zip("ABCD", record.options, strict=True))}
                    row |= {"answer_idx": record.answer}
                file.write(json.dumps(row) + "\n")


def convert(folder: Path) -> list:
    """Read all rows of the files as checked records."""
    from medkit.data import sources

    return [
        record for source in ROWS for record in sources.load(source, "train", folder, progress=False).records
    ]


def compare(records, tokenizer, folder: Path) -> dict:
    """Seconds of prepare and of SFTTrainer's preparation of the same rows. Asserts equal results."""
    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from medkit import prompts
    from medkit.train import tokenization

    datasets.disable_caching()
    datasets.disable_progress_bars()
    chats = [prompts.messages(record) for record in records]
    rows = datasets.Dataset.from_list([{"prompt": c[:-1], "completion": c[-1:]} for c in chats])
    processes = {"trl": None, "trl_2_processes": 2}  # None is TRL's default: one process
    # SFTTrainer needs a model, but does not use it for the preparation.
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
        start = time.perf_counter()
        ours = tokenization.prepare(records, tokenizer, cache=folder / f"compare{turn}", **SETTINGS)
        seconds["medkit"].append(time.perf_counter() - start)
        for name, trainer in trainers.items():
            start = time.perf_counter()
            theirs = trainer._prepare_dataset(rows, tokenizer, trainer.args, False, None, "train")
            seconds[name].append(time.perf_counter() - start)
    assert ours["input_ids"][:] == theirs["input_ids"][:], "the two preparations differ"
    assert ours["labels"][:] == theirs["labels"][:], "the labels of the two preparations differ"
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "ratio_vs_trl": medians["trl"] / medians["medkit"],
        "ratio_vs_trl_2_processes": medians["trl_2_processes"] / medians["medkit"],
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
        preparing, converting, cpu_start = [], [], time.process_time()
        for _ in range(2):
            start = time.perf_counter()
            records = convert(Path(scratch) / "raw")
            converting.append(time.perf_counter() - start)
            start = time.perf_counter()
            prepared = tokenization.prepare(records, tokenizer, cache=Path(scratch), **SETTINGS)
            preparing.append(time.perf_counter() - start)
        cpu_seconds = time.process_time() - cpu_start  # all threads; not affected by other processes
        message = f"converted in {converting[0]:.1f} s, prepared in {preparing[0]:.1f} s"
        print(f"{message}, read from the cache in {preparing[1]:.1f} s", file=sys.stderr)
        tokens = sum(prepared["length"])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        step = max(1, len(records) // args.compare)
        comparison = compare(records[::step][: args.compare], tokenizer, Path(scratch))
    result = {
        "rows": len(records),
        "seconds": converting[0] + preparing[0],
        "converting_seconds": converting[0],
        "preparing_seconds": preparing[0],
        "second_run_seconds": preparing[1],
        "second_run_converting_seconds": converting[1],
        "cpu_seconds_both": cpu_seconds,
        "peak_memory_gb": peak,
        "mean_tokens": tokens / len(records),
        "tokens_per_s": tokens / preparing[0],
        **comparison,
        "load_average": os.getloadavg()[0],
        "hardware": machine.hardware(),
        "versions": {
            name: machine.versions()[name] for name in ("tokenizers", "transformers", "trl", "datasets")
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
