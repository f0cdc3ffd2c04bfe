"""Helpers for scoring and generation: evaluation mode, padding, and a shared prefix computed once."""

import contextlib
import copy
from collections.abc import Iterator, Sequence

import torch
from transformers import Cache, DynamicCache


@contextlib.contextmanager
def evaluation_mode(model) -> Iterator[None]:
    """Puts the model in evaluation mode; restores its previous mode on exit."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def context_length(model) -> int | None:
    """Maximum tokens of prompt and answer together; None if the model's config does not define it."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def pad_right(model, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Token ids of shape (rows, tokens). A causal model never attends to padding on the right, so it needs
    no mask."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return ids.to(model.get_input_embeddings().weight.device)


@torch.no_grad()  # not inference_mode: the model may be trained later, with tensors it cached here
def prefill(model, ids: tuple[int, ...]) -> Cache:
    """The model's key-value cache after `ids`. On a GPU, Unsloth returns tuples instead of a Cache."""
    cache = model(input_ids=pad_right(model, [ids]), use_cache=True).past_key_values
    return cache if isinstance(cache, Cache) else DynamicCache(cache)


def repeat_cache(cache: Cache, rows: int) -> Cache:
    """A copy of the cache for a batch of `rows`; a copy because the model appends to it."""
    batch_cache = copy.deepcopy(cache)
    batch_cache.batch_repeat_interleave(rows)
    return batch_cache
