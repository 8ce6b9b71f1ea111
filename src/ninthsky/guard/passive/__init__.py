"""The tier that changes nothing in the job: it reads what logs, flight recorders and exporters left behind."""
