"""Hidden states below the first trained layer are computed once a step, and the numbers stay the same."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from tests import tiny
from trl_step import PPOTrainer, create_reference_model
from trl_step.models.shortcuts import frozen_trunk


def layers_of(model):
    return frozen_trunk._layers(model.pretrained_model)


def count_calls(layers):
    """Calls of each layer's own computation; what hands its input through does not count."""
    calls = [0] * len(layers)
    for i, layer in enumerate(layers):
        inner = next(module for module in layer.modules() if type(module).__name__.endswith("Norm"))

        def count(*_, i=i):
            calls[i] += 1

        inner.register_forward_hook(count)
    return calls


def shared(name, layers=1):
    model = tiny.with_value_head(name)
    return model, create_reference_model(model, num_shared_layers=layers)


def frozen_bottom(name):
    model = tiny.with_value_head(name)
    reference = create_reference_model(model)
    for parameter in layers_of(model)[0].parameters():
        parameter.requires_grad_(False)
    model.pretrained_model.get_input_embeddings().requires_grad_(False)
    for module in model.modules():  # absolute positions of GPT-2 and OPT
        if isinstance(module, torch.nn.Embedding):
            module.requires_grad_(False)
    return model, reference


def lora_on_top(name):
    names = {"gpt2": "c_attn", "llama": "q_proj", "gpt_neox": "query_key_value", "opt": "q_proj"}
    config = LoraConfig(r=4, target_modules=[names[name]], layers_to_transform=[1], task_type="CAUSAL_LM",
                        fan_in_fan_out=name == "gpt2")  # fmt: skip
    return tiny.with_value_head(name, peft_config=config), None


WAYS = {"shared": shared, "frozen": frozen_bottom, "lora": lora_on_top}


def two_steps(model, reference, **options):
    trainer = tiny.trainer(model, reference, **options)
    stats = [trainer.step(*tiny.batch(seed=seed)) for seed in (1, 2)]
    scalars = [{k: v for k, v in s.items() if isinstance(v, float) and not k.startswith("time/")} for s in stats]
    return scalars, tiny.weights(trainer.model)


@pytest.mark.parametrize("options", [{}, {"kl_penalty": "full"}, {"gradient_checkpointing": True}], ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_the_numbers_are_those_of_the_whole_model(name, way, options, monkeypatch):
    cut = two_steps(*WAYS[way](name), **options)
    monkeypatch.setattr(frozen_trunk, "find_cut", lambda model: None)
    whole = two_steps(*WAYS[way](name), **options)
    for a, b in zip(cut[0], whole[0], strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    # the gradient of a key's bias is 0 but for rounding, which Adam turns into steps of the learning rate, 1e-3
    torch.testing.assert_close(cut[1], whole[1], rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_frozen_layers_run_once_a_step(name, way):
    model, reference = WAYS[way](name)
    trainer = tiny.trainer(model, reference)
    trainer.step(*tiny.batch())
    own = count_calls(layers_of(model))
    theirs = None if reference is None else count_calls(layers_of(reference))
    trainer.step(*tiny.batch(seed=2))
    minibatches, epochs, probes = 2, 4, 5  # a probe is a pass over three tokens
    assert own[0] <= minibatches + probes
    assert own[1] >= minibatches * (1 + epochs)
    if theirs is not None:
        assert theirs[0] <= 1  # a probe
        assert theirs[1] >= minibatches


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_frozen_layers_run_once_a_step_with_checkpointing(way, reentrant, monkeypatch):
    """Embeddings ask for a gradient then, whether anybody takes it or not. Layers that are checkpointed in the older
    way need it, and run as they are."""
    found = []
    for find_cut in (frozen_trunk.find_cut, lambda model: None):
        monkeypatch.setattr(frozen_trunk, "find_cut", find_cut)
        model, reference = WAYS[way]("llama")
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        trainer = PPOTrainer(tiny.config(), model, reference, tiny.tokenizer(), optimizer=optimizer)
        calls = count_calls(layers_of(model))
        before = tiny.weights(model)
        trainer.step(*tiny.batch())
        found.append((calls, tiny.weights(model)))
    (cut, weights), (whole, expected) = found
    minibatches, epochs, probes = 2, 4, 5
    assert reentrant or cut[0] <= minibatches + probes
    assert whole[0] >= 2 * minibatches * epochs
    assert cut[1] >= 2 * minibatches * epochs, "what trains is recomputed"
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(before[name], weight) for name, weight in weights.items() if "layers.1" in name)


def test_a_trained_prompt_goes_through_every_layer():
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert frozen_trunk.find_cut(get_peft_model(tiny.gpt2(), config)) is None


def test_nothing_is_cut_where_everything_trains():
    assert frozen_trunk.find_cut(tiny.with_value_head("gpt2").pretrained_model) is None


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
def test_an_encoder_decoder_runs_whole(name):
    assert frozen_trunk.find_cut(tiny.with_value_head(name).pretrained_model) is None


def test_layers_are_given_back_as_they_were():
    model, _ = shared("gpt2")
    before = [dict(layer.__dict__) for layer in layers_of(model)]
    cut = frozen_trunk.find_cut(model.pretrained_model)
    assert cut.depth == 1
    with pytest.raises(RuntimeError, match="stop"), frozen_trunk.resuming(cut, torch.zeros(1, 3, 32)):
        raise RuntimeError("stop")
    assert [layer.__dict__.keys() for layer in layers_of(model)] == [b.keys() for b in before]
    assert not any(layer._forward_pre_hooks for layer in layers_of(model))


def test_a_layer_that_changes_the_numbers_is_not_cut(caplog):
    model, _ = shared("gpt2")
    bottom = layers_of(model)[0]
    top = layers_of(model)[1]
    # a top layer that looks at what the bottom one did: left out, the numbers change
    bottom.register_forward_hook(lambda module, args, output: setattr(module, "seen", output.mean().item()))
    top.register_forward_hook(lambda module, args, output: output + bottom.seen if output.shape[1] else output)
    inner = bottom.ln_1
    inner.register_forward_hook(lambda module, args, output: setattr(bottom, "count", getattr(bottom, "count", 0) + 1))
    top.register_forward_hook(lambda module, args, output: output * bottom.count)
    with caplog.at_level("DEBUG", logger="trl_step"):
        assert frozen_trunk.find_cut(model.pretrained_model) is None
    assert "numbers change" in caplog.text
