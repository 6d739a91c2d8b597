"""What a recipe may put on the links: nothing that makes no sense of what travels that way."""

from __future__ import annotations

from typing import Any

import pytest
from tests.federation_parts import recipe

from fedhybrid.errors import ConfigError
from fedhybrid.experiment import build_federation, load_config
from fedhybrid.updates import TRANSFORMS

OPTIONS: dict[str, dict[str, Any]] = {"clip": {"max_norm": 1.0}, "top-k": {"ratio": 0.1}, "quantise": {"bits": 8}}


def problems_of(raw: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(raw)
    return list(caught.value.problems)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_transform_on_its_way(name: str) -> None:
    """Whole weights can only be quantised; of differences all can be made smaller."""
    table, after = {"name": name, **OPTIONS.get(name, {})}, {"name": "quantise", "bits": 8}
    chain = [table, after] if TRANSFORMS[name].remembers else [table]
    if name == "quantise":
        load_config(recipe(traffic={"down": chain, "up": chain}))
        return
    (problem,) = problems_of(recipe(traffic={"down": chain}))
    assert problem.startswith(f"traffic.down[0]: {name!r} is for updates")
    if name == "delta":
        load_config(recipe(traffic={"up": chain}))
        return
    (problem,) = problems_of(recipe(traffic={"up": chain}))
    assert problem.startswith(f"traffic.up[0]: {name!r} is for what training has changed, and method 'fedhybrid'")
    assert problem.endswith('put { name = "delta" } before it')
    load_config(recipe(traffic={"up": [{"name": "delta"}, *chain]}))
    late = {"method": "fedbuff", "policy": "uniform", "schedule": {"kind": "asynchronous"}}
    build_federation(load_config(recipe(**late, traffic={"up": chain})))


def test_a_delta_that_comes_too_late_is_said_once() -> None:
    up = [{"name": "quantise", "bits": 8}, {"name": "top-k", "ratio": 0.1}, {"name": "delta"}]
    assert [problem.split(" ")[0] for problem in problems_of(recipe(traffic={"up": up}))] == [
        "traffic.up[1]:", "traffic.up[2]:",
    ]  # fmt: skip


def test_nothing_of_differences_where_the_method_is_unknown() -> None:
    found = problems_of(recipe(method="fedhibrid", traffic={"up": [{"name": "top-k", "ratio": 0.1}]}))
    assert len(found) == 1
    assert found[0].startswith("method: unknown method")
