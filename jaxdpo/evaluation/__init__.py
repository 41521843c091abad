"""Criteria that answers are judged by, and what their judgements say."""
