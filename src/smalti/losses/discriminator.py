"""The discriminators by name: `patch` (PatchGAN), `blur` and `projected`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from smalti.losses.base import Discriminator
from smalti.losses.patch_discriminator import BlurDiscriminator, BlurSettings, PatchDiscriminator, PatchSettings
from smalti.losses.projected_discriminator import ProjectedDiscriminator, ProjectedSettings


def _named(values: Any) -> Any:
    """Plain values without a name are those of the default, the reference's."""
    return {"name": "patch", **values} if isinstance(values, Mapping) else values


DiscriminatorSettings = Annotated[
    PatchSettings | BlurSettings | ProjectedSettings, Field(discriminator="name"), BeforeValidator(_named)
]
"""The settings of any discriminator; their `name` selects one."""

DISCRIMINATORS: dict[str, Callable[[Any], Discriminator]] = {
    "patch": PatchDiscriminator,
    "blur": BlurDiscriminator,
    "projected": ProjectedDiscriminator,
}
