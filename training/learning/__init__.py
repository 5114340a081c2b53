"""Everything that changes weights: the loop, the stages of a run, objectives, augmentation."""
