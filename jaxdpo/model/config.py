"""The architecture of a decoder: what differs between model families, as values."""

from typing import Literal

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, model_validator

from jaxdpo.model.rope import QueryScaling, RopeConfig

NormKind = Literal["rms", "rms-fp32", "rms-plus-one", "layer", "layer-unbiased", "layer-plus-one"]
Activation = Literal["silu", "gelu", "gelu-tanh", "relu2"]


class NormConfig(BaseModel, frozen=True, extra="forbid"):
    """The norms, and where a layer has them."""

    kind: NormKind = Field(
        default="rms",
        description="rms: rounds to the activations' dtype, then scales; rms-fp32: scales, then "
        "rounds; rms-plus-one: the same with 1 + scale; layer: LayerNorm, with a bias; "
        "layer-unbiased: without; layer-plus-one: with a bias and 1 + scale.",
    )
    eps: float = Field(default=1e-6, gt=0, description="Added to the mean square.")
    before: bool = Field(
        default=True, description="Whether attention and MLP read a normed residual stream."
    )
    after: bool = Field(
        default=False, description="Whether what they add to the residual stream is normed."
    )


class AttentionConfig(BaseModel, frozen=True, extra="forbid"):
    """Heads of the attention, their positions, and what they see."""

    num_heads: int = Field(gt=0, description="Query heads.")
    num_kv_heads: int = Field(gt=0, description="Key and value heads; divides num_heads.")
    head_dim: int = Field(gt=0, description="Channels of a head.")
    qkv_bias: bool = Field(
        default=False, description="Whether the q, k and v projections have a bias."
    )
    output_bias: bool = Field(
        default=False, description="Whether the output projection has a bias."
    )
    qk_norm: Literal["head", "flat", "head-rotated"] | None = Field(
        default=None,
        description="Norm of queries and keys before rotation: each head by itself, or all as one; "
        "head-rotated: each head by itself, after rotation.",
    )
    scale: float | None = Field(
        default=None, gt=0, description="Factor on the scores; None for head_dim^-½."
    )
    softcap: float | None = Field(
        default=None, gt=0, description="Bound c of the scores: c · tanh(scores / c)."
    )
    windows: tuple[PositiveInt | None, ...] | None = Field(
        default=None,
        description="For each layer, how many positions back it sees (itself counted).",
    )
    rope: RopeConfig | None = Field(
        default=RopeConfig(),
        description="Rotary position embedding of all layers; None where layer_ropes is given, or "
        "without any.",
    )
    layer_ropes: tuple[RopeConfig | None, ...] | None = Field(
        default=None, description="That of each layer, where they differ; None for no rotation."
    )

    interleaved: bool = Field(
        default=False,
        description="Whether neighbouring channels are rotated together, and not i with i + r/2.",
    )
    query_scaling: QueryScaling | None = Field(
        default=None, description="Factor on the queries by their position, after rotation."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "AttentionConfig":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.rope is not None and self.layer_ropes is not None:
            raise ValueError("rope and layer_ropes are both given")
        rotated = {rope.rotated(self.head_dim) for rope in self.ropes}
        if len(rotated) > 1:
            raise ValueError("the layers rotate different numbers of channels")
        if any(channels % 2 or not channels for channels in rotated):
            raise ValueError(
                f"head_dim {self.head_dim}: {rotated.pop()} channels are rotated, which must be "
                "an even number"
            )
        return self

    @property
    def ropes(self) -> tuple[RopeConfig, ...]:
        """The different rotary embeddings of the layers."""
        each = (self.rope,) if self.layer_ropes is None else self.layer_ropes
        return tuple(dict.fromkeys(rope for rope in each if rope is not None))


class SharedExpert(BaseModel, frozen=True, extra="forbid"):
    """An MLP that every token goes to, beside those that the router chooses."""

    intermediate_size: int = Field(gt=0, description="Channels between its projections.")
    gated: bool = Field(
        default=False, description="Whether its output is multiplied by a sigmoid of the token's."
    )


class DenseLayers(BaseModel, frozen=True, extra="forbid"):
    """Layers of a model with experts that have one MLP in their place."""

    layers: tuple[NonNegativeInt, ...] = Field(
        min_length=1, description="Numbers of the layers, rising from 0."
    )
    intermediate_size: int = Field(gt=0, description="Channels between the projections.")


class ExpertsConfig(BaseModel, frozen=True, extra="forbid"):
    """A mixture of experts in place of each layer's MLP (https://arxiv.org/abs/2101.03961)."""

    num_experts: int = Field(gt=0, description="Experts of a layer.")
    per_token: int = Field(gt=0, description="Experts that each token goes to, the likeliest.")
    normalized: bool = Field(
        default=True, description="Whether the chosen experts' scores are made to sum to 1."
    )
    score: Literal["softmax", "sigmoid"] = Field(
        default="softmax",
        description="What the router makes of its logits: probabilities of all experts together, "
        "or a number between 0 and 1 for each by itself.",
    )
    correction: bool = Field(
        default=False,
        description="Whether a number of each expert is added to its score for the choice alone "
        "(https://arxiv.org/abs/2408.15664).",
    )
    groups: int = Field(default=1, gt=0, description="Groups that the experts are divided into.")
    groups_per_token: int = Field(
        default=1, gt=0, description="Groups that each token's experts are chosen from, the best."
    )
    scale: float = Field(default=1.0, gt=0, description="Factor on the chosen experts' scores.")
    shared: SharedExpert | None = Field(
        default=None, description="An MLP beside the experts; None for none."
    )
    dense: DenseLayers | None = Field(
        default=None, description="Layers without experts; None where all layers have them."
    )
    router_loss: float = Field(
        default=0.0, ge=0, description="Factor on the load-balancing loss, in training."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ExpertsConfig":
        if self.per_token > self.num_experts:
            raise ValueError(f"{self.per_token} experts a token, of {self.num_experts}")
        if self.num_experts % self.groups or self.groups_per_token > self.groups:
            raise ValueError(
                f"{self.groups_per_token} of {self.groups} groups of {self.num_experts} experts"
            )
        if self.per_token > self.num_experts // self.groups * self.groups_per_token:
            raise ValueError(
                f"{self.per_token} experts a token, in {self.groups_per_token} of {self.groups} "
                f"groups of {self.num_experts} experts"
            )
        return self


class MLPConfig(BaseModel, frozen=True, extra="forbid"):
    """The feed-forward layer, or each of its experts."""

    intermediate_size: int = Field(gt=0, description="Channels between the projections.")
    bias: bool = Field(default=False, description="Whether the projections have a bias.")
    activation: Activation = Field(default="silu", description="Between the projections.")
    gated: bool = Field(
        default=True, description="Whether a third projection, the gate, is multiplied in."
    )
    experts: ExpertsConfig | None = Field(
        default=None, description="Mixture of experts; None for one MLP."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "MLPConfig":
        if self.experts is not None and (self.bias or not self.gated):
            raise ValueError("experts with a bias, or without a gate, are not implemented")
        return self


class ModelConfig(BaseModel, frozen=True, extra="forbid"):
    """A decoder's architecture; hashable, so it can be a static argument of `jax.jit`."""

    vocab_size: int = Field(gt=0, description="Rows of the embedding.")
    hidden_size: int = Field(gt=0, description="Channels of the residual stream.")
    num_layers: int = Field(gt=0, description="Blocks.")
    attention: AttentionConfig = Field(description="Heads, positions and windows.")
    mlp: MLPConfig = Field(description="Feed-forward layer.")
    norm: NormConfig = Field(default=NormConfig(), description="Norms.")
    learned_positions: int | None = Field(
        default=None, gt=0, description="Rows of a learned embedding of positions; None for none."
    )
    embed_scale: float = Field(default=1.0, description="Factor on the embeddings.")
    parallel: bool = Field(
        default=False,
        description="Whether the MLP reads what the attention reads, under the same norm, and both "
        "are added to the residual stream at once.",
    )
    residual_scale: float = Field(
        default=1.0, description="Factor on what attention and MLP add to the residual stream."
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
        for name in ("windows", "layer_ropes"):
            each = getattr(self.attention, name)
            if each is not None and len(each) != self.num_layers:
                raise ValueError(f"{len(each)} {name} for {self.num_layers} layers")
        dense = self.mlp.experts and self.mlp.experts.dense
        if dense and (
            sorted(set(dense.layers)) != list(dense.layers)
            or not dense.layers[-1] < self.num_layers
            or len(dense.layers) == self.num_layers
        ):
            raise ValueError(
                f"dense layers {dense.layers} of {self.num_layers}; they must rise, and leave some"
            )
        if self.parallel and self.norm.after:
            raise ValueError("norms after a parallel attention and MLP are not implemented")
        return self
