"""Draws the pages of reports and of the studio: one look, one set of templates and plots."""
