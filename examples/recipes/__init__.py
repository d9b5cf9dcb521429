"""What examples/train_coco.py and examples/train_segmentation.py are made of."""
