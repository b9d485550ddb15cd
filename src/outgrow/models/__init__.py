"""Teachers and students: nets by name, with their own normalisation and size, and their weights.

Nothing of timm, torchvision or transformers is imported before a name asks for it.
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
