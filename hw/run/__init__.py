"""One run: its configuration, its rank processes, and what a rank does from joining to the last step."""
