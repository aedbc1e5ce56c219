"""One stage as files: the job it is given, its clips, and what it publishes."""
