"""Run the studies behind the published figures: `python -m experiments.STUDY.run`, one folder a study."""
