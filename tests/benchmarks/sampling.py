"""Completion tokens a second against torch: `python -m tests.benchmarks.sampling`.

The same weights, prompts, limits and kind of decoding on the same CPU, in one process, in turns.
`transformers` gets the prompts sorted by length in batches of as many rows, padded on the left,
with its cache of keys and values; only tokens before the end token count, on both sides.
"""

import json
import tempfile
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
import transformers

import jaxdpo.quickstart
from jaxdpo.hub.families import config_from_hf
from jaxdpo.hub.folder import read_config
from jaxdpo.hub.policy import load_policy
from jaxdpo.hub.read import load_params
from jaxdpo.model.compute import Compute
from jaxdpo.sampling import Model, SamplingConfig, generate_each, numbered

ROWS, ROUNDS = 16, 2
QUICKSTART = Path(jaxdpo.quickstart.__file__).parent


def quickstart_case():
    """The shipped model and 64 of its prompts; answers end by themselves."""
    with open(QUICKSTART / "pairs.jsonl", encoding="utf-8") as file:
        records = [json.loads(line) for line, _ in zip(file, range(64), strict=False)]
    policy = load_policy(str(QUICKSTART / "model"))
    prompts = [policy.chat.encode(r["messages"][:1], add_generation_prompt=True) for r in records]
    theirs = transformers.LlamaForCausalLM.from_pretrained(QUICKSTART / "model", dtype="float32")
    model = (policy.config, policy.params, list(policy.chat.end_ids))
    return "quickstart, 0.7M", model, theirs.eval(), prompts, 64


def random_case(folder: str):
    """A random Llama; one token in sixty-four ends its answers."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.02,
        eos_token_id=list(range(128)),
        pad_token_id=0,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(folder)
    ours = config_from_hf(read_config(Path(folder)))
    model = (ours, load_params(Path(folder), ours, jnp.float32), list(range(128)))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(128, 8192, n).tolist() for n in rng.integers(20, 200, 48)]
    return "random Llama, 7M", model, theirs, prompts, 64


def ours(model, prompts, limit: int, temperature: float) -> int:
    config, params, stops = model
    sampling = SamplingConfig(max_new_tokens=limit, temperature=temperature, batch_size=ROWS)
    compute = Compute(jnp.float32, "dense", "none")
    drawn = generate_each(Model(config, params, None, stops, compute), numbered(prompts), sampling)
    return sum(len(completion.ids) for _, completion in drawn)


def torchs(model, prompts, stops, limit: int, temperature: float) -> int:
    order, count = sorted(prompts, key=len), 0
    how = dict(do_sample=True, temperature=temperature, top_k=0) if temperature else {}
    for start in range(0, len(order), ROWS):
        batch = order[start : start + ROWS]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in batch])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
        with torch.no_grad():
            out = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=limit,
                eos_token_id=stops,
                pad_token_id=0,
                **({"do_sample": False} | how),
            )
        for row in out[:, width:].tolist():
            ends = [i for i, token in enumerate(row) if token in stops]
            count += ends[0] if ends else len(row)
    return count


def main() -> None:
    print(f"{torch.get_num_threads()} threads, {ROWS} rows; tokens/s, best of {ROUNDS} rounds\n")
    print(f"{'model':20} {'decoding':10} {'jaxdpo':>9} {'torch':>9} {'ratio':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for name, model, theirs, prompts, limit in (quickstart_case(), random_case(folder)):
            for temperature in (0.0, 1.0):
                speeds: tuple[list[float], list[float]] = ([], [])
                ours(model, prompts, limit, temperature)  # compiles
                for _ in range(ROUNDS):
                    started = time.perf_counter()
                    count = ours(model, prompts, limit, temperature)
                    speeds[0].append(count / (time.perf_counter() - started))
                    started = time.perf_counter()
                    count = torchs(theirs, prompts, model[2], limit, temperature)
                    speeds[1].append(count / (time.perf_counter() - started))
                us, them = max(speeds[0]), max(speeds[1])
                kind = "greedy" if temperature == 0 else "T = 1"
                print(f"{name:20} {kind:10} {us:9.0f} {them:9.0f} {us / them:6.1f}x", flush=True)


if __name__ == "__main__":
    main()
