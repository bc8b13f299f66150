package main

import (
	"fmt"
	"regexp"
	"strconv"
)

// A release is what a server says it is.
type release struct {
	product      string // postgres, redis or valkey
	major, minor int
	text         string // as the server prints it: 15.18, 19beta1
}

func (r release) String() string {
	if r.product == "valkey" { // it is asked for as redis
		return "Valkey " + r.text
	}
	return r.text
}

// atLeast tells whether r is major.minor or newer.
func (r release) atLeast(major, minor int) bool {
	return r.major > major || r.major == major && r.minor >= minor
}

var (
	postgresVersion = regexp.MustCompile(`^postgres \(PostgreSQL\) ((\d+)(?:\.(\d+))?\S*)`)
	redisVersion    = regexp.MustCompile(`^(Redis|Valkey) server v=((\d+)\.(\d+)\S*)`)
)

// parsePostgres reads what `postgres --version` prints.
func parsePostgres(text string) (release, error) {
	m := postgresVersion.FindStringSubmatch(text)
	if m == nil {
		return release{}, fmt.Errorf("%q is not the version of a Postgres", firstLine(text))
	}
	return release{product: "postgres", major: number(m[2]), minor: number(m[3]), text: m[1]}, nil
}

// parseRedis reads what `redis-server --version` and `valkey-server --version` print. Either may be a link to the other.
func parseRedis(text string) (release, error) {
	m := redisVersion.FindStringSubmatch(text)
	if m == nil {
		return release{}, fmt.Errorf("%q is not the version of a Redis or Valkey", firstLine(text))
	}
	product := map[string]string{"Redis": "redis", "Valkey": "valkey"}[m[1]]
	return release{product: product, major: number(m[3]), minor: number(m[4]), text: m[2]}, nil
}

// The oldest releases that mubatch runs on.
func (r release) isSupported() bool {
	switch r.product {
	case "postgres":
		return r.atLeast(15, 0)
	case "redis":
		return r.atLeast(7, 0)
	default:
		return r.atLeast(7, 2)
	}
}

func number(digits string) int {
	n, _ := strconv.Atoi(digits) // "" is 0, and the expressions let nothing else through
	return n
}

func firstLine(text string) string {
	for i, c := range text {
		if c == '\n' {
			return text[:i]
		}
	}
	return text
}
