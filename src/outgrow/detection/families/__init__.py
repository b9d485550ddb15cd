"""Detectors, each family in a file of its own, and their creation by name.

detector.py  family.py                          what every detector promises, and what a family declares
pyramid.py                                      backbones, and the pyramid on top of them
fasterrcnn.py                                   rows are proposals
dense.py  retinanet.py  fcos.py  ssdlite.py     rows are anchors or points
transformer.py  queries.py                      rows are queries: RT-DETR v2 and D-FINE
published.py  detectron2.py                     those of torchvision and Detectron2, whole
create.py  transformer_create.py                detectors by name, and their files
"""
