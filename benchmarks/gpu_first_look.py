"""First check of a CUDA machine: prints versions and trains a tiny 4-bit model for two steps."""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]


def main():
    from medkit import recipes
    from medkit.train import fitting, models

    models.unsloth()
    import bitsandbytes
    import torch
    import transformers
    import trl
    from conftest import make_tiny_llama
    from throughput import random_rows

    print(torch.__version__, transformers.__version__, trl.__version__, bitsandbytes.__version__)
    print(torch.cuda.get_device_name(), torch.version.cuda)
    folder = Path(tempfile.mkdtemp())
    model, tokenizer = make_tiny_llama(hidden_size=256)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    recipe = recipes.get("recommended")
    spec = replace(recipe.stage1, max_steps=2, eval_every=2, save_every=2)
    model, tokenizer = models.load(replace(recipe.model, base=str(folder / "base")))
    model = models.attach_lora(model, recipe.lora, seed=0)
    rows = random_rows(recipe, "stage1", 256, 4000)
    columns = ("input_ids", "labels")
    train = rows.map(lambda row: {name: [t % 250 if t >= 0 else t for t in row[name]] for name in columns})
    validation = train.select(range(32))
    fit = fitting.fit(model, tokenizer, train, validation, spec, folder=folder / "s", max_length=2048)
    print(fit)
    print((folder / "s" / "loss.csv").read_text())


if __name__ == "__main__":
    main()
