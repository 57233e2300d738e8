# SPDX-License-Identifier: Apache-2.0
"""Base class of the dictionary transforms of this package."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar

from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import ensure_tuple
from numpy.random import RandomState


class KeyedTransform(MapTransform):
    """Apply an array transform, the class attribute ``array_class``, to the item of every key.

    ``output_keys`` are keys of the results, one for each of ``keys``; ``None`` replaces the items. An absent key raises
    ``KeyError`` unless ``allow_missing_keys``. Other keyword arguments are those of the array transform.
    """

    array_class: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        keys: KeysCollection,
        output_keys: KeysCollection | None = None,
        allow_missing_keys: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_keys = self.keys if output_keys is None else ensure_tuple(output_keys)
        if len(self.output_keys) != len(self.keys):
            raise ValueError(
                f"expected one output key for each of {self.keys}, got {self.output_keys}"
            )
        self.transform = self.array_class(**kwargs)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put the transformed item of every key of ``data`` under its output key."""
        out = dict(data)
        for key, output_key in self.key_iterator(out, self.output_keys):
            out[output_key] = self.transform(out[key])
        return out


class RandomKeyedTransform(Randomizable, KeyedTransform):
    """A [`KeyedTransform`][] whose array transform draws at random; each key has its own draws."""

    def set_random_state(
        self, seed: int | None = None, state: RandomState | None = None
    ) -> Randomizable:
        """Seed the draws."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(seed, state)
        return self


class LabelledKeyedTransform(RandomKeyedTransform):
    """A [`RandomKeyedTransform`][] whose array transform is given the label of the image, too.

    ``label_key`` names the label, which stays as it is; ``None`` goes without.
    """

    def __init__(
        self, keys: KeysCollection, label_key: str | None = "label", **options: Any
    ) -> None:
        super().__init__(keys, **options)
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the image of every key."""
        item = dict(data)
        further = self.further(data)
        for key in self.key_iterator(item):
            item[key] = self.transform(item[key], *further)
        return item

    def further(self, data: Mapping[Hashable, Any]) -> tuple[Any, ...]:
        """What the array transform is given beside the image."""
        label = None if self.label_key is None else data[self.label_key]
        return (label,)
