"""The architecture of a decoder: what differs between model families, as values."""

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from jaxdpo.model.rope import RopeConfig


class AttentionConfig(BaseModel):
    """Heads of the attention and what they see."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    num_heads: int = Field(gt=0, description="Query heads.")
    num_kv_heads: int = Field(gt=0, description="Key and value heads; divides num_heads.")
    head_dim: int = Field(gt=0, multiple_of=2, description="Channels of a head.")
    qkv_bias: bool = Field(
        default=False, description="Whether the q, k and v projections have a bias."
    )
    output_bias: bool = Field(
        default=False, description="Whether the output projection has a bias."
    )
    windows: tuple[PositiveInt | None, ...] | None = Field(
        default=None,
        description="For each layer, how many positions back it sees (itself counted).",
    )


class MLPConfig(BaseModel):
    """The gated feed-forward layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    intermediate_size: int = Field(gt=0, description="Channels between the projections.")
    bias: bool = Field(default=False, description="Whether the three projections have a bias.")


class ModelConfig(BaseModel):
    """A decoder's architecture; hashable, so it can be a static argument of `jax.jit`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    vocab_size: int = Field(gt=0, description="Rows of the embedding.")
    hidden_size: int = Field(gt=0, description="Channels of the residual stream.")
    num_layers: int = Field(gt=0, description="Blocks.")
    attention: AttentionConfig = Field(description="Heads and windows.")
    mlp: MLPConfig = Field(description="Feed-forward layer.")
    rope: RopeConfig = Field(default=RopeConfig(), description="Rotary position embedding.")
    norm_eps: float = Field(
        default=1e-6, gt=0, description="Added to the mean square in the norms."
    )
    tied_head: bool = Field(
        default=False, description="Whether the head is the embedding, transposed."
    )
    logit_scale: float = Field(default=1.0, description="Factor on the logits.")
    logit_softcap: float | None = Field(
        default=None, gt=0, description="Bound c of the logits after scaling: c · tanh(logits / c)."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        heads, kv_heads = self.attention.num_heads, self.attention.num_kv_heads
        if heads % kv_heads:
            raise ValueError(f"num_heads {heads} is not a multiple of num_kv_heads {kv_heads}")
        windows = self.attention.windows
        if windows is not None and len(windows) != self.num_layers:
            raise ValueError(f"{len(windows)} windows for {self.num_layers} layers")
        return self
