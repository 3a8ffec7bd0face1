"""The web app: explorers of results, and a small training that each visitor can watch."""
