"""The way the model is computed: dtype, attention, rematerialisation, noise."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdpo.model.attention.dense import AttentionKind
from jaxdpo.model.lora import LoraConfig


@dataclass(frozen=True)
class Compute:
    """The way the model is computed; a static argument of `jax.jit`.

    Attributes:
      dtype: Of activations and matrix products. Norms, softmax and rotation are fp32 always.
      attention: Kind of `jaxdpo.model.attention.dense`, such as "tiles".
      remat: What the backward pass rematerialises: "none"; "dots", all but the products with
        parameters; "full", all but each layer's input.
      lora: Scale and dropout of the adapters; needed where adapters are passed.
      offloaded: Whether the parameters lie in the host's memory.
      deterministic: Whether GPUs use no operation that adds in an order of chance.
      neftune_alpha: Size of the noise on embeddings in training; 0 for none.
    """

    dtype: Any
    attention: AttentionKind
    remat: Literal["none", "dots", "full"]
    lora: LoraConfig | None = None
    offloaded: bool = False
    deterministic: bool = False
    neftune_alpha: float = 0.0

    @property
    def draws(self) -> bool:
        """Tells whether the forward pass in training draws random numbers."""
        return self.neftune_alpha > 0 or (self.lora is not None and self.lora.dropout > 0)

    def compiler_options(self, mesh: Mesh) -> dict[str, Any] | None:
        """Returns the options of XLA that a program for a mesh is compiled with, if any."""
        # Other devices add in one order anyway, and their compilers may not know the option.
        if not self.deterministic or mesh.devices.flat[0].platform != "gpu":
            return None
        return {"xla_gpu_deterministic_ops": True}

    def exact_products(self) -> AbstractContextManager[Any]:
        """Returns the context to trace programs in: products are as exact as `dtype`.

        By default GPUs round float32 factors to 11 bits (TF32) and TPUs to 8 (bfloat16). Products
        of bfloat16 need no such word: every device sums them in float32.
        """
        if jnp.dtype(self.dtype) != jnp.float32:
            return nullcontext()
        return jax.default_matmul_precision("highest")

    def fetched(self, tree: Any) -> Any:
        """Brings parameters into the device's memory, if they lie in the host's."""
        return jax.device_put(tree, jax.memory.Space.Device) if self.offloaded else tree
