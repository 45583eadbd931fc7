"""The project's own part of the training: data set, processor, augmentation, model, loss, metrics."""
