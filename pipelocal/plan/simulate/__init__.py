"""What pipelines would take: a discrete-event model of ours and of three others."""
