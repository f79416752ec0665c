"""What has become of a sweep's points."""
