//go:build ignore

// Build makes dist of src: the tag, the stub, and the extras.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/evanw/esbuild/pkg/api"
)

// version is that of the tag. A page may have pinned a version that was released, so a change after a release takes a new
// one, and the file of the old one stays.
const version = "1.0.0"

func main() {
	out := flag.String("o", "dist", "the folder to write to")
	flag.Parse()
	for name, source := range map[string]string{
		"mub." + version: "mub", "stub": "stub",
		"mub.tcf": "tcf", "mub.gpp": "gpp", "mub.vitals": "vitals", "mub.forms": "forms", "mub.scroll": "scroll",
	} {
		built := api.Build(api.BuildOptions{
			EntryPointsAdvanced: []api.EntryPoint{{InputPath: "src/" + source + ".ts", OutputPath: name}},
			Outdir:              *out,
			Bundle:              true,
			Write:               true,
			Target:              api.ES2018,
			Format:              api.FormatIIFE,
			Charset:             api.CharsetUTF8,
			MinifyWhitespace:    true,
			MinifyIdentifiers:   true,
			MinifySyntax:        true,
			LegalComments:       api.LegalCommentsNone,
			Define:              map[string]string{"VERSION": `"` + version + `"`},
			LogLevel:            api.LogLevelWarning,
		})
		if len(built.Errors) > 0 {
			fmt.Fprintln(os.Stderr, "the tag cannot be built")
			os.Exit(1)
		}
	}
}
