"""The steps of a training plan, one module each: `STEP` says what it needs, looks at and makes."""
