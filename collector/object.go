package collector

import (
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// membersOf returns the members of a JSON object as they are written, or nil for anything else and for an object that
// has a member twice, which only the cleaner can explain.
func membersOf(text []byte) (members map[string]jsontext.Value) {
	if jsontext.Value(text).Kind() != '{' || json.Unmarshal(text, &members, jsontext.AllowInvalidUTF8(true)) != nil {
		return nil
	}
	return members
}

// rewrite returns a JSON object as change leaves its members, in the order of their names. What is no object, or one that
// the cleaner has to explain, it returns as it is.
func rewrite(text []byte, change func(members map[string]jsontext.Value)) []byte {
	members := membersOf(text)
	if members == nil {
		return text
	}
	change(members)
	changed, err := json.Marshal(members, json.Deterministic(true), jsontext.AllowInvalidUTF8(true))
	if err != nil {
		return text
	}
	return changed
}
