"""Video files decoded into frames, exact in time, in isolated processes."""
