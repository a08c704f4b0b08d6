"""A level-triggered controller's machinery: it knows keys, not what they stand for."""
