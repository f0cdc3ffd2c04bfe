"""Training and decoding on a CPU: everything that differs from a GPU is in this module.

On a GPU, Unsloth and Transformers are used unchanged. On a CPU the rows of a batch are concatenated without
padding, each row attends only to itself, and the prefix that all rows share is computed once. Unsloth's CPU
backend does not support this, since PyTorch's CPU attention can only separate concatenated rows with a mask,
which costs time for every pair of rows. `row_by_row` avoids that. DECISIONS.md ("Batches and attention on a
CPU") has measurements.
"""

from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from types import MethodType

from medkit.prompts import IGNORED

ROW_BY_ROW = "row_by_row"  # the name under which Transformers knows the attention function
# Rows of at least this many tokens use PyTorch's fused attention. The explicit products of shorter rows keep
# heads x tokens x tokens numbers per layer for the backward pass.
FUSED_FROM = 512
UNPACKED_GB = 1.0  # up to this size, 4-bit weights are kept dequantized
ROUND = 16  # tokens after which finished answers are removed from their batch


class Engine:
    """How a training batch is computed: on a GPU in one pass, on a CPU in padding-free passes of up to
    `micro_batch_tokens` tokens (0: no limit)."""

    def __init__(self, model, micro_batch_tokens: int):
        self.padding_free = not on_gpu()  # without TRL's packing
        self.micro_batch_tokens = 0 if on_gpu() else micro_batch_tokens
        self.max_tokens = tokens_per_pass(model, micro_batch_tokens)
        self.share_prefix = _base(model).config._attn_implementation == ROW_BY_ROW

    def passes(self, batch: dict) -> list[dict]:
        """Split a batch into forward passes."""
        return split_passes(batch, self.max_tokens, self.share_prefix) if self.padding_free else [batch]

    def out_of_memory(self, batch_size: int, max_length: int) -> tuple[str, str]:
        """The size of a pass, and a fix for too little memory that does not change the updates."""
        if self.micro_batch_tokens:
            return f"{self.micro_batch_tokens} tokens", "halve micro_batch_tokens"
        return f"{batch_size} rows of up to {max_length} tokens", "halve batch_size and double accumulation"


@contextmanager
def training(model, micro_batch_tokens: int = 0):
    """Yield the Engine to train `model` with. On a CPU the model accepts padding-free batches meanwhile."""
    with padding_free(model):
        yield Engine(model, micro_batch_tokens)


def on_gpu() -> bool:
    """Whether a GPU is available, where TRL packs rows and Unsloth's kernels are used."""
    import torch

    return torch.cuda.is_available()


def compute_unpacked(model) -> None:
    """On a CPU, dequantize the 4-bit layers once if their weights take up to UNPACKED_GB.

    The values do not change. bitsandbytes dequantizes a layer in every forward and backward pass, which takes
    a sixth of a step of short rows. With AVX-512 BF16 it also repacks the weights for inference and, with
    rounded constants, back for training; dequantized layers are not repacked.
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
    """Compute in the weights' dtype and return the input's dtype, like bitsandbytes."""
    import torch

    return torch.nn.functional.linear(x.to(weight.dtype), weight, bias).to(x.dtype)


def tokens_per_pass(model, tokens: int) -> int:
    """The tokens per forward pass: micro_batch_tokens in bfloat16, half of it in float32, which takes twice
    the memory (processors without bfloat16)."""
    return tokens // 2 if model.get_input_embeddings().weight.element_size() == 4 else tokens


def split_passes(batch: dict, max_tokens: int, share_prefix: bool) -> list[dict]:
    """Split a padding-free batch into forward passes of complete rows, in order.

    batch: entries of shape (1, tokens); `position_ids` start at 0 in every row. max_tokens: tokens per pass
    (0: a single pass); a longer row gets its own pass. share_prefix: the prefix that all rows share, such as
    the instruction, occurs once per pass, before its first row; the other rows continue from it and attend to
    it (row_by_row). Loss and gradient do not change.
    """
    import torch

    lengths = row_lengths(batch["position_ids"])
    prefix = shared_prefix(batch, lengths) if share_prefix else 0
    passes, room = [], 0  # token indices of each pass, and the last pass's remaining tokens
    for end, length in zip(accumulate(lengths), lengths, strict=True):
        suffix = length - prefix
        if not passes or (max_tokens and suffix > room):
            passes.append([torch.arange(end - length, end)])
            room = max_tokens - length
        else:
            passes[-1].append(torch.arange(end - suffix, end))
            room -= suffix
    return [{name: values[:, torch.cat(indices)] for name, values in batch.items()} for indices in passes]


def shared_prefix(batch: dict, lengths: list[int]) -> int:
    """The number of tokens that all rows begin with. No row may learn to predict one of them or the token
    after them, and every row must have at least one more token."""
    import torch

    longest = min(lengths) - 1
    ids, labels = (batch[name][0].split(lengths) for name in ("input_ids", "labels"))
    starts = torch.stack([row[:longest] for row in ids])
    supervised = torch.stack([row[1 : longest + 1] for row in labels]) != IGNORED
    ends = ((starts != starts[0]) | supervised).any(0).nonzero()
    return ends[0, 0].item() if len(ends) else longest


def row_lengths(position_ids) -> list[int]:
    """The length of each row in padding-free position_ids (1, tokens), counting a shared prefix once."""
    continues = position_ids[0, 1:] == position_ids[0, :-1] + 1
    ends = [*((~continues).nonzero()[:, 0] + 1).tolist(), position_ids.shape[1]]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def row_by_row(module, query, key, value, attention_mask, scaling, position_ids=None, **_):
    """Causal attention within each row of a padding-free batch.

    query: (1, heads, tokens, head size). Returns (1, tokens, heads, head size). A row whose positions begin
    at n also attends to the first n tokens. Short rows use explicit products: for them PyTorch's fused CPU
    kernel takes up to twice as long, forward and backward.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if query.shape[0] != 1:
        raise ValueError(f"a padding-free batch has one sequence, not {query.shape[0]}")
    groups = query.shape[1] // key.shape[1]
    key, value = (states[0].repeat_interleave(groups, dim=0) for states in (key, value))
    lengths = row_lengths(position_ids) if position_ids is not None else [query.shape[2]]
    prefix = position_ids[0, lengths[0]].item() if len(lengths) > 1 else 0
    rows = zip(*(states.split(lengths, dim=1) for states in (query[0] * scaling, key, value)), strict=True)
    outputs = []
    for q, k, v in rows:
        if prefix and outputs:
            k = torch.cat([key[:, :prefix], k], dim=1)
            v = torch.cat([value[:, :prefix], v], dim=1)
        mask = None
        if k.shape[1] < FUSED_FROM or k.shape[1] > q.shape[1]:
            mask = torch.full((q.shape[1], k.shape[1]), torch.finfo(q.dtype).min, dtype=q.dtype)
            mask = mask.triu(1 + k.shape[1] - q.shape[1])
        if k.shape[1] < FUSED_FROM:
            outputs.append(torch.baddbmm(mask, q, k.transpose(1, 2)).softmax(-1) @ v)
        else:
            fused = scaled_dot_product_attention(
                q[None], k[None], v[None], mask, is_causal=mask is None, scale=1.0
            )
            outputs.append(fused[0])
    return torch.cat(outputs, dim=1).transpose(0, 1)[None], None


def fused_lora_forward(self, x, *_, **__):
    """PEFT's base + scale * B(A x), with the sum fused into the product with B; only the base if the adapter
    is disabled. PEFT copies, scales, converts and adds in separate operations over the layer's full width."""
    import torch

    base = self.base_layer(x)
    if self.disable_adapters:
        return base
    name = self.active_adapters[0]
    down, up = (lora[name].weight.to(x.dtype) for lora in (self.lora_A, self.lora_B))
    low_rank = torch.nn.functional.linear(x, down)
    output = torch.addmm(base.flatten(0, -2), low_rank.flatten(0, -2), up.t(), alpha=self.scaling[name])
    return output.view_as(base)


@contextmanager
def padding_free(model):
    """Make the model accept padding-free batches, with fused LoRA. Does nothing on a GPU."""
    if on_gpu():
        yield
        return
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ROW_BY_ROW, row_by_row)
    AttentionMaskInterface.register(ROW_BY_ROW, lambda *args, **kwargs: None)
    base = _base(model)
    attention = base.config._attn_implementation
    base.set_attn_implementation(ROW_BY_ROW if is_fully_causal(base.config) else "eager")
    try:
        with fused_lora(model):
            yield
    finally:
        base.set_attn_implementation(attention)


@contextmanager
def fused_lora(model):
    """Compute the adapter's layers with `fused_lora_forward`. Does nothing on a GPU, or for layers that
    already use it."""
    if on_gpu():
        yield
        return
    layers = [layer for layer in model.modules() if _is_plain_lora(layer) and "forward" not in vars(layer)]
    for layer in layers:
        layer.forward = MethodType(fused_lora_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _base(model):
    """The Transformers model, which a PEFT model wraps."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _is_plain_lora(layer) -> bool:
    """Whether this is a linear layer with one LoRA adapter, without dropout, bias or a variant such as
    DoRA."""
    from peft.tuners.lora import LoraLayer
    from torch import nn

    if not isinstance(layer, LoraLayer) or not isinstance(layer.get_base_layer(), nn.Linear):
        return False
    if len(layer.lora_B) != 1:
        return False
    (dropout,), (up,) = layer.lora_dropout.values(), layer.lora_B.values()
    return isinstance(dropout, nn.Identity) and up.bias is None and not layer.lora_variant


def is_fully_causal(config) -> bool:
    """Whether every layer attends to all previous tokens. Other models use Transformers' attention with a
    mask over the whole batch, which is slower."""
    config = config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    capped = getattr(config, "attn_logit_softcapping", None)
    return layer_types == {"full_attention"} and not (windowed or capped)


def decodes_in_rounds(model) -> bool:
    """Whether answers are decoded in rounds, from a cache with the shared prefix: on a CPU only.

    On a GPU the prompt is a small part of the time, and finished answers cost little. Models with an
    attention window are excluded, since the window would count the padding after the shared prefix.
    """
    on_cpu = model.get_input_embeddings().weight.device.type == "cpu"
    return on_cpu and is_fully_causal(model.config)


def decode(model, ids, mask, cache, stops: list[int], max_new_tokens: int, settings) -> list[list[int]]:
    """Generate an answer to each row of `ids`: its tokens, up to and including one of `stops`.

    ids, mask: shape (rows, tokens), with padding where the mask is 0. cache: the key-value cache of the
    prefix that all rows share, or None. settings: a function of the number of new tokens and the unfinished
    rows that returns further arguments of model.generate. On a CPU finished rows leave the batch every ROUND
    tokens.
    """
    import torch

    round_tokens = ROUND if decodes_in_rounds(model) else max_new_tokens
    answers: list[list[int]] = [[] for _ in ids]
    rows = list(range(len(ids)))  # of the unfinished answers
    for begin in range(0, max_new_tokens, round_tokens):
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            **({"past_key_values": cache} if cache else {}),
            **settings(min(round_tokens, max_new_tokens - begin), rows),
        )
        new_tokens = output.sequences[:, ids.shape[1] :].tolist()
        for row, tokens in zip(rows, new_tokens, strict=True):
            answers[row] += tokens
        unfinished = [i for i, tokens in enumerate(new_tokens) if not set(tokens) & set(stops)]
        if not unfinished or begin + round_tokens >= max_new_tokens:
            break
        rows, kept = [rows[i] for i in unfinished], torch.tensor(unfinished, device=ids.device)
        ids, cache = output.sequences[kept], output.past_key_values
        cache.batch_select_indices(kept)
        mask = torch.nn.functional.pad(mask[kept], (0, ids.shape[1] - mask.shape[1]), value=1)
    return answers
