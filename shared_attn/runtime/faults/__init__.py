"""What machines do to trainings, done on purpose: kills, full disks, vanished files; and whether a run outlives it."""
