"""Teachers and students: networks by name, with their normalisation, input size and weights.

timm, torchvision and transformers are imported only when a name needs them.
"""

from outgrow.models.create import create_model, list_models
from outgrow.models.network import InputSpec, Network
from outgrow.models.structure import feature_paths, head_of, num_parameters
from outgrow.models.weights import LoadReport, load_weights, save_student

__all__ = [
    "InputSpec",
    "LoadReport",
    "Network",
    "create_model",
    "feature_paths",
    "head_of",
    "list_models",
    "load_weights",
    "num_parameters",
    "save_student",
]
