"""The experiments there are, by name."""

from __future__ import annotations

from typing import Any

from smalti.experiments.base import Experiment
from smalti.experiments.conditions.experiment import CONDITION_FIDELITY
from smalti.experiments.f_sweep.experiment import F_SWEEP
from smalti.experiments.inpainting.experiment import INPAINTING
from smalti.experiments.modern.experiment import MODERN_VS_REFERENCE
from smalti.experiments.orders.experiment import ORDERS_COMPARED
from smalti.experiments.pixelsnail.experiment import TRANSFORMER_VS_PIXELSNAIL
from smalti.experiments.quantizers.experiment import QUANTIZERS_COMPARED
from smalti.experiments.reconstruction.experiment import RECONSTRUCTION
from smalti.experiments.window.experiment import WINDOWS_COMPARED

EXPERIMENTS: dict[str, Experiment[Any]] = {
    experiment.name: experiment
    for experiment in (
        RECONSTRUCTION,
        MODERN_VS_REFERENCE,
        QUANTIZERS_COMPARED,
        F_SWEEP,
        TRANSFORMER_VS_PIXELSNAIL,
        ORDERS_COMPARED,
        INPAINTING,
        CONDITION_FIDELITY,
        WINDOWS_COMPARED,
    )
}
