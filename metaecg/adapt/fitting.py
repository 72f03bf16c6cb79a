"""The training inside `Personalizer.fit`: which steps a method takes, with which arguments."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from metaecg.adapt.arguments import training_arguments
from metaecg.adapt.h_tuning import DEFAULTS, h_tune
from metaecg.adapt.prefine import prefine_intended, prefine_released
from metaecg.adapt.training import fine_tune
from metaecg.seeding import torch_generator


def prefine(
    network: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    time_s: np.ndarray | None,
    arguments: Mapping[str, object],
) -> list[float]:
    """Pre-fine-tune as `Personalizer`'s `arguments` say; return the loss before each step."""
    if arguments["prefine"] == "intended":
        return prefine_intended(network, x, y, time_s)
    if arguments["prefine"] == "released":
        generator = torch_generator(arguments["random_state"], "prefine")
        return prefine_released(network, x, y, generator=generator)
    return []


def tune(
    network: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    arguments: Mapping[str, object],
    on_step: Callable[[int, int], None] | None,
) -> list[float]:
    """Fine-tune as `Personalizer`'s `arguments` say; return the loss before each step."""
    shared = {**training_arguments(arguments), "on_step": on_step}
    generator = torch_generator(arguments["random_state"], "fine-tune")
    if arguments["method"] == "h-tuning":
        settings = DEFAULTS if arguments["h_tuning"] is None else arguments["h_tuning"]
        return h_tune(network, x, y, **shared, generator=generator, settings=settings)
    return fine_tune(network, x, y, **shared, generator=generator, dropout=arguments["dropout"])
