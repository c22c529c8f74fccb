"""The joiner: predictions and late labels in, examples out."""
