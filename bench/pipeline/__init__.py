"""From an image to a batch: transforms, masking, mixing, sampling, loading."""
