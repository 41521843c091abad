"""The studio: a page on which people judge a model's answers, and what it keeps of that."""
