"""What must hold between systems that do not know each other, and for all of them alike."""

import math

import pytest
import torch
from helpers.tiny import integers, make_clip, make_dalle, make_vqgan, noise, pictures
from hypothesis import given
from hypothesis import strategies as st

from minimodal.blocks.pixels import to_float, to_uint8
from minimodal.blocks.quantizer import Quantizer

TEXT = integers(20, 2, 5)
CALLS = {
    "clip": (make_clip, lambda model: model(noise(2, 3, 8, 8), integers(30, 2, 7)).per_image),
    "vqgan": (make_vqgan, lambda model: model(pictures(2, 3, 16, 16)).pictures),
    "dalle": (make_dalle, lambda model: model(TEXT, integers(11, 2, 3, 3)).image[0]),
}
every_system = pytest.mark.parametrize(("make", "call"), CALLS.values(), ids=CALLS.keys())


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    seed=st.integers(0, 100),
)
def test_dalle_takes_a_code_apart_as_the_quantizer_put_it_together(sizes, seed):
    codes = integers(math.prod(sizes), 2, 9, seed=seed)
    dalle, quantizer = make_dalle(codes=tuple(sizes)), Quantizer(tuple(sizes), 1)
    parts = dalle.image_heads.factors(codes)
    for ours, theirs in zip(parts, quantizer.factors(codes), strict=True):
        assert torch.equal(ours, theirs)


def test_bytes_survive_the_range_of_the_models():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_float(every)), every)


@every_system
def test_no_parameter_is_a_scalar(make, call):
    assert all(parameter.dim() >= 1 for parameter in make().parameters())


@every_system
def test_training_and_evaluation_compute_the_same(make, call):
    assert torch.equal(call(make().train()), call(make().eval()))


@every_system
def test_the_global_generator_is_not_used(make, call):
    before = torch.get_rng_state()
    call(make())
    assert torch.equal(torch.get_rng_state(), before)


@every_system
def test_weights_say_all_about_a_model(make, call):
    model, other = make(), make()
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.add_(1)
    assert not torch.equal(call(model), call(other))
    other.load_state_dict(model.state_dict())
    assert torch.equal(call(model), call(other))
