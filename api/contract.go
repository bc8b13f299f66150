package api

import (
	"net/http"
	"sync"

	"github.com/go-json-experiment/json"
	"go.yaml.in/yaml/v3"

	"github.com/mubatch/mubatch"
)

func contractYAML(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write([]byte(mubatch.OpenAPI())) // the client is gone: nobody is left to tell
}

// contractJSON answers with the contract as JSON, made from the YAML when it is first asked for.
func contractJSON() http.HandlerFunc {
	document := sync.OnceValues(func() (d map[string]any, err error) {
		err = yaml.Unmarshal([]byte(mubatch.OpenAPI()), &d)
		return d, err
	})
	return func(w http.ResponseWriter, _ *http.Request) {
		d, err := document()
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.MarshalWrite(w, d, json.Deterministic(true)) // the client is gone: nobody is left to tell
	}
}
