package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/mubatch/mubatch/api/problem"
)

// runTail shows events as they are accepted until ctx ends, which is no error.
func runTail(ctx context.Context, args []string, std stdio) error {
	t := tailer{out: std.out, err: std.err, colour: isTerminal(std.out) && std.getenv("NO_COLOR") == ""}
	flags := flag.NewFlagSet("mubatch tail", flag.ContinueOnError)
	flags.StringVar(&t.url, "url", "", "the `URL` of mubatch; MUBATCH_URL, else that of dev.json if not given")
	flags.StringVar(&t.key, "secret-key", "", "a secret `key` with the scope read; MUBATCH_SECRET_KEY, else that of dev.json if not given")
	data := flags.String("data", ".mubatch", "the `folder` of the dev mode that has dev.json")
	flags.BoolVar(&t.json, "json", false, "print each event as one line of JSON")
	filters := map[string]*string{
		"source":       flags.String("source", "", "only of the source of this `key` or id"),
		"type":         flags.String("type", "", "only calls of this `type`: track, identify, page, screen, group or alias"),
		"event":        flags.String("event", "", "only events of this `name`"),
		"user_id":      flags.String("user", "", "only of the user of this `id`"),
		"anonymous_id": flags.String("anonymous", "", "only of the visitor of this anonymous `id`"),
		"profile":      flags.String("profile", "", "only of this `profile`: its id, or an identifier such as user_id:ada"),
		"q":            flags.String("q", "", "only with this `text` somewhere in their JSON"),
	}
	if err := parseFlags(flags, args, std); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return &exitError{2, fmt.Errorf("unexpected argument %q", flags.Arg(0))}
	}
	at, err := readInfo(filepath.Join(*data, infoFile))
	if err != nil {
		return err
	}
	t.url, t.key = cmp.Or(t.url, std.getenv("MUBATCH_URL"), at.URL), cmp.Or(t.key, std.getenv("MUBATCH_SECRET_KEY"), at.SecretKey)
	if t.url == "" || t.key == "" {
		return &exitError{2, fmt.Errorf("no --url or no --secret-key, and no %s in %s: is mubatch dev running?", infoFile, *data)}
	}
	query := url.Values{}
	for name, value := range filters {
		if *value != "" {
			query.Set(name, *value)
		}
	}
	t.url = strings.TrimSuffix(t.url, "/") + "/api/v1/events/live?" + query.Encode()
	if err := t.run(ctx); ctx.Err() == nil {
		return err
	}
	return nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}

// tailer follows the live view of events.
type tailer struct {
	url, key string
	out, err io.Writer
	json     bool
	colour   bool
	last     string // the id received last
}

const (
	tailSilence  = 45 * time.Second // three heartbeats
	tailPause    = 250 * time.Millisecond
	tailMaxPause = 5 * time.Second
	tailMaxLine  = 4 << 20
)

// run connects, and again when it is cut off, until ctx ends or the server says that it would not help.
func (t *tailer) run(ctx context.Context) error {
	pause, cut := tailPause, false
	for {
		heard, err := t.follow(ctx, func() {
			if cut {
				fmt.Fprintln(t.err, "connected again")
				cut = false
			}
		})
		var fatal *exitError
		if ctx.Err() != nil || errors.As(err, &fatal) {
			return err
		}
		if heard {
			pause = tailPause
		}
		if !cut {
			fmt.Fprintf(t.err, "cut off, will connect again: %v\n", err)
			cut = true
		}
		if sleep(ctx, pause) != nil {
			return nil
		}
		pause = min(2*pause, tailMaxPause)
	}
}

// follow shows what comes over one connection, and tells whether anything did. The error is never nil; it is an
// *exitError if there is no use in trying again.
func (t *tailer) follow(ctx context.Context, connected func()) (heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(tailSilence, func() { cancel(errors.New("the server is silent")) })
	defer silence.Stop()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, t.url, nil)
	if err != nil {
		return false, &exitError{2, err}
	}
	r.Header.Set("Authorization", "Bearer "+t.key)
	r.Header.Set("Accept", "text/event-stream")
	if t.last != "" {
		r.Header.Set("Last-Event-ID", t.last)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return false, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return false, refusal(response)
	}
	connected()
	var name, data string
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, tailMaxLine)
	for lines.Scan() {
		silence.Reset(tailSilence)
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "id":
			t.last = value
		case "event":
			name = value
		case "data":
			data = value
		case "":
			if name == "end" && strings.Contains(data, "unauthorized") {
				return true, &exitError{1, errors.New("the secret key is not valid any more")}
			}
			if err := t.show(name, data); err != nil {
				return true, &exitError{1, err}
			}
			name, data = "", ""
		}
		heard = true
	}
	return heard, cmp.Or(lines.Err(), context.Cause(ctx), io.ErrUnexpectedEOF)
}

// refusal returns what a server says that does not show events, for good if it is not for now.
func refusal(response *http.Response) error {
	var p problem.Problem
	text, _ := io.ReadAll(io.LimitReader(response.Body, 1<<16))
	err := errors.New(response.Status)
	if json.Unmarshal(text, &p) == nil && p.Title != "" {
		err = errors.New(strings.TrimSpace(p.Title + " " + p.Detail))
	}
	if s := response.StatusCode; s >= 400 && s < 500 && s != http.StatusTooManyRequests && s != http.StatusRequestTimeout {
		return &exitError{1, err}
	}
	return err
}

// show prints an event of the feed.
func (t *tailer) show(name, data string) error {
	switch name {
	case "missed":
		var missed struct{ Events *int }
		if err := json.Unmarshal([]byte(data), &missed); err != nil {
			return err
		}
		many := "some"
		if missed.Events != nil {
			many = strconv.Itoa(*missed.Events)
		}
		_, err := fmt.Fprintf(t.err, "missed %s events\n", many)
		return err
	case "event":
	default:
		return nil
	}
	if t.json {
		_, err := fmt.Fprintln(t.out, data)
		return err
	}
	var e struct {
		Type, Name  string
		UserID      string    `json:"user_id"`
		AnonymousID string    `json:"anonymous_id"`
		SourceID    string    `json:"source_id"`
		ReceivedAt  time.Time `json:"received_at"`
		Payload     struct{ Properties, Traits json.RawMessage }
	}
	if err := json.Unmarshal([]byte(data), &e); err != nil {
		return err
	}
	details := e.Payload.Properties
	if len(details) == 0 {
		details = e.Payload.Traits
	}
	_, err := fmt.Fprintf(t.out, "%s  %s  %s  %s  %s  %s\n",
		t.in(dim, e.ReceivedAt.Local().Format("15:04:05.000")), t.in(colours[e.Type], fmt.Sprintf("%-8s", plain(e.Type, 8))),
		t.in(bold, fmt.Sprintf("%-24s", plain(e.Name, 48))), fmt.Sprintf("%-20s", plain(cmp.Or(e.UserID, e.AnonymousID), 48)),
		t.in(dim, plain(e.SourceID, 20)), plain(string(details), 160))
	return err
}

// What a terminal understands, of ECMA-48.
const (
	bold = "\x1b[1m"
	dim  = "\x1b[2m"
	none = "\x1b[0m"
)

var colours = map[string]string{
	"track": "\x1b[32m", "identify": "\x1b[33m", "page": "\x1b[36m", "screen": "\x1b[36m", "group": "\x1b[35m", "alias": "\x1b[35m",
}

func (t *tailer) in(colour, text string) string {
	if !t.colour || colour == "" {
		return text
	}
	return colour + text + none
}

// plain returns at most so many characters of what anybody may have sent, without those that a terminal obeys.
func plain(s string, most int) string {
	runes := []rune(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s))
	if len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return string(runes)
}
