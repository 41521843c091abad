"""A model → a GGUF file that llama.cpp and ollama load, a tensor at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxdpo.errors import UserError
from jaxdpo.hub.families import family_of
from jaxdpo.hub.gguf.architecture import (
    ARCHITECTURE,
    check_writable,
    frequency_divisors,
    metadata_of,
)
from jaxdpo.hub.gguf.file import gguf_package
from jaxdpo.hub.gguf.tensors import FREQUENCIES, gguf_name, heads_of, to_neighbours
from jaxdpo.hub.gguf.tokenizer_out import vocabulary_of
from jaxdpo.hub.write import tensor_arrays, tensor_specs
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Params
from jaxdpo.model.rope import Llama3Scaling
from jaxdpo.storage.files import replacing

Numbers = Literal["float32", "float16", "bfloat16", "q8_0"]
_KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
# Where a matrix's rows are no whole number of blocks, llama.cpp's own converter does the same.
_UNBLOCKED = "F16"


@dataclass(frozen=True)
class GgufSource:
    """The model that a GGUF file is written from.

    Attributes:
      config: Architecture.
      params: Parameters, in memory or left in their files.
      tokenizer: The tokenizer, with its chat template.
      ends: Tokens that end an answer; the first is the one that ends text.
      hf_config: config.json.
      name: Name for people.
    """

    config: ModelConfig
    params: Params
    tokenizer: Any
    ends: tuple[int, ...]
    hf_config: Mapping[str, Any]
    name: str


def write_gguf(path: Path, source: GgufSource, numbers: Numbers) -> None:
    """Writes a GGUF file; it appears under its name when it is complete.

    Matrices are written in the numbers asked for, vectors in fp32 as llama.cpp wants them.

    Args:
      path: The file; one that is there is replaced.
      source: The model.
      numbers: Numbers of the matrices. Q8_0 has blocks of 32 along a row: a matrix of other rows
        is written in F16.

    Raises:
      UserError: If llama.cpp's llama architecture is another, it has no such tokenizer, the package
        `gguf` is missing, or the file cannot be written.
    """
    gguf = gguf_package()
    check_writable(source.config, source.hf_config)
    vocabulary = vocabulary_of(source.tokenizer, source.config.vocab_size, source.ends)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The writer opens the file by its name; this handle makes the bytes durable and renames.
        with replacing(path, "wb") as file:
            writer = gguf.GGUFWriter(file.name, ARCHITECTURE)
            try:
                _describe(writer, gguf, source, vocabulary, numbers)
                _write_tensors(writer, gguf, source, numbers)
            finally:
                writer.close()
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}") from error


def _describe(
    writer: Any, gguf: Any, source: GgufSource, vocabulary: Mapping[str, Any], numbers: Numbers
) -> None:
    writer.add_type("model")
    writer.add_name(source.name)
    most = "ALL" if numbers == "float32" else "MOSTLY"
    writer.add_file_type(gguf.LlamaFileType[f"{most}_{_KINDS[numbers]}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in {**metadata_of(source.config, source.hf_config), **vocabulary}.items():
        # llama.cpp reads each key as one type, and Python's types are told apart: bool is an int.
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def _write_tensors(writer: Any, gguf: Any, source: GgufSource, numbers: Numbers) -> None:
    """Writes the header with every tensor's shape and size, and then one tensor after the other."""
    config = source.config
    rows = family_of(source.hf_config).rows(config)
    specs = tensor_specs(rows, source.params, np.float32)
    # Sizes are known before any value, so one tensor at a time is enough in memory.
    names = [gguf_name(name) for name in specs]
    shapes = [spec.shape for spec in specs.values()]
    kinds = [kind_of(gguf, shape, numbers) for shape in shapes]
    rope = config.attention.rope
    divisors = None
    if rope is not None and isinstance(rope.scaling, Llama3Scaling):
        divisors = frequency_divisors(rope, config.attention.head_dim)
        writer.add_tensor_info(FREQUENCIES, divisors.shape, divisors.dtype, divisors.nbytes)
    for name, shape, kind in zip(names, shapes, kinds, strict=True):
        stored = gguf.quants.quant_shape_to_byte_shape(shape, kind)
        quantized = kind not in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
        # The package tells F32 and F16 by numpy's types, and all other types by their bytes.
        dtype = np.dtype(np.uint8 if quantized else _plain(gguf, kind))
        size = int(np.prod(stored))
        writer.add_tensor_info(name, stored if quantized else shape, dtype, size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if divisors is not None:
        writer.write_tensor_data(divisors)
    arrays = tensor_arrays(rows, source.params)
    for name, kind, array in zip(names, kinds, arrays, strict=True):
        heads = heads_of(name, config)
        array = np.asarray(array, np.float32)
        array = array if heads is None else to_neighbours(array, heads)
        writer.write_tensor_data(gguf.quants.quantize(np.ascontiguousarray(array), kind))


def kind_of(gguf: Any, shape: tuple[int, ...], numbers: Numbers) -> Any:
    """Returns the type that a tensor is written in.

    Args:
      gguf: The package.
      shape: Shape of the tensor.
      numbers: Numbers asked for.
    """
    types = gguf.GGMLQuantizationType
    if len(shape) < 2:
        return types.F32
    kind = types[_KINDS[numbers]]
    block, _ = gguf.constants.GGML_QUANT_SIZES[kind]
    return kind if shape[-1] % block == 0 else types[_UNBLOCKED]


def _plain(gguf: Any, kind: Any) -> Any:
    return np.float32 if kind == gguf.GGMLQuantizationType.F32 else np.float16


def as_written(array: np.ndarray, numbers: Numbers) -> np.ndarray:
    """Returns the numbers that are read back of a matrix's rows, in fp32.

    Args:
      array: `[out, in]`, as torch has it.
      numbers: Numbers that it is written in.
    """
    gguf = gguf_package()
    kind = kind_of(gguf, array.shape, numbers)
    written = gguf.quants.quantize(np.ascontiguousarray(array, np.float32), kind)
    return gguf.quants.dequantize(written, kind)
