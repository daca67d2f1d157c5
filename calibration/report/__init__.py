"""A fit and a comparison as figures and as pages."""
