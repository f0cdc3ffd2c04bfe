"""Counts the tokens of real training rows with the Llama 3 tokenizer, for throughput.py.

    python benchmarks/token_lengths.py --data-dir DIR

writes benchmarks/token_lengths.json: for each chat template, exam target and source a list of [tokens,
supervised tokens with loss_on=answer]. The last line printed is a JSON object.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    args = parser.parse_args()

    from llama3 import llama3_tokenizer

    from medkit import prompts
    from medkit.data import sources

    tokenizer = llama3_tokenizer()
    lengths, means = {}, {}
    names = ("medqa", "medmcqa", "pubmedqa", "notechat")
    records = {name: sources.load(name, "train", args.data_dir, progress=False).records for name in names}
    templates = {"own": tokenizer.chat_template, "chatml": prompts.CHATML}
    for template, jinja in templates.items():
        tokenizer.chat_template = jinja
        chat = prompts.ChatFormat.from_tokenizer(tokenizer)
        for target, name in product(("letter", "letter_and_text"), names):
            chats = [prompts.messages(record, target) for record in records[name]]
            ids, labels = prompts.training_ids(tokenizer, chat, chats)
            pairs = [
                [len(row), len(row) - row_labels.count(prompts.IGNORED)]
                for row, row_labels in zip(ids, labels, strict=True)
            ]
            lengths.setdefault(template, {}).setdefault(target, {})[name] = pairs
            mean = round(sum(pair[0] for pair in pairs) / len(pairs), 1)
            means[f"{template}, {target}, {name}"] = [len(pairs), mean]
    (HERE / "token_lengths.json").write_text(json.dumps(lengths) + "\n")
    print(json.dumps(means))


if __name__ == "__main__":
    main()
