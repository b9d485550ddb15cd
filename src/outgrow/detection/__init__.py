"""Object detection: a row is a proposal, an anchor, a point or a query of the student, features are maps by their stride.

data = open_boxes("coco:IMAGES:ANNOTATIONS")
student = create_detector("fasterrcnn:timm/mobilenetv2_100", data.classes)
teacher = FrozenDetector(create_detector(..., weights=...), data.classes)
lesson = Detect()(student, teacher, scenes)        # then rectify and objective, as for images

    annotations.py  coco.py  yolo.py  voc.py  hub.py           layouts of images with boxes
    listed.py  data.py  boxes.py  views.py  loader.py          what is read from them
    detector.py  family.py  pyramid.py  create.py              detectors, created by name
    fasterrcnn.py  dense.py  retinanet.py  fcos.py  ssdlite.py the families
    published.py  detectron2.py                                those of torchvision and Detectron2
    transformer.py  queries.py  transformer_create.py          RT-DETR v2 and D-FINE, and their rows
    run_data.py  student.py  teacher.py  lesson.py             the parts of a run
    scores.py  errors.py  evaluation.py                        AP, errors by class, evaluation
    record.py  pictures.py  page.py                            a run's record, drawn images and page
    task.py                                                    the interface to `outgrow.run`
"""

from outgrow.detection.boxes import Detections, Scenes, Truth
from outgrow.detection.create import create_detector, save_detector
from outgrow.detection.data import DetectionData, DetectionSplit, open_boxes, open_coco
from outgrow.detection.detector import Detector, FrozenDetector
from outgrow.detection.errors import class_errors
from outgrow.detection.lesson import Balanced, Detect
from outgrow.detection.loader import make_scene_loader
from outgrow.detection.scores import CocoScores, coco_scores

__all__ = [
    "Balanced",
    "CocoScores",
    "Detect",
    "DetectionData",
    "DetectionSplit",
    "Detections",
    "Detector",
    "FrozenDetector",
    "Scenes",
    "Truth",
    "class_errors",
    "coco_scores",
    "create_detector",
    "make_scene_loader",
    "open_boxes",
    "open_coco",
    "save_detector",
]
