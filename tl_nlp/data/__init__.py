"""Where rows come from: one kind of data a file, found by the file's name. Data knows no tokenizer."""
