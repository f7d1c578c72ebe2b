"""The data sets of the applications, one module a group: rows in, `Dataset` out."""
