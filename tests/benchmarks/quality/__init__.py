"""The benchmark of quality: what is trained, how rates are searched, what pages may claim."""
