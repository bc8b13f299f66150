package mapping

import (
	"embed"
	"strings"
)

// templates are mappings for what well-known products send, to be used as they are or to begin with.
//
//go:embed templates/*.yaml
var templates embed.FS

// Templates returns the names of the templates there are, in order.
func Templates() []string {
	files, err := templates.ReadDir("templates")
	if err != nil {
		panic(err) // it is embedded
	}
	names := make([]string, len(files))
	for i, file := range files {
		names[i] = strings.TrimSuffix(file.Name(), ".yaml")
	}
	return names
}

// Template returns the document of a template, and whether there is one of that name.
func Template(name string) (document []byte, ok bool) {
	document, err := templates.ReadFile("templates/" + name + ".yaml")
	return document, err == nil
}
