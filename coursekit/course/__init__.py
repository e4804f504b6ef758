"""The course as a whole: its table of contents, what is stale, and running it (`coursekit --help`)."""
