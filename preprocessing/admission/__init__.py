"""Which videos are used, how they are cut into clips, and why others are refused."""
