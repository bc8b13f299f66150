// Package kafka takes events in from the topics of a Kafka cluster, each record once.
//
//	topics ──► Consumers.Run ──► mapping, if any ──► Intake.Take ──► lanes
//	              ▲                   │ a record that is no event       │ durable
//	              │                   ▼                                 │
//	              │             kafka_rejected ◄────────────────────────┤ rejected
//	              └──────────── offsets are committed ◄─────────────────┘
//
// Kafka shares the partitions among the processes of a group. An offset is committed only when all records before it are
// durable in the lanes, or set aside; until then they are read again, by whoever has the partition then. An event that does not
// say who it is has a messageId that follows from the place of its record, so that what is read again counts once.
package kafka

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
)

// Where a group begins in a partition of which it has committed nothing.
const (
	Earliest = "earliest"
	Latest   = "latest"
)

// How a client proves who it is.
const (
	Plain       = "plain"
	ScramSHA256 = "scram-sha-256"
	ScramSHA512 = "scram-sha-512"
)

// Settings tell from where a source gets its events.
type Settings struct {
	Brokers  []string `json:"brokers"` // host:port, of some brokers of the cluster
	Topics   []string `json:"topics"`
	Group    string   `json:"group"`             // default "mubatch-" and the key of the source
	Start    string   `json:"start"`             // Earliest or Latest; default Earliest
	Mapping  string   `json:"mapping,omitzero"`  // the key of a mapping; without one records are events in our shape
	TLS      bool     `json:"tls"`               // required with a password that goes as it is
	CA       string   `json:"ca,omitzero"`       // in PEM; default those of the system
	SASL     string   `json:"sasl,omitzero"`     // Plain, ScramSHA256 or ScramSHA512; default none
	Username string   `json:"username,omitzero"` // of SASL
}

// Secrets are what nobody is shown.
type Secrets struct {
	Password    string `json:"password,omitzero"`    // of SASL
	Certificate string `json:"certificate,omitzero"` // of the client, in PEM
	Key         string `json:"key,omitzero"`         // of the certificate, in PEM
}

// Fault is what is wrong with settings.
type Fault struct{ Pointer, Detail string }

// Check returns what is wrong with s and the secrets that go with it.
func (s Settings) Check(secrets Secrets) (faults []Fault) {
	wrong := func(pointer, format string, args ...any) {
		faults = append(faults, Fault{pointer, fmt.Sprintf(format, args...)})
	}
	switch {
	case len(s.Brokers) == 0:
		wrong("/brokers", "is required")
	case len(s.Brokers) > 20:
		wrong("/brokers", "has more than 20 brokers")
	}
	for i, broker := range s.Brokers {
		host, port, err := net.SplitHostPort(broker)
		n, numErr := strconv.ParseUint(port, 10, 16)
		if err != nil || numErr != nil || host == "" || n == 0 {
			wrong("/brokers/"+strconv.Itoa(i), "must be host:port")
		}
	}
	switch {
	case len(s.Topics) == 0:
		wrong("/topics", "is required")
	case len(s.Topics) > 50:
		wrong("/topics", "has more than 50 topics")
	}
	for i, topic := range s.Topics {
		switch {
		case topic == "" || len(topic) > 249 || strings.Trim(topic, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != "":
			wrong("/topics/"+strconv.Itoa(i), "is not the name of a topic")
		case slices.Index(s.Topics, topic) < i:
			wrong("/topics/"+strconv.Itoa(i), "is there twice")
		}
	}
	if len(s.Group) > 200 {
		wrong("/group", "is longer than 200 characters")
	}
	if len(s.Username) > 256 {
		wrong("/username", "is longer than 256 characters")
	}
	if !slices.Contains([]string{Earliest, Latest}, s.Start) {
		wrong("/start", "must be earliest or latest")
	}
	switch {
	case s.SASL == "":
	case !slices.Contains([]string{Plain, ScramSHA256, ScramSHA512}, s.SASL):
		wrong("/sasl", "must be plain, scram-sha-256 or scram-sha-512")
	case s.Username == "":
		wrong("/username", "is required with sasl")
	case secrets.Password == "":
		wrong("/secrets/password", "is required with sasl")
	case s.SASL == Plain && !s.TLS:
		wrong("/tls", "must be true with the mechanism plain, which sends the password as it is")
	}
	if !s.TLS && (s.CA != "" || secrets.Certificate != "") {
		wrong("/tls", "must be true where there are certificates")
	}
	if s.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(s.CA)) {
		wrong("/ca", "holds no certificate in PEM")
	}
	if secrets.Certificate != "" || secrets.Key != "" {
		if _, err := tls.X509KeyPair([]byte(secrets.Certificate), []byte(secrets.Key)); err != nil {
			wrong("/secrets/certificate", "and key do not belong together, or are not PEM")
		}
	}
	return faults
}

// tls returns how to speak with the brokers securely.
func (s Settings) tlsConfig(secrets Secrets) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CA != "" {
		cfg.RootCAs = x509.NewCertPool()
		cfg.RootCAs.AppendCertsFromPEM([]byte(s.CA))
	}
	if secrets.Certificate != "" {
		pair, err := tls.X509KeyPair([]byte(secrets.Certificate), []byte(secrets.Key))
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}
