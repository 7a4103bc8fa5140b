"""sameguard: detects model-extraction queries and refuses them (SAME, AAAI 2024).

Names that need torch are loaded when first used, so that a guard in service runs without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sameguard.calibration import Threshold, calibrate
from sameguard.contract import InputContract
from sameguard.endpoint import Answers, Endpoint, MeteredEndpoint
from sameguard.guard import Guard
from sameguard.policies import Reject
from sameguard.runtime import Scorer, choose_engine
from sameguard.scoring import ScoreConfig
from sameguard.victim import BlackBox, from_onnx, from_predictor

if TYPE_CHECKING:
    from sameguard.detectors import SAME, AuxiliaryConfig
    from sameguard.networks.torch_victim import TorchVictim
    from sameguard.reconstruction import MAEConfig
    from sameguard.training import FitConfig, RunControl

_NEEDS_TORCH = {
    "SAME": "sameguard.detectors",
    "AuxiliaryConfig": "sameguard.detectors",
    "TorchVictim": "sameguard.networks.torch_victim",
    "MAEConfig": "sameguard.reconstruction",
    "FitConfig": "sameguard.training",
    "RunControl": "sameguard.training",
}

__all__ = [
    "SAME",
    "Answers",
    "AuxiliaryConfig",
    "BlackBox",
    "Endpoint",
    "FitConfig",
    "Guard",
    "InputContract",
    "MAEConfig",
    "MeteredEndpoint",
    "Reject",
    "RunControl",
    "ScoreConfig",
    "Scorer",
    "Threshold",
    "TorchVictim",
    "calibrate",
    "choose_engine",
    "from_onnx",
    "from_predictor",
]


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module 'sameguard' has no attribute {name!r}")
    try:
        return getattr(import_module(_NEEDS_TORCH[name]), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"sameguard.{name} needs {error.name}, which is not installed: pip install 'sameguard[train]'.") from error
