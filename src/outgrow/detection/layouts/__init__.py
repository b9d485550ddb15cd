"""The layouts in which images with boxes are stored, and their check. All become COCO's content in the end.

annotations.py             the entries of a file, checked, as tensors
coco.py  yolo.py  voc.py   files and folders
hub.py                     data sets of the Hugging Face hub
listed.py                  what each of them returns for a split
"""
