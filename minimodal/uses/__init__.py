"""What one does with a trained model: classes by caption, search, reading. They score nothing."""
