"""How pretrained weights are carried over: one method a file, found by the file's name."""
