"""Personalize new patients over HTTP: the store, the endpoints and the page."""
