"""Small interactive views for notebooks and pages: one string of HTML each, self-contained, no network."""
