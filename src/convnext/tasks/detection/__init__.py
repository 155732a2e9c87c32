"""Objects and their masks: Mask R-CNN and Cascade Mask R-CNN."""
