"""A trained detector outside of this library, and its detections in new images.

export.py  transformer_export.py    safetensors, ONNX and a PyTorch program
export_code.py                      the code that loads the exported weights without this library
predict.py                          detections in a folder of images, from a run or an export
"""
