"""A small recipe for each method whose clients train submodels; the others run with the plain one."""

from __future__ import annotations

from typing import Any

from tests.run_parts import UNEQUAL, small

_SMALL: dict[str, Any] = {
    "rounds": 2,
    "data": {"clients": 6, "alpha": 5.0},
    "train": {"batch_size": 8, "steps": 2, "lr": 0.05},
    "checkpoint_every": 1,
}
_STREAM: dict[str, Any] = {  # the weak have room for one exemplar of a class at the end, the strong for two
    "rounds": 4,
    "stream": {"tasks": 2, "rounds_each": 2},
    "fleet": {
        "clients_per_round": 4,
        "tiers": [
            {"name": "weak", "budget": "105%", "device": "raspberry-pi-4"},
            {"name": "strong", "budget": "125%", "device": "laptop"},
        ],
    },
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
    "checkpoint-per-block": {
        "fleet": {
            "clients_per_round": 4,
            "tiers": [
                {"name": "weak", "budget": "90%", "device": "raspberry-pi-4"},
                {"name": "strong", "budget": "100%", "device": "laptop"},
            ],
        },
    },
    "depthfl": {
        "model_options": {"width": 0.25, "norm": "batch"},
        "fleet": {
            "clients_per_round": 4,
            "tiers": [
                {"name": "weak", "budget": "80%", "device": "raspberry-pi-4"},
                {"name": "strong", "budget": "100%", "device": "laptop"},
            ],
        },
    },
    "foresight-zo": {
        "method_options": {"prune_rounds": 2, "prune_directions": 4, "directions": 3, "difference": "central"},
        "fleet": {
            "clients_per_round": 4,
            "tiers": [
                {"name": "weak", "budget": "17%", "device": "raspberry-pi-4"},
                {"name": "strong", "budget": "100%", "device": "laptop"},
            ],
        },
    },
    "heterofl": {
        "data": {"clients": 6, "alpha": 0.5},
        "model_options": {"width": 0.25, "norm": "batch"},
        "fleet": {
            "clients_per_round": 4,
            "tiers": [
                {"name": "weak", "budget": "45%", "device": "raspberry-pi-4"},
                {"name": "strong", "budget": "100%", "device": "laptop"},
            ],
        },
    },
    "knn": {"method_options": {"exemplars": 2, "least_exemplars": 1, "tune_epochs": 1}} | _STREAM,
    "replay": {"method_options": {"exemplars": 2, "least_exemplars": 1, "tune_epochs": 1}} | _STREAM,
    "mtn": _STREAM
    | {
        "rounds": 3,
        "method_options": {"exemplars": 2, "tune_epochs": 1, "dim": 16, "neighbours": 4},
        "model_options": {"width": 0.125},
        "planner": {"actions": ["recompute"]},
        "fleet": {
            "clients_per_round": 4,
            "tiers": [
                {"name": "weak", "budget": "160%", "device": "raspberry-pi-4"},
                {"name": "strong", "budget": "400%", "device": "laptop"},
            ],
        },
    },
    "mest": {
        "rounds": 3,
        "method_options": {"mutate_every": 1, "second_phase": 1, "last_phase": 2, "drop_ratio": 0.2, "drop_round": 2},
        "planner": {"actions": ["recompute", "split"], "enabled": "on"},
    },
    "tea-fed": {
        "rounds": 5,
        "policy": "first-come",
        "schedule": {"kind": "asynchronous", "in_flight": 3, "buffer": 2},
        "fleet": {
            "clients_per_round": 4,
            "tiers": [
                {"name": "slow", "budget": "100%", "device": "raspberry-pi-4", "speed_spread": 0.6},
                {"name": "fast", "budget": "100%", "device": "laptop", "speed_spread": 0.6},
            ],
        },
    },
    "teasq-fed": {
        "rounds": 5,
        "policy": "first-come",
        "schedule": {"kind": "asynchronous", "in_flight": 3, "buffer": 2},
        "fleet": {
            "clients_per_round": 4,
            "tiers": [
                {"name": "slow", "budget": "100%", "device": "raspberry-pi-4", "speed_spread": 0.6},
                {"name": "fast", "budget": "100%", "device": "laptop", "speed_spread": 0.6},
            ],
        },
        "method_options": {"start": "0.1/4", "weaker_every": 1, "error_feedback": True, "rounding": "stochastic"},
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
    "codedfedl": {
        "method_options": {"coded_rows": 24, "lift": 8},
        "train": {"batch_size": 8, "steps": 2, "lr": 0.5},
        "schedule": {"deadline_s": 0.05},
        "fleet": UNEQUAL | {"clients_per_round": 6, "delays": {"compute_ratio": {"weak": 3.0}, "erasure": 0.2}},
    },
    "scfl": {
        "method_options": {"coded_rows": 24, "sigmas": "0.2 0.8", "measured": True, "batch_rows": 12},
        "train": {"batch_size": 8, "steps": 2, "lr": 0.02},
        "schedule": {"deadline_s": 0.05},
        "fleet": UNEQUAL | {"delays": {"compute_ratio": {"weak": 3.0}, "erasure": 0.2}},
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
    "uniform-compression": {
        "fleet": {
            "clients_per_round": 4,
            "tiers": [
                {"name": "weak", "budget": "90%", "device": "raspberry-pi-4"},
                {"name": "strong", "budget": "100%", "device": "laptop"},
            ],
        },
    },
}


def method_recipe(name: str) -> dict[str, Any]:
    """Two rounds of a method on a toy fleet."""
    return small(**(_SMALL | {"method": name} | _RECIPES.get(name, {})))
