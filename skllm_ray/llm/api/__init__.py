"""What all HTTP backends share."""
