"""Layers of unlike blocks: what is stacked over which layers, against a table by hand."""

import numpy as np
import pytest

from jaxdpo.model.config import DenseLayers, ExpertsConfig, MLPConfig
from jaxdpo.model.groups import LayerGroup, layer_groups, layers_with, of_group, of_layer
from tests.tiny import MODEL


def model(layers, dense):
    within = DenseLayers(layers=dense, intermediate_size=5) if dense else None
    experts = ExpertsConfig(num_experts=4, per_token=2, dense=within)
    mlp = MLPConfig(intermediate_size=6, experts=experts)
    fields = {**MODEL.model_dump(), "num_layers": layers, "mlp": mlp.model_dump()}
    return type(MODEL).model_validate(fields)


@pytest.mark.parametrize(
    ("layers", "dense", "groups"),
    [
        (3, (), [("mlp", 0, 3)]),
        (4, (0,), [("dense_mlp", 0, 1), ("mlp", 1, 4)]),
        (4, (0, 2), [("dense_mlp", 0, 1), ("mlp", 1, 2), ("dense_mlp", 2, 3), ("mlp", 3, 4)]),
        (3, (1, 2), [("mlp", 0, 1), ("dense_mlp", 1, 3)]),
    ],
)
def test_groups_are_runs_of_equal_layers(layers, dense, groups):
    assert layer_groups(model(layers, dense)) == [LayerGroup(*group) for group in groups]


def test_parts_are_those_of_the_layers_that_have_them():
    config = model(5, (1, 3))
    assert layers_with(config, "attention") == (0, 1, 2, 3, 4)
    assert layers_with(config, "mlp") == (0, 2, 4)
    assert layers_with(config, "dense_mlp") == (1, 3)
    # Numbers in the place of arrays: each says which layer it is of.
    parts = ("attention", "mlp", "dense_mlp")
    arrays = {part: {"x": np.array(layers_with(config, part))} for part in parts}
    found = [of_group(config, arrays, group) for group in layer_groups(config)]
    assert [{part: leaf["x"].tolist() for part, leaf in each.items()} for each in found] == [
        {"attention": [n], "mlp" if n % 2 == 0 else "dense_mlp": [n]} for n in range(5)
    ]
    tuples = {part: layers_with(config, part) for part in parts}
    assert of_layer(config, tuples, 3) == {"attention": 3, "dense_mlp": 3}


@pytest.mark.parametrize("dense", [(1, 0), (0, 0), (4,), (0, 1, 2, 3)])
def test_layers_that_do_not_exist_or_leave_none_are_refused(dense):
    with pytest.raises(ValueError, match="dense layers"):
        model(4, dense)
