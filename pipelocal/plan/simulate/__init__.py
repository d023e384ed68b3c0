"""Simulates pipelines: a discrete-event model of pipelocal's and of three other schedules."""
