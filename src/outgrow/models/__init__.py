"""Teachers and students: networks by name, with their normalisation, input size and weights.

timm, torchvision and transformers are imported only when a name needs them.

create.py                                create_model: a network by name
sources.py  timm_extra.py                one builder per family of names; nets without a name in timm
cifar.py                                 the CIFAR nets by name
resnet.py  resnet_stem.py  wrn.py        CIFAR ResNets, ImageNet's for 32x32 images, wide ones
vgg.py  densenet.py                      VGG, DenseNet-BC
mobilenet.py  shufflenet.py              MobileNetV2, ShuffleNet V1 and V2
layers.py                                their building blocks
network.py                               Network: images in [0, 1] -> logits; InputSpec: size and normalisation
structure.py  taps.py                    where a net has its head and features; Taps: features by module path
compiled.py                              torch.compile for batches like the first
weights.py                               load_weights: a file of any origin into a network; save_student
weight_file.py  array_pickle.py          files of weights, read without running code in them, and written
portable.py                              files of ONNX and torch.export, written and read
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
