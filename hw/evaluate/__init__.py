"""What compression costs in answers, on labelled data."""
