"""How a classifier bears what it was not trained for: corruptions, and other kinds of pictures."""
