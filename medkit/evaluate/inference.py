"""What scoring and answering share: evaluation mode, padding, and a common prefix computed once."""

import contextlib
import copy
from collections.abc import Iterator, Sequence

import torch
from transformers import Cache, DynamicCache


@contextlib.contextmanager
def evaluating(model) -> Iterator[None]:
    """The model in evaluation mode, put back afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def context(model) -> int | None:
    """Positions that the model has for prompt and answer together; None where it does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def padded(model, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Token ids as (rows, tokens) on the model's device. Padding is on the right, where no token of a causal
    model sees it: it needs no mask, and any token will do."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return ids.to(model.get_input_embeddings().weight.device)


@torch.no_grad()  # not inference_mode: the model may be trained afterwards, with what it cached here
def computed(model, ids: tuple[int, ...]) -> Cache:
    """The model's key-value cache after `ids`. Unsloth's forward on a GPU gives keys and values as a tuple a
    layer; they come back in a DynamicCache."""
    found = model(input_ids=padded(model, [ids]), use_cache=True).past_key_values
    return found if isinstance(found, Cache) else DynamicCache(found)


def for_rows(cache: Cache, rows: int) -> Cache:
    """A copy of the cache for a batch: the model appends to what it is given."""
    copied = copy.deepcopy(cache)
    copied.batch_repeat_interleave(rows)
    return copied
