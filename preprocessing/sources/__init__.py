"""The user's videos with their captions, labels and boxes."""
