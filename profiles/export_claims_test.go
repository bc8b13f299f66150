package profiles

// What is stored of claims, for tests that store it elsewhere.
var (
	AppendClaims = appendClaims
	DecodeClaims = decodeClaims
	AppendFamily = appendFamily
	DecodeFamily = decodeFamily
)
