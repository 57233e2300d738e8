# SPDX-License-Identifier: Apache-2.0
"""Laws of the attention generator: what it makes of the input is what its attention says."""

from __future__ import annotations

import pytest
import torch

from contourdiff_lab.baselines.attention import AttentionGenerator


@pytest.fixture
def generator() -> AttentionGenerator:
    torch.manual_seed(0)
    return AttentionGenerator(channels=4, blocks=1, attentions=3).eval()


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def set_attention(generator: AttentionGenerator, logits: list[float]) -> None:
    """Make attention the same in every pixel."""
    last = list(generator.attention.modules())[-1]
    assert isinstance(last, torch.nn.Conv2d)
    torch.nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.tensor(logits))


@torch.no_grad()
def test_the_output_is_contents_and_input_weighted_by_attention(
    generator: AttentionGenerator, image: torch.Tensor
) -> None:
    set_attention(generator, torch.tensor([0.5, 0.2, 0.3]).log().tolist())
    contents = generator.contents(generator.features(image))
    translated, others = generator(image)
    expected = 0.5 * contents[:, :1] + 0.2 * contents[:, 1:] + 0.3 * image
    torch.testing.assert_close(translated, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(others["attention"], torch.full_like(image, 0.3), atol=1e-6, rtol=0)


@torch.no_grad()
def test_where_all_attention_is_on_the_input_it_stays(
    generator: AttentionGenerator, image: torch.Tensor
) -> None:
    set_attention(generator, [0, 0, 1000])
    translated, others = generator(image)
    assert translated.equal(image)
    assert others["attention"].eq(1).all()


@torch.no_grad()
def test_images_stay_in_range_and_attention_is_a_share(
    generator: AttentionGenerator, image: torch.Tensor
) -> None:
    translated, others = generator(image)
    assert translated.shape == others["attention"].shape == image.shape
    assert translated.abs().max() <= 1
    assert 0 < others["attention"].min() <= others["attention"].max() < 1


def test_the_attention_follows_the_image(
    generator: AttentionGenerator, image: torch.Tensor
) -> None:
    generator(image.requires_grad_())[1]["attention"][0].square().sum().backward()
    assert image.grad is not None
    assert image.grad[0].abs().sum() > 0
    assert image.grad[1].abs().sum() == 0


def test_one_map_of_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="attentions must be 2 or more"):
        AttentionGenerator(attentions=1)
