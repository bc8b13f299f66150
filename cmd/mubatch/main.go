// Command mubatch is the whole of mubatch in one binary: the collector, the flusher, the dispatcher and the REST API,
// and the tools around them.
//
//	mubatch serve  everything, or some of it, on the stores that are configured
//	mubatch dev    a private Postgres and Redis, the schema, keys, and everything served; for trying and developing
//
// Run without arguments it lists its commands.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"
)

// A command is one word after mubatch. run gets the arguments after that word. ctx ends at the first SIGINT, SIGTERM or
// SIGHUP, with a [signalError] as its cause; at the second one the process exits.
type command struct {
	name    string
	summary string
	run     func(ctx context.Context, args []string, std stdio) error
}

func commands() []command {
	d := &devServer{}
	return []command{
		{"serve", "serve on the stores that are configured", runServe},
		{"dev", "run on private stores: for trying, developing and testing", runDev(hooks{seed: d.seed, serve: d.serve, demo: demoOn(os.Stdout)})},
		{"demo", "replay what a real shop sold, and show what becomes of it", runDemo},
		{"import", "import files of events, through a mapping", runImport},
		{"tail", "show events as they are accepted", runTail},
		{"keys", "make, list and revoke keys", runKeys},
		{"migrate", "bring the database to this version's schema, or tell its version", runMigrate},
		{"version", "print the version", runVersion},
	}
}

// stdio is what a command may read, write and look up in its environment.
type stdio struct {
	out, err io.Writer
	getenv   func(string) string
}

func main() {
	ctx := untilSignal(context.Background())
	os.Exit(run(ctx, commands(), os.Args[1:], stdio{os.Stdout, os.Stderr, os.Getenv}))
}

// run returns the exit code: 0 for success, 2 if the command or what it needs is not there, else 1, unless the error
// brings a code of its own.
func run(ctx context.Context, cmds []command, args []string, std stdio) int {
	if len(args) == 0 {
		usage(std.err, cmds)
		return 2
	}
	name := args[0]
	if name == "help" || name == "-h" || name == "-help" || name == "--help" {
		usage(std.out, cmds)
		return 0
	}
	i := slices.IndexFunc(cmds, func(c command) bool { return c.name == name })
	if i < 0 {
		fmt.Fprintf(std.err, "mubatch: unknown command %q\n\n", name)
		usage(std.err, cmds)
		return 2
	}

	err := cmds[i].run(ctx, args[1:], std)
	var exit *exitError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &exit):
		if exit.err != nil {
			fmt.Fprintf(std.err, "mubatch %s: %v\n", name, exit.err)
		}
		return exit.code
	default:
		fmt.Fprintf(std.err, "mubatch %s: %v\n", name, err)
		return 1
	}
}

func usage(w io.Writer, cmds []command) {
	fmt.Fprintln(w, "usage: mubatch COMMAND [FLAGS]")
	fmt.Fprintln(w)
	for _, c := range cmds {
		fmt.Fprintf(w, "  %-10s %s\n", c.name, c.summary)
	}
	fmt.Fprintln(w)
	fmt.Fprintln(w, "mubatch COMMAND -h lists the flags of a command.")
}

// exitError ends the process with a code. Without err it ends silently.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return fmt.Sprintf("exit %d: %v", e.code, e.err) }
func (e *exitError) Unwrap() error { return e.err }

// parseFlags reads args into flags. What is wrong with them, and the help, has been printed when it returns an error.
func parseFlags(flags *flag.FlagSet, args []string, std stdio) error {
	flags.SetOutput(std.err)
	switch err := flags.Parse(args); {
	case err == nil:
		return nil
	case errors.Is(err, flag.ErrHelp):
		return err
	default:
		return &exitError{code: 2}
	}
}

// signalError is the cause of a context that ended with a signal.
type signalError struct{ signal syscall.Signal }

func (e signalError) Error() string { return e.signal.String() }

func untilSignal(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		first := (<-signals).(syscall.Signal)
		cancel(signalError{first})
		second := (<-signals).(syscall.Signal)
		os.Exit(128 + int(second))
	}()
	return ctx
}

func runVersion(_ context.Context, args []string, std stdio) error {
	if err := parseFlags(flag.NewFlagSet("mubatch version", flag.ContinueOnError), args, std); err != nil {
		return err
	}
	fmt.Fprintln(std.out, "mubatch", version())
	return nil
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}
