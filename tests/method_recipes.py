"""A small recipe for each method whose clients train submodels; the others run with the plain one."""

from __future__ import annotations

from typing import Any

from tests.run_parts import small

_SMALL: dict[str, Any] = {
    "rounds": 2,
    "data": {"clients": 6, "alpha": 5.0},
    "train": {"batch_size": 8, "steps": 2, "lr": 0.05},
    "checkpoint_every": 1,
}
_RECIPES: dict[str, dict[str, Any]] = {
    "bsr": {
        "method_options": {"blocks": "1-2", "drop_at": "1"},
        "model": "vit",
        "model_options": {"depth": 3, "dim": 24, "heads": 3, "patch": 8, "token": "class"},
        "fleet": {
            "clients_per_round": 4,
            "tiers": [
                {"name": "weak", "budget": "30%", "device": "raspberry-pi-4"},
                {"name": "strong", "budget": "100%", "device": "laptop"},
            ],
        },
    },
    "mest": {
        "rounds": 3,
        "method_options": {"mutate_every": 1, "second_phase": 1, "last_phase": 2, "drop_ratio": 0.2, "drop_round": 2},
        "planner": {"actions": ["recompute", "split"], "enabled": "on"},
    },
    "tiny-training": {
        "method_options": {"schemes": "full k9_w14-4_w18 head", "latent": "int8-stochastic"},
        "model": "resnet20",
        "model_options": {"width": 0.25},
        "planner": {"actions": []},
        "fleet": {
            "clients_per_round": 4,
            "tiers": [
                {"name": "weak", "budget": "26%", "device": "raspberry-pi-4"},
                {"name": "strong", "budget": "100%", "device": "laptop"},
            ],
        },
    },
    "smartsplit": {
        "method_options": {"adjust_every": 1, "freeze_below": 0.1, "freeze_checks": 1},
        "fleet": {
            "clients_per_round": 4,
            "tiers": [
                {"name": "weak", "budget": "78%", "device": "raspberry-pi-4"},
                {"name": "strong", "budget": "100%", "device": "laptop"},
            ],
        },
    },
}


def method_recipe(name: str) -> dict[str, Any]:
    """Two rounds of a method on a toy fleet."""
    return small(**(_SMALL | {"method": name} | _RECIPES.get(name, {})))
