"""Types and services everything else is built on: errors, models, passes, pipeline, protocols."""
