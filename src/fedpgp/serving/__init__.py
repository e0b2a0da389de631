"""What people do with a finished run: classify images with it, and hand it on."""
