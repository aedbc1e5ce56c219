"""What each stage must beat, and by how much it does."""
