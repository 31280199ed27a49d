package wire

// legacyNames is empty: this architecture began without the old calls.
var legacyNames = map[int]string{}
