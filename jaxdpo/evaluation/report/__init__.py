"""Charts, tables and the HTML page of an evaluation."""
