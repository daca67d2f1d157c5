"""Images and texts as model inputs, and outputs against labels."""
