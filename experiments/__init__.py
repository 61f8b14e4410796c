"""One question each: what is measured, compared and reproduced with the code of the core."""
