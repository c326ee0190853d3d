"""What a model is for: one task a file, found by the file's name. Tasks know text and no tensors."""
