"""The sizes of a model's layers, and the operations per trained token that follow from them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-like model, with the names of its configuration."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool = False
    head_dim: int | None = None

    @classmethod
    def of(cls, config) -> "Shape":
        """The shape of a Transformers configuration. Raises AttributeError if it lacks one of the sizes."""
        config = config.get_text_config()  # of a model that also reads images
        return cls(
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            config.vocab_size,
            bool(getattr(config, "tie_word_embeddings", False)),
            getattr(config, "head_dim", None),
        )

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear module of a layer."""
        head = self.head_dim or self.hidden_size // self.num_attention_heads
        h, f = self.hidden_size, self.intermediate_size
        q, kv = head * self.num_attention_heads, head * self.num_key_value_heads
        return {
            "q_proj": (h, q),
            "k_proj": (h, kv),
            "v_proj": (h, kv),
            "o_proj": (q, h),
            "gate_proj": (h, f),
            "up_proj": (h, f),
            "down_proj": (f, h),
        }

    @property
    def body(self) -> int:
        """Number of weights in all linear modules; these are quantized to 4 bits."""
        return self.num_hidden_layers * sum(a * b for a, b in self.linears.values())

    @property
    def embeddings(self) -> int:
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def parameters(self) -> int:
        return self.body + self.embeddings

    def lora(self, r: int, modules) -> int:
        """Number of LoRA weights: 41,943,040 for Llama 3.1 8B with r = 16 on all seven modules."""
        sizes = [self.linears[name] for name in modules if name in self.linears]
        return self.num_hidden_layers * r * sum(a + b for a, b in sizes)

    def flops_per_token(self, lora: int, checkpointing: bool = False) -> float:
        """Floating-point operations per trained token with frozen weights: per weight 2 forward and 2
        backward to the activations, per LoRA weight 6. Attention scores are not counted.

        Gradient checkpointing repeats the forward pass of the layers, but not of the output layer.
        """
        recomputed = 2.0 * (self.body + lora) if checkpointing else 0.0
        return 4.0 * (self.body + self.vocab_size * self.hidden_size) + 6.0 * lora + recomputed


LLAMA_8B = Shape(4096, 14336, 32, 32, 8, 128256)
