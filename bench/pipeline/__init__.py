"""From an image to a batch: transforms, masking, mixup, sampling, loading."""
