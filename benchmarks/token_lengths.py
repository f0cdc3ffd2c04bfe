"""Token counts of real training rows under the real Llama 3 tokenizer: the input of throughput.py.

    python benchmarks/token_lengths.py --data-dir DIR

writes benchmarks/token_lengths.json: per chat template, exam target and source a list of [tokens, supervised
tokens with loss_on=answer], numbers only. Prints one JSON line last.
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
    own, lengths, means = tokenizer.chat_template, {}, {}
    names = ("medqa", "medmcqa", "pubmedqa", "notechat")
    records = {name: sources.load(name, "train", args.data_dir, progress=False).records for name in names}
    for template, jinja in (("own", own), ("chatml", prompts.CHATML)):
        tokenizer.chat_template = jinja
        chat = prompts.ChatFormat.from_tokenizer(tokenizer)
        for target, name in product(("letter", "letter_and_text"), names):
            chats = [prompts.messages(record, target) for record in records[name]]
            ids, labels = prompts.training_ids(tokenizer, chat, chats)
            pairs = [[len(i), len(x) - x.count(prompts.IGNORED)] for i, x in zip(ids, labels, strict=True)]
            lengths.setdefault(template, {}).setdefault(target, {})[name] = pairs
            mean = round(sum(pair[0] for pair in pairs) / len(pairs), 1)
            means[f"{template}, {target}, {name}"] = [len(pairs), mean]
    (HERE / "token_lengths.json").write_text(json.dumps(lengths) + "\n")
    print(json.dumps(means))


if __name__ == "__main__":
    main()
