package migrations

var UpFrom = upFrom
