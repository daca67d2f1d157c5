"""Rendering that every command line uses: the page's frame, figures, and the views of a performance map."""
