"""What every request passes on its way in: access, body limits, decompression, the path prefix."""
