"""``errata bench``: the editor measured on the field's data, by the field's metrics and by plain decoding."""
