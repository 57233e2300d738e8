# SPDX-License-Identifier: Apache-2.0
"""The generator is the paper's, to the number of its parameters and the pixels that the discriminator sees."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser

from contourdiff_lab.baselines.generators import ResnetGenerator, image_of
from contourdiff_lab.config_files import lab_config


def test_the_generator_has_the_parameters_of_the_paper() -> None:
    """11.378 million for color images, as published code counts them."""
    network = ResnetGenerator(3, 3, channels=64, blocks=9)
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_378_179


@pytest.mark.parametrize("size", [(16, 16), (20, 32)])
def test_an_image_keeps_its_size_and_stays_in_range(size: tuple[int, int]) -> None:
    network = ResnetGenerator(channels=4, blocks=2)
    images = network(torch.randn(2, 1, *size) * 50)
    assert images.shape == (2, 1, *size)
    assert images.abs().max() <= 1
    with pytest.raises(ValueError, match="expected 1 or more channels and blocks"):
        ResnetGenerator(channels=4, blocks=0)


def test_an_image_does_not_depend_on_its_batch_or_its_contrast() -> None:
    """Instance norm: neither the other images nor a gain of the first layer's output change the result."""
    torch.manual_seed(0)
    network = ResnetGenerator(channels=4, blocks=1).double()
    images = torch.randn(3, 1, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]))
    torch.testing.assert_close(network(images), network(7 * images), atol=1e-2, rtol=0)


def test_the_discriminator_sees_patches_of_70_pixels() -> None:
    parser = ConfigParser()
    parser.read_config(lab_config("cyclegan"))
    discriminator = parser.get_parsed_content("mr_discriminator", discriminator_channels=4)
    for module in discriminator.modules():  # without the norm, which sees the whole image
        if hasattr(module, "adn"):
            module.adn = torch.nn.Identity()
    image = torch.randn(1, 1, 128, 128, requires_grad=True)
    output = discriminator(image)[-1]
    output[0, 0, output.shape[2] // 2, output.shape[3] // 2].backward()
    rows = torch.nonzero(image.grad[0, 0].abs().sum(dim=1))  # type: ignore[index]
    assert int(rows.max() - rows.min()) + 1 == 70


def test_the_image_of_an_output_is_the_same_with_and_without_others() -> None:
    image = torch.zeros(1)
    assert image_of(image) is image_of((image, {"attention": torch.ones(1)})) is image
