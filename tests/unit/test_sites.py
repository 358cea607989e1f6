"""Where units are found, and what a visit leaves behind."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from shadow.errors import UserError
from shadow.models.kinds import find_sites
from shadow.models.layouts import LAYOUTS, find_layers, require_layout
from shadow.models.load import random_opt
from shadow.models.neuron_paths import find_neuron_paths
from shadow.models.sites import Site, column_norms, count_units
from shadow.signals import Signal, differentiable_embeddings, hook_projections, hook_signals, hook_sites


def layer_of(lm, index):
    """The layer's module by its own path, not by the layout table."""
    model = lm.model.model
    return (model.decoder if lm.model.config.model_type == "opt" else model).layers[index]


def readers_of(lm, index):
    layer = layer_of(lm, index)
    if lm.model.config.model_type == "opt":
        return {"head": layer.self_attn.out_proj, "neuron": layer.fc2}
    return {"head": layer.self_attn.o_proj, "neuron": layer.mlp.down_proj}


def writers_of(lm, index):
    layer = layer_of(lm, index)
    if lm.model.config.model_type == "opt":
        return (layer.fc1,)
    return (layer.mlp.gate_proj, layer.mlp.up_proj)


def test_every_layer_has_a_head_site_and_then_a_neuron_site(lm):
    sites = find_sites(lm.model)
    assert [(site.layer, site.kind) for site in sites] == [
        (layer, kind) for layer in range(4) for kind in ("head", "neuron")
    ]
    for site in sites:
        assert site.module is readers_of(lm, site.layer)[site.kind]


def test_neurons_have_the_projections_that_write_them_and_heads_none(lm):
    for site in find_sites(lm.model):
        assert site.writers == (writers_of(lm, site.layer) if site.kind == "neuron" else ())
        assert all(writer.out_features == site.units for writer in site.writers)


def test_the_norms_of_units_are_those_of_the_columns_that_read_them(lm):
    found = column_norms(find_sites(lm.model))
    for layer in range(4):
        for kind, projection in readers_of(lm, layer).items():
            units = {"head": 4, "neuron": 64}[kind]
            width = projection.in_features // units
            assert found[kind].shape == (4, units)
            for unit in range(units):
                columns = projection.weight[:, unit * width : (unit + 1) * width]
                assert float(found[kind][layer, unit]) == pytest.approx(float(columns.norm()), rel=1e-5)


def test_the_first_writers_output_meets_the_non_linearity(lm, batch, dense):
    """relu(fc1), or silu(gate) * up, is what the neurons' reader reads."""
    written, read = {}, {}
    sites = find_sites(lm.model)
    writers = [writer for site in sites for writer in site.writers]
    with (
        hook_sites(lm.model, sites, lambda site, x: read.__setitem__(site, x)),
        hook_projections(writers, lambda writer, x, y: written.__setitem__(writer, y)),
    ):
        dense(lm, batch)
    for site in sites[1::2]:
        first, *others = (written[writer].reshape(read[site].shape) for writer in site.writers)
        expected = first.relu() if not others else torch.nn.functional.silu(first) * others[0]
        assert torch.equal(read[site], expected)


def test_the_norm_before_the_ffn_and_its_non_linearity_are_found(lm, batch, dense):
    """What the norm says is what the writers read."""
    said, read, paths = {}, {}, find_neuron_paths(lm.model)
    handles = [
        path.norm.register_forward_hook(lambda *call: said.update({call[0]: call[2]})) for path in paths
    ]
    writers = [writer for path in paths for writer in path.writers]
    with hook_projections(writers, lambda writer, x, y: read.__setitem__(writer, x)):
        dense(lm, batch)
    for handle in handles:
        handle.remove()
    for index, path in enumerate(paths):
        layer = layer_of(lm, index)
        assert path.writers == writers_of(lm, index)
        assert all(torch.equal(read[writer], said[path.norm]) for writer in path.writers)
        if lm.model.config.model_type == "opt":
            assert path.norm is layer.final_layer_norm
            assert path.nonlinearity is layer.activation_fn
        else:
            assert path.norm is layer.post_attention_layernorm
            assert path.nonlinearity is layer.mlp.act_fn


def test_heads_are_query_heads_and_neurons_are_what_the_down_projection_reads(lm):
    assert count_units(find_sites(lm.model)) == {"head": 4, "neuron": 64}


def test_tiny_llama_has_fewer_key_value_heads_than_query_heads(tiny_llama):
    assert tiny_llama.model.config.num_attention_heads == 4
    assert tiny_llama.model.config.num_key_value_heads == 2


@pytest.mark.parametrize("find", [find_sites, find_layers, find_neuron_paths])
def test_an_architecture_without_a_layout_is_refused_naming_the_rows_there_are(find):
    config = GPT2Config(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    with pytest.raises(UserError, match=r"gpt2.*shadow\.models\.layouts\.LAYOUTS.*llama.*opt"):
        find(AutoModelForCausalLM.from_config(config))


def test_the_layouts_that_a_refusal_names_are_accepted():
    assert {"llama", "opt"} <= set(LAYOUTS)
    for name, layout in LAYOUTS.items():
        assert require_layout(name) is layout


def test_layers_of_different_width_are_refused(tiny_opt, make_lm):
    wide = random_opt(2, 32, 8, 128, 64, 0, torch.float32, None)
    sites = [*find_sites(tiny_opt.model), *find_sites(wide.model)]
    with pytest.raises(UserError, match="8 heads and an earlier layer 4"):
        count_units(sites)


def test_a_visit_sees_the_true_input_of_the_projection_unit_by_unit(lm, batch, dense):
    """[B, T, U, D]: head h is the slice h*D:(h+1)*D of what the projection reads."""
    true, seen = {}, {}

    def record(layer, kind):
        def hook(module, args):
            true[layer, kind] = args[0].clone()

        return hook

    handles = [
        module.register_forward_pre_hook(record(layer, kind))
        for layer in range(4)
        for kind, module in readers_of(lm, layer).items()
    ]
    dense(lm, batch)
    for handle in handles:
        handle.remove()

    def see(site, x):
        seen[site.layer, site.kind] = x.clone()

    with hook_sites(lm.model, find_sites(lm.model), see):
        dense(lm, batch)

    rows, width = batch.ids.shape
    assert set(seen) == set(true)
    for (layer, kind), x in seen.items():
        assert x.shape == ((rows, width, 4, 8) if kind == "head" else (rows, width, 64, 1))
        assert torch.equal(x.reshape(rows, width, -1), true[layer, kind].reshape(rows, width, -1))


def test_a_visit_that_returns_nothing_changes_nothing(lm, batch, dense):
    before = dense(lm, batch)
    with hook_sites(lm.model, find_sites(lm.model), lambda site, x: None):
        assert torch.equal(dense(lm, batch), before)


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_what_a_visit_returns_is_what_the_projection_reads(lm, batch, dense, kind):
    """All units of the last layer set to 0: the projection then gives its bias, or nothing."""
    outputs = []
    handle = readers_of(lm, 3)[kind].register_forward_hook(lambda m, args, out: outputs.append(out))

    def blank(site: Site, x: torch.Tensor) -> torch.Tensor | None:
        return torch.zeros_like(x) if (site.layer, site.kind) == (3, kind) else None

    with hook_sites(lm.model, find_sites(lm.model), blank):
        dense(lm, batch)
    handle.remove()
    bias = readers_of(lm, 3)[kind].bias
    expected = torch.zeros(32) if bias is None else bias
    assert torch.equal(outputs[0].reshape(-1, 32), expected.expand(batch.ids.numel(), 32))


def test_a_visit_leaves_no_hook(lm, batch, dense, hooks_on):
    with hook_sites(lm.model, find_sites(lm.model), lambda site, x: None):
        assert hooks_on(lm.model) > 0
        dense(lm, batch)
    assert hooks_on(lm.model) == 0


def test_a_visit_leaves_no_hook_after_an_exception_in_the_forward_pass(lm, batch, dense, hooks_on):
    def fail(site, x):
        if site.layer == 2:
            raise RuntimeError("mid-way")

    with pytest.raises(RuntimeError, match="mid-way"), hook_sites(lm.model, find_sites(lm.model), fail):
        dense(lm, batch)
    assert hooks_on(lm.model) == 0


def test_a_visit_that_cannot_begin_leaves_no_hook(lm, hooks_on):
    broken = Site(0, "head", "head", (None,), 4, 8, 4, 1)
    with (
        pytest.raises(AttributeError),
        hook_sites(lm.model, [*find_sites(lm.model), broken], lambda site, x: None),
    ):
        pass
    assert hooks_on(lm.model) == 0


def test_overhearing_gives_what_went_into_a_projection_and_what_came_out(lm, batch, dense):
    projections = [*writers_of(lm, 1), readers_of(lm, 2)["head"]]
    heard = []
    with hook_projections(projections, lambda projection, x, y: heard.append((projection, x, y))):
        before = dense(lm, batch)
    assert [projection for projection, _, _ in heard] == projections  # as they run
    for projection, x, y in heard:
        assert torch.equal(torch.nn.functional.linear(x, projection.weight, projection.bias), y)
    assert torch.equal(dense(lm, batch), before)


def test_overhearing_gives_what_a_visit_put_there(lm, batch, dense):
    heard = []
    with (
        hook_sites(lm.model, find_sites(lm.model), lambda site, x: torch.zeros_like(x)),
        hook_projections([readers_of(lm, 1)["head"]], lambda projection, x, y: heard.append(x)),
    ):
        dense(lm, batch)
    assert not heard[0].any()


def test_overhearing_leaves_no_hook(lm, batch, dense, hooks_on):
    with hook_projections(writers_of(lm, 0), lambda projection, x, y: None):
        assert hooks_on(lm.model) == len(writers_of(lm, 0))
    assert hooks_on(lm.model) == 0


def test_overhearing_leaves_no_hook_after_an_exception(lm, batch, dense, hooks_on):
    def fail(projection, x, y):
        raise RuntimeError("mid-way")

    with pytest.raises(RuntimeError, match="mid-way"), hook_projections(writers_of(lm, 0), fail):
        dense(lm, batch)
    assert hooks_on(lm.model) == 0


def test_overhearing_that_cannot_begin_leaves_no_hook(lm, hooks_on):
    with (
        pytest.raises(AttributeError),
        hook_projections([*writers_of(lm, 0), None], lambda projection, x, y: None),
    ):
        pass
    assert hooks_on(lm.model) == 0


def test_watch_sees_the_input_of_the_layer(lm, batch, dense):
    """Transformers' own `hidden_states[i]` is the input of layer i."""
    seen = {}
    with hook_signals(
        lm.model, [Signal(at, "layer_input") for at in [0, 1, 3]], lambda at, x: seen.__setitem__(at.layer, x)
    ):
        found = lm.model(
            input_ids=batch.ids,
            attention_mask=batch.real().long(),
            use_cache=False,
            output_hidden_states=True,
        )
    assert sorted(seen) == [0, 1, 3]
    for layer, state in seen.items():
        assert torch.equal(state, found.hidden_states[layer])


def test_watch_leaves_no_hook_after_an_exception(lm, batch, dense, hooks_on):
    def fail(layer, state):
        raise RuntimeError("mid-way")

    with (
        pytest.raises(RuntimeError, match="mid-way"),
        hook_signals(lm.model, [Signal(at, "layer_input") for at in [0, 2]], fail),
    ):
        dense(lm, batch)
    assert hooks_on(lm.model) == 0


def test_watching_a_layer_that_is_not_there_leaves_no_hook(lm, hooks_on):
    with (
        pytest.raises(UserError, match="no slot"),
        hook_signals(lm.model, [Signal(at, "layer_input") for at in [0, 99]], lambda layer, state: None),
    ):
        pass
    assert hooks_on(lm.model) == 0


def test_embeddings_are_differentiable_inside_the_block_alone(lm, batch, dense, hooks_on):
    with differentiable_embeddings(lm.model) as embedded:
        logits = lm.model(input_ids=batch.ids).logits
        (grad,) = torch.autograd.grad(logits.sum(), embedded)
        assert grad.abs().sum() > 0
    assert hooks_on(lm.model) == 0
    assert not lm.model(input_ids=batch.ids).logits.requires_grad
    assert all(weight.grad is None for weight in lm.model.parameters())
