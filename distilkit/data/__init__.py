"""Data: sources, preprocessing with an inverse, augmentation with a sample/apply split, and the distilled set itself."""
