"""Makes the page of a run, and the page that compares several, from the files of run folders."""
