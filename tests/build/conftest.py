"""Leaves out what builds or boots the image, minutes each, unless the run asks for it with `-m image`."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests marked `image` in a run whose mark expression does not name them."""
    if "image" in config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("image") is not None]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]
