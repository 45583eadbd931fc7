"""Uploads results to an object store (`output.uri`): complete objects only, whatever is killed."""
