"""Values of options as users write them, checked and brought into one form: amounts, quotas, names of objects."""
