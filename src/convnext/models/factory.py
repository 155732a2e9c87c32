"""Networks by name, without weights: the family, the roadmap, and timm models.

The tasks build the dense networks, which use one of these as a backbone. `convnext.create_model`
builds all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar

from convnext.models.config import FAMILY, GIVEN, NetworkConfig, change
from convnext.models.roadmap import REGIMES, roadmap
from convnext.names import nearest

if TYPE_CHECKING:
    from convnext.models.given import GivenNetwork
    from convnext.models.network import Network
    from convnext.models.timm import TimmNetwork


def network_configs() -> dict[str, NetworkConfig]:
    """Return the configurations of our own networks by name: the family, then the roadmap."""
    rungs = {
        f"roadmap/{regime}/{rung.name}": rung.config
        for regime in REGIMES
        for rung in roadmap(regime)
    }
    return FAMILY | rungs


def list_networks(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern: the family, then the roadmap.

    The many timm models are listed only for a pattern that begins with `timm/`.
    """
    if pattern.startswith("timm/"):
        from convnext.models.timm import list_timm_models

        return list_timm_models(pattern)
    return [name for name in network_configs() if fnmatchcase(name, pattern)]


def check_name(name: str) -> None:
    """Check that there is a network of this name, without building it.

    Raises:
        ValueError: If there is none; the message suggests the nearest name.
    """
    if name.startswith("timm/"):
        from convnext.models.timm import list_timm_models

        if name not in list_timm_models(name):
            near = nearest(name, list_timm_models("timm/*"))
            raise ValueError(f"timm has no model {name.removeprefix('timm/')!r}{near}")
    elif name.startswith(GIVEN):
        from convnext.models.given import create_given

        create_given(name)
    elif name not in network_configs():
        raise ValueError(f"there is no model {name!r}{nearest(name, network_configs())}")


def create_network(name: str, **changes: Any) -> Network | TimmNetwork | GivenNetwork:
    """Build a classifier or a backbone by name, with random weights.

    Args:
        name: A member of the family, `roadmap/<regime>/<step>`, or `timm/<name>`.
        **changes: Settings to change, the same as for `create_model`.

    Raises:
        ValueError: If the name or a change is unknown, or a value is invalid.
    """
    if name.startswith("timm/"):
        from convnext.models.timm import TimmNetwork

        return TimmNetwork(name.removeprefix("timm/"), **changes)
    if name.startswith(GIVEN):
        from convnext.models.given import create_given

        return create_given(name, **changes)
    from convnext.models.network import Network

    configs = network_configs()
    if name not in configs:
        raise ValueError(f"there is no model {name!r}{nearest(name, configs)}")
    return Network(change(configs[name], **changes), name=name)


Dense = TypeVar("Dense")


def build_dense(
    kind: Callable[[Any, Any], Dense],
    config: type[Any],
    prefix: str,
    name: str,
    changes: Mapping[str, Any],
) -> Dense:
    """Build a dense network by name.

    Args:
        kind: Builds it from a backbone without a head, and a config.
        config: The dataclass of its settings. All other changes apply to the backbone.
        prefix: The beginning of its name, before the name of the backbone.
        name: Its name.
        changes: Settings to change.

    Raises:
        ValueError: If there is no such backbone, it has no pyramid, or a change is unknown.
    """
    from convnext.models.network import wants_output_norms

    own = [field.name for field in fields(config)]
    backbone_name = name.removeprefix(prefix)
    if not backbone_name.startswith("timm/"):
        known = [*own, *(field.name for field in fields(NetworkConfig))]
        for key in changes:
            if key not in known:
                raise ValueError(f"{name} has no setting {key!r}{nearest(key, known)}")
    rest = {key: value for key, value in changes.items() if key not in own}
    backbone = create_network(backbone_name, num_classes=0, **rest)
    backbone.drop_head()
    settings = {key: value for key, value in changes.items() if key in own}
    settings.setdefault("output_norms", wants_output_norms(backbone))
    return kind(backbone, config(**settings))
