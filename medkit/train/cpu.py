"""Training and decoding on a CPU: everything that differs from a GPU is in this module.

On a GPU, Unsloth and Transformers do all of it. On a CPU the rows of a batch are laid end to end without
padding, each attends to itself only, and what all of them begin with is computed once. Unsloth's CPU backend
does not lay rows end to end, since PyTorch has no attention for a CPU that keeps rows apart without computing
every pair of them; `row_by_row` does. DECISIONS.md ("Batches and attention on a CPU") has the figures.
"""

from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from types import MethodType

from medkit.prompts import IGNORED

ROW_BY_ROW = "row_by_row"  # as Transformers' table of attention functions knows it
# Tokens from which a row's attention is PyTorch's fused kernel: as plain products, every layer keeps heads x
# tokens x tokens numbers for the backward pass.
FUSED_FROM = 512
UNPACKED_GB = 1.0  # of 4-bit weights that are computed with unpacked
ROUND = 16  # tokens after which the answers that have ended leave their batch


class Engine:
    """How a batch is computed in training: on a CPU whole rows laid end to end, at most micro_batch_tokens a
    pass (0: no limit); on a GPU in one pass."""

    def __init__(self, model, micro_batch_tokens: int):
        self.lays_rows_end_to_end = not on_gpu()  # without TRL's packing
        self.micro_batch_tokens = 0 if on_gpu() else micro_batch_tokens
        self.most = tokens_per_pass(model, micro_batch_tokens)
        self.sharing = _base(model).config._attn_implementation == ROW_BY_ROW

    def passes(self, batch: dict) -> list[dict]:
        """The batch as the forward passes it is computed in."""
        return split_passes(batch, self.most, self.sharing) if self.lays_rows_end_to_end else [batch]

    def out_of_memory(self, batch_size: int, max_length: int) -> tuple[str, str]:
        """What was computed at once when memory ran out, and the fix that keeps the updates as they are."""
        if self.micro_batch_tokens:
            return f"{self.micro_batch_tokens} tokens", "halve micro_batch_tokens"
        return f"{batch_size} rows of up to {max_length} tokens", "halve batch_size and double accumulation"


@contextmanager
def training(model, micro_batch_tokens: int = 0):
    """The Engine that `model` trains with; on a CPU the model takes rows laid end to end meanwhile."""
    with padding_free(model):
        yield Engine(model, micro_batch_tokens)


def on_gpu() -> bool:
    """Where TRL packs rows, and Unsloth's own kernels compute."""
    import torch

    return torch.cuda.is_available()


def compute_unpacked(model) -> None:
    """Have a CPU's 4-bit layers compute with their weights unpacked once, where all of them take less than
    UNPACKED_GB; on a GPU nothing changes.

    bitsandbytes unpacks a layer anew at each pass, forwards and backwards: a sixth of a step of short rows.
    The values are the same. On processors with AVX-512 BF16 it also repacks the weights when a model answers,
    and back with rounded constants when it trains on; a layer that does not unpack does not repack.
    """
    if on_gpu():
        return
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    layers = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    size = sum(layer.weight.quant_state.shape.numel() * layer.compute_dtype.itemsize for layer in layers)
    if size > UNPACKED_GB * 1e9:
        return
    for layer in layers:
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(layer.compute_dtype)
        layer.forward = partial(_linear, weight=weight, bias=layer.bias)


def _linear(x, weight, bias):
    """In the weights' dtype, the result in the input's, as bitsandbytes has it."""
    import torch

    return torch.nn.functional.linear(x.to(weight.dtype), weight, bias).to(x.dtype)


def tokens_per_pass(model, tokens: int) -> int:
    """How many of micro_batch_tokens a pass holds: all in bfloat16; half in float32, which takes twice the
    memory and is what a processor without bfloat16 computes in."""
    return tokens // 2 if model.get_input_embeddings().weight.element_size() == 4 else tokens


def split_passes(batch: dict, most: int, sharing: bool) -> list[dict]:
    """A padding-free batch (entries of shape (1, tokens), `position_ids` from 0 in every row) as forward
    passes of whole rows, in their order, of at most `most` tokens (0: one pass); a longer row is a pass.

    `sharing`: what all rows begin with, the instruction, is in each pass once, before its first row; the
    others go on from there (row_by_row has them attend to it). Loss and gradient stay the same.
    """
    import torch

    lengths = row_lengths(batch["position_ids"])
    start = shared_start(batch, lengths) if sharing else 0
    places, room = [], 0
    for end, length in zip(accumulate(lengths), lengths, strict=True):
        own = length - start
        if not places or (most and own > room):
            places.append([torch.arange(end - length, end)])
            room = most - length
        else:
            places[-1].append(torch.arange(end - own, end))
            room -= own
    return [{name: one[:, torch.cat(part)] for name, one in batch.items()} for part in places]


def shared_start(batch: dict, lengths: list[int]) -> int:
    """How many tokens all rows of the batch begin with, as long as no row learns to predict one of them or
    the next, and each row has a further token."""
    import torch

    most = min(lengths) - 1
    ids, labels = (batch[name][0].split(lengths) for name in ("input_ids", "labels"))
    begin = torch.stack([one[:most] for one in ids])
    learnt = torch.stack([one[1 : most + 1] for one in labels]) != IGNORED
    ends = ((begin != begin[0]) | learnt).any(0).nonzero()
    return ends[0, 0].item() if len(ends) else most


def row_lengths(position_ids) -> list[int]:
    """Tokens of each row that is laid into position_ids of shape (1, tokens), shared ones counted once."""
    goes_on = position_ids[0, 1:] == position_ids[0, :-1] + 1
    ends = [*((~goes_on).nonzero()[:, 0] + 1).tolist(), position_ids.shape[1]]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def row_by_row(module, query, key, value, attention_mask, scaling, position_ids=None, **_):
    """Causal attention within each row: query of shape (1, heads, tokens, head size), output of (1, tokens,
    heads, head size). A row whose positions begin at n attends to the first n tokens, too.

    As plain products in short rows: forwards and backwards PyTorch's fused kernel takes up to twice as long
    on a CPU.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if query.shape[0] != 1:
        raise ValueError(f"rows laid end to end are one sequence, not {query.shape[0]}")
    groups = query.shape[1] // key.shape[1]
    key, value = (one[0].repeat_interleave(groups, dim=0) for one in (key, value))
    lengths = row_lengths(position_ids) if position_ids is not None else [query.shape[2]]
    shared = position_ids[0, lengths[0]].item() if len(lengths) > 1 else 0
    rows = zip(*(one.split(lengths, dim=1) for one in (query[0] * scaling, key, value)), strict=True)
    answers = []
    for q, k, v in rows:
        if shared and answers:
            k, v = (torch.cat([all_[:, :shared], own], dim=1) for all_, own in ((key, k), (value, v)))
        ahead = None
        if k.shape[1] < FUSED_FROM or k.shape[1] > q.shape[1]:
            ahead = torch.full((q.shape[1], k.shape[1]), torch.finfo(q.dtype).min, dtype=q.dtype)
            ahead = ahead.triu(1 + k.shape[1] - q.shape[1])
        if k.shape[1] < FUSED_FROM:
            answers.append(torch.baddbmm(ahead, q, k.transpose(1, 2)).softmax(-1) @ v)
        else:
            causal = ahead is None
            fused = scaled_dot_product_attention(
                q[None], k[None], v[None], ahead, is_causal=causal, scale=1.0
            )
            answers.append(fused[0])
    return torch.cat(answers, dim=1).transpose(0, 1)[None], None


def lora_in_one_product(self, x, *_, **__):
    """PEFT's base + scale * B(A x), added within the product with B; the base alone where the adapter is
    switched off. PEFT copies, scales, converts and adds in turn, each over the layer's full width."""
    import torch

    base = self.base_layer(x)
    if self.disable_adapters:
        return base
    name = self.active_adapters[0]
    down, up = (lora[name].weight.to(x.dtype) for lora in (self.lora_A, self.lora_B))
    low = torch.nn.functional.linear(x, down)
    wide = torch.addmm(base.flatten(0, -2), low.flatten(0, -2), up.t(), alpha=self.scaling[name])
    return wide.view_as(base)


@contextmanager
def padding_free(model):
    """The model as it takes rows laid end to end, with LoRA in one product; on a GPU, as it is."""
    if on_gpu():
        yield
        return
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ROW_BY_ROW, row_by_row)
    AttentionMaskInterface.register(ROW_BY_ROW, lambda *args, **kwargs: None)
    base = _base(model)
    answers_with = base.config._attn_implementation
    base.set_attn_implementation(ROW_BY_ROW if plainly_causal(base.config) else "eager")
    try:
        with fused_lora(model):
            yield
    finally:
        base.set_attn_implementation(answers_with)


@contextmanager
def fused_lora(model):
    """The model as it answers: its adapter's layers computed in one product; on a GPU, or where they are
    already, as it is."""
    layers = [one for one in model.modules() if _plain_lora(one) and "forward" not in vars(one)]
    layers = [] if on_gpu() else layers
    for layer in layers:
        layer.forward = MethodType(lora_in_one_product, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _base(model):
    """The Transformers model, of a PEFT model the one within."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _plain_lora(layer) -> bool:
    """Whether it is a linear layer with one adapter: no dropout, no bias in B, no variant such as DoRA."""
    from peft.tuners.lora import LoraLayer
    from torch import nn

    if not isinstance(layer, LoraLayer) or not isinstance(layer.get_base_layer(), nn.Linear):
        return False
    if len(layer.lora_B) != 1:
        return False
    (dropout,), (up,) = layer.lora_dropout.values(), layer.lora_B.values()
    return isinstance(dropout, nn.Identity) and up.bias is None and not layer.lora_variant


def plainly_causal(config) -> bool:
    """Whether every layer attends to all tokens before. Where not, Transformers' own attention computes every
    pair of rows, and masks: slower, and right for any model."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    capped = getattr(config, "attn_logit_softcapping", None)
    return kinds == {"full_attention"} and not (windowed or capped)


def decodes_in_rounds(model) -> bool:
    """Whether a batch is decoded in rounds, from a cache that medkit passes on: on a CPU. On a GPU a prompt's
    pass is a small part of an answer, and ended answers cost little. A window of attention would count the
    padding behind the shared start."""
    on_cpu = model.get_input_embeddings().weight.device.type == "cpu"
    return on_cpu and plainly_causal(model.config)


def decode(model, ids, mask, cache, stops: list[int], max_new_tokens: int, settings) -> list[list[int]]:
    """The tokens that the model answers each row of `ids` with, up to and including one of `stops`.

    ids, mask: of shape (rows, tokens), with padding where the mask is 0; cache: of the tokens that all rows
    begin with, or None; settings(new tokens, unfinished rows): further arguments of model.generate. On a CPU
    finished rows leave the batch after each ROUND of tokens.
    """
    import torch

    most = ROUND if decodes_in_rounds(model) else max_new_tokens
    answers: list[list[int]] = [[] for _ in ids]
    going = list(range(len(ids)))
    for begin in range(0, max_new_tokens, most):
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            **({"past_key_values": cache} if cache else {}),
            **settings(min(most, max_new_tokens - begin), going),
        )
        new = output.sequences[:, ids.shape[1] :].tolist()
        for row, tokens in zip(going, new, strict=True):
            answers[row] += tokens
        stay = [place for place, tokens in enumerate(new) if not set(tokens) & set(stops)]
        if not stay or begin + most >= max_new_tokens:
            break
        going, kept = [going[place] for place in stay], torch.tensor(stay, device=ids.device)
        ids, cache = output.sequences[kept], output.past_key_values
        cache.batch_select_indices(kept)
        mask = torch.nn.functional.pad(mask[kept], (0, ids.shape[1] - mask.shape[1]), value=1)
    return answers
