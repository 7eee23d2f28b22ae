"""Jobs that really run: their queue, their processes, what they read and what they leave."""
