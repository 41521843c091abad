"""References: the same where they mean the same, and never a stale, partial or foreign cache."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.config import load_config
from jaxdpo.data.config import DataConfig
from jaxdpo.data.tokenization.chat import load_chat
from jaxdpo.data.tokenization.load_pairs import load_pairs
from jaxdpo.errors import UserError
from jaxdpo.hub.policy import load_policy
from jaxdpo.model.digest import weights_digest
from jaxdpo.runs.fit import fit
from jaxdpo.scoring.reference import ReferenceCache, cache_key, compute_and_store, load_cached
from tests.folders import write_model, write_pairs
from tests.tiny import mesh_of, random_params

COUNT = 12
LOGPS = np.random.default_rng(0).normal(-40, 9, (COUNT, 2)).astype(np.float32)
# Pairs of each of four microbatches.
MICROBATCHES = np.array_split(np.random.default_rng(1).permutation(COUNT), 4)
OPTIONS = {
    "weights_digest": "w",
    "tokens_fingerprint": "t",
    "dtype": "float32",
    "model": "{}",
    "ld_alpha": None,
}


def cache_in(folder, **changed) -> ReferenceCache:
    return ReferenceCache(folder / "reference", cache_key(**{**OPTIONS, **changed}), COUNT)


def scores(first, upto=4):
    for number in range(first, 4):
        if number == upto:
            raise KeyboardInterrupt
        yield MICROBATCHES[number], LOGPS[MICROBATCHES[number]]


def stored(folder, **changed):
    cache = cache_in(folder, **changed)
    np.testing.assert_array_equal(compute_and_store(cache, "packing", scores), LOGPS)
    return cache


def test_what_was_stored_is_found_by_every_run_and_mapped(tmp_path):
    stored(tmp_path)
    found = load_cached(cache_in(tmp_path))
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, LOGPS)


@pytest.mark.parametrize(
    "changed",
    [
        {"weights_digest": "v"},
        {"tokens_fingerprint": "u"},
        {"dtype": "bfloat16"},
        {"model": '{"layers": 2}'},
        {"ld_alpha": 0.5},
        {"ld_alpha": 0.0},
    ],
    ids=str,
)
def test_another_key_finds_nothing(tmp_path, changed):
    stored(tmp_path)
    assert load_cached(cache_in(tmp_path, **changed)) is None


def cut(cache):
    cache.values.write_bytes(cache.values.read_bytes()[:-4])


def flip(cache):
    data = bytearray(cache.values.read_bytes())
    data[-7] ^= 1
    cache.values.write_bytes(data)


def empty(cache):
    cache.values.write_bytes(b"")


def unsaid(cache):
    cache.about.unlink()


def half_said(cache):
    cache.about.write_text(cache.about.read_text()[:20])


def foreign(cache):
    other = stored(cache.folder.parent, weights_digest="another model")
    other.values.replace(cache.values)
    other.about.replace(cache.about)


@pytest.mark.parametrize("damage", [cut, flip, empty, unsaid, half_said, foreign])
def test_a_damaged_or_foreign_cache_is_not_used_and_made_anew(tmp_path, damage):
    cache = stored(tmp_path)
    damage(cache)
    assert load_cached(cache) is None
    stored(tmp_path)
    assert load_cached(cache) is not None


def test_one_bit_of_the_weights_changes_their_digest():
    params = random_params(mesh_of(1, 1, 1))
    before = weights_digest(params)
    kernel = params["layers"]["mlp"]["up"]["kernel"]
    bits = (
        jax.lax.bitcast_convert_type(kernel, jnp.uint32)
        .at[1, 3, 5]
        .set(jax.lax.bitcast_convert_type(kernel, jnp.uint32)[1, 3, 5] ^ 1)
    )
    params["layers"]["mlp"]["up"]["kernel"] = jax.lax.bitcast_convert_type(bits, jnp.float32)
    assert weights_digest(params) != before


def test_one_token_of_one_pair_changes_the_key(inputs, tmp_path):
    chat, path = load_chat(str(inputs / "model")), tmp_path / "pairs.jsonl"
    config = DataConfig(path=str(path), cache_dir=str(tmp_path), test_fraction=0)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    records = [{name: [n + 3, n + 9, 4] for n, name in enumerate(names)} for _ in range(COUNT)]

    def fingerprint():
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return load_pairs(config, chat).splits["TRAIN"].fingerprint

    before = fingerprint()
    stored(tmp_path, tokens_fingerprint=before)
    records[7]["rejected_ids"][1] += 1
    assert load_cached(cache_in(tmp_path, tokens_fingerprint=fingerprint())) is None
    records[7]["rejected_ids"][1] -= 1
    assert load_cached(cache_in(tmp_path, tokens_fingerprint=fingerprint())) is not None


def test_a_scoring_that_is_cut_off_is_continued_and_not_used_before(tmp_path):
    cache = cache_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        compute_and_store(cache, "packing", lambda first: scores(first, upto=3), save_seconds=0)
    assert load_cached(cache) is None
    starts = []

    def score_from(first):
        starts.append(first)
        return scores(first)

    np.testing.assert_array_equal(compute_and_store(cache, "packing", score_from), LOGPS)
    assert starts == [3]
    assert not list(cache.folder.glob("*.parts"))
    np.testing.assert_array_equal(load_cached(cache), LOGPS)


def test_two_runs_that_score_the_same_at_once_both_end(tmp_path):
    """Each run but the last to end has its parts removed by the one that ends before it."""
    cache = cache_in(tmp_path)

    def interrupted(first):
        for number, scored in enumerate(scores(first)):
            if number == 2:
                # By now parts are saved; the other run continues from them and removes them.
                np.testing.assert_array_equal(
                    compute_and_store(cache, "packing", scores, save_seconds=0), LOGPS
                )
            yield scored

    found = compute_and_store(cache, "packing", interrupted, save_seconds=0)
    np.testing.assert_array_equal(found, LOGPS)
    np.testing.assert_array_equal(load_cached(cache), LOGPS)
    assert not list(tmp_path.rglob("*.parts")) and not list(tmp_path.rglob("*.tmp"))


def test_what_was_saved_of_another_packing_or_damaged_is_scored_again(tmp_path):
    """Whatever of it is left is removed once the scores are whole."""
    cache, starts = cache_in(tmp_path), []

    def score_from(first):
        starts.append(first)
        return scores(first)

    for packing in ("packing", "another"):
        with pytest.raises(KeyboardInterrupt):
            compute_and_store(cache, "packing", lambda first: scores(first, upto=3), save_seconds=0)
        part = next(cache.folder.glob("*.parts/00000001.npz"))
        part.write_bytes(part.read_bytes()[:-30])
        compute_and_store(cache, packing, score_from)
        assert not list(cache.folder.glob("*.parts"))
    assert starts == [1, 0]


def test_a_model_without_finite_log_probs_is_refused(tmp_path):
    def broken(first):
        yield np.arange(COUNT), np.where(LOGPS < -50, np.nan, LOGPS)

    with pytest.raises(UserError, match=r"gives \d+ of 12 pairs no finite log-prob"):
        compute_and_store(cache_in(tmp_path), "packing", broken)
    assert load_cached(cache_in(tmp_path)) is None


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl", 30, test=6)
    return folder


def configured(inputs, folder, *overrides):
    return load_config(
        None,
        [
            f"model.path={inputs / 'model'}",
            f"data.path={inputs / 'pairs.jsonl'}",
            f"data.cache_dir={inputs / 'cache'}",
            f"training.folder={folder}",
            "training.max_steps=3",
            "training.completions=0",
            "training.evaluate_every=3",
            "batch.size=8",
            "optimizer.learning_rate=1e-3",
            "mesh.data=1",
            "mesh.fsdp=8",
            *overrides,
        ],
    )


def history(result, split="TRAIN"):
    names = ("loss", "rewards/margins", "logps/chosen")
    return np.array([[r[n] for n in names] for r in result.history if r["split"] == split])


@pytest.mark.slow
def test_modes_that_mean_the_same_train_the_same(inputs, tmp_path):
    write_model(inputs / "again")
    modes = {
        "precomputed": [],
        "frozen": ["reference.kind=frozen"],
        "offloaded": ["reference.kind=frozen", "reference.offload=true"],
        "moving": ["reference.kind=moving", "reference.every=1000"],
        "path": [f"reference.path={inputs / 'again'}"],
    }
    runs = {
        name: fit(configured(inputs, tmp_path / name, *overrides))
        for name, overrides in modes.items()
    }
    expected = history(runs["precomputed"])
    np.testing.assert_allclose(expected[0, 0], np.log(2), rtol=1e-5)
    assert expected[-1, 1] > 1e-3
    for name, result in runs.items():
        np.testing.assert_allclose(history(result), expected, rtol=1e-4, atol=1e-4, err_msg=name)
    # One model, two splits: two caches serve all of the runs.
    assert len(list((inputs / "cache" / "reference").glob("*.npy"))) == 2


@pytest.mark.slow
def test_the_base_model_under_adapters_is_the_reference(inputs, tmp_path):
    runs = {
        kind: fit(configured(inputs, tmp_path / kind, "lora.rank=4", f"reference.kind={kind}"))
        for kind in ("precomputed", "adapter_off")
    }
    expected = history(runs["precomputed"])
    np.testing.assert_allclose(expected[0, 0], np.log(2), rtol=1e-5)
    assert expected[-1, 1] > 1e-3
    np.testing.assert_allclose(history(runs["adapter_off"]), expected, rtol=1e-4, atol=1e-4)


def test_weights_edited_in_memory_are_the_reference_as_they_are(inputs, tmp_path):
    policy = load_policy(str(inputs / "model"))
    policy.params["norm"] = jax.tree.map(lambda leaf: leaf * 1.5, policy.params["norm"])
    result = fit(configured(inputs, tmp_path / "edited"), policy)
    steps = history(result)
    # Against the weights on disk the first margin would not be 0.
    np.testing.assert_allclose(steps[0, :2], [np.log(2), 0], atol=1e-4)
    on_disk = fit(configured(inputs, tmp_path / "disk"))
    assert abs(steps[0, 2] - history(on_disk)[0, 2]) > 0.1


def test_another_model_as_reference_starts_off_log_two(inputs, tmp_path):
    write_model(inputs / "other", seed=5)
    result = fit(configured(inputs, tmp_path / "run", f"reference.path={inputs / 'other'}"))
    assert abs(history(result)[0, 1]) > 1e-2


def test_supervised_training_reads_files_without_rejected_answers(inputs, tmp_path):
    lines = [json.loads(line) for line in (inputs / "pairs.jsonl").read_text().splitlines()]
    for line in lines:
        del line["rejected_message"]
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    of_pairs = fit(configured(inputs, tmp_path / "pairs", "loss.type=sft"))
    alone = fit(configured(inputs, tmp_path / "alone", "loss.type=sft", f"data.path={path}"))
    losses = [[r["loss"] for r in run.history if r["split"] == "TEST"] for run in (of_pairs, alone)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert losses[0][-1] < losses[0][0] - 0.1
    assert "rewards/margins" not in of_pairs.history[0]
    # The mean over tokens, as every supervised trainer reports it.
    tested = [r for r in of_pairs.history if r["split"] == "TEST"]
    np.testing.assert_allclose(tested[0]["loss"], -tested[0]["logps/chosen_per_token"], rtol=1e-5)
