"""What training computes: tokens, speed, memory and FLOPs, over all processes."""

import hashlib
import os
import time

from medkit import MedkitError
from medkit.runs import machine
from medkit.train.cpu import row_lengths

# Dense bf16 FLOP/s and bytes/s by the vendors' data sheets; the first name found in a device's own counts.
DATA_SHEETS = {
    "H100 NVL": (835e12, 3.9e12),
    "H100 PCIe": (756e12, 2.0e12),
    "H100": (989e12, 3.35e12),
    "H200": (989e12, 4.8e12),
    "A100": (312e12, 1.9e12),
}


COUNTED = ("tokens", "positions", "padded", "samples")
DIGITS = {"tokens_per_s": 1, "samples_per_s": 3, "mfu": 4, "padding_share": 4}  # in loss.csv


class TrainerError(MedkitError):
    """Settings that the libraries did not keep, a loss that is no number, or memory or disk that ran out."""


def flops_per_token(model) -> float:
    """Floating-point operations a trained token needs with frozen weights: 2 a weight forward, 2 backward
    to the activations, 6 a LoRA weight; attention's own products and any recomputation are left out."""
    c = model.config
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    attention = c.hidden_size * head * (2 * c.num_attention_heads + 2 * c.num_key_value_heads)
    body = c.num_hidden_layers * (attention + 3 * c.hidden_size * c.intermediate_size)
    lora = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return 4.0 * (body + c.vocab_size * c.hidden_size) + 6.0 * lora


class Meter:
    """Counts what each optimizer step computed, over all processes, and the wall time it took without
    evaluation. `total` is saved with a checkpoint, so that a resumed run goes on counting."""

    def __init__(self, model):
        self.flops = flops_per_token(model)
        self.total: dict[str, float] = dict.fromkeys((*COUNTED, "seconds"), 0)
        self.begin_step()

    def begin_step(self) -> None:
        self.began, self.step = time.perf_counter(), [0] * 5

    def count(self, batch: dict) -> dict:
        """Count a batch, padded or with rows laid end to end. Returns it without `samples`
        (batches.collate_with_marks), which the model does not take."""
        counted = batch.pop("samples", None)
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        if mask is not None:
            lengths = mask.sum(dim=1).tolist()
        elif (packed := batch.get("packed_seq_lengths")) is not None:
            lengths = packed.tolist()
        else:
            lengths = row_lengths(batch["position_ids"])
        digest = int.from_bytes(hashlib.sha256(ids.cpu().numpy().tobytes()).digest()[:6])
        samples = len(lengths) if counted is None else int(counted)
        seen = (sum(lengths), ids.numel(), len(lengths) * max(lengths), samples, digest)
        self.step = [one + more for one, more in zip(self.step, seen, strict=True)]
        return batch

    def end_step(self) -> dict:
        """The columns of loss.csv that describe the step just done."""
        *counts, digest = _over_processes(self.step)
        step = {**dict(zip(COUNTED, counts, strict=True)), "seconds": time.perf_counter() - self.began}
        self.total = {name: value + step[name] for name, value in self.total.items()}
        rates = {
            name: value if value is None else round(value, DIGITS[name])
            for name, value in self._rates(step).items()
        }
        return {
            "tokens": self.total["tokens"],
            **rates,
            "peak_memory_gb": peak_memory_gb(),
            # A sum, so that it does not depend on how the forward passes are shared among processes.
            "batch": f"{digest % 2**48:012x}",
        }

    def totals(self) -> dict:
        tokens, padded = self.total["tokens"], self.total["padded"]
        return {
            "tokens": tokens,
            "samples": self.total["samples"],
            **self._rates(self.total),
            "padding_share_padded": 1 - tokens / max(padded, 1),
            "peak_memory_gb": peak_memory_gb(),
        }

    def _rates(self, counts: dict) -> dict[str, float | None]:
        """mfu: model FLOP/s utilization, the share of the devices' peak; None where that is not known."""
        import torch

        seconds = max(counts["seconds"], 1e-9)
        speed = counts["tokens"] / seconds
        peak = data_sheet(torch.cuda.get_device_name())[0] if torch.cuda.is_available() else 0.0
        return {
            "tokens_per_s": speed,
            "samples_per_s": counts["samples"] / seconds,
            "padding_share": 1 - counts["tokens"] / max(counts["positions"], 1),
            "mfu": speed * self.flops / peak / processes() if peak else None,
        }


def processes() -> int:
    """How many were launched to train together, as torchrun and accelerate tell it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def any_process(flag: bool) -> bool:
    """Whether it is set in any of the processes that train together."""
    return bool(_over_processes([int(flag)])[0])


def _over_processes(counts: list[int]) -> list[int]:
    """The sums over all processes that train together."""
    import torch

    if processes() == 1:
        return counts
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    summed = torch.tensor(counts, dtype=torch.int64, device=device)
    torch.distributed.all_reduce(summed)
    return summed.tolist()


def peak_memory_gb() -> float:
    """Of the GPU where there is one, else of this process, in 10^9 bytes."""
    held = machine.peak_memory()
    return held.get("peak_gpu_memory_gb", held["peak_memory_gb"])


def data_sheet(device: str) -> tuple[float, float]:
    """(FLOP/s, bytes/s) of a GPU; zeros where they are not known."""
    return next((speeds for name, speeds in DATA_SHEETS.items() if name in device), (0.0, 0.0))
